"""What a rank has seen so far, which is written down however its run ends, and the signals that may end it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from harness.heartbeat import Heartbeat, Place
from harness.measure import Interrupted, Recording, TimedWindow
from harness.telemetry import Telemetry
from harness.trial import Alone, Evaluation, Window


@dataclass
class Seen:
    """The rank's trial in the making: whatever is here when the run ends is written down."""

    recording: Recording = field(default_factory=Recording)
    windows: list[Window] = field(default_factory=list)
    open_window: TimedWindow | None = None
    warmup_steps: int = 0
    settled: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    job_evaluations: list[Evaluation] = field(default_factory=list)  # of all ranks together, as each of them knows them
    total_steps: int | None = None  # where the run ends, once that is known
    alone: dict[str, Alone] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    telemetry: Telemetry | None = None

    def beat(self, place: Place) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(place)

    def close_window(self) -> None:
        if self.open_window is not None:
            window, self.open_window = self.open_window.told(), None
            if window.step_ms:
                self.windows.append(window)


class Signals:
    """SIGINT, SIGTERM and SIGALRM (the time limit) end the rank at once, except where that is deferred: within a timed window,
    which then ends after its step, and in a run that saves itself, until all its ranks can stop at one step."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        first = self.asked is None
        self.asked = number
        if first and not self.deferred:
            raise Interrupted(number)
