"""One rank's run: compile, settle, timed windows with evaluations between them, then the parts alone."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import ceilings, seeded, trace
from harness.agree import Ranks, clock_ahead_s, must_see_the_same
from harness.config import RunConfig
from harness.heartbeat import Place
from harness.measure import Interrupted, NewestLoss, TimedWindow, Workload, synchronise, untimed_steps
from harness.metrics.intervals import is_steady
from harness.progress import Teller
from harness.seen import Seen, Signals
from harness.telemetry import Telemetry
from harness.trial import Evaluation, MemoryPoint, Meters
from harness.workload import Built, Rank, build, build_cpu_block, train_multiply_adds_per_image
from pipelines.sources.imageset import ImageSet

SETTLE_BLOCK_S = 0.5
SETTLE_BLOCKS_MAX = 24
SETTLE_MAX_S = 20.0
PARAMETER_SAMPLES = 1000


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
    """Take blocks of steps until their times have stopped moving, or the cap; seconds of a step, the same on all ranks."""
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
        seen.settled = is_steady(blocks_ms)
        if ranks.agree(time.perf_counter() - begun_s) > SETTLE_MAX_S:
            break
    seen.facts["settle_block_ms"] = tuple(blocks_ms)
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
        window = TimedWindow(workload, seen.recording, seen.telemetry.meters if seen.telemetry else Meters)
        forget_peaks(workload.device)
        ranks.wait_for_all()
        begun_s = time.perf_counter()

        def after_step(done: int, loss: Tensor, begun_s: float = begun_s, before: int = done_before) -> bool:
            if teller.due():
                speed = done * config.images_per_step / (time.perf_counter() - begun_s)
                teller.tell("timed", step=before + done, steps=total, images_per_s=speed, loss=newest.offer(loss))
            return signals.asked is not None

        seen.open_window, signals.deferred = window, True
        try:
            window.run(steps, after_step)
            seen.close_window()
        finally:
            signals.deferred = False
        if signals.asked is not None:
            raise Interrupted(signals.asked)
        note_peaks(workload.device, seen)
        done_before += steps
        evaluate(built, seen, teller)
        if train_error_pct(built, seen, ranks, steps) <= (config.target_train_error_pct or -1):
            break


def train_error_pct(built: Built, seen: Seen, ranks: Ranks, steps: int) -> float:
    """Of the whole job over its newest steps, on the images as they were trained on."""
    has_logits = built.scheme.column == 0
    right = sum(map(float, seen.recording.correct[-steps:])) if has_logits else 0.0
    images = steps * built.workload.images_per_step if has_logits else 0
    return 100 * (1 - ranks.total(right) / ranks.total(images))


def watched(workload: Workload, seen: Seen, waiting: Place = "waiting for a batch") -> Workload:
    """The workload, which tells the heartbeat before each batch and each step."""

    def batches() -> Iterator[Any]:
        while True:
            seen.beat(waiting)
            yield next(workload.batches)

    def gradients(batch: Any) -> tuple[Tensor, Tensor]:
        seen.beat("in a step")
        return workload.gradients(batch)

    return replace(workload, batches=batches(), gradients=gradients)


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


def measure_limits(
    config: RunConfig, built: Built, rank: Rank, classes: int, seen: Seen, ranks: Ranks, teller: Teller
) -> None:
    """The parts alone, the devices' peaks, and the seeded step, with the ranks side by side as in training."""
    workload = watched(built.workload, seen, "measuring the parts alone")
    around = ceilings.Surroundings(config, built, workload, ranks, teller, seen.beat)
    ceilings.give_back_memory(rank.device)
    for part, alone in ceilings.parts_alone(around, full=config.limits == "full"):
        seen.alone[part] = alone
    seen.facts["peaks"] = ceilings.peaks(around)
    teller.tell("seeded")
    seen.beat("compiling")
    seen.facts["seeded_step_distance"] = seeded.distance(config, classes, rank, built.scheme)


@contextlib.contextmanager
def what_was_trained_stands(rank: Rank) -> Iterator[None]:
    """Memory that ends in the body is no fault of the training before it. With more ranks the others would wait for this one."""
    try:
        yield
    except RuntimeError as error:
        if rank.count > 1 or not out_of_memory(error):
            raise


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ended: torch's own, DALI's, or of a library below."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


def run(
    config: RunConfig,
    images: ImageSet,
    rank: Rank,
    seen: Seen,
    teller: Teller,
    signals: Signals,
    limits: bool,
    folder: Path | None = None,
) -> None:
    """Everything between the ranks' meeting and their parting; `folder` takes what a profile leaves."""
    ranks = Ranks(rank.index, rank.count)
    teller.tell("start")
    if config.block == "fused" and not config.on_gpu:
        teller.tell("block")
        seen.facts["block_build_s"] = build_cpu_block()
    built = build(config, images, rank)
    note_facts(config, built, rank, seen, len(images.classes))
    if rank.count > 1:
        seen.facts["clock_ahead_s"] = clock_ahead_s(ranks)
    with contextlib.closing(built):
        fits = True
        try:
            train(config, built, rank, seen, ranks, teller, signals)
        except torch.cuda.OutOfMemoryError:
            fits = False
        if not fits:
            # Here, where no traceback holds the step's tensors any more.
            seen.facts["memory_points"] = memory_points(built, rank, seen)
            raise torch.cuda.OutOfMemoryError
        if config.profile:
            teller.tell("profile")
            # Its tables are made in Python, for as long as a compiler may take.
            told = watched(built.workload, seen)
            trace.trace(told, config.profile, folder if rank.index == 0 else None, lambda: seen.beat("compiling"))
        if limits:
            with what_was_trained_stands(rank):
                measure_limits(config, built, rank, len(images.classes), seen, ranks, teller)
        teller.tell("done")


def train(
    config: RunConfig, built: Built, rank: Rank, seen: Seen, ranks: Ranks, teller: Teller, signals: Signals
) -> None:
    """From the first step to the last timed one."""
    unwatched, before = built.workload, parameter_samples(built.network)
    teller.tell("compile")
    first_step(config, built, seen)
    built.workload = watched(unwatched, seen)
    step_s = settle(built.workload, config.images_per_step, seen, ranks, teller)
    total = steps_to_time(config, step_s, len(built.train_split), seen.warmup_steps)
    with telemetry_of(rank, seen):
        train_timed(config, built, seen, ranks, teller, signals, total)
    seen.facts["parameter_change_max"] = largest_changes(before, parameter_samples(built.network))
    built.workload = unwatched


@contextlib.contextmanager
def telemetry_of(rank: Rank, seen: Seen) -> Iterator[None]:
    """Samples of this rank's device and process, as long as the body lasts."""
    gpu = None
    if rank.device.type == "cuda":
        # NVML counts GPUs by their bus, and CUDA may not: the UUID is the same to both.
        gpu = f"GPU-{str(torch.cuda.get_device_properties(rank.device).uuid).removeprefix('GPU-')}"
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    seen.telemetry = Telemetry(gpu, lambda: len(seen.recording.losses), with_load=first_here)
    seen.telemetry.start()
    try:
        yield
    finally:
        seen.facts["samples"] = seen.telemetry.samples()
        seen.telemetry.close()


def memory_points(built: Built, rank: Rank, seen: Seen) -> tuple[MemoryPoint, ...]:
    """What smaller steps take of the GPU after one that did not fit; () with other ranks, which would wait for this one."""
    if rank.count > 1 or rank.device.type != "cuda":
        return ()
    # Another shape is another graph, which may not compile; the row is about what did not fit, and waits for nothing.
    seen.beat("compiling")
    with contextlib.suppress(Exception):
        return ceilings.memory_points(built.workload, next(built.workload.batches))
    return ()


def note_facts(config: RunConfig, built: Built, rank: Rank, seen: Seen, classes: int) -> None:
    """What is known before the first step: the rank's place, its share of the images, and the network's work."""
    seen.facts["shard_images"] = len(built.train_split) // config.shards
    seen.facts["shard"], seen.facts["column"] = built.scheme.shard, built.scheme.column
    seen.facts["train_multiply_adds_per_image"] = train_multiply_adds_per_image(config, classes)
    if rank.count > 1:
        seen.facts["sent_bytes_per_step"] = built.scheme.sent_bytes_per_step(built.network, config)
    if rank.device.type == "cuda":
        seen.facts["gpu_total_bytes"] = torch.cuda.mem_get_info(rank.device)[1]
