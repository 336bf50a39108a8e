"""Group `instruments`: what measuring takes from a step, by the loop of `run` over steps that do nothing."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from harness.agree import Ranks
from harness.config import RunConfig
from harness.course import Course
from harness.heartbeat import Heartbeat
from harness.job import Job
from harness.measure import Workload, synchronise
from harness.progress import Teller
from harness.schedule import Schedule
from harness.schemes import Scheme
from harness.seen import Seen, Signals
from harness.train import telemetry_of, train_timed, watched
from harness.update import Rates
from harness.workload import Built, Rank
from pipelines import Batch, State
from pipelines.sources.imageset import Split

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
IMAGES = 32
STEPS = 10_000
BLOCKS = 11
MOST_US = 25.0
CONFIG = RunConfig(images_per_gpu=IMAGES, gpus=1) if CUDA else RunConfig(images_per_gpu=IMAGES, cpus=1)


def empty_workload() -> Workload:
    """The same batch for ever, and the same loss and right answers of it; nothing is computed or updated."""
    labels = torch.arange(IMAGES, device=DEVICE)
    batch = Batch(torch.zeros((IMAGES, 3, 1, 1), device=DEVICE), labels, labels)
    told = torch.tensor(6.9, device=DEVICE), torch.tensor(1, device=DEVICE)
    return Workload(itertools.repeat(batch), lambda _: told, lambda: None, IMAGES, DEVICE)


def built(workload: Workload) -> Built:
    """What `train_timed` asks for; of it, only the workload is used where nothing is evaluated or saved."""
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    return Built(
        workload,
        Scheme(shard=0, column=0, parts=None, replicas=None, loss_divisor=1),
        nn.Identity(),
        optimiser,
        Rates(optimiser, Schedule("constant", 0.01, 1.0), "torch"),
        Split((), (), 1000),
        evaluate=None,
        without_communication=contextlib.nullcontext,
        shortened=lambda _: None,
        input_state=lambda: State(0, "", ""),
        close=lambda: None,
    )


@dataclass
class Instruments:
    """All that `run` has beside the steps, on this device."""

    teller: Teller
    signals: Signals
    heartbeat: Heartbeat
    sample_us: list[float]

    def measured_s(self, workload: Workload) -> float:
        """Seconds of the timed steps with every instrument; the sensors' driver is opened outside the clock."""
        seen = Seen(heartbeat=self.heartbeat)
        with telemetry_of(Rank(0, 1, DEVICE), seen):
            whole = built(workload)
            course = Course(total_steps=STEPS)
            job = Job(CONFIG, whole, Rank(0, 1, DEVICE), seen, Ranks(0, 1), self.teller, self.signals, course)
            whole.workload = watched(workload, seen, before_step=lambda: whole.rates.at(job.done, job.drops_taken))
            start_s = time.perf_counter()
            train_timed(job)
            seconds = time.perf_counter() - start_s
            assert seen.telemetry is not None
            start_s = time.perf_counter()
            seen.telemetry.sample()
            self.sample_us.append(1e6 * (time.perf_counter() - start_s))
        assert len(seen.windows[0].step_ms) == seen.recording.steps == STEPS
        return seconds


@pytest.fixture
def instruments(tmp_path: Path) -> Iterator[Instruments]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heartbeat = Heartbeat(None, 0, 1, CONFIG.heartbeat, print, on_gpu=CUDA)
    teller = Teller(tmp_path / "progress.jsonl")
    yield Instruments(teller, Signals(), heartbeat, [])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    heartbeat.close()
    teller.close()


def bare_s(workload: Workload) -> float:
    """Seconds of as many steps in a loop of nothing else."""
    start_s = time.perf_counter()
    for _ in range(STEPS):
        batch = next(workload.batches)
        workload.gradients(batch)
        workload.update()
    synchronise(DEVICE)
    return time.perf_counter() - start_s


@pytest.mark.benchmark(group="instruments")
def test_instruments_cost_at_most_25_microseconds_a_step(
    benchmark: Any, remember: Callable[[str, str], None], instruments: Instruments
) -> None:
    """The benchmark's own figures are of whole blocks A B B A; `us_a_step` has what is asked."""
    workload = empty_workload()
    us_a_step: list[float] = []

    def block() -> None:
        measured = instruments.measured_s(workload)
        bare = bare_s(workload) + bare_s(workload)
        measured += instruments.measured_s(workload)
        us_a_step.append(1e6 * (measured - bare) / (2 * STEPS))

    block()
    us_a_step.clear()
    instruments.sample_us.clear()
    benchmark.pedantic(block, rounds=BLOCKS)
    benchmark.extra_info["us_a_step"] = us_a_step
    remember(
        f"instruments, {DEVICE.type}, {STEPS:,} empty steps",
        f"{median(us_a_step):.1f} microseconds a step ({min(us_a_step):.1f} to {max(us_a_step):.1f}; at most {MOST_US:g}); "
        f"a sample of the sensors takes {median(instruments.sample_us):.0f}",
    )
    assert median(us_a_step) <= MOST_US
