"""Who hangs: every rank tells the others where it is, and names who stands still when nobody has moved for too long.

The main thread only counts (`beat`). One thread of the process exchanges the counts through a connection of its own to
the job's store, another judges them: a store whose host is stopped never answers, and the judge must not wait with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.environment import children_of

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Place = Literal[
    "starting",
    "compiling",
    "waiting for a batch",
    "in a step",
    "evaluating",
    "saving",
    "measuring the parts alone",
    "done",
]

POLL_S_MAX = 5.0
POLLS_PER_PATIENCE = 20
# A move is told a poll late, heard another late, and standing still is counted in whole polls.
POLLS_BEHIND = 3
WORKING_CPU_SHARE = 0.1
# Work without a beat counts this long, then it is a loop that never ends.
WORK_COUNTS_FOR_PATIENCES = 10
PREPARING = ("starting", "compiling")
RANKS_NAMED_MAX = 4
FAREWELL_S = 1.0
OR_ASK = "or ask for more patience with --heartbeat"


@dataclass(frozen=True)
class State:
    """Where a rank is, as it tells the others; what counts up shows that it moves (beats, work) or lives (polls)."""

    place: str = "never heard of"
    steps: int = 0  # begun
    beats: int = 0
    work: int = 0
    polls: int = 0
    ended: bool = False


# --- the verdict --------------------------------------------------------------------------------------------------


class Watch:
    """How long no rank has moved and how long each has told nothing, on the clock of the one who watches."""

    def __init__(self, ranks: int):
        self.states = [State()] * ranks
        self.silent_s = [0.0] * ranks
        self.still_s = 0.0

    def see(self, told: Sequence[State], passed_s: float) -> None:
        """What all ranks have told last, this many seconds after the look before."""
        self.still_s += passed_s
        for rank, (before, now) in enumerate(zip(self.states, told, strict=True)):
            self.silent_s[rank] = 0.0 if now.polls != before.polls else self.silent_s[rank] + passed_s
            if (now.beats, now.work, now.ended) != (before.beats, before.work, before.ended):
                self.still_s = 0.0
        self.states = list(told)

    def silent(self) -> set[int]:
        """Ranks that have told nothing for most of the time in which nobody moved."""
        return {rank for rank, silent_s in enumerate(self.silent_s) if silent_s > self.still_s / 2}


def hanging(states: Sequence[State], silent: Collection[int]) -> list[int]:
    """The ranks for which the others wait; all of them where nothing tells them apart."""
    present = [rank for rank, state in enumerate(states) if not state.ended]
    if mute := [rank for rank in present if rank in silent]:
        return mute
    fewest = min((states[rank].beats for rank in present), default=0)
    behind = [rank for rank in present if states[rank].beats == fewest]
    # A batch is waited for alone; in every other place a rank may itself be waiting for another.
    return [rank for rank in behind if states[rank].place == "waiting for a batch"] or behind


def where(state: State) -> str:
    """Where the rank is, in words: "in step 57", "waiting for a batch after 57 steps"."""
    if state.place == "in a step":
        return f"in step {state.steps}"
    return state.place + (f" after {state.steps} step{'s' * (state.steps > 1)}" if state.steps else "")


def listed(ranks: Sequence[int]) -> str:
    """The ranks by number: "rank 1", "ranks 1 and 3", "ranks 0, 1, 2, 3 and 60 more"."""
    words = [str(rank) for rank in ranks[:RANKS_NAMED_MAX]]
    if len(ranks) > RANKS_NAMED_MAX:
        words.append(f"{len(ranks) - RANKS_NAMED_MAX} more")
    return f"rank {words[0]}" if len(words) == 1 else f"ranks {', '.join(words[:-1])} and {words[-1]}"


def verdict(states: Sequence[State], silent: Collection[int], still_s: float, rank: int) -> str:
    """Who hangs, said by this rank; itself among the silent means that what it tells does not arrive."""
    if rank in silent:
        return (
            f"rank {rank} hears nothing of the others and has not moved for {still_s:.0f} s: "
            f"it is {where(states[rank])}; look at the others' logs, {OR_ASK}"
        )
    who = hanging(states, silent)
    others = sum(not state.ended for state in states) - len(who)
    places = " or ".join(dict.fromkeys(where(states[each]) for each in who))
    if len(who) > 1 and not others:
        return f"no rank has moved for {still_s:.0f} s: all are {places}; look at their logs, {OR_ASK}"
    has, it, them, its_log = ("has", "it", "it", "its log") if len(who) == 1 else ("have", "they", "them", "their logs")
    answers, are = ("answers", ("is", "was")) if len(who) == 1 else ("answer", ("are", "were"))
    mute = who[0] in silent
    return (
        f"{listed(who)} {has} not moved for {still_s:.0f} s: {it} {are[mute]} {places}"
        + (f" and {answers} no more" if mute else "")
        + (f"; the other{'s wait' if others > 1 else ' waits'} for {them}" if others else "")
        + f"; look at {its_log}, {OR_ASK}"
    )


# --- the main thread, seen from another ---------------------------------------------------------------------------


def started_processes_cpu_s(process: int | str = "self") -> float:
    """CPU seconds of all processes that this one has started, and those that they have; 0 where /proc does not tell."""
    seconds = 0.0
    with contextlib.suppress(OSError):
        seconds = cpu_s_of(process)[1]
        seconds += sum(cpu_s_of(child)[0] + started_processes_cpu_s(child) for child in children_of(process))
    return seconds


def cpu_s_of(process: int | str) -> tuple[float, float]:
    """CPU seconds of a process, and of those of its children that have ended."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    user, system, ended_user, ended_system = (int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in after_name[11:15])
    return user + system, ended_user + ended_system


class Look(NamedTuple):
    """What is seen of the main thread at a moment."""

    at_s: float
    cpu_s: float
    started_cpu_s: float  # of the processes that it has started; looked up while it prepares, else NaN: never enough
    line: tuple[int, int]  # the Python instruction that it is at


class MainThread:
    """Whether the process's main thread works, though it does not beat."""

    def __init__(self, on_gpu: bool):
        ident = threading.main_thread().ident
        assert ident is not None
        self.on_gpu, self.ident, self.clock = on_gpu, ident, time.pthread_getcpuclockid(ident)
        self.seen = self._look(preparing=False)

    def _look(self, preparing: bool) -> Look:
        frame = sys._current_frames()[self.ident]
        started_cpu_s = started_processes_cpu_s() if preparing else math.nan
        return Look(time.monotonic(), time.clock_gettime(self.clock), started_cpu_s, (id(frame), frame.f_lasti))

    def worked(self, place: str) -> bool:
        """True if it, or while preparing the compilers that it has started, worked since it was asked before.

        A thread that waits for a GPU spins: there only Python that runs, and only while preparing, is a sign of work.
        """
        preparing = place in PREPARING
        before, now = self.seen, self._look(preparing)
        self.seen = now
        enough_s = WORKING_CPU_SHARE * (now.at_s - before.at_s)
        counts = not self.on_gpu or (preparing and now.line != before.line)
        started = now.started_cpu_s - before.started_cpu_s >= enough_s
        return started or (counts and now.cpu_s - before.cpu_s >= enough_s)


# --- the threads --------------------------------------------------------------------------------------------------


class Heartbeat:
    """Calls `on_hang` with a sentence, once and from its own thread, when no rank has moved for almost `patience_s`.

    `store` is the job's, of which only clones are used; None for a rank alone. All ranks must beat at the same places.
    """

    def __init__(
        self,
        store: Store | None,
        rank: int,
        ranks: int,
        patience_s: float,
        on_hang: Callable[[str], None],
        on_gpu: bool,
    ):
        assert store is not None or ranks == 1
        self.rank, self.ranks, self.patience_s, self.on_hang = rank, ranks, patience_s, on_hang
        self.poll_s = min(POLL_S_MAX, patience_s / POLLS_PER_PATIENCE)
        self.place: Place = "starting"
        self.steps = self.beats = self.work = self.polls = 0
        self.told = [State()] * ranks
        self.main_thread = MainThread(on_gpu)
        self.closed = threading.Event()
        self.threads = [threading.Thread(target=self._judge, name="heartbeat: judge", daemon=True)]
        if store is not None and ranks > 1:
            exchange = threading.Thread(target=self._exchange, args=(store,), name="heartbeat: exchange", daemon=True)
            self.threads.append(exchange)
        for thread in self.threads:
            thread.start()

    def beat(self, place: Place) -> None:
        """The main thread is at this place now; costs no system call and no lock."""
        self.place = place
        if place == "measuring the parts alone":
            # Each rank takes as many batches there as it can: who has more is not ahead of the others.
            self.work += 1
            return
        self.steps += place == "in a step"
        self.beats += 1

    def close(self) -> None:
        """Tell the others that this rank is through, and watch no more."""
        self.closed.set()
        for thread in self.threads:
            if thread is not threading.current_thread():
                thread.join(FAREWELL_S)

    def _state(self) -> State:
        return State(self.place, self.steps, self.beats, self.work, self.polls, self.closed.is_set())

    def _exchange(self, store: Store) -> None:
        # A connection that broke stays broken, and torch writes a page into the log at each further use of it.
        with contextlib.suppress(Exception):
            mine = store.clone()
            self._tell(mine)
            while not self.closed.wait(self.poll_s):
                self.told = self._hear(mine)
                self._tell(mine)
            self._tell(mine)

    def _tell(self, store: Store) -> None:
        self.polls += 1
        store.set(f"heartbeat/{self.rank}", json.dumps(asdict(self._state())))

    def _hear(self, store: Store) -> list[State]:
        """What each rank told last; to wait for the key of one that never came would keep us from hearing the others."""
        keys = {rank: f"heartbeat/{rank}" for rank in range(self.ranks)}
        known = [rank for rank in keys if self.told[rank].polls or store.check([keys[rank]])]
        told = list(self.told)
        for rank, text in zip(known, store.multi_get([keys[rank] for rank in known]), strict=True):
            told[rank] = State(**json.loads(text))
        return told

    def _judge(self) -> None:
        watch, unbeaten_s, beats, looked_s = Watch(self.ranks), 0.0, 0, time.monotonic()
        while not self.closed.wait(self.poll_s):
            now_s = time.monotonic()
            # Whoever was stopped with the rest of the job, and goes on now, has not been watching all the while.
            passed_s, looked_s = min(now_s - looked_s, 2 * self.poll_s), now_s
            unbeaten_s, beats = (unbeaten_s + passed_s if beats == self.beats else 0.0), self.beats
            worked = self.main_thread.worked(self.place)
            self.work += worked and unbeaten_s < WORK_COUNTS_FOR_PATIENCES * self.patience_s
            watch.see(self._all_states(), passed_s)
            if watch.still_s >= self.patience_s - POLLS_BEHIND * self.poll_s:
                self.on_hang(verdict(watch.states, watch.silent(), watch.still_s, self.rank))
                return

    def _all_states(self) -> list[State]:
        """The others as they told; this one as it is, but alive only as far as what it told has arrived."""
        if self.ranks == 1:
            self.polls += 1
            return [self._state()]
        states, own = list(self.told), self._state()
        states[self.rank] = State(own.place, own.steps, own.beats, own.work, states[self.rank].polls)
        return states
