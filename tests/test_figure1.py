"""Figure 1 and section 3.3: which runs they take, what is recognised and run again, and the numbers that come of them."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from literals import rank_of, trial_of
from runs import harness, rows, verified
from studies import BATCH, EPOCH_STEPS, TRAIN_IMAGES, plant, trial_with

from harness.config import RunConfig
from harness.images import open_images
from harness.paper import activations_told, normalisation
from harness.paper.activations import (
    FIRST_RATES,
    LADDER,
    RELU,
    TANH,
    Asked,
    best_rate,
    chosen_rate,
    rates_to_try,
    wanted,
)
from harness.paper.activations_told import finals_of, ratios_of
from harness.paper.differences import (
    Estimate,
    Ratio,
    epochs_to_training_error,
    geometric_mean,
    last_training_error_pct,
    mean_of,
    paired_difference,
    ratio_of,
    training_errors_pct,
)
from harness.paper.groups import Study, cells_of, expected_hours, is_run, missing_of, opened, plan

HOW = {"images_per_gpu": BATCH}
ASKED = Asked(HOW)
SEARCH = ASKED.search(RELU, 0.003)
# Student's t of 2 degrees of freedom that 97.5 % lie below.
T2 = 4.302652729911275


# --- the numbers --------------------------------------------------------------------------------------------------


def small_trial(*correct: int, images: int = 40) -> Any:
    """Steps of ten images of a set of so many."""
    rank = rank_of(images_per_step=10, correct=correct, losses=(1.0,) * len(correct))
    return trial_of(rank, train_images=images)


def test_the_training_error_is_that_of_the_newest_epoch_after_every_step() -> None:
    assert training_errors_pct(small_trial(0, 4, 6, 10, 8)) == pytest.approx([50, 30])


def test_an_epoch_is_rounded_up_to_whole_steps() -> None:
    assert training_errors_pct(small_trial(0, 4, 6, 10, 8, images=31)) == pytest.approx([50, 30])
    assert training_errors_pct(small_trial(0, 4, 6, 10, 8, images=30)) == pytest.approx([200 / 3, 100 / 3, 20])


def test_before_an_epoch_has_passed_there_is_no_training_error() -> None:
    assert training_errors_pct(small_trial(0, 4, 6)) == []
    assert last_training_error_pct(small_trial(0, 4, 6)) is None
    assert epochs_to_training_error(small_trial(10, 10, 10), 25) is None


def test_the_images_of_all_ranks_count() -> None:
    ranks = [rank_of(number, images_per_step=5, correct=(number, 5), losses=(1.0, 1.0)) for number in (0, 1)]
    assert training_errors_pct(trial_of(*ranks, train_images=20)) == pytest.approx([100 * (1 - 11 / 20)])


def test_epochs_to_an_error_end_with_the_first_step_at_which_it_is_that_or_less() -> None:
    trial = small_trial(5, 5, 5, 5, 9, 9, 7, 10, 0)
    assert training_errors_pct(trial) == pytest.approx([50, 40, 30, 25, 12.5, 35])
    assert epochs_to_training_error(trial, 25) == 7 / 4
    assert epochs_to_training_error(trial, 24.9) == 8 / 4
    assert epochs_to_training_error(trial, 12) is None
    assert last_training_error_pct(trial) == pytest.approx(35)


def test_a_run_without_ranks_has_no_error() -> None:
    nothing = replace(trial_of(), ranks=())
    assert last_training_error_pct(nothing) is None
    assert epochs_to_training_error(nothing, 25) is None


def test_a_mean_over_seeds_has_students_interval() -> None:
    assert mean_of([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3), 3))
    assert mean_of([1.0]) == Estimate(1, None, None, 1)
    assert mean_of([]) is None


def test_differences_are_paired_by_seed() -> None:
    a, b = {1: 11.0, 2: 22.0, 3: 33.0, 9: 50.0}, {3: 30.0, 2: 20.0, 1: 10.0, 8: 0.0}
    assert paired_difference(a, b) == pytest.approx((2, 2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3), 3))
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_ratios_are_averaged_as_logarithms() -> None:
    found = geometric_mean([Ratio(2.0), Ratio(8.0)])
    assert found is not None
    estimate, at_least = found
    t1 = math.tan(0.475 * math.pi)  # Student's t of one degree of freedom is Cauchy's
    half = t1 * math.log(2)  # the logarithms lie log 2 from their mean: a deviation of sqrt(2) log 2, over sqrt(2)
    assert estimate == pytest.approx((4, 4 * math.exp(-half), 4 * math.exp(half), 2))
    assert not at_least
    assert geometric_mean([]) is None


def test_a_run_that_never_got_there_makes_the_ratio_a_lower_bound_without_interval() -> None:
    assert ratio_of(30.0, 5.0, 31.0) == Ratio(6.0)
    assert ratio_of(None, 5.0, 60.0) == Ratio(12.0, at_least=True)
    assert ratio_of(30.0, None, 31.0) is None
    found = geometric_mean([Ratio(3.0), Ratio(12.0, at_least=True)])
    assert found == (pytest.approx((6, None, None, 2)), True)


# --- the search ---------------------------------------------------------------------------------------------------


def test_the_search_begins_with_three_rates_and_runs_those_that_are_missing() -> None:
    assert rates_to_try({}) == FIRST_RATES == (0.001, 0.003, 0.01)
    assert rates_to_try({0.003: 40.0}) == (0.001, 0.01)


def test_the_search_ends_where_the_best_rate_has_a_worse_one_on_either_side() -> None:
    errors = {0.001: 50.0, 0.003: 40.0, 0.01: 45.0}
    assert rates_to_try(errors) == ()
    assert chosen_rate(errors) == 0.003


@pytest.mark.parametrize(
    ("errors", "more"),
    [
        ({0.001: 40.0, 0.003: 45.0, 0.01: 50.0}, (0.0003,)),
        ({0.001: 50.0, 0.003: 45.0, 0.01: 40.0}, (0.03,)),
        ({0.001: 50.0, 0.003: 45.0, 0.01: 40.0, 0.03: 35.0}, (0.1,)),
        ({0.0003: 30.0, 0.001: 40.0, 0.003: 45.0, 0.01: math.inf}, (0.0001,)),
    ],
)
def test_the_search_goes_on_beyond_the_edge_at_which_the_best_rate_lies(
    errors: dict[float, float], more: tuple[float, ...]
) -> None:
    assert rates_to_try(errors) == more
    assert chosen_rate(errors) is None


def test_where_every_rate_diverges_the_search_goes_down_and_chooses_none() -> None:
    assert rates_to_try(dict.fromkeys(FIRST_RATES, math.inf)) == (0.0003,)
    assert chosen_rate(dict.fromkeys(LADDER, math.inf)) is None


def test_the_lowest_of_equally_good_rates_is_the_best() -> None:
    assert best_rate({0.01: 40.0, 0.003: 40.0, 0.001: 41.0}) == 0.003


# --- which rows are runs of the study -----------------------------------------------------------------------------


def planted(tmp_path: Path, config: RunConfig, **changes: str) -> dict[str, str]:
    return {**plant(tmp_path / "t.csv", config, trial_with([60.0] * 24)), **changes}


def test_a_row_is_recognised_by_what_it_computed_however_it_did(tmp_path: Path) -> None:
    row = planted(tmp_path, SEARCH)
    assert row["status"] == "ok"
    assert is_run(row, SEARCH)
    how = {"torch_threads": "7", "compile": "off", "dali_threads": "3", "label": "by hand", "recipe": "smoke"}
    assert is_run({**row, **how, "evaluate_every": "50000"}, SEARCH)
    assert is_run({**row, "cpus": "2", "images_per_gpu": "64"}, SEARCH)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "cifar-18pct-nonorm-tanh"},
        {"learning_rate": "0.001"},
        {"weight_decay": "0.004"},
        {"augment": "paper"},
        {"schedule": "plateau"},
        {"seed": "2"},
        {"epochs": "60"},
        {"epochs": "", "steps": "3"},
        {"target_train_error_pct": ""},
        {"images_per_gpu": "64"},
        {"cpus": "2"},
        {"precision": "bf16"},
        {"status": "failed"},
        {"status": "interrupted"},
        {"status": "invalid"},
    ],
    ids=str,
)
def test_a_row_that_computed_something_else_or_does_not_count_is_no_run_of_the_study(
    other: dict[str, str], tmp_path: Path
) -> None:
    assert not is_run(planted(tmp_path, SEARCH, **other), SEARCH)


def test_a_row_from_before_a_column_was_there_had_its_default(tmp_path: Path) -> None:
    assert is_run(planted(tmp_path, SEARCH, schedule="", decay_form="", warmup_epochs=""), SEARCH)
    assert not is_run(planted(tmp_path, SEARCH, learning_rate=""), SEARCH)


def test_rows_of_other_images_are_left_aside(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    plant(table, SEARCH, trial_with([60.0] * 24))
    plant(table, SEARCH, trial_with([60.0] * 24), dataset={"dataset_id": "other"})
    study = opened(table, [SEARCH.model], None)
    assert study.images["dataset_id"] == "other", "those of the newest row"
    row = study.row_of(SEARCH)
    assert row is not None
    assert row["run_id"] == "run-1"
    mine = Study(table, study.rows, {**study.images, "dataset_id": "embedded-v1"})
    assert (mine.row_of(SEARCH) or {})["run_id"] == "run-0"
    assert Study(table, study.rows, {**study.images, "statistics_id": "other"}).row_of(SEARCH) is None


def test_what_was_run_meanwhile_is_read_without_the_rows_of_other_networks(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    study = opened(table, [SEARCH.model], None)
    for config in (SEARCH, SEARCH.with_(model="alexnet", seed=9)):
        plant(table, config, trial_with([60.0] * 24))
    assert study.rows == ()
    assert [row["model"] for row in study.reread().rows] == [SEARCH.model]
    assert study.reread().seeds == [1]


def test_what_is_wanted_grows_with_what_was_found(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"

    def missing() -> list[tuple[str, float, int, float | None]]:
        study = opened(table, list(activations_told.NETS.values()), None)
        runs = missing_of(study, lambda study: wanted(study, ASKED, 2))
        return [(run.model.removeprefix("cifar-18pct-nonorm"), run.learning_rate, run.seed, run.epochs) for run in runs]

    assert missing() == [(net, rate, 1, 3) for net in ("", "-tanh") for rate in FIRST_RATES]
    for rate, error in ((0.001, 45.0), (0.003, 35.0), (0.01, 55.0)):
        plant(table, ASKED.search(RELU, rate), trial_with([error] * 24))
        plant(table, ASKED.search(TANH, rate), trial_with([80 - error] * 24))
    assert missing() == [("-tanh", 0.03, 1, 3), ("", 0.003, 1, 60), ("", 0.003, 2, 60)]
    plant(table, ASKED.search(TANH, 0.03), trial_with([90.0] * 24))
    assert missing() == [("", 0.003, 1, 60), ("-tanh", 0.01, 1, 60), ("", 0.003, 2, 60), ("-tanh", 0.01, 2, 60)]
    plant(table, ASKED.final(RELU, 0.003, 1), trial_with([60.0] * 8 + [20.0] * 16))
    assert missing() == [("-tanh", 0.01, 1, 60), ("", 0.003, 2, 60), ("-tanh", 0.01, 2, 60)]


def test_the_plan_tells_the_hours_by_the_tables_own_speeds(tmp_path: Path) -> None:
    runs = [ASKED.final(RELU, 0.003, seed) for seed in (1, 2)]
    row = planted(tmp_path, SEARCH, images_per_s="100")
    assert expected_hours([row], runs, 3000) == 2 * 60 * 3000 / 100 / 3600
    assert expected_hours([row], [SEARCH.with_(epochs=None, steps=9)], 3000) == 9 * BATCH / 100 / 3600
    assert expected_hours([row], [*runs, ASKED.final(TANH, 0.003, 1)], 3000) is None
    study = Study(tmp_path / "t.csv", (row,))
    assert "2 runs are missing" in plan(study, runs, 3000)
    assert "at most 1 hours" in plan(study, runs, 3000)
    assert "unknown" in plan(study, [ASKED.final(TANH, 0.003, 1)], 3000)


# --- the table, the figure and the summary ------------------------------------------------------------------------


def searched_table(table: Path, dataset: dict[str, Any] | None = None, train_images: int = TRAIN_IMAGES) -> Path:
    """An ended search: 0.003 for ReLU, 0.01 for tanh."""
    for rate, relu, tanh in ((0.001, 45.0, 60.0), (0.003, 35.0, 55.0), (0.01, 50.0, 50.0), (0.03, None, 70.0)):
        for activation, error in ((RELU, relu), (TANH, tanh)):
            if error is not None:
                trial = trial_with([error] * 24, train_images=train_images)
                plant(table, ASKED.search(activation, rate), trial, dataset=dataset)
    return table


def falls_at(epoch: int, epochs: int) -> list[float]:
    """Errors of 75 %, and from this epoch's end on 0: the newest epoch's is 25 % after two thirds of one more, rounded up."""
    return [75.0] * (EPOCH_STEPS * epoch) + [0.0] * (EPOCH_STEPS * (epochs - epoch))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two seeds of each. An epoch has 8 steps: six of 0 % and two of 75 % are 18.75 %, five and three 28.1 %."""
    table = searched_table(tmp_path / "results" / "figure1.csv")
    for seed, relu, tanh in ((1, 3, 14), (2, 2, 21)):
        plant(table, ASKED.final(RELU, 0.003, seed), trial_with(falls_at(relu, relu + 1)))
        plant(table, ASKED.final(TANH, 0.01, seed), trial_with(falls_at(tanh, tanh + 2)))
    return table


def test_the_ratio_of_each_seed_is_tanhs_epochs_over_relus(whole: Path) -> None:
    study = opened(whole, list(activations_told.NETS.values()), None)
    finals = finals_of(study, ASKED)
    assert [(final.activation, final.seed, final.epochs_to_target) for final in finals] == [
        (RELU, 1, 3.75),
        (RELU, 2, 2.75),
        (TANH, 1, 14.75),
        (TANH, 2, 21.75),
    ]
    assert ratios_of(finals) == {1: Ratio(14.75 / 3.75), 2: Ratio(21.75 / 2.75)}


def test_what_is_found_is_told_drawn_and_summed_up(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert activations_told.main({}, whole, 3) == 0
    told = capsys.readouterr().out
    ratio = math.sqrt(14.75 / 3.75 * 21.75 / 2.75)
    assert f"tanh needs {ratio:.3g} times ReLU's epochs" in told
    assert "2 seeds" in told
    assert "the paper: 6 times (section 3.1, Figure 1)" in told
    assert "| ReLU       |         0.003 |              35.2 | chosen |" in told
    assert (whole.parent / "figure1.png").read_bytes().startswith(b"\x89PNG")
    drawing = (whole.parent / "figure1.svg").read_bytes()
    assert drawing.startswith(b"<?xml")
    with (whole.parent / "figure1-summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["part"] for line in lines] == ["search"] * 7 + ["run"] * 4 + ["ratio"] * 2 + ["ratio of all seeds"]
    assert lines[-1]["paper"] == "6"
    assert float(lines[-1]["ratio"]) == pytest.approx(ratio, rel=1e-5)
    assert lines[-1]["at_least"] == "false"
    assert float(lines[-1]["ratio_low"]) < ratio < float(lines[-1]["ratio_high"])
    assert [line["epochs_to_target"] for line in lines[7:11]] == ["3.75", "2.75", "14.75", "21.75"]
    assert activations_told.main({}, whole, 3) == 0
    assert (whole.parent / "figure1.svg").read_bytes() == drawing, "the same numbers give the same figure"


def test_a_tanh_run_that_never_gets_there_makes_it_at_least(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(whole, ASKED.final(RELU, 0.003, 3), trial_with(falls_at(3, 4)))
    plant(whole, ASKED.final(TANH, 0.01, 3), trial_with([75.0] * EPOCH_STEPS * 30))
    activations_told.main({}, whole, 3)
    told = capsys.readouterr().out
    assert "| not in 30 " in told
    assert "| at least 8 " in told
    ratio = (14.75 / 3.75 * 21.75 / 2.75 * 8) ** (1 / 3)
    assert f"tanh needs at least {ratio:.3g} times ReLU's epochs (3 seeds)" in told


def test_a_relu_run_that_never_gets_there_has_no_ratio(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(whole, ASKED.final(RELU, 0.003, 3), trial_with([75.0] * EPOCH_STEPS * 30))
    plant(whole, ASKED.final(TANH, 0.01, 3), trial_with(falls_at(3, 4)))
    activations_told.main({}, whole, 3)
    told = capsys.readouterr().out
    assert "not in 30" in told
    assert "2 seeds" in told


def test_a_search_alone_is_told_and_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = searched_table(tmp_path / "figure1.csv")
    assert activations_told.main({}, table, 3) == 0
    assert "chosen" in capsys.readouterr().out
    assert (tmp_path / "figure1-summary.csv").exists()
    assert not (tmp_path / "figure1.png").exists()


@pytest.mark.parametrize("main", [activations_told.main, normalisation.main])
def test_where_nothing_was_run_the_papers_words_and_the_command_are_told_and_nothing_is_written(
    main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main({}, tmp_path / "results" / "t.csv", 3) == 0
    told = capsys.readouterr().out
    assert "The paper (section 3." in told
    assert "To run it: python -m harness paper" in told
    assert list(tmp_path.iterdir()) == []


# --- section 3.3 --------------------------------------------------------------------------------------------------


def test_lrn_is_a_difference_of_validation_errors_paired_by_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, base = tmp_path / "lrn.csv", normalisation.config_of({**HOW, "epochs": 5})
    assert (base.schedule, base.drops, base.epochs, base.weight_decay) == ("epochs", "3,4", 5, 0.004)
    for seed, without, with_lrn in ((1, 20.0, 19.0), (2, 21.0, 19.0), (3, 22.0, 19.0), (4, 30.0, None)):
        plant(table, base.with_(seed=seed), trial_with([50.0] * 40, without))
        if with_lrn is not None:
            plant(table, base.with_(seed=seed, model="cifar-13pct-lrn"), trial_with([50.0] * 40, with_lrn))
    assert normalisation.main({}, table, 3) == 0
    told = capsys.readouterr().out
    low, high = -2 - T2 / math.sqrt(3), -2 + T2 / math.sqrt(3)
    assert f"by -2.00 points (95 % interval {low:+.2f} to {high:+.2f}, 3 seeds)" in told
    assert "from 13 % to 11 % of CIFAR-10's test images, -2 points (section 3.3)" in told
    assert "after 5 epochs on drawings" in told
    with (tmp_path / "lrn-summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["difference_points"] for line in lines] == ["-1", "-2", "-3", "", "-2"]
    assert (tmp_path / "lrn.png").exists()


def plant_lrn(table: Path, base: RunConfig, without: float, with_lrn: float) -> None:
    """A seed's two runs."""
    plant(table, base, trial_with([50.0] * 40, without))
    plant(table, base.with_(model="cifar-13pct-lrn"), trial_with([50.0] * 40, with_lrn))


def test_lrn_of_a_typed_length_is_found_whatever_ran_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "lrn.csv"
    plant_lrn(table, normalisation.config_of({**HOW, "epochs": 5}), 20.0, 19.0)
    plant_lrn(table, normalisation.config_of({**HOW, "epochs": 7}), 20.0, 16.0)
    for typed, told in (({}, "-4.00"), ({"epochs": 5}, "-1.00"), ({"epochs": 7}, "-4.00")):
        assert normalisation.main(typed, table, 3) == 0
        assert f"by {told} points" in capsys.readouterr().out
    assert normalisation.main({"epochs": 6}, table, 3) == 0
    assert "has no run of this yet" in capsys.readouterr().out


@pytest.mark.parametrize("length", [{"steps": 9}, {"timed_seconds": 5.0}])
def test_lrn_is_told_where_a_run_of_another_kind_of_length_is_the_newest(
    length: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, base = tmp_path / "lrn.csv", normalisation.config_of(HOW)
    plant_lrn(table, base, 20.0, 19.0)
    plant(table, base.with_(epochs=None, **length), trial_with([50.0] * 40, 30.0))
    assert normalisation.main({}, table, 3) == 0
    told = capsys.readouterr().out
    assert "after 12 epochs on drawings" in told
    assert "by -1.00 points (1 seed)" in told


@pytest.mark.parametrize("ranks", [{"cpus": 2}, {"gpus": 4}])
def test_lrn_is_found_whatever_number_of_ranks_is_typed(
    ranks: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_lrn(tmp_path / "lrn.csv", normalisation.config_of(HOW), 20.0, 19.0)
    assert normalisation.main(ranks, tmp_path / "lrn.csv", 3) == 0
    assert "by -1.00 points (1 seed)" in capsys.readouterr().out


def test_lrn_alone_changes_between_the_two_networks() -> None:
    without, with_lrn = normalisation.wanted(normalisation.config_of(HOW), 1)
    assert replace(without, model=with_lrn.model) == with_lrn
    assert (without.model, with_lrn.model) == ("cifar-13pct", "cifar-13pct-lrn")


# --- for real -----------------------------------------------------------------------------------------------------


def test_a_study_that_was_stopped_goes_on_with_the_run_that_is_missing(pictures: Path, tmp_path: Path) -> None:
    images = open_images(RunConfig(data=str(pictures)))
    table, dataset = tmp_path / "figure1.csv", cells_of(images)
    searched_table(table, dataset=dataset, train_images=len(images.train))
    relu = trial_with([50.0, 50.0, 20.0, 20.0], train_images=len(images.train))
    plant(table, ASKED.final(RELU, 0.003, 1), relu, dataset=dataset)
    words = ("paper", "figure1", "--data", str(pictures), "--seeds", "1", "--compile", "off", "--table", str(table))
    done = harness(*words, "--torch-threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 run is missing" in done.stdout
    made = rows(table)[8:]
    assert [(row["model"], row["learning_rate"], row["epochs"], row["torch_threads"]) for row in made] == [
        ("cifar-18pct-nonorm-tanh", "0.01", "60", "1")
    ]
    assert (tmp_path / "figure1.svg").exists()
    assert verified(table)
    again = harness(*words)
    assert again.returncode == 0
    assert "missing" not in again.stdout
    assert rows(table)[8:] == made
