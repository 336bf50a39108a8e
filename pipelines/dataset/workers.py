"""A few processes that work through a list of tasks, and none of which outlives the one that asked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

TELL_EVERY_S = 0.2

Task = TypeVar("Task")
Result = TypeVar("Result")
Tell = Callable[[int], None]  # how far a task is, to be called often


@dataclass(frozen=True)
class Event(Generic[Task, Result]):
    """What became of a task: `told` from 0 while it lasts; then -1, and its `result` or the `error` it raised."""

    task: Task
    told: int
    result: Result | None = None
    error: Exception | None = None


class WorkerDied(RuntimeError):
    """A worker ended without a word in the middle of `task`, or before its first (None); `how` in a few words."""

    def __init__(self, task: object, exit_code: int | None) -> None:
        killed = exit_code is not None and exit_code < 0
        self.task, self.how = task, f"killed by signal {-exit_code}" if killed and exit_code else f"exit {exit_code}"
        super().__init__(f"a worker died: {self.how}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def at_work(
    function: Callable[[Task, Tell], Result], tasks: Iterable[Task], workers: int
) -> Generator[Event[Task, Result], None, None]:
    """The events of `function(task, tell)` on every task, as they come; tasks are drawn when a worker is free.

    Closing the generator kills the workers at once; they also end where this process is killed.
    `function` must be importable by name. `WorkerDied` where a worker vanishes.
    """
    context = multiprocessing.get_context("spawn")  # a fork beside torch's and DALI's threads may hang
    waiting = iter(tasks)
    crew: dict[Connection, tuple[Any, Task | None]] = {}
    try:
        with _ctrl_c_held_back():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()
                crew[ours] = (process, None)
        yield from _events(crew, waiting)
    finally:
        for process, _ in crew.values():
            process.kill()
        for process, _ in crew.values():
            process.join()


def _events(
    crew: dict[Connection, tuple[Any, Task | None]], waiting: Iterator[Task]
) -> Generator[Event[Task, Any], None, None]:
    idle = 0
    while idle < len(crew):
        for ready in connection.wait(list(crew)):
            assert isinstance(ready, Connection)
            process, task = crew[ready]
            try:
                told, result, error = ready.recv()
                if told < 0:
                    following = next(waiting, None)
                    crew[ready] = (process, following)
                    if following is None:
                        idle += 1
                    else:
                        ready.send(following)
            except (EOFError, ConnectionError):
                process.join()
                raise WorkerDied(crew[ready][1], process.exitcode) from None
            if task is not None:
                yield Event(task, told, result, error)


def _work(function: Callable[[Any, Tell], Any], pipe: Connection) -> None:
    """The life of a worker, which ends when its parent does, whatever it is at."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told_s = time.monotonic()

    def tell(number: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= TELL_EVERY_S:
            told_s = time.monotonic()
            pipe.send((number, None, None))

    with contextlib.suppress(EOFError, ConnectionError):
        pipe.send((-1, None, None))
        while True:
            task = pipe.recv()
            word: tuple[int, Any, Exception | None]
            try:
                word = (-1, function(task, tell), None)
            except ConnectionError:
                raise
            except Exception as error:
                word = (-1, None, error)
            pipe.send(word)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes started within never see SIGINT: Ctrl-C goes to all of a terminal, and only the asker should answer."""
    resource_tracker.ensure_running()  # it would unblock the signal on its way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
