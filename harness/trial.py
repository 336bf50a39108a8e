"""Trial: what was seen in one launch. Raw observations without arithmetic, which a test can write as a literal."""

from __future__ import annotations

import types
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Meters:
    """What counts up all the time, read at one moment: the energy counter of this rank's GPU, or of the CPU where it may be
    read, and what this process has had read from disks."""

    energy_j: float | None = None
    disk_read_bytes: int | None = None


@dataclass(frozen=True)
class Window:
    """One stretch of timed steps of one rank, with no evaluation in it.

    The milliseconds are on the clock that did the work (CUDA events, or the CPU's), one a step: the whole of it, its part
    before the batch was there (`wait_ms`), from there to the gradients (`compute_ms`), and to the updated weights
    (`optimiser_ms`). `start_s` and `stop_s` are the host's monotonic clock, common to a node's ranks; `unadjusted_s` is
    what a clock that nobody adjusts saw pass between them; `steps_before` the training steps of the run before it.
    """

    start_s: float
    stop_s: float
    step_ms: tuple[float, ...]
    wait_ms: tuple[float, ...]
    compute_ms: tuple[float, ...] = ()
    optimiser_ms: tuple[float, ...] = ()
    unadjusted_s: float | None = None
    opened: Meters | None = None
    closed: Meters | None = None
    steps_before: int | None = None


@dataclass(frozen=True)
class Sample:
    """The machine at one moment of a rank's monotonic clock, after so many training steps: this rank's GPU and process.

    `clock_event_reasons` are NVML's bits. Whatever has no sensor here is None.
    """

    at_s: float
    steps: int
    gpu_utilisation_pct: float | None = None
    jpeg_utilisation_pct: float | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    clock_event_reasons: int | None = None
    gpu_process_bytes: int | None = None
    other_process_utilisation_pct: float | None = None
    host_rss_bytes: int | None = None
    host_load: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Sums over a rank's share of the validation set after `step` training steps; each image counted once."""

    step: int
    images: int
    top1_correct: int
    top5_correct: int


@dataclass(frozen=True)
class Alone:
    """Images of one rank that went through a part of the workload between two moments of the monotonic clock.

    `block_s`: the seconds of equal blocks of them, whose spread tells how sure their speed is.
    """

    images: int
    start_s: float
    stop_s: float
    block_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Peak:
    """What the device itself does: floating-point operations, or bytes read and written, of a lap, and the laps' seconds."""

    work: float
    lap_s: tuple[float, ...]


@dataclass(frozen=True)
class MemoryPoint:
    """The most GPU memory that a step on so many images took, in this process and by all accounts."""

    images: int
    peak_bytes: int


@dataclass(frozen=True)
class RankTrial:
    """Everything one rank saw. `losses` and `correct` hold every training step, warm-up included, in order.

    Ranks of one `shard` receive the same images (None: this rank alone has its share), and only their column 0 has logits: the losses
    of the others are means over nothing, NaN. `clock_ahead_s` is how far this rank's monotonic clock is ahead of rank 0's.
    `seeded_step_distance`: how far the gradient of a step of this run's network was from that in eager float32, as a share of
    its norm.
    """

    rank: int
    images_per_step: int
    warmup_steps: int
    settled: bool
    windows: tuple[Window, ...]
    losses: tuple[float, ...]
    correct: tuple[int, ...]
    indices_count: int
    indices_digest: str
    index_repeats_max: int
    shard_images: int
    label_counts: tuple[int, ...]
    pixel_min: float | None
    pixel_max: float | None
    parameter_change_max: dict[str, float]
    shard: int | None = None
    column: int = 0
    clock_ahead_s: float = 0.0
    sent_bytes_per_step: int | None = None
    evaluations: tuple[Evaluation, ...] = ()
    alone: dict[str, Alone] = field(default_factory=dict)
    first_batch_s: float | None = None
    compile_s: float | None = None
    block_build_s: float | None = None
    restarts: int = 0  # times that the ranks were started again after one had died
    interrupted: bool = False
    out_of_memory: bool = False
    gpu_peak_allocated_bytes: int | None = None
    gpu_peak_reserved_bytes: int | None = None
    host_peak_rss_bytes: int | None = None
    gpu_total_bytes: int | None = None
    train_multiply_adds_per_image: int | None = None  # of the whole network, forward and backward
    settle_block_ms: tuple[float, ...] = ()
    samples: tuple[Sample, ...] = ()
    peaks: dict[str, Peak] = field(default_factory=dict)
    seeded_step_distance: float | None = None
    memory_points: tuple[MemoryPoint, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One launch: its ranks, and what is needed to read them. `failure` says why the trial is not whole."""

    classes: int
    train_images: int
    ranks_asked: int
    ranks_share_cores_with_input: bool
    ranks: tuple[RankTrial, ...]
    failure: str = ""
    precision: str = ""
    image_bytes: float | None = None  # of an image of the training set as it lies on the disk, on average


# Fields of records of schema 1 that say nothing any more: no row was told from them.
RETIRED = {"Trial": {"ranks_share_images"}}


def from_json(kind: Any, value: Any) -> Any:
    """`dataclasses.asdict` undone: a dataclass of this file from what `json` gives."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        value = {name: item for name, item in value.items() if name not in RETIRED.get(kind.__name__, ())}
        unknown = sorted(set(value) - {item.name for item in fields(kind)})
        if unknown:
            raise ValueError(f"{kind.__name__} has no {', '.join(unknown)}")
        return kind(**{name: from_json(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        return tuple(from_json(arguments[0], item) for item in value)
    if origin is dict:
        return {name: from_json(arguments[1], item) for name, item in value.items()}
    if origin is types.UnionType:
        return None if value is None else from_json(arguments[0], value)
    return kind(value)
