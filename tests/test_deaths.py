"""When a rank, its launcher or both die or are told to stop: how the job ends, whose row it is, and what is left running."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from literals import rank_of
from runs import (
    FOR_EVER,
    ROOT,
    SCHEMES,
    TORCHRUN,
    Started,
    draw_pictures,
    free_port,
    harness,
    rows,
    verified,
    wait_for,
    words_of,
)

from harness import folders
from harness.config import RunConfig
from harness.images import open_images
from harness.resolve import resolve

ENDS_WITHIN_S = 40
HEARTBEAT_S = 12
Start = Callable[..., Started]


def ends_as_failed(run: Started, reason: str, within_s: float = ENDS_WITHIN_S) -> None:
    """The job is over in time, with exit 1 and one failed row that says why and agrees with its record; nothing is left."""
    status, output = run.ends_with(within_s)
    assert status == 1, output
    assert run.leaves_nothing(), run.left_running()
    (row,) = rows(run.table)
    assert row["status"] == "failed"
    assert reason in row["status_reason"]
    assert not row["images_per_s"]
    assert "Traceback" not in output
    assert verified(run.table)


# --- a rank is killed, or stopped ---------------------------------------------------------------------------------


@pytest.fixture
def slow_compiler(tmp_path: Path) -> dict[str, str]:
    """An environment in which compiling a network never ends; other code is compiled as ever."""
    cache, compiler = tmp_path / "inductor", tmp_path / "slow-g++"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *{cache}*) sleep 600; exit 1; esac\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(cache)}


def compiling(run: Started) -> int | None:
    """The rank for which a compiler is at work; the other waits for its results."""
    at_work = [each for each in run.look() if words_of(each)[:2] == ["sleep", "600"]]
    above = [parent for each in at_work for parent in each.parents()]
    return next((index for index in range(2) if run.rank(index) in above), None)


@pytest.mark.parametrize(("scheme", "victim"), [("data", None), ("columns", 0), ("hybrid", None)])
def test_a_rank_killed_while_compiling_ends_the_job_and_every_compiler(
    start: Start, slow_compiler: dict[str, str], scheme: str, victim: int | None
) -> None:
    run = start(*SCHEMES[scheme], *FOR_EVER, "--compile", "on", environment=slow_compiler)
    assert run.reaches("compile"), run.output.read_text()
    assert wait_for(lambda: compiling(run) is not None, 120)
    killed = compiling(run) if victim is None else victim
    assert killed is not None
    run.send_rank(killed, signal.SIGKILL)
    ends_as_failed(run, f"rank {killed} ended by SIGKILL while compiling")


@pytest.mark.parametrize(("scheme", "victim"), [("data", 0), ("columns", 1), ("hybrid", 0)])
def test_a_rank_killed_while_timed_ends_the_job(start: Start, scheme: str, victim: int) -> None:
    run = start(*SCHEMES[scheme], *FOR_EVER)
    assert run.reaches("timed"), run.output.read_text()
    run.send_rank(victim, signal.SIGKILL)
    ends_as_failed(run, f"rank {victim} ended by SIGKILL while timed")


def test_a_stopped_rank_is_named_and_ended_within_the_heartbeat(start: Start) -> None:
    run = start(*SCHEMES["data"], *FOR_EVER, "--heartbeat", str(HEARTBEAT_S))
    assert run.reaches("timed"), run.output.read_text()
    run.send_rank(1, signal.SIGSTOP)
    ends_as_failed(run, "rank 1 has not moved for", HEARTBEAT_S + ENDS_WITHIN_S)


# --- nobody is there to write the row -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["compile", "timed"])
def test_under_a_foreign_torchrun_a_killed_rank_is_a_failed_row_at_the_next_command(start: Start, phase: str) -> None:
    run = start(*SCHEMES["data"], *FOR_EVER, by=TORCHRUN)
    assert run.reaches(phase), run.output.read_text()
    assert harness("table", str(run.table)).returncode == 2, "a run that is alive has no row yet"
    run.send_rank(1, signal.SIGKILL)
    assert run.ends_with(ENDS_WITHIN_S)[0] == 1
    assert run.leaves_nothing(), run.left_running()
    assert (run.folder() / "running.json").exists()
    first, second = harness("table", str(run.table)), harness("table", str(run.table))
    assert f"{run.folder().name}, which had ended without a row, is failed: " in first.stderr
    assert (second.stderr, first.returncode, second.returncode) == ("", 0, 0)
    (row,) = rows(run.table)
    assert row["status"] == "failed"
    assert row["status_reason"].endswith("; rank 1 left no word in its folder")
    assert verified(run.table)


@pytest.mark.parametrize("by", [(), TORCHRUN], ids=["our launcher", "torchrun"])
def test_a_killed_launcher_leaves_no_process_and_one_failed_row_at_the_next_command(
    start: Start, by: tuple[str, ...]
) -> None:
    run = start(*SCHEMES["data"], *FOR_EVER, by=by)
    assert run.reaches("timed"), run.output.read_text()
    running = run.folder() / "running.json"
    text = running.read_text()
    run.process.kill()
    run.process.wait()
    assert run.leaves_nothing(), run.left_running()
    assert running.read_text() == text
    said = harness("verify", str(run.table)).stderr
    assert (
        f"{run.folder().name}, which had ended without a row, is failed: the job ended without a word while timed"
        in said
    )
    assert not running.exists()
    # As it would lie there if the launcher had been killed between its row and its tidying.
    running.write_text(text)
    assert harness("verify", str(run.table)).stderr == ""
    assert [row["status"] for row in rows(run.table)] == ["failed"]
    assert not running.exists()


@pytest.mark.parametrize(("told_to_stop", "found"), [((0,), ["failed"]), ((0, 1), [])])
def test_ranks_told_to_stop_before_the_window_leave_no_row_unless_one_had_died(
    pictures: Path, tmp_path: Path, told_to_stop: tuple[int, ...], found: list[str]
) -> None:
    config = resolve(RunConfig(cpus=2, data=str(pictures)), cores=2, gpus=0)
    launch = folders.Launch.begin(config, open_images(config), tmp_path / "table.csv", "group", 1, 2)
    for rank in told_to_stop:
        folders.write_rank(launch.folder, rank, "", asdict(rank_of(rank, windows=(), interrupted=True)))
    launch.let_go()
    said = folders.settle_unfinished(tmp_path / "table.csv")
    assert len(said) == len(found)
    assert [row["status"] for row in (rows(tmp_path / "table.csv") if said else [])] == found
    assert all(sentence.endswith("; rank 1 left no word in its folder") for sentence in said)
    assert launch.folder.exists() == bool(found)


# --- it is told to stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sigterm_in_the_timed_window_has_every_rank_write_what_it_has(start: Start, scheme: str) -> None:
    run = start(*SCHEMES[scheme], *FOR_EVER)
    assert run.reaches("timed"), run.output.read_text()
    run.process.terminate()
    status, output = run.ends_with(ENDS_WITHIN_S)
    assert status == 143, output
    assert run.leaves_nothing(), run.left_running()
    (row,) = rows(run.table)
    assert row["status"] == "interrupted"
    assert int(row["images_counted"]) > 0
    ranks = json.loads((run.folder() / "trial.json").read_text())["trial"]["ranks"]
    assert [(rank["interrupted"], bool(rank["windows"])) for rank in ranks] == [(True, True)] * 2
    assert "Traceback" not in output
    assert verified(run.table)


# --- ranks that cannot be a job -----------------------------------------------------------------------------------


def refused(run: Started, within_s: float = ENDS_WITHIN_S) -> str:
    """The one sentence of a run that was asked wrongly, and left nothing behind."""
    status, output = run.ends_with(within_s)
    assert status == 2, output
    assert not run.table.exists()
    assert not run.table.with_name("runs").exists()
    (sentence,) = output.splitlines()
    return sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--parallel columns --cpus 1", "columns needs pairs of ranks, a column each, and 1 rank was asked: give --cpus 2"),
        ("--parallel columns --cpus 3", "columns needs pairs of ranks, a column each, and 3 ranks were asked: give --cpus 4"),
        ("--parallel hybrid --cpus 3", "hybrid shares 4096 units equally, and 3 ranks were asked: give a power of two"),
        ("--parallel columns --cpus 2 --model alexnet-half", "columns was asked and alexnet-half has no parts for it"),
    ],
)  # fmt: skip
def test_a_scheme_that_these_ranks_cannot_share_is_refused(start: Start, words: str, sentence: str) -> None:
    assert refused(start(*words.split())).startswith(f"error: --parallel {sentence}")


def as_rank(rank: int, port: int) -> dict[str, str]:
    """What a launcher tells one of two ranks."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return {**place, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def test_ranks_with_different_flags_are_refused_and_named(start: Start) -> None:
    port = free_port()
    pair = [start("--seed", str(5 + rank), environment=as_rank(rank, port)) for rank in range(2)]
    assert {refused(run) for run in pair} == {
        "error: rank 0 has --seed 5 and rank 1 has 6: give every rank the same flags"
    }


def test_ranks_with_different_data_are_refused_and_named(start: Start, pictures: Path, tmp_path: Path) -> None:
    port, others = free_port(), draw_pictures(tmp_path / "others")
    (others / "train" / "red" / "0.jpg").unlink()
    pair = [start(data=data, environment=as_rank(rank, port)) for rank, data in enumerate((pictures, others))]
    one, other = (refused(run) for run in pair)
    assert one == other
    assert one.startswith("error: rank 0 has the data ")
    assert one.endswith(": give every node the same images by --data")
    assert " and rank 1 has " in one


def test_ranks_with_different_code_are_refused_and_named(start: Start, tmp_path: Path) -> None:
    for package in ("harness", "models", "pipelines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "models" / "alexnet.py").open("a") as file:
        file.write("# One comment more.\n")
    port = free_port()
    pair = [start(cwd=cwd, environment=as_rank(rank, port)) for rank, cwd in enumerate((ROOT, tmp_path))]
    one, other = (refused(run) for run in pair)
    assert one == other
    assert one.startswith("error: rank 0 has the code ")
    assert one.endswith(": install the same harness on every node")
    assert " and rank 1 has " in one


@pytest.mark.parametrize(
    ("rank", "found"), [(0, "for the 2 ranks of the job and they did not all come"), (1, "and nobody answered")]
)
def test_a_rendezvous_that_nobody_answers_is_refused_with_its_address(start: Start, rank: int, found: str) -> None:
    port = free_port()
    alone = start("--heartbeat", "5", environment=as_rank(rank, port))
    assert refused(alone).startswith(f"error: rank {rank} waited 5 s at localhost:{port} {found}: start ")
