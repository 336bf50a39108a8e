"""Trial: what was seen in one launch. Raw observations without arithmetic, which a test can write as a literal."""

from __future__ import annotations

import types
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Window:
    """One stretch of timed steps of one rank, with no evaluation in it.

    `step_ms` and `wait_ms` are on the clock that did the work (CUDA events, or the CPU's), one a step: the whole of it,
    and its part before the batch was there. `start_s` and `stop_s` are the host's monotonic clock, common to a node's
    ranks.
    """

    start_s: float
    stop_s: float
    step_ms: tuple[float, ...]
    wait_ms: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """Sums over a rank's share of the validation set after `step` training steps; each image counted once."""

    step: int
    images: int
    top1_correct: int
    top5_correct: int


@dataclass(frozen=True)
class Alone:
    """Images of one rank that went through a part of the workload between two moments of the monotonic clock."""

    images: int
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class RankTrial:
    """Everything one rank saw. `losses` and `correct` hold every training step, warm-up included, in order.

    Ranks of one `shard` receive the same images (None: this rank alone has its share), and only their column 0 has logits: the losses
    of the others are means over nothing, NaN. `clock_ahead_s` is how far this rank's monotonic clock is ahead of rank 0's.
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
    interrupted: bool = False
    out_of_memory: bool = False
    gpu_peak_allocated_bytes: int | None = None
    gpu_peak_reserved_bytes: int | None = None
    host_peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """One launch: its ranks, and what is needed to read them. `failure` says why the trial is not whole."""

    classes: int
    train_images: int
    ranks_asked: int
    ranks_share_cores_with_input: bool
    ranks: tuple[RankTrial, ...]
    failure: str = ""


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
