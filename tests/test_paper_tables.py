"""Tables 1 and 2: which of our errors stands beside which of the paper's lines, and what is said where none does."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from literals import record_of

from harness.cli import main, parser
from harness.paper.claims import (
    CNN_1,
    CNN_1_PRETRAINED,
    CNN_2010,
    CNN_2010_CENTRE,
    CNNS_5,
    CNNS_7_PRETRAINED,
    TABLE_1,
    TABLE_2,
)
from harness.paper.found import Ours, found_under, of_row
from harness.paper.tables import FILLED_BY, line_of_table1, line_of_table2, table1, table2
from harness.predictions import write_evaluation
from harness.results import append
from harness.rows import row_of

ILSVRC_2012 = {"dataset_id": "2012-here", "classes": 1000, "train_images": 1_281_167, "excluded_images": 0}
ILSVRC_2010 = {"dataset_id": "2010-here", "classes": 1000, "train_images": 1_261_406, "excluded_images": 0}
CIFAR_10 = {"dataset_id": "cifar", "classes": 10, "train_images": 50_000, "excluded_images": 0}


def net(seed: int = 1, **changes: Any) -> dict[str, Any]:
    plain = {
        "run_id": f"run-{seed}", "step": 900_000, "epochs_done": 90.0, "model": "alexnet", "seed": seed, "fine_tune_from": None,
        "manifest_sha256": f"digest of {seed} {changes}", "top1_wrong": 20_400, "top5_wrong": 9_150,
    }  # fmt: skip
    return {**plain, **changes}


def six_layers(seed: int, fine_tune_from: str | None = "run-0/step-001") -> dict[str, Any]:
    return net(seed, model="alexnet-conv6", fine_tune_from=fine_tune_from)


def evaluation(results: Path, *nets: dict[str, Any], **changes: Any) -> Path:
    """An evaluation of ILSVRC-2012's validation set by ten views, as `evaluate` leaves it; each keyword changes one fact."""
    number = len(list(results.glob("evaluations/*")))
    about = {
        "evaluation_id": f"20300101-00000{number}-abcdef", "made_at": "2030-01-01T00:00:00+00:00", "views": 10, "precision": "fp32",
        "dataset": ILSVRC_2012, "images": 50_000, "top1_wrong": 20_360, "top5_wrong": 9_125, "checkpoints": list(nets or (net(),)),
    }  # fmt: skip
    return write_evaluation(results / "evaluations", {**about, **changes}, []).folder


def one(results: Path) -> Ours:
    (ours,) = found_under(results)
    return ours


def cells_beside(text: str, name: str) -> list[list[str]]:
    """The cells of a network's lines in the printed table."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [line for line in lines if line[0] == name]


# --- nothing was run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "printed"), [("table1", TABLE_1), ("table2", TABLE_2)])
def test_where_nothing_was_run_the_papers_lines_stand_alone(
    table: str, printed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["paper", table]) == 0
    text = capsys.readouterr().out
    for line in printed:
        ((_, top1, top5, *others),) = cells_beside(text, line.name)
        assert (top1, top5) == tuple(
            "" if each is None else str(each) for each in (line.top1_error_pct, line.top5_error_pct)
        )
        assert others[-2:] == ["", ""]  # ours


def test_every_line_that_can_be_run_says_commands_that_exist(tmp_path: Path) -> None:
    commands = [line for lines in FILLED_BY.values() for line in lines if line.startswith("python -m harness ")]
    assert len(commands) >= 2 * len(FILLED_BY) - 1
    for command in commands:
        asked = parser().parse_args(shlex.split(command, comments=True)[3:])
        assert asked.command in ("run", "evaluate")
    assert all(command in table1(tmp_path) + table2(tmp_path) for command in commands)


def test_a_results_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "table2", "--results", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err


# --- which line ---------------------------------------------------------------------------------------------------


def test_one_alexnet_by_ten_views_stands_beside_1_cnn_with_all_that_made_it(tmp_path: Path) -> None:
    folder = evaluation(tmp_path)
    ((_, *paper), *_) = cells_beside(text := table2(tmp_path), "1 CNN")
    assert paper[:5] == ["40.7", "18.2", "", "40.72 (40.29 to 41.15)", "18.25 (17.91 to 18.59)"]
    assert paper[5:] == ["1 alexnet", "10", "fp32", "90", "1", "2012-here", "50000", folder.name]
    assert "stand beside no line" not in text
    assert [line for line in text.splitlines() if line.startswith("  1 CNN ")] == []


def test_five_networks_of_five_runs_are_5_cnns(tmp_path: Path) -> None:
    evaluation(tmp_path, *(net(seed, epochs_done=80.0 + seed) for seed in range(1, 6)))
    assert line_of_table2(one(tmp_path)) is CNNS_5
    assert cells_beside(table2(tmp_path), "5 CNNs")[0][6:11] == ["5 alexnet", "10", "fp32", "81 to 85", "1 2 3 4 5"]


def test_five_checkpoints_of_one_run_are_not_5_cnns(tmp_path: Path) -> None:
    evaluation(tmp_path, *(net(seed, run_id="run-1", step=seed) for seed in range(1, 6)))
    assert line_of_table2(one(tmp_path)) == "of other networks than these lines'"


def test_a_star_needs_the_sixth_layer_and_other_images_before_these(tmp_path: Path) -> None:
    star, without, plain = tmp_path / "star", tmp_path / "without", tmp_path / "plain"
    evaluation(star, six_layers(1))
    evaluation(without, six_layers(1, fine_tune_from=None))
    evaluation(plain, net(1, fine_tune_from="run-0/step-001"))
    assert line_of_table2(one(star)) is CNN_1_PRETRAINED
    assert isinstance(line_of_table2(one(without)), str)
    assert isinstance(line_of_table2(one(plain)), str)


def test_seven_cnns_are_five_and_two_with_a_star(tmp_path: Path) -> None:
    evaluation(tmp_path, six_layers(6), six_layers(7), *(net(seed) for seed in range(1, 6)))
    assert line_of_table2(one(tmp_path)) is CNNS_7_PRETRAINED


def test_one_view_is_no_line_of_table_2_and_the_centre_crop_of_table_1(tmp_path: Path) -> None:
    validation, test = tmp_path / "2012", tmp_path / "2010"
    evaluation(validation, views=1)
    evaluation(test, views=1, dataset=ILSVRC_2010, images=150_000)
    evaluation(test, views=10, dataset=ILSVRC_2010, images=150_000)
    assert line_of_table2(one(validation)) == "not of ten views"
    assert [line_of_table1(ours) for ours in found_under(test)] == [CNN_2010_CENTRE, CNN_2010]


@pytest.mark.parametrize(
    ("dataset", "images"),
    [
        (CIFAR_10, 5_000),
        (ILSVRC_2010, 50_000),  # 2010's validation set has as many images as 2012's
        ({**ILSVRC_2012, "classes": 100}, 50_000),
        (ILSVRC_2012, 49_999),
    ],
)
def test_an_error_on_other_images_stands_beside_no_line(dataset: dict[str, Any], images: int, tmp_path: Path) -> None:
    evaluation(tmp_path, dataset=dataset, images=images, top1_wrong=100, top5_wrong=10)
    both = table1(tmp_path) + table2(tmp_path)
    assert cells_beside(both, "1 CNN")[0][4] == cells_beside(both, "CNN")[0][4] == ""
    assert "no line: 1 not of ILSVRC-2010's test set" in both
    assert "no line: 1 not of ILSVRC-2012's validation set" in both


def test_images_that_were_left_out_by_name_count_as_there(tmp_path: Path) -> None:
    evaluation(tmp_path, dataset={**ILSVRC_2012, "train_images": 1_281_160, "excluded_images": 10}, images=49_997)
    assert line_of_table2(one(tmp_path)) is CNN_1


# --- what is found ------------------------------------------------------------------------------------------------


def test_the_same_weights_evaluated_twice_alike_are_shown_once(tmp_path: Path) -> None:
    evaluation(tmp_path)
    newer = evaluation(tmp_path, top1_wrong=20_361)
    evaluation(tmp_path, precision="bf16")
    assert [cells[-1] for cells in cells_beside(table2(tmp_path), "1 CNN")] == [newer.name, "20300101-000002-abcdef"]


def a_row(**changes: Any) -> dict[str, str]:
    """A row whose run evaluated ILSVRC-2012 by ten views: 64 of 256 right, as the literal trial has it."""
    asked = {"views": 10, "model": "alexnet", "precision": "fp32", **changes}
    return row_of(record_of(asked=asked, dataset={**ILSVRC_2012, "val_images": 50_000}))


def test_a_rows_own_evaluation_is_ours_too(tmp_path: Path) -> None:
    append(tmp_path / "here.csv", a_row())
    ours = one(tmp_path)
    assert (ours.source, ours.images, ours.top1_wrong, ours.top5_wrong) == ("run-1", 50_000, 37_500, 12_500)
    assert line_of_table2(ours) is CNN_1


def test_an_evaluation_of_a_rows_run_stands_in_its_place(tmp_path: Path) -> None:
    append(tmp_path / "here.csv", a_row())
    folder = evaluation(tmp_path)
    assert one(tmp_path).source == folder.name


@pytest.mark.parametrize(
    "changes", [{"dataset": {**ILSVRC_2012, "dataset_id": "others"}}, {"precision": "bf16"}, {"views": 1}]
)
def test_an_evaluation_on_other_images_or_in_another_way_leaves_a_rows_own(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    append(tmp_path / "here.csv", a_row())
    folder = evaluation(tmp_path, **changes)
    assert [ours.source for ours in found_under(tmp_path)] == [folder.name, "run-1"]


def test_a_table_that_a_spreadsheet_saved_is_found(tmp_path: Path) -> None:
    append(tmp_path / "here.csv", a_row())
    (tmp_path / "here.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "here.csv").read_bytes().replace(b"\n", b"\r\n"))
    assert one(tmp_path).source == "run-1"


def test_what_a_row_does_not_say_of_its_images_is_unknown() -> None:
    def ours(**cells: str) -> Ours:
        found = of_row({**a_row(), **cells})
        assert found is not None
        return found

    assert ours(excluded_images="", train_images="").dataset == {
        "classes": 1000,
        "train_images": None,
        "excluded_images": None,
    }
    assert line_of_table2(ours(excluded_images="")) is CNN_1
    assert line_of_table2(ours(excluded_images="", val_images="49999")) == "not of ILSVRC-2012's validation set"
    for unknown in ("classes", "train_images"):
        assert line_of_table2(ours(**{unknown: ""})) == "not of ILSVRC-2012's validation set"


@pytest.mark.parametrize("changes", [{"status": "invalid"}, {"val_top1_error_pct": ""}])
def test_a_row_that_does_not_count_or_was_not_evaluated_is_none_of_ours(changes: dict[str, str]) -> None:
    assert of_row({**a_row(), **changes}) is None


def test_other_lists_beside_the_tables_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("step,loss\n1,2.3\n")
    assert found_under(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"top1_wrong": 20360', '"top1_wrong": 60360'),
        lambda text: text.replace('"top1_wrong": 20360', '"top1_wrong": "many"'),
        lambda text: text.replace('"classes"', '"klasses"'),
        lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
    ],
)
def test_a_damaged_evaluation_is_named_in_one_sentence(
    damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluation(tmp_path) / "evaluation.json"
    path.write_text(damage(path.read_text()))
    assert main(["paper", "table2", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
