"""Twenty kills at random moments of short runs, and of runs that save themselves; `tox -e faults`, for they take many minutes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from killed_runs import CASES, NeverStopped, Runs, Saving, ends_well, kill_launcher, kill_rank
from killed_runs import ENDS_WITHIN_S as GOES_ON_WITHIN_S
from runs import SCHEMES, Started, rows, run_words, verified, wait_for
from saved_runs import state

from harness.checkpoint import open_checkpoint

ENDS_WITHIN_S = 40
SHORT = ("--steps", "3")
pytestmark = pytest.mark.faults


def has_begun(run: Started) -> bool:
    return wait_for(lambda: run.rank(0) is not None and run.rank(1) is not None, 120)


@pytest.fixture(scope="module")
def ranks_live_s(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], float]:
    """Seconds that the ranks of a run with these words live where nobody disturbs them and the network has been compiled before."""
    known: dict[tuple[str, ...], float] = {}

    def seconds(words: tuple[str, ...]) -> float:
        for _ in range(0 if words in known else 1 + ("on" in words)):
            table = tmp_path_factory.mktemp("whole") / "table.csv"
            run = Started(table, *run_words(pictures, table, *words))
            try:
                assert has_begun(run)
                born_s = time.monotonic()
                assert run.ends_with(240)[0] == 0, run.output.read_text()
                known[words] = time.monotonic() - born_s
            finally:
                run.clear_away()
        return known[words]

    return seconds


@pytest.mark.parametrize("seed", range(20))
def test_a_rank_killed_at_any_moment_ends_the_job_and_leaves_nothing(
    start: Callable[..., Started], ranks_live_s: Callable[[tuple[str, ...]], float], seed: int
) -> None:
    draw = random.Random(seed)
    words = (*SCHEMES[draw.choice(list(SCHEMES))], "--compile", draw.choice(("on", "off")), *SHORT)
    index, delay_s = draw.randrange(2), draw.random() * ranks_live_s(words)
    run = start(*words)
    assert has_begun(run), run.output.read_text()
    time.sleep(delay_s)
    victim = run.rank(index)
    if victim is not None:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            victim = None
    status, output = run.ends_with(ENDS_WITHIN_S)
    told = f"seed {seed}, rank {index} of {' '.join(words)} after {delay_s:.1f} s:\n{output}"
    assert run.leaves_nothing(), run.left_running()
    (row,) = rows(run.table)
    assert (status, row["status"]) in ((1, "failed"), (0, "ok")), told
    if row["status"] == "failed":
        assert f"rank {index} ended by SIGKILL" in row["status_reason"], told
    elif victim is not None:
        # It had written down all that it saw, and was on its way out.
        assert row["images_counted"] == "12", told
    assert "Traceback" not in output
    assert verified(run.table)


# --- runs that save themselves ------------------------------------------------------------------------------------


def furthest(runs: Runs) -> Path | None:
    """The folder of the run that saved the latest step, if any did."""
    steps = runs.table.parent.glob("runs/*/checkpoints/step-*")
    return max(((path.name, path.parents[1]) for path in steps), default=(None, None))[1]


def at_its_end(folder: Path | None) -> bool:
    return folder is not None and open_checkpoint(folder).at_its_end


def begin_or_go_on(runs: Runs, case: str, restarts: int = 0) -> Saving:
    words, saved = ("--max-restarts", str(restarts)), furthest(runs)
    return runs.go_on(saved, *words) if saved else runs.begin(*CASES[case], *words)


def wait_for_a_moment(run: Saving, draw: random.Random) -> None:
    """From its ranks' birth on, or about when it saves itself, or while it does."""
    when = draw.randrange(3)
    if when == 0:
        wait_for(lambda: run.rank(0) is not None or run.ended(), 120)
    elif when == 1:
        run.saves()
    else:
        run.is_saving()
    time.sleep(draw.random() * (1 if when else 10))


def kill_one(run: Saving, draw: random.Random, ranks: int) -> str:
    """Kill its launcher or a rank, and see whether that ends it; what was done, in words."""
    index = draw.choice([None, *range(ranks)])
    if run.ended():
        return "nothing"
    if index is None:
        kill_launcher(run)
        return "the launcher"
    kill_rank(run, index)
    wait_for(run.ended, 8)
    return f"rank {index}"


@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_twice_at_any_moment_goes_on_as_if_nobody_had(
    runs: Runs, never_stopped: NeverStopped, seed: int
) -> None:
    draw = random.Random(seed)
    case = list(CASES)[seed % len(CASES)]
    whole, told = never_stopped[case], [f"seed {seed}, {case}"]
    run = begin_or_go_on(runs, case, draw.randrange(2))
    for _ in range(2):
        wait_for_a_moment(run, draw)
        told.append(kill_one(run, draw, 1 if case == "one" else 2))
        if run.ended() and not at_its_end(furthest(runs)):
            run = begin_or_go_on(runs, case, draw.randrange(2))
    assert set(told[1:]) != {"nothing"}, told
    status, output = run.ends_with(GOES_ON_WITHIN_S)
    assert run.leaves_nothing(within_s=40), (told, run.left_running())
    assert "Traceback" not in output
    if not at_its_end(furthest(runs)):
        ends_well(begin_or_go_on(runs, case), whole)
    elif status == 0:
        ends_well(run, whole)
    else:
        # It was killed when all had been saved.
        assert state(open_checkpoint(furthest(runs) or "")) == state(open_checkpoint(whole)), told
