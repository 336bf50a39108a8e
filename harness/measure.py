"""The timed loop: what a workload is, and what is written down while it runs. Nothing here computes a result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.trial import Window


@dataclass
class Workload:
    """All that the loop knows of what it runs.

    `batches` yields `pipelines.Batch` on `device`, always of `images_per_step` images (this rank's); `step` trains on
    one and returns its mean loss and its count of right answers as tensors that stay on the device.
    """

    batches: Iterator[Any]
    step: Callable[[Any], tuple[Tensor, Tensor]]
    images_per_step: int
    device: torch.device


class Interrupted(BaseException):
    """SIGINT or SIGTERM: the number of the signal is its argument."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Laps:
    """Moments on the clock that does the work: CUDA events on the current stream, or the host's clock for a CPU.

    The host runs ahead of a GPU, so only the GPU's own clock can tell for how long it had no batch.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._ends: list[Any] = []
        self._arrivals: list[Any] = []

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

    def _between(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop) if self._cuda else 1000 * (stop - start))

    def step_ms(self) -> tuple[float, ...]:
        """Milliseconds of every step that ended; the device must have been synchronised."""
        return tuple(self._between(start, stop) for start, stop in pairwise(self._ends))

    def wait_ms(self) -> tuple[float, ...]:
        """Milliseconds of every step that ended from its beginning to its batch."""
        begun = self._ends[:-1]
        return tuple(self._between(start, stop) for start, stop in zip(begun, self._arrivals, strict=False))


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
    """What the steps gave, kept on the device until the clock has stopped."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.indices: list[Tensor] = []

    def keep(self, batch: Any, loss: Tensor, correct: Tensor, *, count_indices: bool) -> None:
        # Clones: a pipeline may reuse its buffers, and a kept view would hold a whole batch of pixels alive.
        self.losses.append(loss)
        self.correct.append(correct)
        self.labels.append(batch.labels.clone())
        if count_indices:
            self.indices.append(batch.indices.clone())

    def told(self, classes: int) -> dict[str, Any]:
        """The recording as fields of a RankTrial."""
        indices = on_host(self.indices).astype(np.int64)
        counts = np.bincount(on_host(self.labels).astype(np.int64), minlength=classes)
        return {
            "losses": tuple(float(loss) for loss in on_host(self.losses)),
            "correct": tuple(int(count) for count in on_host(self.correct)),
            "label_counts": tuple(int(count) for count in counts),
            "indices_count": int(indices.size),
            "indices_digest": hashlib.sha256(indices.tobytes()).hexdigest()[:16],
            "index_repeats_max": int(np.unique(indices, return_counts=True)[1].max()) if indices.size else 0,
        }


def on_host(tensors: list[Tensor]) -> np.ndarray[Any, Any]:
    """The tensors' elements in order, as one flat array."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu().numpy() if tensors else np.empty(0)


class TimedWindow:
    """One window in the making; `told` may be asked at any moment, also after an interruption in its middle."""

    def __init__(self, workload: Workload, recording: Recording):
        self._workload, self._recording = workload, recording
        self._laps = Laps(workload.device)
        self._start_s = self._stop_s = 0.0

    def run(self, steps: int, after_step: Callable[[int, Tensor], bool]) -> None:
        """Take `steps` steps, or fewer once `after_step(steps done, newest loss)` says to stop."""
        batches, step, keep = self._workload.batches, self._workload.step, self._recording.keep
        laps, clock = self._laps, time.perf_counter
        synchronise(self._workload.device)
        self._start_s = clock()
        laps.end_step()
        try:
            for done in range(1, steps + 1):
                batch = next(batches)
                laps.batch_arrived()
                loss, correct = step(batch)
                keep(batch, loss, correct, count_indices=True)
                laps.end_step()
                if after_step(done, loss):
                    break
        finally:
            synchronise(self._workload.device)
            self._stop_s = clock()

    def told(self) -> Window:
        return Window(self._start_s, self._stop_s, self._laps.step_ms(), self._laps.wait_ms())


def untimed_steps(workload: Workload, recording: Recording, steps: int) -> float:
    """Take steps outside any window; mean host seconds of one, the device's work included."""
    synchronise(workload.device)
    start_s = time.perf_counter()
    for _ in range(steps):
        batch = next(workload.batches)
        recording.keep(batch, *workload.step(batch), count_indices=False)
    synchronise(workload.device)
    return (time.perf_counter() - start_s) / steps
