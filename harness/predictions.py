"""Evaluations as they lie on the disk, and what may be said of their errors: each alone, and two on the same images.

    results/evaluations/<evaluation_id>/
        evaluation.json     which checkpoints, on which images, how these were shown, and how many were answered wrongly
        predictions.csv     a line an image: its label, and the classes that the averaged networks found likeliest

A folder is written under another name and gets its own when it is whole.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.config import AskedWrongly
from harness.results import csv_text, write_whole
from harness.rows import cell

if TYPE_CHECKING:
    from pipelines.sources.imageset import ImageSet, Split

SCHEMA_VERSION = 1
ABOUT = "evaluation.json"
TABLE = "predictions.csv"
UNFINISHED = "unfinished-"
EVALUATIONS = "evaluations"  # the folder of all of them, in a results folder
BEST = 5
COLUMNS = ("index", "image", "label", "p_label", *(f"top{place}" for place in range(1, BEST + 1)))
KEYS = ("evaluation_id", "views", "precision", "dataset", "images", "top1_wrong", "top5_wrong", "checkpoints")


class EvaluationError(AskedWrongly):
    """An evaluation that cannot be read, or that is of other images than the one it is to be compared with."""


@dataclass(frozen=True)
class Prediction:
    """Of one image: its place in the split and its name in the set, the number of its class and that class's probability,
    and the numbers of the five likeliest classes, likeliest first; of fewer classes, all."""

    index: int
    image: str
    label: int
    p_label: float
    best: tuple[int, ...]

    def wrong(self, among: int) -> bool:
        """Whether its class is not among the so many likeliest."""
        return self.label not in self.best[:among]


def wrong_answers(predictions: Iterable[Prediction], among: int) -> int:
    return sum(each.wrong(among) for each in predictions)


# --- one error, and two on the same images ------------------------------------------------------------------------


class Paired(NamedTuple):
    """How two networks A and B answered the same images."""

    images: int
    a_wrong_b_right: int
    b_wrong_a_right: int


def error_interval(wrong: int, images: int) -> tuple[float, float]:
    """Where the share of wrong answers lies, at 95 %: Wilson's score interval (1927)."""
    from scipy.stats import binomtest  # slow to import: only where it is needed

    from harness.metrics.intervals import CONFIDENCE

    low, high = binomtest(wrong, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def paired(a_wrong: Sequence[bool], b_wrong: Sequence[bool]) -> Paired:
    """Counted over the same images in the same order."""
    both = [(bool(a), bool(b)) for a, b in zip(a_wrong, b_wrong, strict=True)]
    return Paired(len(both), both.count((True, False)), both.count((False, True)))


def mcnemar_p(pairs: Paired) -> float:
    """How often two equally good networks would differ at least so much: McNemar's exact test, two-sided.

    Of the images that one alone answers rightly, each is as likely the one's as the other's: a binomial test of one half.
    """
    from scipy.stats import binomtest

    alone = pairs.a_wrong_b_right + pairs.b_wrong_a_right
    return float(binomtest(pairs.a_wrong_b_right, alone).pvalue) if alone else 1.0


def difference(pairs: Paired) -> float:
    """B's error less A's, as a share of the images."""
    return (pairs.b_wrong_a_right - pairs.a_wrong_b_right) / pairs.images


def difference_interval(pairs: Paired) -> tuple[float, float]:
    """Where B's error less A's lies, at 95 %: Agresti and Min's Wald+2 for paired proportions (2005).

    Half an image is added to each of the four counts of right and wrong answers: it holds for few images, and where none differs.
    """
    from harness.metrics.intervals import CONFIDENCE

    images = pairs.images + 2
    more, less = (pairs.b_wrong_a_right + 0.5) / images, (pairs.a_wrong_b_right + 0.5) / images
    middle = more - less
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt((more + less - middle**2) / images)
    return max(-1.0, middle - half), min(1.0, middle + half)


def error_pct(wrong: int, images: int) -> tuple[float, float, float]:
    """(error, low, high) in per cent: the share of wrong answers and its interval."""
    low, high = error_interval(wrong, images)
    return 100 * wrong / images, 100 * low, 100 * high


def error_words(wrong: int, images: int) -> str:
    """`40.70 % (95 %: 40.27 to 41.13)`"""
    error, low, high = error_pct(wrong, images)
    return f"{error:.2f} % (95 %: {low:.2f} to {high:.2f})"


def errors_words(counts: dict[str, Any], images: int) -> str:
    """Of what was counted as in evaluation.json."""
    top1, top5 = (error_words(counts[name], images) for name in ("top1_wrong", "top5_wrong"))
    return f"top-1 error {top1}, top-5 error {top5}"


def comparison_words(a: str, b: str, pairs: Paired) -> str:
    """Two networks, by the names that they are to have here, on the same images."""
    low, high = difference_interval(pairs)
    return (
        f"{a} wrong and {b} right on {pairs.a_wrong_b_right:,}, {b} wrong and {a} right on {pairs.b_wrong_a_right:,} of "
        f"{pairs.images:,}: difference {100 * difference(pairs):+.2f} points (95 %: {100 * low:+.2f} to {100 * high:+.2f}), "
        f"p = {mcnemar_p(pairs):.3g}"
    )


# --- images by their names ----------------------------------------------------------------------------------------


def image_names(images: ImageSet, split: Split) -> list[str]:
    """The images of one of the set's splits by their names: a file's path below the folder that holds all the set's images.

    Images that share a file have the byte at which they begin behind it, as `val-0003.tar@1536`.
    """
    files = (*images.train.files, *(images.val.files if images.val else ()))
    # Letter by letter, then back to a slash: an address with s3:// is no path.
    above = os.path.commonprefix([min(files), max(files)]).rfind("/") + 1  # noqa: RUF071
    # What the disk calls a file need not be text.
    names = [file[above:].encode("utf-8", "backslashreplace").decode() for file in split.files]
    if split.spans is None:
        return names
    return [f"{name}@{start}" for name, start in zip(names, split.spans[:, 0].tolist(), strict=True)]


def in_order(found: Sequence[Prediction], images: Sequence[str], labels: Sequence[int], what: str) -> list[Prediction]:
    """Those predictions in the order of these images; EvaluationError, which calls them `what`, where they are not just of these."""
    by_image = {each.image: each for each in found}
    todo = "evaluate both on the same --data and --exclude"
    for image, label in zip(images, labels, strict=True):
        if image not in by_image:
            raise EvaluationError(f"{what} is of other images ({image} is not among them): {todo}")
        if by_image[image].label != label:
            raise EvaluationError(
                f"{what} is of other labels ({image} has {by_image[image].label} there and {label} here): {todo}"
            )
    if more := sorted(set(by_image) - set(images)):
        raise EvaluationError(f"{what} is of more images ({more[0]} is not among these): {todo}")
    return [by_image[image] for image in images]


# --- folders ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """An evaluation whose `about` (evaluation.json) was read."""

    folder: Path
    about: dict[str, Any]

    @property
    def evaluation_id(self) -> str:
        return str(self.about["evaluation_id"])

    @property
    def way(self) -> str:
        """How the images were shown."""
        views = self.about["views"]
        return f"{views} view{'s' * (views != 1)}, {self.about['precision']}"

    def predictions(self) -> list[Prediction]:
        """In the split's order; EvaluationError where they are damaged, or not those that `about` counts."""
        path = self.folder / TABLE
        try:
            lines = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True))
            if lines[:1] != [list(COLUMNS)]:
                raise ValueError(f"its header is not {','.join(COLUMNS)}")
            found = [prediction_of(line) for line in lines[1:]]
        except (OSError, ValueError, csv.Error) as error:
            raise EvaluationError(
                f"{path} cannot be read ({error}): restore it, or evaluate the checkpoint again"
            ) from None
        counts = (len(found), wrong_answers(found, 1), wrong_answers(found, BEST))
        if counts != tuple(self.about[name] for name in ("images", "top1_wrong", "top5_wrong")):
            raise EvaluationError(
                f"{path} is not what {ABOUT} beside it counts ({counts[0]:,} images, {counts[1]:,} wrong): restore both, or "
                "evaluate the checkpoint again"
            )
        return found


def prediction_of(line: Sequence[str]) -> Prediction:
    """A line of predictions.csv; ValueError for what is none."""
    if len(line) != len(COLUMNS):
        raise ValueError(f"a line has {len(line)} cells where the header has {len(COLUMNS)}")
    index, image, label, p_label, *best = line
    return Prediction(int(index), image, int(label), float(p_label), tuple(int(each) for each in best if each))


def read_evaluation(folder: Path | str) -> Evaluation:
    """The evaluation in a folder; its predictions are not read yet."""
    path = Path(folder) / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version = about["schema_version"]
    except FileNotFoundError:
        raise EvaluationError(
            f"{folder} holds no evaluation (no {ABOUT}): give a folder that `python -m harness evaluate` wrote"
        ) from None
    except (OSError, ValueError, TypeError, KeyError):
        raise EvaluationError(
            f"{path} is no evaluation of this harness: restore it, or evaluate the checkpoint again"
        ) from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise EvaluationError(
            f"{path} has schema_version {version} and this harness knows {SCHEMA_VERSION}: update the harness"
        )
    missing = [name for name in KEYS if name not in about]
    if not missing and not (isinstance(about["dataset"], dict) and "dataset_id" in about["dataset"]):
        missing = ["dataset_id"]
    if missing:
        raise EvaluationError(f"{path} lacks {missing[0]}: restore it, or evaluate the checkpoint again")
    return Evaluation(Path(folder), about)


def evaluations(root: Path | str) -> list[Evaluation]:
    """Every whole evaluation in the folders of `root`, oldest first; none where there is no such folder."""
    folders = sorted(path.parent for path in Path(root).glob(f"*/{ABOUT}"))
    return [read_evaluation(folder) for folder in folders if not folder.name.startswith(UNFINISHED)]


def write_evaluation(root: Path | str, about: dict[str, Any], predictions: Sequence[Prediction]) -> Evaluation:
    """A folder in `root` by the evaluation's id, whole or not at all. `about` but for `schema_version`, which is ours."""
    whole = Path(root) / about["evaluation_id"]
    folder = whole.with_name(UNFINISHED + whole.name)
    about = {"schema_version": SCHEMA_VERSION, **about}
    try:
        write_whole(folder / ABOUT, json.dumps(about, indent=1, allow_nan=False) + "\n")
        write_whole(folder / TABLE, csv_text(COLUMNS, map(line_of, predictions)))
        folder.rename(whole)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Evaluation(whole, about)


def line_of(prediction: Prediction) -> list[str]:
    one, places = prediction, [*map(str, prediction.best), *[""] * (BEST - len(prediction.best))]
    return [str(one.index), one.image, str(one.label), cell(one.p_label), *places]
