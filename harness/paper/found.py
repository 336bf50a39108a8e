"""What was measured of the paper's networks: evaluations and rows under a results folder, each as one error with what made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.predictions import ABOUT, EVALUATIONS, Evaluation, EvaluationError, evaluations
from harness.results import read_table
from harness.rows import COUNTS
from harness.summary import number

TRAIN = "python -m harness run --recipe paper"
SIZES = ("classes", "train_images", "excluded_images")
PLAIN, SIX_LAYERS = ("alexnet", "alexnet-code2012"), "alexnet-conv6"


class Net(NamedTuple):
    """A network that was evaluated: `weights` is a digest that tells it from others."""

    weights: str
    run_id: str
    model: str
    epochs: float | None
    seed: str
    fine_tune_from: str

    @property
    def plain(self) -> bool:
        """The paper's CNN, as printed or as its source ran."""
        return self.model in PLAIN and not self.fine_tune_from

    @property
    def pretrained(self) -> bool:
        """Its CNN*: a sixth convolution, and other images before these."""
        return self.model == SIX_LAYERS and bool(self.fine_tune_from)


class Ours(NamedTuple):
    """An error that was measured: of one network, or of the average of several."""

    source: str  # evaluation_id or run_id
    views: int
    precision: str
    dataset: Mapping[str, int | None]  # SIZES, as far as they are known
    dataset_id: str
    images: int
    top1_wrong: int
    top5_wrong: int
    nets: tuple[Net, ...]


def found_under(results: Path) -> list[Ours]:
    """Every evaluation in a folder called evaluations under `results`, then the rows of its tables that count and were
    evaluated as none of them was, in views, precision and images; of equals the newest."""
    evaluated = [of_evaluation(each) for folder in folders(results) for each in evaluations(folder)]
    seen = {way_of(ours) for ours in evaluated if len(ours.nets) == 1}
    rows = [of_row(row) for path in sorted(results.glob("*.csv")) if is_table(path) for row in read_table(path)]
    others = [ours for ours in rows if ours and way_of(ours) not in seen]
    return list({same_as(ours): ours for ours in [*evaluated, *others]}.values())


def way_of(ours: Ours) -> tuple[str, int, str, str]:
    """Of one network: whose run it is of, and how and on which images it was evaluated."""
    return ours.nets[0].run_id, ours.views, ours.precision, ours.dataset_id


def folders(results: Path) -> list[Path]:
    return [results, *sorted(path for path in results.rglob(EVALUATIONS) if path.is_dir())]


def same_as(ours: Ours) -> tuple[Any, ...]:
    return tuple(sorted(net.weights for net in ours.nets)), ours.views, ours.precision, ours.dataset_id, ours.images


def is_table(path: Path) -> bool:
    """Whether the file is a table of rows: other lists may lie beside them."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().rstrip("\n").split(",")
    return {"run_id", "status", "val_top1_error_pct"} <= set(header)


def of_evaluation(evaluation: Evaluation) -> Ours:
    about = evaluation.about
    try:
        ours = Ours(
            source=evaluation.evaluation_id,
            views=int(about["views"]),
            precision=str(about["precision"]),
            dataset={name: int(about["dataset"][name]) for name in SIZES},
            dataset_id=str(about["dataset"]["dataset_id"]),
            images=int(about["images"]),
            top1_wrong=int(about["top1_wrong"]),
            top5_wrong=int(about["top5_wrong"]),
            nets=tuple(net_of(each) for each in about["checkpoints"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(evaluation, f"{type(error).__name__} {error}") from None
    if not (0 <= ours.top5_wrong <= ours.top1_wrong <= ours.images and ours.images and ours.nets):
        raise unusable(evaluation, f"{ours.top1_wrong} and {ours.top5_wrong} wrong of {ours.images}")
    return ours


def unusable(evaluation: Evaluation, why: str) -> EvaluationError:
    return EvaluationError(
        f"{evaluation.folder / ABOUT} does not hold together ({why}): restore it, or evaluate the checkpoints again"
    )


def net_of(checkpoint: dict[str, Any]) -> Net:
    epochs = checkpoint["epochs_done"]
    return Net(
        weights=str(checkpoint["manifest_sha256"]),
        run_id=str(checkpoint["run_id"]),
        model=str(checkpoint["model"]),
        epochs=None if epochs is None else float(epochs),
        seed=str(checkpoint["seed"]),
        fine_tune_from=str(checkpoint["fine_tune_from"] or ""),
    )


def of_row(row: dict[str, str]) -> Ours | None:
    """What a row's last evaluation found; None where it does not count or was not evaluated. Its counts follow from its per cents."""
    errors = [number(row[f"val_top{place}_error_pct"]) for place in (1, 5)]
    images = number(row["val_images"])
    if row["status"] not in COUNTS or not images or errors[0] is None or errors[1] is None:
        return None
    top1, top5 = (round(error * images / 100) for error in errors if error is not None)
    net = Net(
        f"row {row['run_id']}", row["run_id"], row["model"], number(row["epochs_done"]), row["seed"],
        row.get("fine_tune_from", ""),
    )  # fmt: skip
    sizes = {name: number(row[name]) for name in SIZES}
    dataset = {name: None if size is None else int(size) for name, size in sizes.items()}
    return Ours(
        row["run_id"], int(number(row["views"]) or 1), row["precision"], dataset, row["dataset_id"],
        int(images), top1, top5, (net,),
    )  # fmt: skip
