"""Whole runs on a few small images: the row they end as, and what is left when they are stopped."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SMALL = ["--images-per-gpu", "2", "--init", "paper", "--compile", "off"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes told apart by colour, eight images each for training and two for validation."""
    root = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "green", "blue")):
        for split, images in (("train", 8), ("val", 2)):
            (root / split / colour).mkdir(parents=True)
            for image in range(images):
                picture = Image.effect_noise((96 + image, 80 + number), 90).convert("RGB")
                Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5).save(
                    root / split / colour / f"{image}.jpg"
                )
    return root


def command(folder: Path, table: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "harness", "run", "--data", str(folder), "--table", str(table), *SMALL, *words]


def finished(folder: Path, table: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, table, *words), cwd=ROOT, capture_output=True, text=True, timeout=240)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def verified(table: Path) -> bool:
    return subprocess.run([sys.executable, "-m", "harness", "verify", str(table)], cwd=ROOT).returncode == 0


def running(table: Path) -> list[psutil.Process]:
    """The processes that were started for this table, ranks included."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(table.parent) in word for word in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return what()


class Started:
    """A run under way in a session of its own, as a terminal would start it."""

    def __init__(self, folder: Path, table: Path, *words: str):
        self.table = table
        self.process = subprocess.Popen(
            command(folder, table, *words),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reaches(self, phase: str) -> bool:
        def reached() -> bool:
            return any(f'"{phase}"' in path.read_text() for path in self.table.parent.glob("runs/*/progress.jsonl"))

        return wait_for(reached, 120)

    def ranks(self) -> list[psutil.Process]:
        return [process for process in running(self.table) if "harness.train" in process.cmdline()]

    def ends_with(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output

    def leaves_nothing_running(self) -> bool:
        return wait_for(lambda: not running(self.table), 20)


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    begun: list[Started] = []

    def begin(*words: str) -> Started:
        begun.append(Started(folder, tmp_path / "table.csv", *words))
        return begun[-1]

    yield begin
    for each in begun:
        for process in running(each.table):
            process.kill()
        each.process.wait()
        if each.process.stdout:
            each.process.stdout.close()


@pytest.fixture(scope="module")
def table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of two runs: one rank twice launched, then two ranks."""
    table = tmp_path_factory.mktemp("runs") / "table.csv"
    for words in (["--cpus", "1", "--launches", "2"], ["--cpus", "2", "--evaluate-every", "8", "--compile", "on"]):
        done = finished(folder, table, "--steps", "3", *words)
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
    curve = (table.parent / "runs" / rows(table)[2]["run_id"] / "epochs.csv").read_text().splitlines()
    assert len(curve) == 1 + 2, "after two steps of four images, and at the end"


def test_nothing_of_this_machines_paths_is_in_a_table(table: Path, folder: Path) -> None:
    assert str(folder.parent) not in table.read_text()
    assert all(row["data"] == folder.name for row in rows(table))
    assert all(str(folder) not in path.read_text() for path in table.parent.glob("runs/*/*.json"))


def test_too_short_a_run_says_so_and_no_more(table: Path) -> None:
    assert {row["learning"] for row in rows(table)} == {"too short"}


def test_torchrun_may_bring_the_ranks(folder: Path, tmp_path: Path) -> None:
    words = command(folder, tmp_path / "table.csv", "--steps", "2", "--cpus", "2")[2:]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words]
    done = subprocess.run(torchrun, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert [(row["status"], row["cpus"], row["images_counted"]) for row in rows(tmp_path / "table.csv")] == [
        ("ok", "2", "8")
    ]
    assert verified(tmp_path / "table.csv")


def test_ctrl_c_in_the_timed_window_leaves_an_interrupted_row_and_no_process(start: Callable[..., Started]) -> None:
    run = start("--cpus", "2", "--steps", "100000")
    assert run.reaches("timed")
    run.process.send_signal(signal.SIGINT)
    status, output = run.ends_with()
    assert status == 130, output
    assert [row["status"] for row in rows(run.table)] == ["interrupted"]
    assert "Traceback" not in output
    assert verified(run.table)
    assert run.leaves_nothing_running()


def test_ctrl_c_before_the_timed_window_leaves_no_row_and_no_process(start: Callable[..., Started]) -> None:
    run = start("--cpus", "1", "--steps", "100000", "--compile", "on")
    assert run.reaches("compile")
    run.process.send_signal(signal.SIGINT)
    status, output = run.ends_with()
    assert status == 130, output
    assert not run.table.exists()
    assert list(run.table.parent.glob("runs/*")) == []
    assert "Traceback" not in output
    assert run.leaves_nothing_running()


def test_a_killed_launcher_leaves_no_process(start: Callable[..., Started]) -> None:
    run = start("--cpus", "2", "--steps", "100000")
    assert run.reaches("timed")
    assert len(run.ranks()) == 2
    run.process.kill()
    assert run.leaves_nothing_running()


def test_a_killed_rank_ends_the_job_with_a_failed_row_that_names_it(start: Callable[..., Started]) -> None:
    run = start("--cpus", "2", "--steps", "100000")
    assert run.reaches("timed")
    victim = next(process for process in run.ranks() if process.environ()["RANK"] == "1")
    os.kill(victim.pid, signal.SIGKILL)
    status, output = run.ends_with()
    assert status == 1, output
    (row,) = rows(run.table)
    assert row["status"] == "failed"
    assert "rank 1 ended by SIGKILL while timed" in row["status_reason"]
    assert not row["images_per_s"]
    assert verified(run.table)
    assert run.leaves_nothing_running()


def test_a_bad_image_ends_the_run_with_its_name(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    for colour in ("red", "green"):
        (bad / colour).mkdir(parents=True)
        (bad / colour / "whole.jpg").write_bytes((folder / "train" / colour / "0.jpg").read_bytes())
    (bad / "green" / "broken.jpg").write_bytes((folder / "train" / "green" / "1.jpg").read_bytes()[:200])
    done = finished(bad, tmp_path / "table.csv", "--steps", "4")
    assert done.returncode == 1
    (row,) = rows(tmp_path / "table.csv")
    assert row["status"] == "failed"
    assert "broken.jpg" in row["status_reason"]
    assert "Traceback" not in done.stderr
