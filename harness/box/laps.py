"""Work done over and over on one device or several at once, lap by lap, each on the clock that did it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.measure import Laps, synchronise


@dataclass(frozen=True)
class Lane:
    """What one device does in a lap, on its current stream."""

    device: torch.device
    work: Callable[[], object]

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def one_lap_s(lanes: Sequence[Lane]) -> float:
    """Seconds of one lap of all lanes at once, on the host's clock, from idle to idle."""
    for lane in lanes:
        synchronise(lane.device)
    start_s = time.perf_counter()
    for lane in lanes:
        with lane.scope():
            lane.work()
    for lane in lanes:
        synchronise(lane.device)
    return time.perf_counter() - start_s


def laps(lanes: Sequence[Lane], count: int, deadline_s: float | None = None) -> list[tuple[float, ...]]:
    """Seconds of every lap of each lane, all lanes at once: `count`, or fewer, but one, once the host's clock is there."""
    clocks = [Laps(lane.device) for lane in lanes]
    for lap in range(count + 1):
        for lane, clock in zip(lanes, clocks, strict=True):
            with lane.scope():
                if lap:
                    lane.work()
                clock.end_step()
        if lap and deadline_s is not None and time.perf_counter() > deadline_s:
            break
    for lane in lanes:
        synchronise(lane.device)
    return [tuple(step_ms / 1000 for step_ms in clock.told()["step_ms"]) for clock in clocks]


def lap_count(lap_s: float, seconds: float) -> int:
    """How many laps fill the time, and enough for a median."""
    return max(4, int(seconds / lap_s))


def steady(lap_s: tuple[float, ...]) -> tuple[float, ...]:
    """The laps without their first quarter, in which clocks and caches warm up."""
    return lap_s[len(lap_s) // 4 :]


def timed(lanes: Sequence[Lane], seconds: float) -> list[tuple[float, ...]]:
    """Seconds of each lane's laps, warm, all lanes at once for about so long."""
    # The first touches memory and loads libraries.
    one_lap_s(lanes)
    count = lap_count(one_lap_s(lanes), seconds)
    if all(lane.device.type == "cpu" for lane in lanes):
        # The clock below ends these; the host runs ahead of a GPU, whose laps must be counted out.
        count = sys.maxsize
    return [steady(lap_s) for lap_s in laps(lanes, count, time.perf_counter() + seconds)]
