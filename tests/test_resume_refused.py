"""What a run that goes on is asked, and what is refused: another run, other images, damage, and places without checkpoints."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saved_runs import Kept, kept, process_group_of_one

from harness.checkpoint import begin, seal
from harness.cli import main
from harness.flags import configs_of
from harness.resolve import resolve

MIDDLE = 9  # a step in the middle of the second epoch


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group_of_one():
        yield


# --- what it is asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        {"model": "cifar-13pct", "checkpoint_every": 640, "evaluate_every": 64, "target_train_error_pct": 9.0},
        {"recipe": "throughput", "gpus": (2,), "checkpoint_every": 10**6, "label": "box 7", "heartbeat": 30.0},
        {"recipe": "paper", "cpus": (2,)},
        {"recipe": "code2012", "gpus": (2,), "keep": 5, "max_restarts": 3},
        {"recipe": "modern", "gpus": (4,), "epochs": 30.0, "compile": "off"},
        {"pipeline": "synthetic", "checkpoint_every": 640},
    ],
    ids=lambda typed: str(typed.get("recipe", typed.get("model", "synthetic"))),
)
def test_what_is_left_out_is_as_it_was(tmp_path: Path, typed: dict[str, Any]) -> None:
    (config,) = configs_of(Namespace(**typed))
    before = resolve(config, cores=8, gpus=config.ranks if config.on_gpu else 0)
    folder = begin(tmp_path / "run", 7)
    seal(folder, {"step": 7, "total_steps": None, "asked": before.columns(), "classes": ["red"], "dataset": {}})
    (again,) = configs_of(Namespace(resume=str(tmp_path / "run")))
    after = resolve(again, cores=64, gpus=8 if config.on_gpu else 0)
    assert after.columns() == {**before.columns(), "resume": "run/step-000000007"}


@pytest.fixture(scope="module")
def saved(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A run with a checkpoint after every third of its 18 steps."""
    return kept(pictures, tmp_path_factory.mktemp("saved"), epochs=3.0)


@pytest.fixture
def refused(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `run` with these words says, which must be one sentence, with nothing written."""

    def said(*words: str | Path, data: Path | None = pictures) -> str:
        table = tmp_path / "results" / "table.csv"
        images = ["--data", str(data)] if data else []
        assert main(["run", "--table", str(table), *images, *map(str, words)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert not table.parent.exists()
        (sentence,) = error.splitlines()
        assert sentence.startswith("error: ")
        return sentence.removeprefix("error: ")

    return said


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--images-per-gpu 2", "--images-per-gpu is 2 here and was 4 in "),
        ("--cpus 2", "--cpus is 2 here and was 1 in "),
        ("--model cifar-18pct-tanh", "--model is cifar-18pct-tanh here and was cifar-18pct in "),
        ("--model alexnet", "--model is alexnet here and was cifar-18pct in "),
        ("--seed 9", "--seed is 9 here and was 1 in "),
        ("--learning-rate 0.1", "--learning-rate is 0.1 here and was 0.0003 in "),
        ("--schedule steps --drops 10", "--schedule is steps here and was constant in "),
        ("--layer-rates conv1@1=0", "--layer-rates is conv1@1=0 here and was left out in "),
        ("--decay-form paper", "--decay-form is paper here and was torch in "),
        ("--augment none", "--augment is none here and was rrc in "),
        ("--precision bf16", "--precision is bf16 here and was fp32 in "),
        ("--pipeline torch", "--pipeline is torch here and was dali in "),
        ("--steps 30", "--steps is 30 here and was left out in "),
    ],
)  # fmt: skip
def test_what_would_make_it_another_run_is_refused_by_name(
    saved: Kept, refused: Callable[..., str], words: str, found: str
) -> None:
    sentence = refused("--resume", saved.at(MIDDLE), *words.split())
    flag = words.split()[0]
    assert sentence == f"{found}{saved.at(MIDDLE)}: leave {flag} out, or begin a new run"


def test_other_images_are_refused(saved: Kept, refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    others = Path(shutil.copytree(pictures, tmp_path / "others"))
    shutil.copy(others / "train" / "red" / "0.jpg", others / "train" / "red" / "more.jpg")
    sentence = refused("--resume", saved.folder, data=others)
    assert sentence.startswith("dataset_id of these images is ")
    assert sentence.endswith(f" in {saved.newest.folder}: give the images that it was trained on")


def test_images_that_are_not_named_again_are_asked_for(saved: Kept, refused: Callable[..., str]) -> None:
    name = saved.newest.asked["data"]
    assert refused("--resume", saved.folder, data=None) == (
        f"--resume {saved.folder} was trained with --data {name}: say where that is with --data"
    )


@pytest.mark.parametrize("words", [(), ("--epochs", "2"), ("--epochs", "3")])
def test_a_run_at_its_end_does_not_go_on(saved: Kept, refused: Callable[..., str], words: tuple[str, ...]) -> None:
    assert refused("--resume", saved.folder, *words) == (
        f"{saved.newest.folder} has reached its end at step 18: give more --epochs, or `evaluate` it"
    )


@pytest.mark.parametrize("what", ["nowhere", "a folder", "a file", "a run that saved nothing"])
def test_a_place_without_checkpoints_is_refused(refused: Callable[..., str], tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("text")
    elif what != "nowhere":
        (place / ("checkpoints" if "run" in what else "step")).mkdir(parents=True)
    assert refused("--resume", place) == (
        f"{place} holds no checkpoint: give the folder of a run that kept some (--checkpoint-every), or one of its checkpoints"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--checkpoint-every 12 --launches 2", "--launches and --checkpoint-every were both asked and "),
        ("--time-limit 60", "--time-limit was given and this run saves nothing: say how often with --checkpoint-every"),
        ("--max-restarts 1", "--max-restarts was given and this run saves nothing: say how often with --checkpoint-every"),
        ("--keep 3", "--keep was given and this run saves nothing: say how often with --checkpoint-every"),
    ],
)  # fmt: skip
def test_what_belongs_to_checkpoints_is_refused_without_them(
    refused: Callable[..., str], words: str, sentence: str
) -> None:
    assert refused(*words.split()).startswith(sentence)


@pytest.mark.parametrize("words", [("--checkpoint-every", "12"), ("--resume",)])
def test_a_results_folder_that_cannot_be_written_is_refused_before_a_run(
    saved: Kept, pictures: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    words = (*words, str(saved.at(MIDDLE))) if words == ("--resume",) else words
    table = "/proc/results/table.csv"
    assert main(["run", "--data", str(pictures), "--table", table, *words]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"error: no table can be written at {table} (")


# --- damage -------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [flip, shorten, remove])
@pytest.mark.parametrize("name", ["weights.safetensors", "__0_0.distcp", ".metadata", "rank-0.json", "manifest.json"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_offered(
    saved: Kept, refused: Callable[..., str], tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    root = tmp_path / "run" / "checkpoints"
    good, bad = (Path(shutil.copytree(saved.at(step), root / saved.at(step).name)) for step in (6, MIDDLE))
    harm(bad / name)
    for place in (bad, root, root.parent):
        sentence = refused("--resume", place)
        assert name in sentence
        assert str(bad) in sentence
        assert sentence.endswith(f": use {good}")
    flip(good / "weights.safetensors")
    assert refused("--resume", bad).endswith(
        ": there is no other good one beside it: restore its files from where it was saved"
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '"step"', "\x00\xff", '{"manifest_sha256": "0"}', None])
def test_a_folder_of_another_program_is_refused(
    saved: Kept, refused: Callable[..., str], tmp_path: Path, text: str | None
) -> None:
    good = Path(shutil.copytree(saved.at(6), tmp_path / "checkpoints" / saved.at(6).name))
    foreign = good.with_name("step-000001000")
    foreign.mkdir()
    if text is not None:
        (foreign / "manifest.json").write_text(text, encoding="latin-1")
    sentence = refused("--resume", foreign)
    assert "manifest.json" in sentence
    assert sentence.endswith(f": use {good}")
