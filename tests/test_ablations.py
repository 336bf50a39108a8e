"""`paper ablations`: which networks it sets against each other, which runs that takes, and the differences it tells."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from runs import harness
from studies import BATCH, plant, trial_with

import models
from harness.cli import main
from harness.paper import ablations_told
from harness.paper.ablations import ABLATIONS, Ablation
from harness.paper.ablations_told import base_of, base_of_newest, difference, models_of, printed, wanted
from harness.paper.groups import opened

BASE = base_of({"images_per_gpu": BATCH, "epochs": 5.0})
BY_NAME = {each.name: each for each in ABLATIONS}
LRN = BY_NAME["lrn"]
T2 = 4.302652729911275  # Student's, of 2 degrees of freedom


def differing(ablation: Ablation) -> dict[str, tuple[object, object]]:
    """The fields in which its two runs differ."""
    with_it, without = (side.columns() for side in ablation.sides(BASE))
    return {name: (with_it[name], without[name]) for name in with_it if with_it[name] != without[name]}


def test_each_comparison_changes_one_thing() -> None:
    assert {name: differing(each) for name, each in BY_NAME.items()} == {
        "relu": {"model": ("alexnet", "alexnet-tanh")},
        "two-gpus": {"model": ("alexnet", "alexnet-half")},
        "lrn": {"model": ("alexnet", "alexnet-nolrn")},
        "overlapping-pooling": {"model": ("alexnet", "alexnet-pool2x2")},
        "colour-noise": {"noise_epochs": (None, 0.0)},
        "dropout": {"model": ("alexnet", "alexnet-nodropout")},
        "weight-decay": {"weight_decay": (0.0005, 0.0)},
        "no-conv3": {"model": ("alexnet-no-conv3", "alexnet")},
        "no-conv4": {"model": ("alexnet-no-conv4", "alexnet")},
        "no-conv5": {"model": ("alexnet-no-conv5", "alexnet")},
    }
    assert set(models_of(ABLATIONS)) <= set(models.MODELS)


def test_the_network_that_all_share_is_trained_once_a_seed() -> None:
    runs = wanted(ABLATIONS, BASE, 2)
    assert len(runs) == len(set(runs)) == 2 * 11
    assert [run.seed for run in runs] == [1] * 11 + [2] * 11
    assert len(wanted([LRN], BASE, 3)) == 3 * 2


def test_the_training_is_the_papers_until_something_else_is_typed() -> None:
    plain = base_of({"images_per_gpu": BATCH})
    assert (plain.model, plain.augment, plain.schedule, plain.decay_form) == ("alexnet", "paper", "plateau", "paper")
    assert (plain.learning_rate, plain.momentum, plain.weight_decay, plain.epochs) == (0.01, 0.9, 0.0005, 90)
    assert plain.precision == "fp32"
    typed = base_of({"steps": 7, "learning_rate": 0.001, "init": "code2012"})
    assert (typed.steps, typed.epochs, typed.learning_rate, typed.init) == (7, None, 0.001, "code2012")


def test_a_table_is_read_as_its_newest_run_was_trained_whichever_that_is() -> None:
    newest = BASE.with_(model="alexnet-half", weight_decay=0.0, noise_epochs=0.0)
    assert base_of_newest(newest, {}) == BASE
    assert base_of_newest(newest, {"steps": 9}) == BASE.with_(epochs=None, steps=9)


@pytest.mark.parametrize("ranks", [{"cpus": 2}, {"gpus": 4}])
def test_a_typed_number_of_ranks_shares_the_papers_batch(ranks: dict[str, int]) -> None:
    base = base_of_newest(BASE.with_(cpus=1), ranks)
    assert base.images_per_step == 128
    assert (base.gpus, base.cpus) == (ranks.get("gpus"), ranks.get("cpus"))


# --- what they say ------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """LRN with three seeds, by 1, 2 and 3 points; one run alone of the half network, one pair of weight decays."""
    table = tmp_path / "results" / "ablations.csv"
    for seed, with_it, without in ((1, 40.0, 41.0), (2, 40.0, 42.0), (3, 40.0, 43.0)):
        plant(table, BASE.with_(seed=seed), trial_with([25.0] * 40, with_it))
        plant(table, BASE.with_(seed=seed, model="alexnet-nolrn"), trial_with([25.0] * 40, without))
    plant(table, BASE.with_(seed=9, model="alexnet-half"), trial_with([25.0] * 40, 50.0))
    plant(table, BASE.with_(seed=2, weight_decay=0.0), trial_with([50.0] * 40, 40.0))
    return table


def test_a_difference_is_the_error_with_the_thing_less_that_without_it_paired_by_seed(table: Path) -> None:
    study = opened(table, models_of(ABLATIONS), None)
    half = T2 / math.sqrt(3)
    assert difference(study, LRN, BASE, "val_top1_error_pct") == pytest.approx((-2, -2 - half, -2 + half, 3))
    assert difference(study, BY_NAME["weight-decay"], BASE, "train_top1_error_pct") == (-25, None, None, 1)
    assert difference(study, BY_NAME["two-gpus"], BASE, "val_top1_error_pct") is None
    assert difference(study, LRN, BASE.with_(epochs=6.0), "val_top1_error_pct") is None


def test_what_is_found_stands_beside_what_the_paper_found(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations_told.main(ABLATIONS, {}, table, 3) == 0
    told = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    half = T2 / math.sqrt(3)
    assert f"-2.00 (95 % interval {-2 - half:+.2f} to {-2 + half:+.2f}, 3 seeds)" in told["lrn"]
    assert told["lrn"].rstrip(" |").endswith("-1.4 / -1.2")
    assert "+0.00 (1 seed)" in told["weight-decay"]
    assert "-25.00 (1 seed)" in told["weight-decay"]
    assert told["two-gpus"].count("not run") == 3
    assert [line for line in told if line in BY_NAME] == list(BY_NAME)
    with (table.parent / "ablations-summary.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["ablation"], line["error"]) == ("lrn", "top-1")]
    assert [(line["seed"], line["difference_points"]) for line in lines] == [
        ("1", "-1"),
        ("2", "-2"),
        ("3", "-3"),
        ("mean", "-2"),
    ]
    assert [line["paper_points"] for line in lines] == ["", "", "", "-1.4"]


@pytest.mark.parametrize(
    ("length", "told"),
    [({"timed_seconds": 30.0}, "30 timed seconds"), ({"steps": 1}, "1 step"), ({"epochs": 2.5}, "2.5 epochs")],
)
def test_the_newest_runs_length_is_told_in_its_unit(
    length: dict[str, float], told: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(table, BASE.with_(**{"epochs": None, **length}), trial_with([25.0] * 40, 40.0))
    assert ablations_told.main(ABLATIONS, {}, table, 3) == 0
    assert f"after {told} on drawings" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--cpus", "2"], ["--gpus", "4"], ["--patience", "5"]])
def test_what_was_run_is_found_however_many_ranks_or_which_schedule_ran_last(
    words: list[str], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--patience" in words:
        plant(table, BASE.with_(schedule="epochs", drops="3,4", patience=None), trial_with([25.0] * 40, 40.0))
        assert main(["paper", "ablations", "--table", str(table)]) == 0
        assert "-2.00 (95 %" not in capsys.readouterr().out
    assert main(["paper", "ablations", *words, "--table", str(table)]) == 0
    assert "-2.00 (95 %" in capsys.readouterr().out


def test_a_run_that_diverged_is_named_and_in_no_difference(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = trial_with([25.0] * 40, 60.0)
    diverged = trial.ranks[0].__class__(**{**vars(trial.ranks[0]), "losses": (2.3,) * 39 + (math.nan,)})
    plant(table, BASE.with_(model="alexnet-half"), trial.__class__(**{**vars(trial), "ranks": (diverged,)}))
    ablations_told.main(ABLATIONS, {}, table, 3)
    told = capsys.readouterr().out
    assert "alexnet-half of seed 1 diverged: the loss was nan at step 39" in told
    assert next(line for line in told.splitlines() if line.startswith("| two-gpus")).count("not run") == 3


def test_where_nothing_was_run_the_papers_words_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations_told.main(ABLATIONS, {}, tmp_path / "results" / "t.csv", 3) == 0
    told = capsys.readouterr().out
    assert told.count("not run") == 3 * len(ABLATIONS)
    assert "section 7: removing any middle convolutional layer costs about two points" in told
    assert "has none of these runs. To make them: python -m harness paper ablations --data FOLDER" in told
    assert list(tmp_path.iterdir()) == []


def test_the_papers_numbers_are_those_of_its_claims() -> None:
    assert [printed(BY_NAME[name].claim) for name in ("two-gpus", "colour-noise", "dropout", "no-conv4")] == [
        "-1.7 / -1.2",
        "-1",
        "",
        "+2",
    ]


# --- asked wrongly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ablations", "--seeds", "0"], "--seeds"),
        (["figure1", "--seeds", "many"], "--seeds"),
        (["ablations", "--only", "fish"], "fish"),
        (["ablations", "--epochs", "3", "--steps", "3"], "--steps"),
        (["ablations", "--drops", "3,2"], "3,2"),
        (["ablations", "--drops", "3", "--patience", "2"], "--patience"),
        (["lrn", "--epochs", "2"], "--epochs"),
        (["figure1", "--gpus", "1", "--cpus", "1"], "--gpus and --cpus"),
        (["figure1", "--cpus", "3"], "128"),
        (["figure1", "--statistics", "s.npz"], "--data"),
        (["lrn", "--data", "/nowhere"], "/nowhere does not exist"),
        (["lrn", "--table", "/proc/cmdline"], "/proc/cmdline"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_cannot_be_is_one_sentence(words: list[str], said: str, tmp_path: Path) -> None:
    table = [] if "--table" in words else ["--table", str(tmp_path / "t.csv")]
    refused(words + table, said)


def refused(words: list[str], said: str) -> None:
    done = harness("paper", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize("what", ["figure1", "ablations"])
def test_a_results_folder_that_cannot_be_written_is_one_sentence(what: str, pictures: Path) -> None:
    refused([what, "--data", str(pictures), "--table", "/proc/results/t.csv"], "/proc/results/t.csv")


@pytest.mark.parametrize("what", ["figure1", "ablations"])
def test_a_table_beneath_a_file_is_one_sentence(what: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    refused([what, "--data", str(pictures), "--table", str(tmp_path / "taken" / "t.csv")], "taken/t.csv")


@pytest.mark.parametrize("what", ["lrn", "ablations"])
def test_without_validation_images_there_is_nothing_to_compare(what: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(pictures / "train")
    words = [what, "--data", str(tmp_path / "set"), "--table", str(tmp_path / "t.csv")]
    refused(words, "has no validation images")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("what", ["figure1", "lrn", "ablations"])
def test_each_command_says_something_true_where_nothing_was_run(what: str, tmp_path: Path) -> None:
    done = harness("paper", what, "--table", str(tmp_path / "t.csv"))
    assert done.returncode == 0, done.stderr
    assert "The paper" in done.stdout
    assert f"python -m harness paper {what} --data" in done.stdout
