"""What a launch's folder tells when nobody wrote its row, and what ranks under another launcher may ask."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from literals import DATASET, MACHINE, rank_of

from harness import folders, join, resolve, results
from harness.config import AskedWrongly, RunConfig
from harness.rows import SCHEMA_VERSION

LOST = "rank 0 lost the other ranks (Connection closed by peer)"
WHOLE = {"failure": "", "trial": {"interrupted": False}}
STOPPED = {"failure": "", "trial": {"interrupted": True}}
NOTHING = {"failure": "", "trial": None}


@pytest.mark.parametrize(
    ("left", "failure", "told"),
    [
        ({0: NOTHING, 1: NOTHING}, "", "the job ended without a word while timed: it was killed, or its machine stopped; ranks 0, 1 left no word in its folder"),
        ({0: STOPPED, 1: NOTHING}, "", "the job was stopped while timed; rank 1 left no word in its folder"),
        ({0: {"failure": LOST, "trial": None}, 1: NOTHING}, LOST, f"{LOST} while timed; rank 1 left no word in its folder"),
        ({0: NOTHING, 1: {"failure": "cat.jpg is truncated: replace it", "trial": None}}, "cat.jpg is truncated: replace it", "cat.jpg is truncated: replace it"),
    ],
)  # fmt: skip
def test_a_job_that_ended_without_a_row_is_told_by_what_its_ranks_left(
    left: dict[int, dict[str, Any]], failure: str, told: str
) -> None:
    assert folders.how_it_ended(left, failure, "timed") == told


def test_a_rank_that_only_lost_the_others_is_not_the_first_to_fail(tmp_path: Path) -> None:
    folders.write_rank(tmp_path, 0, LOST, None)
    folders.write_rank(tmp_path, 1, "cat.jpg is truncated: replace it", None)
    assert folders.first_failure(tmp_path, 2) == "cat.jpg is truncated: replace it"


def unfinished(table: Path, run_id: str = "run-1") -> Path:
    """The folder of a launch of two ranks that no process runs."""
    folder = results.run_folder(table, run_id)
    folder.mkdir(parents=True)
    config = RunConfig(cpus=2, images_per_gpu=32, compile="on")
    told = {
        "schema_version": SCHEMA_VERSION, "run_id": run_id, "group_id": "group-1", "launch": 1,
        "started_at": "2026-01-01T00:00:00Z", "asked": config.columns(), "dataset": DATASET, "machine": MACHINE,
    }  # fmt: skip
    running = {"table": table.name, "config": asdict(config), "limits": True, "told": told}
    (folder / folders.RUNNING).write_text(json.dumps(running))
    return folder


def test_a_launch_that_was_killed_becomes_one_failed_row(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    unfinished(table)
    (said,) = folders.settle_unfinished(table)
    assert said.startswith(
        "run-1, which had ended without a row, is failed: the job ended without a word while starting"
    )
    assert folders.settle_unfinished(table) == []
    assert [row["status"] for row in results.read_table(table)] == ["failed"]
    assert results.verify(table) == []


def test_ranks_that_had_seen_everything_make_a_row_that_counts(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    folder = unfinished(table)
    for rank in range(2):
        folders.write_rank(folder, rank, "", asdict(rank_of(rank)))
    folders.settle_unfinished(table)
    (row,) = results.read_table(table)
    assert (row["status"], row["images_per_s"]) == ("ok", "640")
    assert not (folder / folders.RUNNING).exists()


def test_a_launch_that_is_alive_and_one_of_another_table_are_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    alive = folders.Launch.read(unfinished(table))
    alive.hold()
    unfinished(tmp_path / "another.csv", "run-2")
    assert folders.settle_unfinished(table) == []
    assert not table.exists()
    alive.let_go()


def test_what_was_stopped_before_the_timed_steps_leaves_no_row(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    folder = unfinished(table)
    for rank in range(2):
        folders.write_rank(folder, rank, "", asdict(rank_of(rank, windows=(), interrupted=True)))
    assert folders.settle_unfinished(table) == []
    assert not table.exists()
    assert not folder.exists()


# --- inside another launcher's job --------------------------------------------------------------------------------


JOB = join.Job(ranks=4, ranks_here=2, nodes=2)


def test_a_job_says_how_many_ranks_and_nodes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    assert join.inside_a_job() is None
    said = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert join.inside_a_job() == JOB


def test_ranks_are_gpus_where_each_has_one_and_else_cpus() -> None:
    on_gpu, on_cpu = (join.as_the_job(RunConfig(), JOB, gpus=gpus) for gpus in (2, 0))
    assert (on_gpu.gpus, on_gpu.cpus, on_gpu.nodes) == (4, None, 2)
    assert (on_cpu.gpus, on_cpu.cpus, on_cpu.nodes) == (None, 4, 2)


def test_tasks_that_see_a_gpu_each_are_not_taken_for_cpus() -> None:
    with pytest.raises(AskedWrongly, match=r"2 ranks run here and each sees 1 GPU: .*or give --cpus 4"):
        join.as_the_job(RunConfig(), JOB, gpus=1)
    assert join.as_the_job(RunConfig(cpus=4), JOB, gpus=1).cpus == 4


def test_a_leftover_that_cannot_be_read_is_told_and_blocks_nothing(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    (unfinished(table) / "trial.json").write_text("{")
    (said,) = folders.settle_unfinished(table)
    assert said.startswith("run-1 ended without a row, and none can be made of it: the record")


def test_a_table_behind_a_link_is_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "table.csv")
    unfinished(tmp_path / "link.csv")
    assert len(folders.settle_unfinished(tmp_path / "table.csv")) == 1


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"cpus": 2}, "--cpus 2 was asked and torchrun started 4 ranks: give --cpus 4, or leave it out"),
        ({"gpus": 8}, "--gpus 8 was asked and torchrun started 4 ranks: give --gpus 4, or leave it out"),
        ({"nodes": 3}, "--nodes 3 was asked and torchrun started 2 of them: give --nodes 2, or leave it out"),
    ],
)
def test_what_contradicts_the_launcher_is_refused(asked: dict[str, int], sentence: str) -> None:
    with pytest.raises(AskedWrongly) as refused:
        join.as_the_job(RunConfig(**asked), JOB, gpus=0)
    assert str(refused.value) == sentence


def test_flags_are_compared_and_paths_are_not() -> None:
    asked = join.flags(RunConfig(data="/here", seed=5))
    assert asked["--seed"] == 5
    assert "--data" not in asked
    assert asked == join.flags(RunConfig(data="/there", seed=5))


# --- schemes that ranks cannot follow -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"cpus": 1, "parallel": "columns"}, "--parallel columns needs pairs of ranks, a column each, and 1 rank was asked: give --cpus 2"),
        ({"gpus": 3, "parallel": "columns"}, "--parallel columns needs pairs of ranks, a column each, and 3 ranks were asked: give --gpus 4"),
        ({"cpus": 1, "parallel": "hybrid"}, "--parallel hybrid needs two ranks or more, and 1 rank was asked: give --cpus 2"),
        ({"cpus": 6, "parallel": "hybrid"}, "--parallel hybrid shares 4096 units equally, and 6 ranks were asked: give a power of two"),
    ],
)  # fmt: skip
def test_ranks_that_cannot_share_the_network_are_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AskedWrongly) as refused:
        resolve.check_scheme(RunConfig(**asked))
    assert str(refused.value) == sentence


def test_a_network_without_columns_is_refused_with_those_that_have_them() -> None:
    with pytest.raises(
        AskedWrongly, match=r"alexnet-half has no parts for it: ask for --parallel data, or for one of alexnet,"
    ):
        resolve.check_scheme(RunConfig(cpus=2, parallel="columns", model="alexnet-half"))


def test_threads_are_a_share_of_the_cores_of_one_node() -> None:
    config = resolve.resolve(RunConfig(cpus=8, nodes=4), cores=16, gpus=0)
    assert (config.torch_threads, config.dali_threads) == (8, 8)
