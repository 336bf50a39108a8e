"""Whole runs of one rank in this process, from what is asked to the row, with a fault planted in what the run is built of."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import ceilings, folders, resolve, train
from harness.config import RunConfig
from harness.images import open_images
from harness.progress import Teller
from harness.rank import attempt, rank_trial
from harness.trial import Sample, Trial, from_json
from harness.workload import Built, Rank, build
from pipelines import Batch

ROOT = Path(__file__).parents[1]
MIB = 2**20
# A network and pictures so small that a step takes milliseconds.
SMALL: dict[str, Any] = {
    "model": "cifar-18pct", "init": None, "image_size": 32, "images_per_gpu": 4, "steps": 20, "compile": "off", "cpus": 1,
    "learning_rate": 0.001,
}  # fmt: skip
# So long is measured here where a run takes seconds: what is planted is far larger than what is uncertain then.
SHORTER = (
    (train, "SETTLE_BLOCK_S", 0.05),
    (ceilings, "BLOCK_S", 0.05),
    (ceilings, "ALONE_MIN_S", 0.2),
    (ceilings, "ALONE_MAX_S", 0.5),
    (ceilings, "PEAK_S", 0.02),
)

Fault = Callable[[Built], Built]
Step = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ran:
    """What a run left: its trial as it was read back, its row, and the exit status of its rank."""

    trial: Trial
    row: dict[str, str]
    exit_status: int


def ran(pictures: Path, folder: Path, fault: Fault | None = None, *, limits: str = "", **asked: Any) -> Ran:
    """A run whose workload is what `fault` makes of the real one; the parts alone are measured where `limits` asks for them."""
    chosen = {**SMALL, "data": str(pictures), "limits": limits or "brief", **asked}
    config = resolve.resolve(RunConfig(**chosen), 1, 0, fusible=False)
    images, table = open_images(config), folder / "table.csv"
    launch = folders.Launch.begin(config, images, table, "group", 1, 1)
    rank, seen = Rank(0, 1, torch.device("cpu")), train.Seen()
    with as_in_a_rank() as patch:
        patch.setattr(train, "build", lambda *parts: (fault or unchanged)(build(*parts)))
        signals = train.Signals()
        ended, failure, status = attempt(
            lambda: train.run(config, images, rank, seen, Teller(None), signals, limits=bool(limits)), signals
        )
    trial = None if failure else asdict(rank_trial(config, launch.classes, rank, seen, ended))
    folders.write_rank(launch.folder, 0, failure, trial)
    record = launch.record()
    return Ran(from_json(Trial, json.loads(json.dumps(record["trial"]))), launch.finish(table, record), status)


@contextlib.contextmanager
def as_in_a_rank() -> Iterator[pytest.MonkeyPatch]:
    """One thread and the short measurements; signals and threads are as before in the end."""
    threads, numbers = torch.get_num_threads(), (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for module, name, value in SHORTER:
                patch.setattr(module, name, value)
            yield patch
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def unchanged(built: Built) -> Built:
    return built


# --- faults -------------------------------------------------------------------------------------------------------


def workload(built: Built, **parts: Any) -> Built:
    """The same with other parts of its workload."""
    return replace(built, workload=replace(built.workload, **parts))


class Slowly:
    """An input, or a part of one, that takes so much longer for each batch."""

    def __init__(self, batches: Any, pause_s: float):
        self._batches, self._pause_s = batches, pause_s
        self.close: Callable[[], None] = getattr(batches, "close", lambda: None)

    def __iter__(self) -> Slowly:
        return self

    def __next__(self) -> Any:
        time.sleep(self._pause_s)
        return next(self._batches)


def slow_from(stage: str, pause_s: float) -> Fault:
    """A pause for each batch in one stage of the input, and so in every longer input that holds the stage."""
    shortened_with_it = {"storage": ("storage", "decode"), "decode": ("decode",), "augment": ()}[stage]

    def fault(built: Built) -> Built:
        def shortened(part: str) -> Any:
            whole = built.shortened(part)
            return Slowly(whole, pause_s) if part in shortened_with_it else whole

        slow = workload(built, batches=Slowly(built.workload.batches, pause_s))
        return replace(slow, shortened=shortened)

    return fault


def each_batch(change: Callable[[Batch], Batch]) -> Fault:
    """A reader that gives something else than the pipeline did."""
    return lambda built: workload(built, batches=map(change, built.workload.batches))


def constant_labels(built: Built) -> Built:
    return each_batch(lambda batch: batch._replace(labels=torch.zeros_like(batch.labels)))(built)


def grey(built: Built) -> Built:
    return each_batch(lambda batch: batch._replace(images=torch.full_like(batch.images, 50.0)))(built)


def halves(built: Built) -> Built:
    """A reader that drops every second half of a batch."""
    return each_batch(lambda batch: Batch(*(part[: len(part) // 2] for part in batch)))(built)


def stuck(built: Built) -> Built:
    """A reader that gives its first batch for ever."""
    first = Batch(*(part.clone() for part in next(built.workload.batches)))
    return workload(built, batches=repeat(first))


def one_image(built: Built) -> Built:
    """A reader that gives the first image of its first batch for ever, as often as a batch holds images."""
    first = next(built.workload.batches)
    return workload(built, batches=repeat(Batch(*(part[:1].expand_as(part).clone() for part in first))))


def frozen(built: Built) -> Built:
    return workload(built, update=lambda: None)


def each_step(change: Callable[[int, Step, Batch], tuple[Tensor, Tensor]]) -> Fault:
    """Gradients computed by `change`, of the step's number, the real function and the batch."""

    def fault(built: Built) -> Built:
        numbers, whole = iter(range(10**9)), built.workload.gradients
        return workload(built, gradients=lambda batch: change(next(numbers), whole, batch))

    return fault


def nan_from(step: int) -> Fault:
    def gradients(number: int, whole: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, correct = whole(batch)
        return loss * (torch.nan if number >= step else 1.0), correct

    return each_step(gradients)


def slow_model(pause_s: float) -> Fault:
    def gradients(_: int, whole: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        time.sleep(pause_s)
        return whole(batch)

    return each_step(gradients)


def leaking(size_bytes: int) -> Fault:
    """So many bytes a step are written and never given back."""
    # Pages of their own: on the heap they may fill what others have left there.
    leaked: list[mmap.mmap] = []

    def gradients(_: int, whole: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        leaked.append(mmap.mmap(-1, size_bytes))
        leaked[-1].write(b"x" * size_bytes)
        time.sleep(0.005)  # for samples of the memory between the steps of a quick machine
        return whole(batch)

    return each_step(gradients)


def out_of_memory_from(step: int) -> Fault:
    def gradients(number: int, whole: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        if number >= step:
            raise torch.cuda.OutOfMemoryError
        return whole(batch)

    return each_step(gradients)


def out_of_memory_with_a_batch_that_stays() -> Fault:
    """In the second step on one and the same batch, which only the model alone takes."""
    last: list[Batch] = []

    def gradients(_: int, whole: Step, batch: Batch) -> tuple[Tensor, Tensor]:
        if last and batch is last.pop():
            raise torch.cuda.OutOfMemoryError
        last.append(batch)
        return whole(batch)

    return each_step(gradients)


# --- a card that misbehaves ---------------------------------------------------------------------------------------

LOOK = """
import dataclasses, json, os, sys
from harness.telemetry import Telemetry
telemetry, seen = Telemetry(0, lambda: 3, with_load=False), []
for moment in json.loads(sys.argv[1]):
    os.environ.update(moment)
    seen.append(dataclasses.asdict(telemetry.sample()))
telemetry.close()
print(json.dumps(seen))
"""


def samples_of_card(driver: Path, *moments: dict[str, str]) -> list[Sample]:
    """What pynvml tells of the first GPU of the stand-in driver at each moment, whose variables say what the card does."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(moments)],
        cwd=ROOT,
        env={**kept, "LD_LIBRARY_PATH": str(driver)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [Sample(**each) for each in json.loads(done.stdout)]


def on_card(trial: Trial, samples: list[Sample]) -> Trial:
    """The trial as it would be if its rank had trained on a card that told these samples, evenly over its window."""
    (rank,) = trial.ranks
    window = rank.windows[0]
    apart_s = (window.stop_s - window.start_s) / len(samples)
    spread = tuple(replace(each, at_s=window.start_s + place * apart_s) for place, each in enumerate(samples))
    return replace(trial, ranks=(replace(rank, samples=spread),))
