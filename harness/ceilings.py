"""The same workload with a part taken away, and the devices' own peaks, each until its speed is sure."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from harness.agree import Ranks
from harness.box import probes
from harness.config import RunConfig
from harness.heartbeat import Place
from harness.measure import Workload, synchronise
from harness.metrics.intervals import relative_half_width
from harness.progress import Teller
from harness.schemes import DTYPES
from harness.trial import Alone, MemoryPoint, Peak
from harness.workload import Built
from pipelines import PARTS

BLOCK_S = 0.5
BLOCKS_MIN = 4
ALONE_MIN_S = 2.0
ALONE_MAX_S = 8.0
SURE_WITHIN = 0.02
PEAK_S = 0.5
QUEUED_STEPS, QUEUED_TRIES = 3, 7
CYCLES_PER_S = 2e9  # no GPU's clock is much faster: a pause of so many cycles is no shorter than asked
POINTS = (8, 4)  # a step on an eighth and on a quarter of the images tell how memory grows with them


@dataclass
class Surroundings:
    """What measuring needs of the run around it: the rank's heartbeat, its word to a person, and the other ranks."""

    config: RunConfig
    built: Built
    workload: Workload  # as training had it, but that it tells the heartbeat where it is
    ranks: Ranks
    teller: Teller
    beat: Callable[[Place], None]

    @property
    def ahead(self) -> int:
        """Batches that may be ready before anybody asks: the queue, and the one under way."""
        return (self.config.prefetch or 1) + 1

    def begin(self, part: str) -> None:
        self.teller.tell(part)
        self.beat("measuring the parts alone")
        self.ranks.wait_for_all()


# --- parts of the workload ----------------------------------------------------------------------------------------


def until_sure(around: Surroundings, block: Callable[[], None], images: int) -> Alone:
    """Blocks of so many images, the ranks side by side, until rank 0 is sure of their mean or has spent ALONE_MAX_S.

    A block returns when its work is done.
    """
    begun_s = now_s = time.perf_counter()
    block_s: list[float] = []
    while True:
        block()
        around.beat("measuring the parts alone")
        before_s, now_s = now_s, time.perf_counter()
        block_s.append(now_s - before_s)
        sure = len(block_s) >= BLOCKS_MIN and relative_half_width(block_s) <= SURE_WITHIN
        spent_s = now_s - begun_s
        if around.ranks.agree(float((sure and spent_s >= ALONE_MIN_S) or spent_s >= ALONE_MAX_S)):
            return Alone(len(block_s) * images, begun_s, now_s, tuple(block_s))


def input_alone(around: Surroundings) -> Alone:
    """Take batches and train on none."""
    return taken_alone(around, around.workload.batches)


def part_alone(around: Surroundings, part: str) -> Alone | None:
    """The input cut short after `part`; None where this pipeline cannot be cut there."""
    shortened = around.built.shortened(part)
    if shortened is None:
        return None
    with contextlib.closing(shortened):
        return taken_alone(around, shortened)


def taken_alone(around: Surroundings, batches: Iterator[Any]) -> Alone:
    """Batches as they come, in blocks of at least those made ahead, which are taken before the clock: they do not count."""

    def take(count: int) -> None:
        for _ in range(count):
            around.beat("measuring the parts alone")
            next(batches)
            wait_for_stream(around.workload.device)

    take(around.ahead)
    begun_s = time.perf_counter()
    take(around.ahead)
    a_batch_s = around.ranks.agree((time.perf_counter() - begun_s) / around.ahead)
    count = max(around.ahead, round(BLOCK_S / max(a_batch_s, 1e-6)))
    around.ranks.wait_for_all()
    return until_sure(around, lambda: take(count), count * around.workload.images_per_step)


def wait_for_stream(device: torch.device) -> None:
    if device.type == "cuda":
        # Nothing else here waits for the decoder. The stream and not the device: batches decoded ahead go on.
        torch.cuda.current_stream(device).synchronize()


def resident_step_s(around: Surroundings, resident: Any) -> float:
    """Seconds of a step on the resident batch, the same on all ranks; the one before it warms up."""
    for _ in range(2):
        begun_s = time.perf_counter()
        around.workload.step(resident)
        synchronise(around.workload.device)
    return around.ranks.agree(time.perf_counter() - begun_s)


def model_alone(around: Surroundings, resident: Any) -> Alone:
    """Train on one resident batch, whose pixels need no input path."""
    workload = around.workload
    steps = max(1, round(BLOCK_S / resident_step_s(around, resident)))
    around.ranks.wait_for_all()

    def block() -> None:
        for _ in range(steps):
            workload.step(resident)
        synchronise(workload.device)

    return until_sure(around, block, steps * workload.images_per_step)


def model_queued(around: Surroundings, resident: Any) -> Alone | None:
    """A few steps that a GPU was asked for before it could begin the first, so that it waits for the host in none.

    The median of some tries, each right after other steps, so that the card is as hot as in training. None on a CPU, and where
    the host was too slow in every try.
    """
    workload = around.workload
    if workload.device.type != "cuda":
        return None
    tries = [seconds for _ in range(QUEUED_TRIES) if (seconds := queued_s(workload, resident)) is not None]
    return Alone(QUEUED_STEPS * workload.images_per_step, 0.0, median(tries)) if tries else None


def queued_s(workload: Workload, resident: Any) -> float | None:
    """Seconds of QUEUED_STEPS steps that waited behind a pause of the device; None where it was over before they were asked for."""
    begun_s = time.perf_counter()
    workload.step(resident)
    host_s = time.perf_counter() - begun_s
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(2 * QUEUED_STEPS * host_s * CYCLES_PER_S))
    start.record()
    for _ in range(QUEUED_STEPS):
        workload.step(resident)
    stop.record()
    in_time = not start.query()
    synchronise(workload.device)
    return start.elapsed_time(stop) / 1000 if in_time else None


def input_while_training(around: Surroundings, resident: Any) -> Alone:
    """What the input gives while the model trains on a batch that is already there, and neither waits for the other."""
    workload = around.workload
    steps = max(2, round(ALONE_MIN_S / resident_step_s(around, resident)))
    drain = Drain(workload, around.ahead)
    with drain:
        around.ranks.wait_for_all()
        before, begun_s = drain.taken, time.perf_counter()
        for _ in range(steps):
            workload.step(resident)
        synchronise(workload.device)
        batches, ended_s = drain.taken - before, time.perf_counter()
    return Alone(batches * workload.images_per_step, begun_s, ended_s)


class Drain:
    """A thread that takes batches and counts them, while the body runs; it begins once the `ahead` that were made before are taken.

    What stops it is raised where the body ends.
    """

    def __init__(self, workload: Workload, ahead: int):
        self._workload, self._ahead, self.taken = workload, ahead, 0
        self._begun, self._over = threading.Event(), threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        try:
            with own_stream(self._workload.device):
                while not self._over.is_set():
                    next(self._workload.batches)
                    wait_for_stream(self._workload.device)
                    self.taken += 1
                    if self.taken >= self._ahead:
                        self._begun.set()
        except BaseException as error:
            self._failed = error
        finally:
            self._begun.set()

    def __enter__(self) -> None:
        self._thread.start()
        self._begun.wait()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A stream beside the one that trains, which would otherwise wait for every batch."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else contextlib.nullcontext()


def parts_alone(around: Surroundings, *, full: bool) -> Iterator[tuple[str, Alone]]:
    """Every part by its name, as soon as it is measured; `full` tells the input's parts apart too."""
    workload, config = around.workload, around.config
    batch = next(workload.batches)
    resident = type(batch)(*(part.clone() for part in batch))
    # A batch that is always there has no input path whose speed could be told.
    if config.pipeline != "synthetic":
        around.begin("input")
        yield "input", input_alone(around)
    for part in ("model", "no_comm") if around.ranks.count > 1 else ("model",):
        with around.built.without_communication() if part == "no_comm" else contextlib.nullcontext():
            if part == "no_comm":
                # What parts of a network exchange is in their graph, which is compiled once more without it, each rank for itself.
                around.beat("compiling")
                around.built.workload.step(resident)
                synchronise(workload.device)
            around.begin(part)
            yield part, model_alone(around, resident)
            queued = model_queued(around, resident) if part == "no_comm" or around.ranks.count == 1 else None
            if queued is not None:
                yield "queued", queued
    if full and config.pipeline != "synthetic":
        around.begin("input_while_training")
        yield "input_while_training", input_while_training(around, resident)
        for part in PARTS:
            around.begin(part)
            give_back_memory(workload.device)
            if (alone := part_alone(around, part)) is not None:
                yield part, alone


def give_back_memory(device: torch.device) -> None:
    """What torch keeps and does not use, to whoever else needs the card's memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- the devices --------------------------------------------------------------------------------------------------


def peaks(around: Surroundings) -> dict[str, Peak]:
    """What this rank's device does in matrix products of the run's precision and in copies, beside the other ranks'."""
    device, dtype = around.workload.device, DTYPES[around.config.precision]
    around.begin("peaks")
    gemm = probes.matrix_product(device, dtype, PEAK_S)
    around.ranks.wait_for_all()
    return {"gemm": gemm, "copy": probes.copy(device, PEAK_S)}


def memory_points(workload: Workload, like: Any) -> tuple[MemoryPoint, ...]:
    """After a step that did not fit: what steps on fewer images take of the card, by all accounts; () where they do not fit either.

    `like` is a batch, of whose images the first are taken.
    """
    points = []
    for share in POINTS:
        torch.cuda.empty_cache()
        few = type(like)(*(part[: max(1, len(part) // share)] for part in like))
        try:
            workload.step(few)
            synchronise(workload.device)
        except torch.cuda.OutOfMemoryError:
            return ()
        free, total = torch.cuda.mem_get_info(workload.device)
        points.append(MemoryPoint(len(few.labels), total - free))
    return tuple(points)
