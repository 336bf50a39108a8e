"""Who hangs is named, whoever moves is not: the sentences on literals, then processes that stand still in every way."""

from __future__ import annotations

import ast
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from harness.heartbeat import Heartbeat, MainThread, State, Watch, hanging, started_processes_cpu_s, verdict

IN_57 = State("in a step", steps=57, beats=114, polls=20)
BEFORE_58 = State("waiting for a batch", steps=57, beats=115, polls=20)
IN_58 = State("in a step", steps=58, beats=116, polls=20)
ENDED = State("done", steps=60, beats=121, polls=20, ended=True)
ASK = "or ask for more patience with --heartbeat"

# --- who, and in which words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "silent", "sentence"),
    [
        (
            [IN_58, BEFORE_58],
            {1},
            "rank 1 has not moved for 118 s: it was waiting for a batch after 57 steps and answers no more"
            "; the other waits for it; look at its log, ",
        ),
        (
            [IN_58, IN_58, IN_57, IN_58],
            {},
            "rank 2 has not moved for 118 s: it is in step 57; the others wait for it; look at its log, ",
        ),
        ([IN_57, IN_57], {}, "no rank has moved for 118 s: all are in step 57; look at their logs, "),
        (
            [State("waiting for a batch"), State("compiling")],
            {},
            "rank 0 has not moved for 118 s: it is waiting for a batch; the other waits for it; look at its log, ",
        ),
        (
            [State("starting"), State("compiling")],
            {},
            "no rank has moved for 118 s: all are starting or compiling; look at their logs, ",
        ),
        (
            [IN_58, *[State()] * 6, IN_58],
            set(range(1, 7)),
            "ranks 1, 2, 3, 4 and 2 more have not moved for 118 s: they were never heard of and answer no more"
            "; the others wait for them; look at their logs, ",
        ),
        (
            [IN_58, BEFORE_58, BEFORE_58],
            {},
            "ranks 1 and 2 have not moved for 118 s: they are waiting for a batch after 57 steps"
            "; the other waits for them; look at their logs, ",
        ),
        (
            [State("evaluating", 1, 3), ENDED],
            {1},
            "rank 0 has not moved for 118 s: it is evaluating after 1 step; look at its log, ",
        ),
        (
            [IN_58, BEFORE_58],
            {0, 1},
            "rank 0 hears nothing of the others and has not moved for 118 s: it is in step 58; look at the others' logs, ",
        ),
        (
            [BEFORE_58],
            {},
            "rank 0 has not moved for 118 s: it is waiting for a batch after 57 steps; look at its log, ",
        ),
    ],
)
def test_the_sentence_names_who_hangs_and_where(states: list[State], silent: set[int], sentence: str) -> None:
    assert verdict(states, silent, 118.4, rank=0) == sentence + ASK


def test_a_process_that_answers_no_more_is_named_before_one_that_is_merely_behind() -> None:
    assert hanging([IN_57, IN_58], silent={1}) == [1]
    assert hanging([IN_57, IN_58], silent=()) == [0]


def test_a_rank_that_has_ended_is_never_named_though_it_is_silent_and_behind() -> None:
    assert hanging([IN_58, replace(ENDED, beats=1), IN_58], silent={1}) == [0, 2]


# --- how long ------------------------------------------------------------------------------------------------------


def watched(looks: Sequence[Sequence[State]]) -> Watch:
    watch = Watch(len(looks[0]))
    for told in looks:
        watch.see(told, passed_s=5)
    return watch


def test_as_long_as_one_rank_moves_however_slowly_nobody_stands_still() -> None:
    slow = [replace(IN_57, beats=look // 10, polls=look) for look in range(1, 100)]
    assert watched([(replace(IN_58, polls=look), each) for look, each in enumerate(slow)]).still_s == 45


def test_work_without_a_beat_is_a_move() -> None:
    assert watched([(IN_57, replace(IN_57, work=look)) for look in range(9)]).still_s == 0
    assert watched([(IN_57, IN_57)] * 9).still_s == 40


def test_whoever_lives_and_stands_still_is_not_silent() -> None:
    watch = watched([(replace(IN_57, polls=look), IN_57) for look in range(9)])
    assert (watch.silent(), watch.still_s) == ({1}, 40)


def test_a_rank_that_was_never_heard_of_is_silent() -> None:
    assert watched([(replace(IN_57, polls=look), State()) for look in range(1, 9)]).silent() == {1}


# --- one process, no store -----------------------------------------------------------------------------------------


class Named:
    """The sentences of a heartbeat, and a moment to wait for the first."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.first = threading.Event()

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self.first.set()


@pytest.fixture
def alone() -> Iterator[Callable[..., tuple[Heartbeat, Named]]]:
    beating: list[Heartbeat] = []

    def start(patience_s: float, on_gpu: bool = False) -> tuple[Heartbeat, Named]:
        named = Named()
        beating.append(Heartbeat(None, 0, 1, patience_s, named, on_gpu))
        return beating[-1], named

    yield start
    for heartbeat in beating:
        heartbeat.close()


SOURCE = ast.parse(Path(__file__).read_text())


def burn_cpu(seconds: float) -> None:
    """Python that runs as a compiler's does, in a main thread that does not beat."""
    until_s = time.process_time() + seconds
    while time.process_time() < until_s:
        ast.unparse(SOURCE)


def test_a_rank_alone_that_waits_for_ever_names_itself_once(alone: Callable[..., tuple[Heartbeat, Named]]) -> None:
    heartbeat, named = alone(patience_s=0.4)
    heartbeat.beat("in a step")
    heartbeat.beat("waiting for a batch")
    assert named.first.wait(20)
    heartbeat.close()
    assert [sentence.replace(" 0 s", " _ s") for sentence in named.sentences] == [
        f"rank 0 has not moved for _ s: it is waiting for a batch after 1 step; look at its log, {ASK}"
    ]


@pytest.mark.parametrize(("on_gpu", "place"), [(False, "in a step"), (False, "compiling"), (True, "compiling")])
def test_a_main_thread_at_work_longer_than_patience_is_not_named(
    alone: Callable[..., tuple[Heartbeat, Named]], on_gpu: bool, place: str
) -> None:
    heartbeat, named = alone(0.3, on_gpu)
    heartbeat.beat(place)  # type: ignore[arg-type]
    burn_cpu(0.6)
    heartbeat.close()
    assert named.sentences == []


@pytest.mark.parametrize("place", ["in a step", "compiling"])
def test_a_main_thread_that_spins_in_one_call_beside_a_gpu_is_named(
    alone: Callable[..., tuple[Heartbeat, Named]], place: str
) -> None:
    heartbeat, named = alone(0.2, on_gpu=True)
    heartbeat.beat(place)  # type: ignore[arg-type]
    hashlib.pbkdf2_hmac("sha256", b"waits", b"for a GPU", 2_000_000)
    assert named.first.wait(20)


def test_work_that_never_ends_is_a_hang_after_all(alone: Callable[..., tuple[Heartbeat, Named]]) -> None:
    heartbeat, named = alone(patience_s=0.1)
    heartbeat.beat("in a step")
    while not named.first.is_set():
        burn_cpu(0.01)
    assert named.sentences[0].startswith("rank 0 has not moved")


def test_compilers_that_the_rank_has_started_count_as_its_work_while_it_compiles() -> None:
    before_s = started_processes_cpu_s()
    main_thread = MainThread(on_gpu=True)
    main_thread.worked("compiling")
    burning = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burning], check=True)
    assert main_thread.worked("compiling")
    assert started_processes_cpu_s() - before_s >= 0.4


# --- processes over a store ----------------------------------------------------------------------------------------

PATIENCE_S = 2.0
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["torch.distributed", "pytest"])


def opened(port: int, timeout_s: float = 60) -> TCPStore:
    return TCPStore("127.0.0.1", port, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def hosted() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def be_host(says: Connection) -> None:
    store = hosted()
    says.send(store.port)
    threading.Event().wait()


def say_and_leave(says: Connection, sentence: str) -> None:
    says.send(sentence)
    os._exit(1)


def be_rank(port: int, rank: int, behave: Callable[[Heartbeat, TCPStore], None], says: Connection) -> None:
    store = opened(port)
    heartbeat = Heartbeat(store, rank, 2, PATIENCE_S, partial(say_and_leave, says), on_gpu=False)
    for _ in range(57):
        heartbeat.beat("waiting for a batch")
        heartbeat.beat("in a step")
    behave(heartbeat, store)
    heartbeat.close()
    says.send("")


def wait_in_step_58(heartbeat: Heartbeat, store: TCPStore) -> None:
    """As in a collective whose other rank never comes, until that one writes that it is over."""
    heartbeat.beat("waiting for a batch")
    heartbeat.beat("in a step")
    store.get("over")


def wait_for_a_batch(heartbeat: Heartbeat, _store: TCPStore) -> None:
    heartbeat.beat("waiting for a batch")
    threading.Event().wait()


def move_for_ever(heartbeat: Heartbeat, _store: TCPStore) -> None:
    while True:
        heartbeat.beat("waiting for a batch")
        time.sleep(0.02)


def move_slowly(heartbeat: Heartbeat, store: TCPStore) -> None:
    for _ in range(3):
        heartbeat.beat("evaluating")
        time.sleep(0.4 * PATIENCE_S)
    store.set("over", "")


def burn_without_a_beat(heartbeat: Heartbeat, store: TCPStore) -> None:
    heartbeat.beat("in a step")
    burn_cpu(1.3 * PATIENCE_S)
    store.set("over", "")


class Job:
    """Processes started for a test, what each says, and their end whatever happens."""

    def __init__(self) -> None:
        self.processes: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def start(self, target: Callable[..., None], *arguments: object) -> None:
        hears, says = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=target, args=(*arguments, says))
        process.start()
        says.close()
        self.processes.append((process, hears))

    def said(self, index: int) -> object:
        hears = self.processes[index][1]
        assert hears.poll(25), "nothing was said"
        return hears.recv()

    def send(self, index: int, number: signal.Signals) -> None:
        pid = self.processes[index][0].pid
        assert pid is not None
        os.kill(pid, number)

    def end(self) -> None:
        for process, hears in self.processes:
            process.kill()
            process.join()
            process.close()
            hears.close()


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.end()


def wait_until_told(store: TCPStore, rank: int) -> None:
    """Until the rank has told of its 57 steps."""
    while json.loads(store.get(f"heartbeat/{rank}"))["steps"] < 57:
        time.sleep(0.02)


def test_a_stopped_rank_is_named_by_the_other(job: Job) -> None:
    store = hosted()
    job.start(be_rank, store.port, 0, wait_in_step_58)
    job.start(be_rank, store.port, 1, move_for_ever)
    wait_until_told(store, 0)
    wait_until_told(store, 1)
    job.send(1, signal.SIGSTOP)
    assert job.said(0) == (
        "rank 1 has not moved for 2 s: it was waiting for a batch after 57 steps and answers no more"
        f"; the other waits for it; look at its log, {ASK}"
    )


def test_a_rank_that_waits_for_ever_for_a_batch_is_named_by_both(job: Job) -> None:
    store = hosted()
    for rank, behave in enumerate((wait_in_step_58, wait_for_a_batch)):
        job.start(be_rank, store.port, rank, behave)
    sentence = "rank 1 has not moved for 2 s: it is waiting for a batch after 57 steps; the other waits for it"
    assert {job.said(0), job.said(1)} == {f"{sentence}; look at its log, {ASK}"}


@pytest.mark.parametrize("behave", [move_slowly, burn_without_a_beat])
def test_nobody_is_named_while_one_moves_or_works_for_longer_than_patience(
    job: Job, behave: Callable[[Heartbeat, TCPStore], None]
) -> None:
    store = hosted()
    job.start(be_rank, store.port, 0, wait_in_step_58)
    job.start(be_rank, store.port, 1, behave)
    assert (job.said(0), job.said(1)) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_whose_store_is_gone_says_that_it_hears_nothing(job: Job, number: signal.Signals) -> None:
    job.start(be_host)
    port = job.said(0)
    assert isinstance(port, int)
    job.start(be_rank, port, 0, wait_for_a_batch)
    job.start(be_rank, port, 1, move_for_ever)
    store = opened(port)
    wait_until_told(store, 0)
    wait_until_told(store, 1)
    job.send(0, number)
    assert job.said(1) == (
        "rank 0 hears nothing of the others and has not moved for 2 s: it is waiting for a batch after 57 steps"
        f"; look at the others' logs, {ASK}"
    )
    assert not job.processes[2][1].poll(), "a rank that moves needs no store"
