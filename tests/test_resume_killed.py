"""Runs that save themselves in processes of their own, killed, stopped and out of disk: what goes on is the run that never was."""

from __future__ import annotations

import random
import resource
import signal
import time

import pytest
from killed_runs import (
    CASES,
    ENDS_WITHIN_S,
    FOR_EVER,
    NeverStopped,
    Runs,
    ends_well,
    kill_launcher,
    kill_rank,
    restarted,
    told_to_go_on,
)
from runs import rows, wait_for
from saved_runs import state, unfinished

from harness.checkpoint import open_checkpoint


def test_a_run_stopped_by_signals_goes_on_by_the_words_it_ends_with(runs: Runs, never_stopped: NeverStopped) -> None:
    run = runs.begin(*CASES["one"])
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        assert run.saves(after=8), run.output.read_text()
        run.look()
        run.process.send_signal(number)
        ended, output = run.ends_with(ENDS_WITHIN_S)
        assert ended == status, output
        assert run.leaves_nothing(), run.left_running()
        assert rows(run.table)[-1]["status"] == "interrupted"
        run = runs.start(*told_to_go_on(output))
    row = ends_well(run, never_stopped["one"])
    assert float(row["input_alone_images_per_s"]) > 0


def test_a_launcher_killed_before_its_rank_has_begun_takes_it_along(runs: Runs) -> None:
    run = runs.begin(*CASES["one"])
    assert wait_for(lambda: run.rank(0) is not None, 120)
    kill_launcher(run)
    assert run.step() == 0


def test_a_run_ends_at_its_time_limit(runs: Runs) -> None:
    run = runs.begin(*CASES["one"], *FOR_EVER, "--time-limit", "9")
    status, output = run.ends_with(ENDS_WITHIN_S)
    assert status == 143, output
    assert run.leaves_nothing(), run.left_running()
    (row,) = rows(run.table)
    assert row["status"] == "interrupted"
    assert "its time limit" in row["status_reason"]
    if list(run.folder().glob("checkpoints/step-*")):
        assert str(run.folder()) in told_to_go_on(output)


def test_ranks_that_die_start_again_and_one_that_is_told_to_stop_has_all_save_themselves(
    runs: Runs, never_stopped: NeverStopped
) -> None:
    run = runs.begin(*CASES["data"], "--max-restarts", "1", "--time-limit", "600")
    assert run.saves(after=8), run.output.read_text()
    dead = kill_rank(run, 1)
    assert restarted(run, dead), run.output.read_text()
    assert run.saves(after=run.step()), run.output.read_text()
    run.send_rank(1, signal.SIGALRM)
    status, output = run.ends_with(ENDS_WITHIN_S)
    assert status == 143, output
    assert run.leaves_nothing(), run.left_running()
    assert [(row["status"], row["restarts"]) for row in rows(run.table)] == [("interrupted", "1")]

    again = runs.go_on(run.folder())
    assert again.saves(), again.output.read_text()
    assert again.is_saving(), again.output.read_text()
    kill_launcher(again)
    last = runs.go_on(again.folder(), "--max-restarts", "1")
    assert last.saves(), last.output.read_text()
    kill_rank(last, 0)
    assert ends_well(last, never_stopped["data"])["restarts"] == "1"


@pytest.mark.parametrize("case", ["columns", "hybrid"])
def test_a_killed_rank_and_a_killed_launcher_change_nothing(runs: Runs, never_stopped: NeverStopped, case: str) -> None:
    draw = random.Random()
    run = runs.begin(*CASES[case], "--max-restarts", "1")
    assert run.is_saving() if case == "hybrid" else run.saves(), run.output.read_text()
    time.sleep(draw.random())
    dead = kill_rank(run, draw.randrange(2))
    if restarted(run, dead):
        assert run.saves(), run.output.read_text()
        time.sleep(draw.random())
    if not run.ended():
        kill_launcher(run)
    reached = open_checkpoint(run.folder())
    if reached.at_its_end:
        assert state(reached) == state(open_checkpoint(never_stopped[case]))
    else:
        ends_well(runs.go_on(run.folder()), never_stopped[case])


def test_a_disk_that_is_full_for_one_rank_ends_the_job_with_a_sentence(runs: Runs, never_stopped: NeverStopped) -> None:
    run = runs.begin(*CASES["data"])
    assert run.saves(after=8), run.output.read_text()
    rank = run.rank(1)
    assert rank is not None
    resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    status, output = run.ends_with(ENDS_WITHIN_S)
    assert status == 1, output
    assert run.leaves_nothing(), run.left_running()
    (row,) = rows(run.table)
    assert row["status"] == "failed"
    assert "could not be saved in " in row["status_reason"]
    assert f"failed: {row['status_reason']}" in output.splitlines()
    assert unfinished([run.folder()]) == []
    assert str(run.folder()) in told_to_go_on(output)
    newest = open_checkpoint(run.folder())
    assert newest.step < open_checkpoint(never_stopped["data"]).step
    assert newest.damage() == ""
