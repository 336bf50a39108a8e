"""What a person sees while a run goes on: rank 0 writes lines, the launcher's process shows them.

Showing happens outside the measured process, so that drawing a bar never takes time from a step.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

REFRESH_S = 0.25
PLAIN_EVERY_S = 15.0
# What a profile leaves in a launch's folder.
TRACE, OPERATORS = "trace.json.gz", "operators.csv"

PHASES = {
    "data": "opening data",
    "check": "checking",
    "prepare": "preparing",
    "statistics": "measuring",
    "start": "starting ranks",
    "block": "building block",
    "compile": "compiling",
    "settle": "settling",
    "timed": "timed",
    "evaluate": "evaluating",
    "save": "saving",
    "profile": "profiling",
    "input": "input alone",
    "model": "model alone",
    "no_comm": "no communication",
    "input_while_training": "input meanwhile",
    "storage": "reading alone",
    "decode": "decoding alone",
    "peaks": "device's peaks",
    "seeded": "checking a step",
    "done": "done",
}


class Teller:
    """Rank 0's side: one JSON line an event, at most one every REFRESH_S while a phase lasts."""

    def __init__(self, path: Path | None):
        self._file = path.open("a", buffering=1) if path else None
        self._phase = ""
        self._told_s = 0.0

    def due(self) -> bool:
        """Whether a line would be written now; cheap enough for every step."""
        return self._file is not None and time.perf_counter() - self._told_s >= REFRESH_S

    def tell(self, phase: str, **numbers: Any) -> None:
        assert phase in PHASES
        if self._file is None or (phase == self._phase and not self.due()):
            return
        self._phase, self._told_s = phase, time.perf_counter()
        # Nobody's run ends because there is no room for what a person would see of it.
        with contextlib.suppress(OSError):
            self._file.write(json.dumps({"phase": phase, **numbers}) + "\n")

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def last_phase(path: Path) -> str:
    """The phase that a run's lines end in, for the sentence about a run that died."""
    try:
        return str(json.loads(path.read_text().splitlines()[-1])["phase"])
    except (OSError, IndexError, ValueError, KeyError):
        return "start"


def left(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def bar(share: float, cells: int = 24) -> str:
    """A share of 1 as a bar of fixed width."""
    full = round(share * cells)
    return "█" * full + "░" * (cells - full)


def share_done(event: dict[str, Any]) -> float:
    """How much of the whole is done, 0 where that is not said."""
    step, steps = event.get("step"), event.get("steps")
    return event.get("share") or (step / steps if step and steps else 0.0)


def sentence(event: dict[str, Any], in_phase_s: float, before: float = 0.0) -> str:
    """`timed      step 12/40   31.4 images/s   loss 1.874   53 s left`; `before`: the share that was done when the phase began."""
    parts = [f"{PHASES[event['phase']]:<16}"]
    step, steps = event.get("step"), event.get("steps")
    if step is not None:
        parts.append(f"step {step}/{steps}" if steps else f"step {step}")
    if event.get("share") is not None:
        parts.append(f"{bar(event['share'])} {100 * event['share']:.0f} %")
    if event.get("of"):
        parts.append(f"{event['done']:,} of {event['of']:,}")
    if event.get("images_per_s"):
        parts.append(f"{event['images_per_s']:,.4g} images/s")
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.3f}")
    if event.get("of") and event.get("images_per_s"):
        return "   ".join([*parts, left((event["of"] - event["done"]) / event["images_per_s"])])
    done = share_done(event)
    # Nothing can be said of the time left by the first moment of a phase.
    if before < done < 1 and in_phase_s >= 1:
        parts.append(left(in_phase_s * (1 - done) / (done - before)))
    elif not done:
        parts.append(f"{in_phase_s:.0f} s")
    return "   ".join(parts)


class Display:
    """The launcher's side, a context manager: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool, stream: TextIO | None = None):
        self._quiet, self._stream = quiet, stream or sys.stderr
        self._live: Any = None
        self._path: Path | None = None
        self._read = 0
        self._event: dict[str, Any] = {}
        self._phase_began_s = self._printed_s = time.monotonic()
        self._done_before = 0.0
        self._end = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Display:
        if self._quiet:
            return self
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()
        if self._live:
            self._live.stop()

    def follow(self, path: Path) -> None:
        """Show the lines of this file from now on."""
        with self._lock:
            self._path, self._read = path, 0
        self.show({"phase": "start"})

    def show(self, event: dict[str, Any]) -> None:
        """Take in one event; where there is no terminal, print it if it opens a phase or the last print is long ago."""
        with self._lock:
            now = time.monotonic()
            new_phase = event["phase"] != self._event.get("phase")
            if new_phase:
                self._phase_began_s = now
                # A window of a long run, or of one that goes on, begins where the one before it ended.
                self._done_before = share_done(event)
            self._event = event
            if not self._quiet and not self._live and (new_phase or now - self._printed_s > PLAIN_EVERY_S):
                self._printed_s = now
                print(sentence(event, now - self._phase_began_s, self._done_before), file=self._stream, flush=True)

    def _watch(self) -> None:
        while not self._end.wait(REFRESH_S):
            with self._lock:
                self._take_new_lines()
                if self._live and self._event:
                    self._draw()

    def _take_new_lines(self) -> None:
        if self._path is None or not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read = file.tell()
                self.show(json.loads(line))

    def _draw(self) -> None:
        from rich.spinner import Spinner

        text = sentence(self._event, time.monotonic() - self._phase_began_s, self._done_before)
        if not hasattr(self, "_spinner"):
            self._spinner = Spinner("dots")
        self._spinner.update(text=text)
        self._live.update(self._spinner, refresh=True)
