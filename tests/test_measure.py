"""The timed loop counts what came in, and times it on the clock that did the work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from literals import rank_of, trial_of

from harness.measure import NewestLoss, Recording, TimedWindow, Workload, sum_of_places, untimed_steps
from harness.metrics.validity import status_reason
from harness.trial import Meters

CPU = torch.device("cpu")


class Numbered(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def numbered_batches(size: int, wait_s: float = 0.0) -> Iterator[Numbered]:
    """Batches of `size` whose indices count up for ever, each after a wait; the buffer is used again each time."""
    buffer = torch.zeros(size, dtype=torch.int64)
    start = 0
    while True:
        time.sleep(wait_s)
        buffer.copy_(torch.arange(start, start + size))
        start += size
        yield Numbered(torch.zeros(size, 3, 1, 1), buffer % 4, buffer)


def workload(size: int = 8, wait_s: float = 0.0, work_s: float = 0.0, update_s: float = 0.0) -> Workload:
    steps = iter(range(10**9))

    def gradients(batch: Numbered) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(work_s)
        return torch.tensor(float(next(steps))), torch.tensor(3)

    return Workload(numbered_batches(size, wait_s), gradients, lambda: time.sleep(update_s), size, CPU)


def on_and_on(_done: int, _loss: torch.Tensor) -> bool:
    return False


def test_every_image_that_came_in_is_counted_also_from_a_reused_buffer() -> None:
    recording = Recording()
    window = TimedWindow(workload(size=8), recording)
    window.run(5, on_and_on)
    told = recording.told(classes=4)
    assert told["indices_count"] == 40
    assert told["index_repeats_max"] == 1
    assert told["label_counts"] == (10, 10, 10, 10)
    assert told["losses"] == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert told["correct"] == (3,) * 5


def test_warm_up_steps_leave_losses_and_no_indices() -> None:
    recording, work = Recording(), workload()
    untimed_steps(work, recording, 3)
    TimedWindow(work, recording).run(2, on_and_on)
    told = recording.told(classes=4)
    assert len(told["losses"]) == 5
    assert told["indices_count"] == 16


def test_ranks_that_saw_the_same_images_have_the_same_digest_and_others_do_not() -> None:
    digests = []
    for skipped in (0, 0, 1):
        recording, work = Recording(), workload()
        for _ in range(skipped):
            next(work.batches)
        TimedWindow(work, recording).run(2, on_and_on)
        digests.append(recording.told(classes=4)["indices_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_the_steps_add_up_to_the_clock_and_the_wait_is_the_wait_for_data() -> None:
    window = TimedWindow(workload(wait_s=0.02, work_s=0.01), Recording())
    window.run(5, on_and_on)
    told = window.told()
    assert sum(told.step_ms) / 1000 == pytest.approx(told.stop_s - told.start_s, rel=0.01)
    assert all(20 <= wait < step for wait, step in zip(told.wait_ms, told.step_ms, strict=True))


def test_a_window_that_is_stopped_tells_the_steps_it_finished() -> None:
    recording = Recording()
    window = TimedWindow(workload(), recording)
    window.run(100, lambda done, _loss: done == 3)
    assert len(window.told().step_ms) == 3
    assert recording.told(classes=4)["indices_count"] == 24


def test_a_step_that_raises_leaves_the_steps_before_it() -> None:
    work, recording = workload(), Recording()
    whole = work.gradients

    def gradients(batch: Numbered) -> tuple[torch.Tensor, torch.Tensor]:
        if recording.steps == 2:
            raise RuntimeError("the network is gone")
        return whole(batch)

    work.gradients = gradients
    window = TimedWindow(work, recording)
    with pytest.raises(RuntimeError, match="gone"):
        window.run(9, on_and_on)
    assert len(window.told().step_ms) == 2


def test_the_newest_loss_on_a_cpu_is_the_one_offered() -> None:
    assert NewestLoss(CPU).offer(torch.tensor(1.5)) == 1.5


def test_every_part_of_a_step_has_its_own_milliseconds() -> None:
    window = TimedWindow(workload(wait_s=0.01, work_s=0.02, update_s=0.03), Recording())
    window.run(3, on_and_on)
    told = window.told()
    for parts in zip(told.wait_ms, told.compute_ms, told.optimiser_ms, told.step_ms, strict=True):
        assert all(part >= slept for part, slept in zip(parts, (10, 20, 30), strict=False))
        assert sum(parts[:3]) <= parts[3]


def test_meters_are_read_at_the_ends_of_the_window_and_nowhere_else() -> None:
    readings = iter(range(100))
    window = TimedWindow(workload(), Recording(), lambda: Meters(energy_j=next(readings)))
    window.run(5, on_and_on)
    assert (window.told().opened, window.told().closed) == (Meters(0), Meters(1))


def test_a_clock_that_is_turned_disagrees_with_one_that_nobody_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    true_clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 0.5 * true_clock())
    window = TimedWindow(workload(work_s=0.02), Recording())
    window.run(5, on_and_on)
    monkeypatch.undo()
    told = window.told()
    assert told.unadjusted_s == pytest.approx(2 * (told.stop_s - told.start_s), rel=0.01)
    assert "a second clock saw" in status_reason(
        trial_of(rank_of(windows=(told,), indices_count=40, images_per_step=8))
    )


def test_what_is_folded_in_parts_is_told_as_if_in_one() -> None:
    told = []
    for parts in ([6], [1, 2, 3]):
        recording, work = Recording(), workload()
        for steps in parts:
            TimedWindow(work, recording).run(steps, on_and_on)
            recording.fold()
        told.append(recording.told(classes=5))
    assert told[0] == told[1]
    assert told[0]["label_counts"] == (12, 12, 12, 12, 0)


def test_the_digest_of_images_tells_their_order_and_sums_of_parts_are_the_sum_of_all() -> None:
    order = np.array([3, 1, 2, 0])
    whole = sum_of_places(order, before=0)
    assert whole == (sum_of_places(order[:1], before=0) + sum_of_places(order[1:], before=1)) % 2**64
    assert whole != sum_of_places(np.array([1, 3, 2, 0]), before=0)
    assert sum_of_places(order[:0], before=7) == 0


def test_a_window_says_how_many_steps_the_run_had_before_it() -> None:
    recording, work = Recording(), workload()
    untimed_steps(work, recording, 3)
    window = TimedWindow(work, recording)
    window.run(2, on_and_on)
    assert window.told().steps_before == 3
