"""What ranks must agree on, and the sentence about the two that do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import agree
from pipelines import Batch

ROOT = Path(__file__).parents[1]


def test_ranks_that_agree_are_told_nothing() -> None:
    assert agree.disagreement([{"--seed": 1, "--steps": None}] * 3, "same flags") == ""


def test_the_first_difference_names_both_ranks_and_both_values() -> None:
    words = [{"--seed": 1, "--steps": 8}, {"--seed": 1, "--steps": 8}, {"--seed": 1, "--steps": 9}]
    sentence = agree.disagreement(words, "give every rank the same flags")
    assert sentence == "rank 0 has --steps 8 and rank 2 has 9: give every rank the same flags"


def batch(first_index: int = 0, pixel: float = 1.0) -> Batch:
    return Batch(torch.full((2, 3, 4, 4), pixel), torch.tensor([3, 5]), torch.tensor([first_index, 7]))


def test_a_batch_is_known_by_its_images_and_where_they_are_decoded_alike_by_its_pixels() -> None:
    same, other = batch(), batch(first_index=1)
    assert agree.batch_digest(same, pixels=True) == agree.batch_digest(batch(), pixels=True)
    assert agree.batch_digest(same, pixels=False) != agree.batch_digest(other, pixels=False)
    assert agree.batch_digest(same, pixels=True) != agree.batch_digest(batch(pixel=2.0), pixels=True)
    assert agree.batch_digest(same, pixels=False) == agree.batch_digest(batch(pixel=2.0), pixels=False)


def test_columns_of_one_network_must_see_one_batch_and_shards_need_not() -> None:
    assert agree.different_batches([(0, "a"), (0, "a"), (1, "b"), (1, "b")]) == ""
    sentence = agree.different_batches([(0, "a"), (0, "a"), (1, "b"), (1, "c")])
    assert sentence.startswith("ranks 2 and 3 hold columns of one network and their first batches differ")


def test_the_quickest_answer_tells_how_far_a_clock_is_ahead() -> None:
    # Asked at 100, answered "10" by the other, back at 101: half a second after asking ours said 100.5.
    echoes = [(90.0, 3.0, 99.0), (100.0, 10.0, 101.0), (110.0, 21.0, 115.0)]
    assert agree.ahead_of(echoes) == 90.5


PROGRAM = """
import sys, time
import torch.distributed as dist
from harness import agree
dist.init_process_group("gloo")
ahead = float(sys.argv[1]) if dist.get_rank() else 0.0
ranks = agree.Ranks(dist.get_rank(), dist.get_world_size())
found = agree.clock_ahead_s(ranks, lambda: time.perf_counter() + ahead)
one_machine = agree.clock_ahead_s(ranks)
open(f"{sys.argv[2]}/{dist.get_rank()}", "w").write(f"{found} {one_machine}")
dist.destroy_process_group()
"""


@pytest.fixture
def clocks(tmp_path: Path) -> list[list[float]]:
    """By rank: how far its clock was found ahead of rank 0's, set 1,000 s ahead; and on the clock that they share."""
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "program.py"), "1000", str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [list(map(float, (tmp_path / str(rank)).read_text().split())) for rank in range(3)]


def test_clocks_of_several_machines_are_set_against_rank_0s(clocks: list[list[float]]) -> None:
    found = [rank[0] for rank in clocks]
    assert found[0] == 0.0
    # The answer lies between asking and hearing it, which on one machine takes far less than a second.
    assert found[1:] == pytest.approx([1000.0, 1000.0], abs=0.5)
    assert [rank[1] for rank in clocks] == [0.0, 0.0, 0.0], "one machine has one clock"
