"""Predictions of an evaluation: written and read, one error with its interval, and two compared on the same images."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.predictions import (
    Evaluation,
    EvaluationError,
    Paired,
    Prediction,
    comparison_words,
    difference,
    difference_interval,
    error_interval,
    error_pct,
    error_words,
    evaluations,
    image_names,
    in_order,
    mcnemar_p,
    paired,
    read_evaluation,
    write_evaluation,
    wrong_answers,
)
from pipelines.sources.imageset import ImageSet, Split

Z = 1.959963984540054  # the normal distribution's 97.5 %

PREDICTIONS = (
    Prediction(0, "val/cat/0.jpg", 0, 0.5, (0, 1, 2, 3, 4)),
    Prediction(1, "val/cat/1.jpg", 0, 0.125, (5, 4, 3, 2, 0)),
    Prediction(2, 'val/dog, "old"/2.jpg', 6, 1e-9, (0, 1, 2, 3, 4)),
)


def about(**changes: Any) -> dict[str, Any]:
    plain = {
        "evaluation_id": "20260101-000000-abcdef", "made_at": "2026-01-01T00:00:00+00:00", "views": 10, "precision": "fp32",
        "dataset": {"dataset_id": "0123"}, "images": 3, "top1_wrong": 2, "top5_wrong": 1, "checkpoints": [], "machine": {},
    }  # fmt: skip
    return {**plain, **changes}


def written(root: Path, **changes: Any) -> Evaluation:
    return write_evaluation(root, about(**changes), PREDICTIONS)


# --- one error ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "images"), [(1, 4), (2035, 5000), (20_350, 50_000)])
def test_the_ends_of_an_error_s_interval_are_the_shares_from_which_it_is_just_so_many_standard_errors_away(
    wrong: int, images: int
) -> None:
    for end in error_interval(wrong, images):
        assert abs(wrong / images - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / images), rel=1e-9)


def test_no_wrong_answer_of_ten_may_be_up_to_z_squared_over_ten_and_z_squared() -> None:
    assert error_interval(0, 10) == (0, pytest.approx(Z**2 / (10 + Z**2)))
    assert error_interval(10, 10) == (pytest.approx(10 / (10 + Z**2)), 1)


def test_an_error_is_said_in_per_cent_with_its_interval() -> None:
    assert error_words(20_350, 50_000) == "40.70 % (95 %: 40.27 to 41.13)"
    assert error_pct(10, 10) == (100, pytest.approx(1000 / (10 + Z**2)), 100)


def test_an_answer_is_wrong_where_the_class_is_not_among_the_likeliest() -> None:
    assert [each.wrong(1) for each in PREDICTIONS] == [False, True, True]
    assert [each.wrong(5) for each in PREDICTIONS] == [False, False, True]
    assert wrong_answers(PREDICTIONS, 1) == 2


# --- two on the same images ---------------------------------------------------------------------------------------


def test_pairs_count_the_images_that_one_alone_answers_rightly() -> None:
    a_wrong = [True, True, True, False, False, False, False, True]
    b_wrong = [False, False, True, True, False, False, False, False]
    assert paired(a_wrong, b_wrong) == Paired(images=8, a_wrong_b_right=3, b_wrong_a_right=1)


def test_pairs_of_unequal_length_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([True, False], [True])


@pytest.mark.parametrize(
    ("alone", "p"),
    [
        ((1, 9), 2 * (1 + 10) / 2**10),
        ((9, 1), 2 * (1 + 10) / 2**10),
        ((0, 5), 2 * 1 / 2**5),
        ((2, 6), 2 * (1 + 8 + 28) / 2**8),
        ((4, 4), 1.0),
        ((0, 0), 1.0),
    ],
)
def test_mcnemar_s_p_is_twice_the_share_of_coin_throws_that_fall_so_unevenly(alone: tuple[int, int], p: float) -> None:
    assert mcnemar_p(Paired(1000, *alone)) == pytest.approx(p, rel=1e-12)


def test_a_difference_is_b_s_error_less_a_s() -> None:
    assert difference(Paired(100, a_wrong_b_right=4, b_wrong_a_right=12)) == 0.08


def test_a_difference_s_interval_adds_half_an_image_to_each_of_four_counts() -> None:
    # 4.5 and 12.5 of 102: middle 8 / 102, variance (17 / 102 - (8 / 102)^2) / 102.
    low, high = difference_interval(Paired(100, a_wrong_b_right=4, b_wrong_a_right=12))
    assert (low + high) / 2 == pytest.approx(8 / 102)
    assert (high - low) / 2 == pytest.approx(Z * math.sqrt(17 * 102 - 64) / 102**1.5)


def test_without_any_difference_the_interval_still_has_a_width() -> None:
    # 0.5 and 0.5 of 12: variance (1 / 12) / 12.
    assert difference_interval(Paired(10, 0, 0)) == (pytest.approx(-Z / 12), pytest.approx(Z / 12))


def test_a_difference_s_interval_ends_at_one() -> None:
    low, high = difference_interval(Paired(1, a_wrong_b_right=0, b_wrong_a_right=1))
    assert high == 1
    assert low < 0


def test_a_comparison_is_one_sentence() -> None:
    # 1.5 and 9.5 of 102: middle 7.84, standard error 100 sqrt(11 * 102 - 64) / 102^1.5 = 3.157; p = 22 / 1024.
    assert comparison_words("net 1", "net 2", Paired(100, a_wrong_b_right=1, b_wrong_a_right=9)) == (
        "net 1 wrong and net 2 right on 1, net 2 wrong and net 1 right on 9 of 100: "
        "difference +8.00 points (95 %: +1.65 to +14.03), p = 0.0215"
    )


# --- images by their names ----------------------------------------------------------------------------------------


def val_names(images: ImageSet) -> list[str]:
    assert images.val is not None
    return image_names(images, images.val)


def set_of(train: list[str], val: list[str], starts: list[int] | None = None) -> ImageSet:
    spans = np.array([[start, 9] for start in starts], np.int64) if starts else None
    splits = Split(tuple(train), (0,) * len(train), 1), Split(tuple(val), (0,) * len(val), 1, spans)
    return ImageSet(*splits, classes=("a",), dataset_id="0123")


def test_images_are_called_by_what_leads_to_them_from_the_set_s_root() -> None:
    images = set_of(["/disk/set/train/a/0.jpg"], ["/disk/set/val/a/0.jpg", "/disk/set/val/b/0.jpg"])
    assert val_names(images) == ["val/a/0.jpg", "val/b/0.jpg"]
    assert image_names(images, images.train) == ["train/a/0.jpg"]


def test_a_bucket_s_images_are_called_by_what_leads_to_them_too() -> None:
    assert val_names(set_of(["s3://bucket/set/train/a/0.jpg"], ["s3://bucket/set/val/a/0.jpg"])) == ["val/a/0.jpg"]


def test_images_that_share_a_file_are_called_by_where_they_begin() -> None:
    images = set_of(["/set/train-0.tar"], ["/set/val-0.tar", "/set/val-0.tar"], [512, 2048])
    assert val_names(images) == ["val-0.tar@512", "val-0.tar@2048"]
    assert image_names(images, images.train) == ["train-0.tar"]


def test_a_file_whose_name_is_no_text_has_one_all_the_same() -> None:
    (name,) = val_names(set_of(["/set/train/a.jpg"], ["/set/val/\udcff.jpg"]))
    assert name.encode() == b"val/\\udcff.jpg"


def test_predictions_are_put_in_the_order_of_other_images() -> None:
    names = [each.image for each in PREDICTIONS]
    assert in_order(PREDICTIONS, names[::-1], [6, 0, 0], "it") == list(PREDICTIONS[::-1])


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (["val/cat/0.jpg", "val/cow/7.jpg"], [0, 0], r"it is of other images \(val/cow/7.jpg is not among them\)"),
        (["val/cat/0.jpg"], [3], r"it is of other labels \(val/cat/0.jpg has 0 there and 3 here\)"),
        (["val/cat/0.jpg"], [0], r"it is of more images \(val/cat/1.jpg is not among these\)"),
    ],
)
def test_predictions_of_other_images_are_refused_by_the_first_name(
    images: list[str], labels: list[int], sentence: str
) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        in_order(PREDICTIONS, images, labels, "it")


# --- folders ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    folder = written(tmp_path).folder
    assert folder == tmp_path / "20260101-000000-abcdef"
    found = read_evaluation(folder)
    assert found.about == {"schema_version": 1, **about()}
    assert found.predictions() == list(PREDICTIONS)
    assert found.way == "10 views, fp32"


def test_predictions_are_a_line_an_image_with_the_likeliest_classes(tmp_path: Path) -> None:
    assert (written(tmp_path).folder / "predictions.csv").read_text().splitlines() == [
        "index,image,label,p_label,top1,top2,top3,top4,top5",
        "0,val/cat/0.jpg,0,0.5,0,1,2,3,4",
        "1,val/cat/1.jpg,0,0.125,5,4,3,2,0",
        '2,"val/dog, ""old""/2.jpg",6,0.000000001,0,1,2,3,4',
    ]


def test_of_fewer_than_five_classes_the_last_cells_are_empty(tmp_path: Path) -> None:
    few = [Prediction(0, "a.jpg", 1, 0.25, (0, 1))]
    done = write_evaluation(tmp_path, about(images=1, top1_wrong=1, top5_wrong=0), few)
    assert (done.folder / "predictions.csv").read_text().splitlines()[1] == "0,a.jpg,1,0.25,0,1,,,"
    assert done.predictions() == few


def test_an_evaluation_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_evaluation(tmp_path, about(), [replace(PREDICTIONS[0], image="\udcff")])
    assert not list(tmp_path.iterdir())


def test_the_evaluations_of_a_folder_are_its_whole_ones_by_age(tmp_path: Path) -> None:
    assert evaluations(tmp_path / "none") == []
    for name in ("20260202-000000-000000", "20260101-000000-ffffff"):
        written(tmp_path, evaluation_id=name)
    written(tmp_path, evaluation_id="x").folder.rename(tmp_path / "unfinished-20260101-000000-000000")
    (tmp_path / "notes.txt").write_text("of a person")
    found = [each.evaluation_id for each in evaluations(tmp_path)]
    assert found == ["20260101-000000-ffffff", "20260202-000000-000000"]


def test_predictions_that_were_changed_since_are_refused(tmp_path: Path) -> None:
    done = written(tmp_path)
    table = done.folder / "predictions.csv"
    table.write_text(table.read_text().replace("1,val/cat/1.jpg,0,0.125,5,", "1,val/cat/1.jpg,5,0.125,5,"))
    with pytest.raises(EvaluationError, match=r"is not what evaluation.json beside it counts \(3 images, 1 wrong\)"):
        done.predictions()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[:-4], "a line has 8 cells where the header has 9"),
        (lambda text: text.replace("p_label", "p"), "its header is not index,image"),
        (lambda text: text.replace(",0.5,", ",half,"), "could not convert string to float"),
        (lambda _: "", "its header is not index,image"),
    ],
)  # fmt: skip
def test_damaged_predictions_are_refused_in_one_sentence(tmp_path: Path, damage: Any, sentence: str) -> None:
    done = written(tmp_path)
    table = done.folder / "predictions.csv"
    table.write_text(damage(table.read_text()))
    with pytest.raises(EvaluationError, match=sentence):
        done.predictions()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"holds no evaluation \(no evaluation.json\)"),
        ("{", "is no evaluation of this harness"),
        ("[]", "is no evaluation of this harness"),
        ("{}", "is no evaluation of this harness"),
        (json.dumps({"schema_version": 2}), "has schema_version 2 and this harness knows 1: update the harness"),
        (json.dumps({"schema_version": 1}), "lacks evaluation_id"),
        (json.dumps({"schema_version": 1, **about(dataset={"classes": 10})}), "lacks dataset_id: restore it"),
        (json.dumps({"schema_version": 1, **about(dataset="no dataset_id")}), "lacks dataset_id: restore it"),
        (json.dumps({"schema_version": 1, **about(dataset=None)}), "lacks dataset_id: restore it"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(EvaluationError, match=sentence):
        read_evaluation(tmp_path)
