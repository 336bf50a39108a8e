"""`doctor --box`: is the machine well? It looks, measures for at most a minute, and tells what is wrong first.

Measuring is a process of its own, which is ended when its time is over: a card that hangs must not take the doctor along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import doctor, environment
from harness.box import health, vitals
from harness.box.rates import Seen, judge_seen
from harness.doctor import MISSING, NOTE, OK, WRONG, Finding

if TYPE_CHECKING:
    from harness.box.probes import Rate

TIME_BOX_S = 60.0
LAST_WORDS_S = 2.0  # of it, for ending and telling
SOAK_GRACE_S = 20.0  # for the last pass of a soak, which was expected to end in time
LOOK_EVERY_S = 0.25
# Seconds of all-reduces, and what ranks may need beside them to start and end: at least, and at most.
REDUCE_S, RANKS_START_S, RANKS_END_S = 2.0, 12.0, 40.0

REDDEST_FIRST = (WRONG, MISSING, NOTE, OK)
COUNTS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")


@dataclass(frozen=True)
class Task:
    """What the measuring process is handed: the GPUs' models, where to read a disk, and when it has to end."""

    models: tuple[str, ...]
    folder: Path
    until_s: float  # on the monotonic clock, as all moments here
    soak_until_s: float | None = None

    @property
    def hanging(self) -> str:
        """How a check that does not end is marked: on a CPU others may have been at work."""
        return WRONG if self.models else NOTE


@dataclass(frozen=True)
class Progress:
    """What the measuring process tells: what it does now (nothing, once it has ended) and all findings so far."""

    doing: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Probe:
    """A timed check: `run` is handed the seconds that are left; it is not begun with fewer than `needs_s`."""

    name: str
    needs_s: float
    run: Callable[[float], list[Rate]]


# --- measuring, in a process of its own ---------------------------------------------------------------------------


def plan(probes: Any, task: Task) -> list[Probe]:
    """The probes of one pass, the quick ones first; each is given a share of a minute, whatever the number of GPUs."""
    each = max(1, len(task.models))
    pairs = max(1, each * (each - 1))
    product_s, copy_s, decode_s = min(1.5, 3 / each), min(1.0, 2 / each), min(2.0, 6 / each)

    def all_reduce(left_s: float) -> list[Rate]:
        # Its patience is beside twice the seconds; a soak's last pass must not end all that it has seen.
        patience_s = min(RANKS_END_S, left_s - 2 * REDUCE_S - LAST_WORDS_S)
        found: list[Rate] = probes.all_reduce(REDUCE_S, patience_s=patience_s)
        return found

    return [
        Probe("matrix product", 3 * product_s * each, lambda _: probes.matrix_products(product_s)),
        Probe("copy", 2 * copy_s * each, lambda _: probes.copies(copy_s)),
        Probe("host to device", 3.0, lambda _: probes.host_to_device(2.0)),
        Probe("peer to peer", 5.0, lambda _: probes.peer_to_peer(min(0.5, 3 / pairs))),
        Probe("JPEG decode", 2 * decode_s * each, lambda _: probes.jpeg_decodes(decode_s)),
        Probe("disk read", 7.0, lambda _: probes.disk_read(task.folder, 2.5)),
        Probe("all-reduce", RANKS_START_S, all_reduce),
    ]


def attempt(probe: Probe, seen: Seen, left_s: float, probes: Any, hanging: str) -> None:
    """Run a probe, and write down what it found or why it found nothing; `hanging` marks one that does not end."""
    if left_s < probe.needs_s:
        if probe.name not in seen.rates:
            seen.instead[probe.name] = Finding(NOTE, probe.name, "not run: no time is left")
        return
    try:
        seen.rates.setdefault(probe.name, []).extend(probe.run(left_s))
    except probes.Failed as why:
        mark = hanging if isinstance(why.__cause__, TimeoutError) else WRONG
        seen.instead[probe.name] = Finding(mark, probe.name, f"failed: {textwrap.shorten(str(why), 200)}")
    except probes.NotRun as why:
        seen.instead[probe.name] = Finding(NOTE, probe.name, f"not run: {why}")
    except Exception as error:
        text = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
        seen.instead[probe.name] = Finding(WRONG, probe.name, f"failed: {text}")


def measure_all(probes: Any, todo: Sequence[Probe], task: Task, tell: Callable[[Progress], None]) -> None:
    """One pass; in a soak, passes for as long as another is expected to end in time."""
    seen, number_of_pass = Seen(), 0
    while True:
        began_s, number_of_pass = time.monotonic(), number_of_pass + 1
        for index, probe in enumerate(todo, start=1):
            prefix = f"pass {number_of_pass}, " if task.soak_until_s else ""
            tell(Progress(f"{prefix}{index} of {len(todo)}: {probe.name}", tuple(judge_seen(seen, task.models))))
            attempt(probe, seen, task.until_s - time.monotonic(), probes, task.hanging)
        took_s = time.monotonic() - began_s
        if task.soak_until_s is None or time.monotonic() + took_s > task.soak_until_s:
            break
    tell(Progress("", tuple(judge_seen(seen, task.models))))


def measure(descriptor: int) -> None:
    """Be the measuring process: receive a Task, send a Progress whenever there is news."""
    with Connection(descriptor) as connection:
        task = connection.recv()
        try:
            from harness.box import probes
        except ImportError as error:
            found = f"not run: {error.name or error} is not installed"
            connection.send(Progress("", (Finding(NOTE, "timed checks", found),)))
            return
        measure_all(probes, plan(probes, task), task, connection.send)


# --- the doctor's side --------------------------------------------------------------------------------------------


def timed_findings(
    task: Task,
    look: Callable[[], None],
    patience_s: float,
    program: str = "from harness.box import report; report.measure({descriptor})",
) -> list[Finding]:
    """What the measuring process finds until the time is over; `look` is called all the while."""
    ours, theirs = Pipe()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program.format(descriptor=theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # its ranks end with it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what libraries print would tear the table
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        try:
            return follow(ours, task, look, time.monotonic() + patience_s, process)
        finally:
            show("")
            end(process)


def follow(
    connection: Connection, task: Task, look: Callable[[], None], until_s: float, process: subprocess.Popen[bytes]
) -> list[Finding]:
    """Its last findings, and a fault where it does not end, or ends without a word."""
    latest = Progress("starting")
    try:
        connection.send(task)
        while time.monotonic() < until_s:
            if connection.poll(LOOK_EVERY_S):
                latest = connection.recv()
                if not latest.doing:
                    return list(latest.findings)
            look()
            show(f"{latest.doing} ({max(0.0, until_s - time.monotonic()):.0f} s at most)")
    except (EOFError, OSError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS_S)
        how = ended_by(process.returncode)
        return [*latest.findings, Finding(WRONG, stage(latest.doing), f"the process that measured it {how}")]
    found = f"did not end in time: {'a GPU or its link' if task.models else 'the machine is busy, or something'} hangs"
    return [*latest.findings, Finding(task.hanging, stage(latest.doing), found)]


def stage(doing: str) -> str:
    """The probe's name of "2 of 7: copy"."""
    return doing.rpartition(": ")[2]


def ended_by(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended without a word{'' if status is None else f', exit status {status}'}"


def end(process: subprocess.Popen[bytes]) -> None:
    """End it and all that it has started; one that hangs in the kernel is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)


def show(text: str) -> None:
    """Show on a terminal what is running; nothing wipes it out."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def last_line(findings: Sequence[Finding]) -> str:
    """One sentence for a person."""
    wrong = list(dict.fromkeys(each.name for each in findings if each.mark in (WRONG, MISSING)))
    if not wrong:
        return "Nothing is wrong that these checks can see."
    count = COUNTS[len(wrong)] if len(wrong) < len(COUNTS) else str(len(wrong))
    return f"{count} thing{'s are' if len(wrong) > 1 else ' is'} wrong with this machine: {', '.join(wrong)}."


def main(seconds: float | None = None, folder: Path | None = None, time_box_s: float = TIME_BOX_S) -> int:
    """Print what is wrong, what to know and what is well; exit status 1 if anything is wrong.

    `seconds`: go on measuring for so long, a pass at least. `folder`: on the disk to read, where its file may be written.
    """
    began_s = time.monotonic()
    show("looking")
    with environment.nvml() as library:
        cards, findings = health.examine(library)
        watch = vitals.Watch(library)
        until_s = began_s + max(time_box_s, seconds + SOAK_GRACE_S if seconds else 0) - LAST_WORDS_S
        task = Task(
            models=tuple(card.name for card in cards),
            folder=(folder or Path()).absolute(),
            until_s=until_s,
            soak_until_s=began_s + seconds if seconds else None,
        )
        findings += timed_findings(task, watch.look, until_s - time.monotonic())
        findings += health.judge_moments(cards, watch.moments) if cards else []
    findings.sort(key=lambda each: REDDEST_FIRST.index(each.mark))
    print(doctor.table(findings, doctor.line_width()))
    print("\n" + textwrap.fill(last_line(findings), doctor.line_width()))
    return int(any(each.mark in (WRONG, MISSING) for each in findings))
