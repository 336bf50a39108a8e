"""Whole runs on a few small images: the row they end as, and what is left when they are stopped."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import FOR_EVER, TORCHRUN, Started, finished, rows, run_words, verified


def run(pictures: Path, table: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return finished(*run_words(pictures, table, *words))


@pytest.fixture(scope="module")
def table(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two runs: one rank twice launched, then two ranks."""
    table = tmp_path_factory.mktemp("runs") / "table.csv"
    for words in (["--cpus", "1", "--launches", "2"], ["--cpus", "2", "--evaluate-every", "24", "--compile", "on"]):
        done = run(pictures, table, "--steps", "3", *words)
        assert done.returncode == 0, done.stdout + done.stderr
    return table


def test_every_launch_is_a_row_that_counts_and_can_be_rebuilt(table: Path) -> None:
    assert [(row["status"], row["cpus"], row["launch"]) for row in rows(table)] == [
        ("ok", "1", "1"),
        ("ok", "1", "2"),
        ("ok", "2", "1"),
    ]
    assert verified(table)


def test_the_images_counted_are_steps_times_batch_of_all_ranks(table: Path) -> None:
    assert [row["images_counted"] for row in rows(table)] == ["6", "6", "12"]
    assert [row["timed_steps"] for row in rows(table)] == ["3", "3", "3"]


def test_the_parts_alone_are_measured_once_a_group(table: Path) -> None:
    first, second, pair = rows(table)
    assert first["input_alone_images_per_s"]
    assert first["model_alone_images_per_s"]
    assert not second["input_alone_images_per_s"]
    assert pair["no_comm_images_per_s"]
    assert pair["group_id"] != first["group_id"] == second["group_id"]


def test_one_and_two_ranks_are_the_same_task_in_another_shape(table: Path) -> None:
    one, _, two = rows(table)
    assert (one["task_id"], one["hardware_id"]) == (two["task_id"], two["hardware_id"])
    assert one["shape_id"] != two["shape_id"]


def test_the_error_curve_counts_every_validation_image_once_whatever_the_ranks(table: Path) -> None:
    for row in rows(table):
        assert row["val_images"] == "6"
        assert float(row["val_top1_error_pct"]) * 6 / 100 == pytest.approx(
            round(float(row["val_top1_error_pct"]) * 6 / 100), abs=1e-3
        )
    folder = table.parent / "runs" / rows(table)[2]["run_id"]
    steps = [int(line.split(",")[0]) for line in (folder / "epochs.csv").read_text().splitlines()[1:]]
    end = int(rows(table)[2]["warmup_steps"]) + int(rows(table)[2]["timed_steps"])
    assert steps == sorted({*range(6, end + 1, 6), end}), "after every six steps of four images, and at the end"


def test_nothing_of_this_machines_paths_is_in_a_table(table: Path, pictures: Path) -> None:
    assert str(pictures.parent) not in table.read_text()
    assert all(row["data"] == pictures.name for row in rows(table))
    assert all(str(pictures) not in path.read_text() for path in table.parent.glob("runs/*/*.json"))


def test_too_short_a_run_says_so_and_no_more(table: Path) -> None:
    assert {row["learning"] for row in rows(table)} == {"too short"}


def test_torchrun_may_bring_the_ranks(pictures: Path, tmp_path: Path) -> None:
    words = run_words(pictures, tmp_path / "table.csv", "--steps", "2", "--cpus", "2")
    done = finished(*TORCHRUN, *words)
    assert done.returncode == 0, done.stderr
    assert [(row["status"], row["cpus"], row["images_counted"]) for row in rows(tmp_path / "table.csv")] == [
        ("ok", "2", "8")
    ]
    assert verified(tmp_path / "table.csv")


def test_two_compiled_columns_are_held_to_eager_float32(pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, tmp_path / "t.csv", "--steps", "2", "--cpus", "2", "--parallel", "columns", "--compile", "on")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = rows(tmp_path / "t.csv")
    assert (row["status"], row["status_reason"]) == ("ok", "")
    assert 0 < float(row["seeded_step_distance"]) < 9.2e-5


def test_ctrl_c_in_the_timed_window_leaves_an_interrupted_row_and_no_process(start: Callable[..., Started]) -> None:
    run = start("--cpus", "2", *FOR_EVER)
    assert run.reaches("timed")
    run.process.send_signal(signal.SIGINT)
    status, output = run.ends_with()
    assert status == 130, output
    assert [row["status"] for row in rows(run.table)] == ["interrupted"]
    assert "Traceback" not in output
    assert "death signal" not in output  # torch's agent warns of it
    assert verified(run.table)
    assert run.leaves_nothing(), run.left_running()


def test_ctrl_c_before_the_timed_window_leaves_no_row_and_no_process(start: Callable[..., Started]) -> None:
    run = start("--cpus", "1", *FOR_EVER, "--compile", "on")
    assert run.reaches("compile")
    run.process.send_signal(signal.SIGINT)
    status, output = run.ends_with()
    assert status == 130, output
    assert not run.table.exists()
    assert list(run.table.parent.glob("runs/*")) == []
    assert "Traceback" not in output
    assert "death signal" not in output  # torch's agent warns of it
    assert run.leaves_nothing(), run.left_running()


def test_a_bad_image_ends_the_run_with_its_name(pictures: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    for colour in ("red", "green"):
        (bad / colour).mkdir(parents=True)
        (bad / colour / "whole.jpg").write_bytes((pictures / "train" / colour / "0.jpg").read_bytes())
    (bad / "green" / "broken.jpg").write_bytes((pictures / "train" / "green" / "1.jpg").read_bytes()[:200])
    done = run(bad, tmp_path / "table.csv", "--steps", "4")
    assert done.returncode == 1
    (row,) = rows(tmp_path / "table.csv")
    assert row["status"] == "failed"
    assert "broken.jpg" in row["status_reason"]
    assert "Traceback" not in done.stderr
