"""One rank's run: compile, settle, timed windows with evaluations between them, then the parts alone."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import ceilings, metrics
from harness.agree import Ranks, clock_ahead_s, must_see_the_same
from harness.config import RunConfig
from harness.heartbeat import Heartbeat, Place
from harness.measure import Interrupted, NewestLoss, Recording, TimedWindow, Workload, synchronise, untimed_steps
from harness.progress import Teller
from harness.trial import Alone, Evaluation, Window
from harness.workload import Built, Rank, build, build_cpu_block
from pipelines.sources.imageset import ImageSet

SETTLE_BLOCK_S = 0.5
SETTLE_BLOCKS_MAX = 12
SETTLE_MAX_S = 20.0
SETTLED_SPREAD = 0.05
ALONE_S = 3.0
ALONE_STEPS_MIN = 5
PARAMETER_SAMPLES = 1000


@dataclass
class Seen:
    """The rank's trial in the making: whatever is here when the run ends is written down."""

    recording: Recording = field(default_factory=Recording)
    windows: list[Window] = field(default_factory=list)
    open_window: TimedWindow | None = None
    warmup_steps: int = 0
    settled: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    alone: dict[str, Alone] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None

    def beat(self, place: Place) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(place)

    def close_window(self) -> None:
        if self.open_window is not None:
            window, self.open_window = self.open_window.told(), None
            if window.step_ms:
                self.windows.append(window)


class Signals:
    """SIGINT and SIGTERM end the rank at once, except within a timed window, which then ends after its step."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        first = self.asked is None
        self.asked = number
        if first and not self.deferred:
            raise Interrupted(number)


def parameter_samples(network: torch.nn.Module) -> dict[str, Tensor]:
    """Up to PARAMETER_SAMPLES evenly spread elements of every parameter."""
    samples = {}
    for name, parameter in network.named_parameters():
        flat = parameter.detach().reshape(-1)
        samples[name] = flat[:: max(1, flat.numel() // PARAMETER_SAMPLES)].clone()
    return samples


def largest_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((after[name] - sample).abs().max()) for name, sample in before.items()}


# --- the phases, in order -----------------------------------------------------------------------------------------


def first_step(config: RunConfig, built: Built, seen: Seen) -> None:
    """The first batch, then the first step, which compiles; each timed apart."""
    workload = built.workload
    seen.beat("waiting for a batch")
    start_s = time.perf_counter()
    batch = next(workload.batches)
    synchronise(workload.device)
    arrived_s = time.perf_counter()
    seen.facts["first_batch_s"] = arrived_s - start_s
    seen.facts["pixel_min"], seen.facts["pixel_max"] = float(batch.images.min()), float(batch.images.max())
    if config.network_columns > 1:
        # Two decoders on a GPU may round a pixel apart; which images came is told by their indices.
        must_see_the_same(batch, built.scheme.shard, pixels=config.decode == "cpu")
    seen.beat("compiling")
    arrived_s = time.perf_counter()
    seen.recording.keep(batch, *workload.step(batch), count_indices=False)
    seen.beat("in a step")
    synchronise(workload.device)
    seen.facts["compile_s"] = time.perf_counter() - arrived_s
    seen.warmup_steps = 1


def settle(workload: Workload, images_per_step: int, seen: Seen, ranks: Ranks, teller: Teller) -> float:
    """Take steps until three blocks of them agree, or the cap; seconds of a step, the same on all ranks."""
    begun_s = time.perf_counter()
    step_s = ranks.agree(untimed_steps(workload, seen.recording, 1))
    seen.warmup_steps += 1
    block = max(1, round(SETTLE_BLOCK_S / step_s))
    blocks_ms: list[float] = []
    while not seen.settled and len(blocks_ms) < SETTLE_BLOCKS_MAX:
        step_s = ranks.agree(untimed_steps(workload, seen.recording, block))
        seen.warmup_steps += block
        blocks_ms.append(1000 * step_s)
        teller.tell(
            "settle",
            step=seen.warmup_steps,
            images_per_s=images_per_step / step_s,
            loss=float(seen.recording.losses[-1]),
        )
        seen.settled = metrics.spread_of_last(blocks_ms) <= SETTLED_SPREAD
        if ranks.agree(time.perf_counter() - begun_s) > SETTLE_MAX_S:
            break
    return step_s


def steps_to_time(config: RunConfig, step_s: float, train_images: int, warmup_steps: int) -> int:
    """How many timed steps the asked length comes to."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * train_images / config.images_per_step) - warmup_steps)
    assert config.timed_seconds is not None
    return max(1, math.ceil(config.timed_seconds / step_s))


def windows(total: int, config: RunConfig) -> list[int]:
    """Steps of each window: one, or as many as evaluations are asked for between them."""
    if not config.evaluate_every:
        return [total]
    each = max(1, round(config.evaluate_every / config.images_per_step))
    return [each] * (total // each) + ([total % each] if total % each else [])


def train_timed(
    config: RunConfig, built: Built, seen: Seen, ranks: Ranks, teller: Teller, signals: Signals, total: int
) -> None:
    workload, newest, done_before = built.workload, NewestLoss(built.workload.device), 0
    for steps in windows(total, config):
        window = TimedWindow(workload, seen.recording)
        forget_peaks(workload.device)
        ranks.wait_for_all()
        begun_s = time.perf_counter()

        def after_step(done: int, loss: Tensor, begun_s: float = begun_s, before: int = done_before) -> bool:
            if teller.due():
                speed = done * config.images_per_step / (time.perf_counter() - begun_s)
                teller.tell("timed", step=before + done, steps=total, images_per_s=speed, loss=newest.offer(loss))
            return signals.asked is not None

        seen.open_window, signals.deferred = window, True
        window.run(steps, after_step)
        seen.close_window()
        signals.deferred = False
        if signals.asked is not None:
            raise Interrupted(signals.asked)
        note_peaks(workload.device, seen)
        done_before += steps
        evaluate(built, seen, teller)


def watched(workload: Workload, seen: Seen, waiting: Place = "waiting for a batch") -> Workload:
    """The workload, which tells the heartbeat before each batch and each step."""

    def batches() -> Iterator[Any]:
        while True:
            seen.beat(waiting)
            yield next(workload.batches)

    def step(batch: Any) -> tuple[Tensor, Tensor]:
        seen.beat("in a step")
        return workload.step(batch)

    return replace(workload, batches=batches(), step=step)


def evaluate(built: Built, seen: Seen, teller: Teller) -> None:
    if built.evaluate is not None:
        teller.tell("evaluate")
        seen.evaluations.append(
            Evaluation(len(seen.recording.losses), *built.evaluate(lambda: seen.beat("evaluating")))
        )


def forget_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def note_peaks(device: torch.device, seen: Seen) -> None:
    """Keep the largest peaks of any window: of torch's allocator on the device, and of this process on the host."""
    peaks = {"host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peaks["gpu_peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        peaks["gpu_peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    for name, peak in peaks.items():
        seen.facts[name] = max(peak, seen.facts.get(name, 0))


def measure_alone(config: RunConfig, built: Built, seen: Seen, ranks: Ranks, teller: Teller, step_s: float) -> None:
    """Input alone and model alone (and without communication), with the ranks side by side as in training."""
    workload = watched(built.workload, seen, "measuring the parts alone")
    batch = next(workload.batches)
    resident = type(batch)(*(part.clone() for part in batch))
    assert config.prefetch is not None
    if config.pipeline != "synthetic":
        # A batch that is always there has no input path whose speed could be told.
        teller.tell("input")
        ranks.wait_for_all()
        seen.alone["input"] = ceilings.input_alone(workload, ALONE_S, drain=config.prefetch + 1)
    steps = max(ALONE_STEPS_MIN, math.ceil(ALONE_S / step_s))
    for part in ("model", "no_comm") if ranks.count > 1 else ("model",):
        teller.tell(part)
        silenced = built.without_communication() if part == "no_comm" else contextlib.nullcontext()
        with silenced:
            if part == "no_comm":
                # What parts of a network exchange is in their graph, which is compiled once more without it, each rank for itself.
                seen.beat("compiling")
                built.workload.step(resident)
                synchronise(workload.device)
            ranks.wait_for_all()
            seen.alone[part] = ceilings.model_alone(workload, resident, steps, partial(tell_step, teller, part, steps))


def tell_step(teller: Teller, part: str, steps: int, done: int) -> None:
    teller.tell(part, step=done, steps=steps)


def run(
    config: RunConfig, images: ImageSet, rank: Rank, seen: Seen, teller: Teller, signals: Signals, limits: bool
) -> None:
    """Everything between the ranks' meeting and their parting."""
    ranks = Ranks(rank.index, rank.count)
    teller.tell("start")
    if config.block == "fused" and not config.on_gpu:
        teller.tell("block")
        seen.facts["block_build_s"] = build_cpu_block()
    built = build(config, images, rank)
    before = parameter_samples(built.network)
    seen.facts["shard_images"] = len(built.train_split) // config.shards
    seen.facts["shard"], seen.facts["column"] = built.scheme.shard, built.scheme.column
    if rank.count > 1:
        seen.facts["sent_bytes_per_step"] = built.scheme.sent_bytes_per_step(built.network, config)
        seen.facts["clock_ahead_s"] = clock_ahead_s(ranks)
    try:
        teller.tell("compile")
        first_step(config, built, seen)
        unwatched, built.workload = built.workload, watched(built.workload, seen)
        step_s = settle(built.workload, config.images_per_step, seen, ranks, teller)
        total = steps_to_time(config, step_s, len(built.train_split), seen.warmup_steps)
        train_timed(config, built, seen, ranks, teller, signals, total)
        seen.facts["parameter_change_max"] = largest_changes(before, parameter_samples(built.network))
        if limits:
            # What was trained stands though a resident batch more may not fit. With more ranks the others would wait.
            built.workload = unwatched
            with contextlib.suppress(*((torch.cuda.OutOfMemoryError,) if rank.count == 1 else ())):
                measure_alone(config, built, seen, ranks, teller, step_s)
        teller.tell("done")
    finally:
        built.close()
