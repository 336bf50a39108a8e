"""Twenty kills at random moments of short runs; `tox -e faults`, for they take many minutes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from runs import SCHEMES, Started, finished, rows, run_words, verified, wait_for

ENDS_WITHIN_S = 40
SHORT = ("--steps", "3")
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def whole_s(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], float]:
    """Seconds of a run with these words that nobody disturbs and whose network has been compiled before."""
    known: dict[tuple[str, ...], float] = {}

    def seconds(words: tuple[str, ...]) -> float:
        for _ in range(0 if words in known else 1 + ("on" in words)):
            begun_s = time.monotonic()
            table = tmp_path_factory.mktemp("whole") / "table.csv"
            done = finished(*run_words(pictures, table, *words))
            assert done.returncode == 0, done.stderr
            known[words] = time.monotonic() - begun_s
        return known[words]

    return seconds


@pytest.mark.parametrize("seed", range(20))
def test_a_rank_killed_at_any_moment_ends_the_job_and_leaves_nothing(
    start: Callable[..., Started], whole_s: Callable[[tuple[str, ...]], float], seed: int
) -> None:
    draw = random.Random(seed)
    words = (*SCHEMES[draw.choice(list(SCHEMES))], "--compile", draw.choice(("on", "off")), *SHORT)
    index, delay_s = draw.randrange(2), draw.random() * whole_s(words)
    run = start(*words)
    assert wait_for(lambda: run.rank(index) is not None, 120), run.output.read_text()
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
