"""The same workload with a part taken away: what is counted, when it is enough, and what a failure of the input does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch

from harness import ceilings
from harness.agree import Ranks
from harness.ceilings import Drain, Surroundings, input_alone, input_while_training, model_alone, until_sure
from harness.config import RunConfig
from harness.measure import Workload
from harness.progress import Teller
from harness.schedule import Schedule
from harness.schemes import scheme_of
from harness.update import Rates
from harness.workload import Built
from pipelines import State
from pipelines.sources.imageset import Split

CPU = torch.device("cpu")
IMAGES = 4
AHEAD = 3  # prefetch 2, and the one under way


class Numbered(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass
class Counted:
    """A workload that counts what is asked of it; batch `fails_at` cannot be had."""

    batches: int = 0
    steps: int = 0
    wait_s: float = 0.005
    work_s: float = 0.005
    fails_at: int | None = None
    beats: list[str] = field(default_factory=list)

    def stream(self) -> Iterator[Numbered]:
        while True:
            time.sleep(self.wait_s)
            self.batches += 1
            if self.batches == self.fails_at:
                raise RuntimeError("the disk is gone")
            yield Numbered(torch.zeros(IMAGES, 3, 1, 1), torch.zeros(IMAGES), torch.zeros(IMAGES))

    def gradients(self, _batch: Numbered) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.work_s)
        self.steps += 1
        return torch.tensor(1.0), torch.tensor(0)

    def around(self) -> Surroundings:
        config = RunConfig(cpus=1, images_per_gpu=IMAGES, prefetch=AHEAD - 1)
        workload = Workload(self.stream(), self.gradients, lambda: None, IMAGES, CPU)
        nothing = torch.nn.Module()
        split = Split(files=(), labels=(), num_classes=1)
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.01)
        built = Built(
            workload,
            scheme_of(config, 0),
            nothing,
            optimiser,
            Rates(optimiser, Schedule("constant", 0.01, 1.0), "torch"),
            split,
            evaluate=None,
            without_communication=contextlib.nullcontext,
            shortened=lambda _: None,
            input_state=lambda: State(0, "", ""),
            close=lambda: None,
        )
        return Surroundings(config, built, workload, Ranks(0, 1), Teller(None), self.beats.append)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BLOCK_S", 0.03), ("ALONE_MIN_S", 0.1), ("ALONE_MAX_S", 0.3)):
        monkeypatch.setattr(ceilings, name, seconds)


def test_input_alone_trains_on_nothing_and_counts_no_batch_that_was_there_before() -> None:
    counted = Counted()
    alone = input_alone(counted.around())
    assert counted.steps == 0
    # Those made ahead before the clock, and as many again to see how long one takes.
    assert alone.images == IMAGES * (counted.batches - 2 * AHEAD)
    assert sum(alone.block_s) == pytest.approx(alone.stop_s - alone.start_s)


def test_model_alone_takes_no_batches_and_counts_no_step_before_the_clock() -> None:
    counted = Counted()
    around = counted.around()
    resident = next(around.workload.batches)
    alone = model_alone(around, resident)
    assert counted.batches == 1
    assert alone.images == IMAGES * (counted.steps - 2)


def test_equal_blocks_are_enough_after_the_least_time_and_unequal_ones_go_on_to_the_most() -> None:
    around = Counted().around()
    equal = until_sure(around, lambda: time.sleep(0.02), IMAGES)
    lengths = iter([0.001, 0.05] * 100)
    unequal = until_sure(around, lambda: time.sleep(next(lengths)), IMAGES)
    assert len(equal.block_s) >= ceilings.BLOCKS_MIN
    assert unequal.stop_s - unequal.start_s >= ceilings.ALONE_MAX_S
    assert unequal.images == IMAGES * len(unequal.block_s)


def test_the_input_while_training_is_what_came_in_between_the_clocks_two_readings() -> None:
    counted = Counted(wait_s=0.002)
    around = counted.around()
    resident = next(around.workload.batches)
    alone = input_while_training(around, resident)
    assert counted.steps > 2
    assert 0 < alone.images <= IMAGES * (counted.batches - 1 - AHEAD)


def test_an_input_that_fails_beside_the_training_fails_the_run() -> None:
    around = Counted(fails_at=AHEAD + 3, wait_s=0.001).around()
    with pytest.raises(RuntimeError, match="the disk is gone"), Drain(around.workload, AHEAD):
        time.sleep(0.1)
