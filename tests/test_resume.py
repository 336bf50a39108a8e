"""A run that goes on from a checkpoint is the run that was never stopped, bit for bit; and what cannot go on is refused."""

from __future__ import annotations

import csv
import logging
import os
import shutil
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from planted import Fault, each_step
from saved_runs import Kept, curve, differences, kept

from harness.checkpoint import begin, seal
from harness.cli import main
from harness.config import AskedWrongly, RunConfig
from harness.flags import configs_of
from harness.resolve import resolve
from harness.results import verify
from harness.resume import words_to_go_on
from harness.workload import Built

MIDDLE = 9  # a step in the middle of the second epoch, after which a checkpoint is saved
PLATEAU = {"schedule": "plateau", "patience": 1, "evaluate_every": 8}
DROPS = {"schedule": "epochs", "drops": "1.25,2,5", "warmup_epochs": 0.5}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A process group of this process only."""
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def at(run: Kept, step: int) -> Path:
    """The checkpoint of this step."""
    (found,) = [each.folder for each in run.checkpoints if each.step == step]
    return found


def told_in_step(step: int, number: signal.Signals = signal.SIGTERM) -> Fault:
    """The signal comes while this training step is computed, counted from 0 in this part of the run."""

    def gradients(at: int, whole: Any, batch: Any) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return whole(batch)

    return each_step(gradients)


def told_while(part: str, time: int) -> Fault:
    """SIGTERM comes while this function of what was built is called for the so-manieth time."""

    def fault(built: Built) -> Built:
        calls, whole = iter(range(1, 10**6)), getattr(built, part)

        def called(*words: Any) -> Any:
            if next(calls) == time:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*words)

        return replace(built, **{part: called})

    return fault


# --- in one process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"augment": "rrc"},
        {"augment": "rrc+jitter", "jitter": "0.4,0.3,0.2,0.1", **PLATEAU, "decay_form": "paper"},
        {"augment": "paper", "noise_epochs": 1.75, **DROPS, "decay_form": "paper"},
        {"augment": "code2012", **DROPS, "layer_rates": "conv1@1.2=0.0001,conv2@2=0,fc10.bias@3=0.001"},
        {"augment": "none", "precision": "bf16", "schedule": "steps", "drops": "10,30"},
        {"compile": "on", **DROPS, "decay_form": "paper"},
    ],
    ids=lambda asked: " ".join(str(value) for value in asked.values()),
)
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_is_the_one_that_was_never_stopped(
    pictures: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    whole = kept(pictures, tmp_path / "whole", **asked)
    rest = kept(pictures, tmp_path / "rest", resume=at(whole, MIDDLE))
    assert (whole.status, rest.status, rest.newest.step) == (0, 0, 48)
    assert differences(rest.folder, whole.folder) == []
    assert rest.order[: 48 - MIDDLE] == whole.order[MIDDLE:48]
    assert len(curve(whole.folder)) >= 8


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A run that was never stopped, whose rate follows the validation error."""
    return kept(pictures, tmp_path_factory.mktemp("whole"), **PLATEAU)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
@pytest.mark.parametrize("at_step", [pytest.param(19, id="between"), pytest.param(17, id="before a pause")])
def test_a_run_told_to_stop_saves_itself_at_that_step_and_goes_on_from_there(
    pictures: Path, tmp_path: Path, whole: Kept, number: signal.Signals, at_step: int
) -> None:
    begun = kept(pictures, tmp_path / "begun", told_in_step(at_step, number), **PLATEAU)
    assert begun.status == (0 if number == signal.SIGALRM else 128 + number)
    assert begun.row["status"] == "interrupted"
    assert begun.newest.step == at_step + 1
    rest = kept(pictures, tmp_path / "rest", resume=begun.folder)
    assert differences(rest.folder, whole.folder) == []


@pytest.mark.parametrize(
    ("fault", "saved"),
    [
        pytest.param(told_in_step(3), range(4, 10), id="settling"),
        pytest.param(told_while("evaluate", 9), [19], id="evaluating"),
        pytest.param(told_while("input_state", 6), [19], id="saving"),
    ],
)
def test_a_run_told_to_stop_outside_a_window_ends_what_it_does_and_then_saves_itself(
    pictures: Path, tmp_path: Path, whole: Kept, fault: Fault, saved: Sequence[int]
) -> None:
    begun = kept(pictures, tmp_path / "begun", fault, **PLATEAU)
    assert (begun.status, begun.row["status"]) == (143, "interrupted")
    assert begun.newest.step in saved
    rest = kept(pictures, tmp_path / "rest", resume=begun.folder)
    assert differences(rest.folder, whole.folder) == []


def test_a_run_told_to_stop_in_its_last_step_is_whole_and_nobody_is_told_to_go_on(
    pictures: Path, tmp_path: Path, whole: Kept
) -> None:
    ended = kept(pictures, tmp_path, told_in_step(47), **PLATEAU)
    assert (ended.status, ended.row["status"]) == (143, "interrupted")
    assert differences(ended.folder, whole.folder) == []
    assert words_to_go_on(ended.folder, RunConfig(), tmp_path / "table.csv") == ""


def test_a_run_that_was_stopped_twice_goes_on_from_what_it_saved_last(
    pictures: Path, tmp_path: Path, whole: Kept
) -> None:
    first = kept(pictures, tmp_path / "first", told_in_step(12), **PLATEAU)
    # In its first step, which compiles, nothing has been gained.
    nothing = kept(pictures, tmp_path / "nothing", told_in_step(0), resume=first.folder)
    assert nothing.checkpoints == []
    table = tmp_path / "a table.csv"
    words = words_to_go_on(nothing.folder, RunConfig(resume=str(first.newest.folder), data="my pictures"), table)
    assert words == (f"python -m harness run --resume {first.newest.folder} --data 'my pictures' --table '{table}'")
    second = kept(pictures, tmp_path / "second", told_in_step(10), resume=first.folder)
    assert second.newest.step == 24
    rest = kept(pictures, tmp_path / "rest", resume=second.folder)
    assert differences(rest.folder, whole.folder) == []


def test_seconds_of_training_go_on_where_they_stood(pictures: Path, tmp_path: Path, whole: Kept) -> None:
    rest = kept(pictures, tmp_path, resume=at(whole, MIDDLE))
    with (rest.folder / "epochs.csv").open(newline="") as file:
        seconds = [float(line["seconds"] or 0) for line in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(float(rest.row["timed_s"]), abs=1e-3)
    assert int(rest.row["timed_steps"]) + int(rest.row["warmup_steps"]) == 48
    assert verify(tmp_path / "table.csv") == []


def test_a_longer_run_goes_on_where_a_shorter_one_had_ended(pictures: Path, tmp_path: Path) -> None:
    long = kept(pictures, tmp_path / "long", epochs=6.0, **DROPS)
    short = kept(pictures, tmp_path / "short", epochs=3.0, **DROPS)
    longer = kept(pictures, tmp_path / "longer", resume=short.folder, epochs=6.0)
    assert differences(longer.folder, long.folder) == []


def test_a_run_of_so_many_timed_steps_ends_where_it_was_to_end(pictures: Path, tmp_path: Path) -> None:
    asked = {"epochs": None, "steps": 10}
    whole = kept(pictures, tmp_path / "whole", **asked)
    middle = next(each for each in whole.checkpoints if each.step > int(whole.row["warmup_steps"]))
    rest = kept(pictures, tmp_path / "rest", resume=middle.folder)
    assert differences(rest.folder, whole.folder) == []
    assert rest.newest.at_its_end


def test_a_run_ends_at_the_error_that_was_asked_wherever_it_was_stopped(pictures: Path, tmp_path: Path) -> None:
    asked = {"epochs": 40.0, "target_train_error_pct": 30.0}
    whole = kept(pictures, tmp_path / "whole", **asked)
    assert whole.newest.at_its_end
    assert 6 < whole.newest.step < 240
    assert whole.newest.step % 6 == 0
    rest = kept(pictures, tmp_path / "rest", resume=whole.checkpoints[-3].folder)
    assert differences(rest.folder, whole.folder) == []
    with pytest.raises(AskedWrongly, match="has reached its end at step"):
        kept(pictures, tmp_path / "rest", resume=whole.folder)


def test_a_run_that_began_with_anothers_weights_goes_on_without_them(pictures: Path, tmp_path: Path) -> None:
    other = kept(pictures, tmp_path / "other", epochs=1.0, seed=7)
    asked = {"epochs": 3.0, "fine_tune_from": str(other.folder)}
    whole = kept(pictures, tmp_path / "whole", **asked)
    name = f"{other.folder.name}/{other.newest.folder.name}"
    shutil.rmtree(other.folder)
    rest = kept(pictures, tmp_path / "rest", resume=at(whole, MIDDLE))
    assert differences(rest.folder, whole.folder) == []
    assert rest.newest.asked["fine_tune_from"] == name


# --- what it is asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        {"recipe": "smoke", "model": "cifar-13pct", "checkpoint_every": 640},
        {"recipe": "throughput", "gpus": (2,), "checkpoint_every": 10**6, "label": "box 7", "heartbeat": 30.0},
        {"recipe": "paper", "cpus": (2,)},
        {"recipe": "code2012", "gpus": (2,), "keep": 5, "max_restarts": 3},
        {"recipe": "modern", "gpus": (4,), "epochs": 30.0, "target_train_error_pct": 10.0, "compile": "off"},
        {"pipeline": "synthetic", "checkpoint_every": 640},
    ],
    ids=lambda typed: str(typed.get("recipe", "synthetic")),
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
    sentence = refused("--resume", at(saved, MIDDLE), *words.split())
    flag = words.split()[0]
    assert sentence == f"{found}{at(saved, MIDDLE)}: leave {flag} out, or begin a new run"


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
    words = (*words, str(at(saved, MIDDLE))) if words == ("--resume",) else words
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
    good, bad = (Path(shutil.copytree(at(saved, step), root / at(saved, step).name)) for step in (6, MIDDLE))
    harm(bad / name)
    for place in (bad, root, root.parent):
        sentence = refused("--resume", place)
        assert name in sentence.removeprefix(str(bad))
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
    good = Path(shutil.copytree(at(saved, 6), tmp_path / "checkpoints" / at(saved, 6).name))
    foreign = good.with_name("step-000001000")
    foreign.mkdir()
    if text is not None:
        (foreign / "manifest.json").write_text(text, encoding="latin-1")
    sentence = refused("--resume", foreign)
    assert "manifest.json" in sentence
    assert sentence.endswith(f": use {good}")
