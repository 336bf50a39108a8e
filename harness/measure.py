"""The timed loop: what a workload is, and what is written down while it runs. Nothing here computes a result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.trial import Meters, Window

Counts = NDArray[np.int64]


@dataclass
class Workload:
    """All that the loop knows of what it runs.

    `batches` yields `pipelines.Batch` on `device`, always of `images_per_step` images (this rank's); `gradients` computes
    those of one and returns its mean loss and its count of right answers as tensors that stay on the device; `update`
    changes the weights by them.
    """

    batches: Iterator[Any]
    gradients: Callable[[Any], tuple[Tensor, Tensor]]
    update: Callable[[], None]
    images_per_step: int
    device: torch.device

    def step(self, batch: Any) -> tuple[Tensor, Tensor]:
        """One training step: loss and right answers."""
        told = self.gradients(batch)
        self.update()
        return told


class Interrupted(BaseException):
    """SIGINT or SIGTERM: the number of the signal is its argument."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Laps:
    """Moments on the clock that does the work: CUDA events on the current stream, or the host's clock for a CPU.

    The host runs ahead of a GPU, so only the GPU's own clock can tell for how long it had no batch. Four moments a step.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._ends: list[Any] = []
        self._arrivals: list[Any] = []
        self._gradients: list[Any] = []
        self._updates: list[Any] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def end_step(self) -> None:
        """A step ends here, and the next begins; the first call begins the first."""
        self._ends.append(self._now())

    def batch_arrived(self) -> None:
        self._arrivals.append(self._now())

    def gradients_computed(self) -> None:
        self._gradients.append(self._now())

    def weights_updated(self) -> None:
        self._updates.append(self._now())

    def _between(self, starts: list[Any], stops: list[Any]) -> tuple[float, ...]:
        """Milliseconds of every step that ended; the device must have been synchronised."""
        ended = zip(starts[: len(self._ends) - 1], stops, strict=False)
        return tuple(float(a.elapsed_time(b) if self._cuda else 1000 * (b - a)) for a, b in ended)

    def told(self) -> dict[str, tuple[float, ...]]:
        """The milliseconds of a Window."""
        return {
            "step_ms": self._between(self._ends, self._ends[1:]),
            "wait_ms": self._between(self._ends, self._arrivals),
            "compute_ms": self._between(self._arrivals, self._gradients),
            "optimiser_ms": self._between(self._gradients, self._updates),
        }


class NewestLoss:
    """The newest loss that has already reached the host: asking never waits for the device."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._value: float | None = None
        self._copy: tuple[Tensor, Any] | None = None

    def offer(self, loss: Tensor) -> float | None:
        if not self._cuda:
            return float(loss)
        if self._copy and self._copy[1].query():
            self._value, self._copy = float(self._copy[0]), None
        if self._copy is None:
            target = torch.empty((), dtype=loss.dtype, pin_memory=True)
            target.copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._copy = (target, arrived)
        return self._value


class Recording:
    """What the steps gave: kept on the device while the clock runs, and told over to the host by `fold`.

    What it holds then grows by two numbers a step, and else only with the images and classes there are.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.losses: list[float] = []  # of the steps that were folded
        self.correct: list[int] = []
        self.label_counts = np.zeros(0, np.int64)
        self.index_counts = np.zeros(0, np.int64)  # how often each image came in timed steps
        self.indices_sum = 0  # see `sum_of_places`
        self.newest_loss: Tensor | float = math.nan
        self._losses: list[Tensor | float] = []
        self._correct: list[Tensor | float] = []
        self._labels: list[Tensor] = []
        self._indices: list[Tensor] = []

    def keep(self, batch: Any, loss: Tensor, correct: Tensor, *, count_indices: bool) -> None:
        # Clones: a pipeline may reuse its buffers, and a kept view would hold a whole batch of pixels alive.
        self.newest_loss = lasting(loss)
        self._losses.append(self.newest_loss)
        self._correct.append(lasting(correct))
        self._labels.append(batch.labels.clone())
        if count_indices:
            self._indices.append(batch.indices.clone())
        self.steps += 1

    def fold(self) -> None:
        """Take over what was kept since the last time; it waits for the device."""
        self.losses += map(float, on_host(self._losses))
        self.correct += map(int, on_host(self._correct))
        self.label_counts = added(self.label_counts, np.bincount(on_host(self._labels).astype(np.int64)))
        indices = on_host(self._indices).astype(np.int64)
        self.indices_sum = (self.indices_sum + sum_of_places(indices, int(self.index_counts.sum()))) % 2**64
        self.index_counts = added(self.index_counts, np.bincount(indices))
        self._losses, self._correct, self._labels, self._indices = [], [], [], []

    def told(self, classes: int) -> dict[str, Any]:
        """The recording as fields of a RankTrial."""
        self.fold()
        counts = added(self.label_counts, np.zeros(classes, np.int64))
        return {
            "losses": tuple(self.losses),
            "correct": tuple(self.correct),
            "label_counts": tuple(int(count) for count in counts),
            "indices_count": int(self.index_counts.sum()),
            "indices_digest": f"{self.indices_sum:016x}",
            "index_repeats_max": int(self.index_counts.max(initial=0)),
        }


def added(counts: Counts, more: Counts) -> Counts:
    """Two rows of counts added up, the shorter as if zeros followed."""
    longer = np.zeros(max(len(counts), len(more)), np.int64)
    longer[: len(counts)] += counts
    longer[: len(more)] += more
    return longer


def sum_of_places(indices: Counts, before: int) -> int:
    """A digest of which image came when, of images that follow after `before` others: a sum, so that digests of parts add up.

    Of each image and its place in the row one word of 64 bits (the finaliser of SplitMix64, public domain), modulo 2^64.
    """
    x = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.arange(before, before + len(indices), dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int(np.sum(x ^ (x >> np.uint64(31)), dtype=np.uint64))


def lasting(number: Tensor) -> Tensor | float:
    """A step's number as it may be kept: on a GPU as it is, for asking would wait.

    On a host's heap a tensor made amid a step's own would keep those beside it from being used again, step by step.
    """
    return number if number.is_cuda else float(number)


def on_host(kept: Sequence[Tensor | float]) -> np.ndarray[Any, Any]:
    """The elements of tensors in order, or the numbers, as one flat array."""
    tensors = [each.detach().reshape(-1) for each in kept if isinstance(each, Tensor)]
    return torch.cat(tensors).cpu().numpy() if tensors else np.array(kept, dtype=np.float64)


class TimedWindow:
    """One window in the making; `told` may be asked at any moment, also after an interruption in its middle.

    `meters` is read at its two ends, outside the clock.
    """

    def __init__(self, workload: Workload, recording: Recording, meters: Callable[[], Meters] = Meters):
        self._workload, self._recording, self._meters = workload, recording, meters
        self._laps, self._steps_before = Laps(workload.device), recording.steps
        self._start_s = self._stop_s = 0.0
        self._unadjusted_s: float | None = None
        self._opened: Meters | None = None
        self._closed: Meters | None = None

    def run(self, steps: int, after_step: Callable[[int, Tensor], bool]) -> None:
        """Take `steps` steps, or fewer once `after_step(steps done, newest loss)` says to stop."""
        workload, keep, laps = self._workload, self._recording.keep, self._laps
        synchronise(workload.device)
        self._opened = self._meters()
        began, self._start_s = unadjusted_clock_s(), time.perf_counter()
        laps.end_step()
        try:
            for done in range(1, steps + 1):
                batch = next(workload.batches)
                laps.batch_arrived()
                loss, correct = workload.gradients(batch)
                laps.gradients_computed()
                workload.update()
                laps.weights_updated()
                keep(batch, loss, correct, count_indices=True)
                laps.end_step()
                if after_step(done, loss):
                    break
        finally:
            synchronise(workload.device)
            self._stop_s, ended = time.perf_counter(), unadjusted_clock_s()
            self._unadjusted_s = ended - began if began is not None and ended is not None else None
            self._closed = self._meters()

    def told(self) -> Window:
        return Window(
            self._start_s,
            self._stop_s,
            **self._laps.told(),
            unadjusted_s=self._unadjusted_s,
            opened=self._opened,
            closed=self._closed,
            steps_before=self._steps_before,
        )


def unadjusted_clock_s() -> float | None:
    """A second clock, which neither Python's nor the network's time can have turned; None where there is none."""
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) if hasattr(time, "CLOCK_MONOTONIC_RAW") else None


def untimed_steps(workload: Workload, recording: Recording, steps: int) -> float:
    """Take steps outside any window; mean host seconds of one, the device's work included."""
    synchronise(workload.device)
    start_s = time.perf_counter()
    for _ in range(steps):
        batch = next(workload.batches)
        recording.keep(batch, *workload.step(batch), count_indices=False)
    synchronise(workload.device)
    return (time.perf_counter() - start_s) / steps
