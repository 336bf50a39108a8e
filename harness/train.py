"""One rank's run: compile, settle, timed windows with evaluations and checkpoints between them, then the parts alone."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import ceilings, seeded, trace
from harness.agree import Ranks, clock_ahead_s, must_see_the_same
from harness.config import RunConfig
from harness.course import NEVER, Course, total_steps
from harness.heartbeat import Place
from harness.job import Job, drops_taken, evaluate, must_stop, pause, stop
from harness.measure import Interrupted, NewestLoss, TimedWindow, Workload, synchronise, untimed_steps
from harness.metrics.intervals import is_steady
from harness.progress import Teller
from harness.seen import Seen, Signals
from harness.state import Keeper, Saved
from harness.telemetry import Telemetry
from harness.trial import MemoryPoint, Meters
from harness.workload import Built, Rank, build, build_cpu_block, train_multiply_adds_per_image
from pipelines.sources.imageset import ImageSet

SETTLE_BLOCK_S = 0.5
SETTLE_BLOCKS_MAX = 24
SETTLE_MAX_S = 20.0
# Seconds between looks at whether another rank was asked to stop: an exchange of one number, which costs a step little.
LOOK_S = 1.0
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


def first_step(job: Job) -> None:
    """The first batch, then the first step, which compiles; each timed apart."""
    config, built, seen, workload = job.config, job.built, job.seen, job.built.workload
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
    built.rates.at(job.done, job.drops_taken)
    seen.recording.keep(batch, *workload.step(batch), count_indices=False)
    seen.beat("in a step")
    synchronise(workload.device)
    seen.facts["compile_s"] = time.perf_counter() - arrived_s
    seen.warmup_steps += 1


def settle(job: Job) -> float:
    """Take blocks of steps until their times have stopped moving, or the cap; seconds of a step, the same on all ranks.

    One step at least is left to be timed, where the run's end is known.
    """
    seen, ranks = job.seen, job.ranks
    begun_s = time.perf_counter()
    # Who saves itself does so with all its ranks at one step: a signal waits until they can stop together.
    job.signals.deferred = job.keeper is not None
    pause(job)
    step_s = warm_up(job, 1)
    block = max(1, round(SETTLE_BLOCK_S / (step_s or SETTLE_BLOCK_S)))
    blocks_ms: list[float] = []
    seen.settled = False
    while not seen.settled and len(blocks_ms) < SETTLE_BLOCKS_MAX and steps_to_warm_up(job):
        step_s = warm_up(job, block)
        blocks_ms.append(1000 * step_s)
        job.teller.tell(
            "settle",
            step=job.done,
            images_per_s=job.config.images_per_step / step_s,
            loss=float(seen.recording.newest_loss),
        )
        seen.settled = is_steady(blocks_ms)
        if ranks.agree(time.perf_counter() - begun_s) > SETTLE_MAX_S:
            break
    seen.facts["settle_block_ms"] = tuple(blocks_ms)
    return step_s


def steps_to_warm_up(job: Job) -> int:
    """How many steps may pass before the last."""
    return max(0, job.course.total_steps - 1 - job.done) if job.course.total_steps is not None else NEVER


def warm_up(job: Job, steps: int) -> float:
    """So many steps, or up to the next pause; seconds of one, the same on all ranks, and 0 where none was left."""
    steps = min(steps, job.course.room(job.done), steps_to_warm_up(job))
    if steps == 0:
        return 0.0
    step_s = job.ranks.agree(untimed_steps(job.built.workload, job.seen.recording, steps))
    job.seen.warmup_steps += steps
    if job.keeper is not None and must_stop(job, now=True):
        stop(job)
    pause(job)
    return step_s


def train_timed(job: Job) -> None:
    """Windows of timed steps from pause to pause, until the end, the error that was asked for, or a signal."""
    workload, seen, signals = job.built.workload, job.seen, job.signals
    newest, first = NewestLoss(workload.device), job.done
    while job.done < (job.course.total_steps or 0):
        window = TimedWindow(workload, seen.recording, seen.telemetry.meters if seen.telemetry else Meters)
        forget_peaks(workload.device)
        job.ranks.wait_for_all()
        begun_s, before, room = time.perf_counter(), job.done, job.course.room(job.done)

        def after_step(
            done: int, loss: Tensor, begun_s: float = begun_s, before: int = before, room: int = room
        ) -> bool:
            if job.teller.due():
                speed = done * job.config.images_per_step / (time.perf_counter() - begun_s)
                steps = (job.course.total_steps or 0) - first
                told = {"step": before - first + done, "steps": steps, "images_per_s": speed}
                job.teller.tell("timed", **told, loss=newest.offer(loss))
            # After the last step the ranks ask each other outside the clock.
            return done < room and must_stop(job)

        seen.open_window, signals.deferred = window, True
        window.run(room, after_step)
        seen.close_window()
        seen.recording.fold()
        signals.deferred = job.keeper is not None
        # At its end a run that saves itself needs no other to go on: it is evaluated and saved first.
        if must_stop(job, now=True) and not (job.keeper is not None and job.done == job.course.total_steps):
            stop(job)
        note_peaks(workload.device, seen)
        pause(job)
    signals.deferred = False
    if must_stop(job, now=True):
        raise Interrupted(signals.asked)


def watched(
    workload: Workload,
    seen: Seen,
    waiting: Place = "waiting for a batch",
    before_step: Callable[[], None] = lambda: None,
) -> Workload:
    """The workload, which tells the heartbeat before each batch and each step, and calls `before_step`."""

    def batches() -> Iterator[Any]:
        while True:
            seen.beat(waiting)
            yield next(workload.batches)

    def gradients(batch: Any) -> tuple[Tensor, Tensor]:
        seen.beat("in a step")
        before_step()
        return workload.gradients(batch)

    return replace(workload, batches=batches(), gradients=gradients)


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


def measure_limits(job: Job, classes: int) -> None:
    """The parts alone, the devices' peaks, and the seeded step, with the ranks side by side as in training."""
    config, built, seen = job.config, job.built, job.seen
    workload = watched(built.workload, seen, "measuring the parts alone")
    around = ceilings.Surroundings(config, built, workload, job.ranks, job.teller, seen.beat)
    ceilings.give_back_memory(job.rank.device)
    for part, alone in ceilings.parts_alone(around, full=config.limits == "full"):
        seen.alone[part] = alone
    seen.facts["peaks"] = ceilings.peaks(around)
    job.teller.tell("seeded")
    seen.beat("compiling")
    seen.facts["seeded_step_distance"] = seeded.distance(config, classes, job.rank, built.scheme)


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
    *,
    limits: bool,
    folder: Path | None = None,
    keeper: Keeper | None = None,
    saved: Saved | None = None,
) -> None:
    """Everything between the ranks' meeting and their parting; `folder` takes what a profile leaves.

    `keeper` saves the run on its way; `saved` is what it goes on from.
    """
    ranks = Ranks(rank.index, rank.count)
    teller.tell("start")
    if config.block == "fused" and not config.on_gpu:
        teller.tell("block")
        seen.facts["block_build_s"] = build_cpu_block()
    built = build(config, images, rank, saved.input_state if saved else None)
    note_facts(config, built, rank, seen, len(images.classes))
    if rank.count > 1:
        seen.facts["clock_ahead_s"] = clock_ahead_s(ranks)
    with contextlib.closing(built):
        if saved is not None:
            saved.into(built, seen, rank)
        course = Course.of(config, len(built.train_split), seen.total_steps)
        job = Job(config, built, rank, seen, ranks, teller, signals, course, keeper, drops_taken(config, seen))
        fits = True
        try:
            train(job)
        except torch.cuda.OutOfMemoryError:
            fits = False
        finally:
            signals.deferred = False
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
                measure_limits(job, len(images.classes))
        teller.tell("done")


def train(job: Job) -> None:
    """From the first step to the last timed one."""
    built, seen = job.built, job.seen
    unwatched, before = built.workload, parameter_samples(built.network)
    if job.done and job.course.evaluates(job.done) and all(each.step < job.done for each in seen.job_evaluations):
        # It was stopped before it could.
        evaluate(job)
    job.teller.tell("compile")
    first_step(job)
    built.workload = watched(unwatched, seen, before_step=lambda: built.rates.at(job.done, job.drops_taken))
    step_s = settle(job)
    if job.course.total_steps is None:
        job.course = replace(job.course, total_steps=total_steps(job.config, step_s, job.done))
    seen.total_steps = job.course.total_steps
    job.look_every = max(1, round(LOOK_S / (step_s or LOOK_S)))
    with telemetry_of(job.rank, seen):
        train_timed(job)
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
    seen.telemetry = Telemetry(gpu, lambda: seen.recording.steps, with_load=first_here)
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
