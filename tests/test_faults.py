"""Twenty kills at random moments of short runs; `tox -e faults`, for they take many minutes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runs import SCHEMES, Started, rows, run_words, verified, wait_for

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
