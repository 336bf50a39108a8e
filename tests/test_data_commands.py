"""`data check`, `prepare` and `statistics` as a person types them, and runs on what they write."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from harness.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes told apart by colour: twelve images for training and two for validation, one of them truncated."""
    root = tmp_path / "pictures"
    for number, colour in enumerate(("green", "red")):
        for split, images in (("train", 6), ("val", 1)):
            (root / split / colour).mkdir(parents=True)
            for image in range(images):
                picture = Image.effect_noise((90 + image, 70 + number), 90).convert("RGB")
                Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5).save(
                    root / split / colour / f"{image}.jpg"
                )
    return root


@pytest.fixture
def damaged(folder: Path) -> Path:
    bad = folder / "train" / "red" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    return folder


def run(*words: str) -> subprocess.CompletedProcess[str]:
    small = ["--images-per-gpu", "2", "--init", "paper", "--compile", "off", "--steps", "2"]
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", *small, *words], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def only_row(table: Path) -> dict[str, str]:
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return row


def test_check_lists_what_a_run_cannot_use_and_a_run_may_leave_it_out(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found"
    assert main(["data", "check", str(damaged), "--out", str(out)]) == 1
    told = capsys.readouterr().out
    assert "train/red/3.jpg" in told
    names = [line for line in (out / "exclude.txt").read_text().splitlines() if not line.startswith("#")]
    assert names == ["train/red/3.jpg"]
    assert len((out / "manifest.csv").read_text().splitlines()) == 1 + 14
    table = tmp_path / "results" / "t.csv"
    stopped = run("--data", str(damaged), "--table", str(table), "--steps", "20")
    assert stopped.returncode == 1
    assert "train/red/3.jpg cannot be decoded" in stopped.stderr
    table.unlink()
    done = run("--data", str(damaged), "--exclude", str(out / "exclude.txt"), "--table", str(table))
    assert done.returncode == 0, done.stderr
    row = only_row(table)
    assert (row["excluded_images"], row["train_images"], row["exclude"]) == ("1", "11", "exclude.txt")
    assert "1 left out" in done.stdout


def test_a_folder_without_faults_passes_the_check(folder: Path, tmp_path: Path) -> None:
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "found")]) == 0


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_a_run_takes_a_prepared_set_statistics_and_ten_views(
    form: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares, table = tmp_path / "squares", tmp_path / "results" / "t.csv"
    assert main(["data", "prepare", str(folder), str(squares), "--form", form]) == 0
    assert main(["data", "statistics", str(squares), "--out", str(tmp_path)]) == 0
    assert f"--data {squares} --augment paper" in capsys.readouterr().out
    (statistics,) = tmp_path.glob("statistics-*.npz")
    done = run(
        "--data", str(squares), "--augment", "code2012", "--statistics", str(statistics), "--views", "10", "--table", str(table)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = only_row(table)
    assert row["source_form"] == f"prepared-{form}"
    assert row["statistics_id"] == statistics.stem.removeprefix("statistics-")
    assert (row["train_images"], row["val_images"], row["views"]) == ("12", "2", "10")
    assert row["val_top1_error_pct"] in {"0", "50", "100"}
    assert subprocess.run([sys.executable, "-m", "harness", "verify", str(table)], cwd=ROOT).returncode == 0


def test_random_resized_crops_of_a_prepared_set_are_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    squares, table = tmp_path / "squares", tmp_path / "results" / "t.csv"
    assert main(["data", "prepare", str(folder), str(squares)]) == 0
    refused = run("--data", str(squares), "--augment", "rrc", "--table", str(table))
    assert refused.returncode == 2
    assert "--augment rrc was asked of images that were prepared as 256x256 squares" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2
    assert not table.parent.exists()


def test_statistics_of_an_image_that_cannot_be_decoded_name_it_and_write_nothing(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "statistics", str(damaged), "--out", str(tmp_path)]) == 2
    assert "train/red/3.jpg cannot be decoded" in capsys.readouterr().err
    assert not list(tmp_path.glob("statistics-*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data", "check", "no-such"], "no-such does not exist"),
        (["data", "prepare", "no-such", "out"], "no-such does not exist"),
        (["data", "statistics", "no-such"], "no-such does not exist"),
        (["data", "statistics", "--out", "/proc/no"], "--out /proc/no cannot be written to"),
        (["run", "--exclude", "list.txt"], "--exclude was given and the embedded set"),
        (["run", "--jitter", "0.1,0.1,0.1,0.1", "--augment", "rrc"], "--augment rrc jitters no colours"),
        (["run", "--statistics", "no-such.npz"], "no-such.npz does not exist"),
        (["run", "--pipeline", "synthetic", "--views", "10"], "synthetic reads no images and --views was given"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert sentence in told


def test_no_jitter_but_four_numbers_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--augment", "rrc+jitter", "--jitter", "0.4"])
    assert "brightness,contrast,saturation" in capsys.readouterr().err


def test_a_mean_image_of_another_side_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    assert main(["data", "statistics", str(folder), "--side", "64", "--out", str(tmp_path)]) == 0
    (statistics,) = tmp_path.glob("statistics-*.npz")
    table = tmp_path / "results" / "t.csv"
    refused = run("--data", str(folder), "--augment", "paper", "--statistics", str(statistics), "--table", str(table))
    assert refused.returncode == 2
    assert "measure with `data statistics --side 256`" in refused.stderr
    assert not table.exists()


def test_the_checks_files_do_not_go_into_the_set_that_they_are_about(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["data", "check", "."]) == 2
    assert "name another --out" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["train", "val"]


def test_a_set_is_not_prepared_into_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", str(folder), str(folder / "squares")]) == 2
    assert "lies inside" in capsys.readouterr().err
    assert not (folder / "squares").exists()


def test_a_prepared_set_is_checked_by_its_digests(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares = tmp_path / "squares"
    assert main(["data", "prepare", str(folder), str(squares)]) == 0
    assert main(["data", "check", str(squares)]) == 0
    shard = next(squares.glob("*.tar"))
    contents = bytearray(shard.read_bytes())
    contents[700] ^= 1
    shard.write_bytes(contents)
    assert main(["data", "check", str(squares)]) == 2
    assert shard.name in capsys.readouterr().err
