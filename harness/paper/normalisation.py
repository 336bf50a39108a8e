"""Section 3.3 on CIFAR-10: what local response normalisation does to the validation error.

The paper's two nets go from 13 % to 11 %. The released nets of those names differ in more than LRN; ours differ in nothing
else. Constant learning rate 0.001, divided by ten before each of the last two epochs; weight decay 0.004; every picture
shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.metrics.learning import errors_pct, evaluation_points
from harness.paper.asked import IMAGES_PER_STEP, of_the_batch
from harness.paper.charts import DASHED, SOLID, Curve, error_curves
from harness.paper.cifar import LRN_EPOCHS
from harness.paper.claims import CLAIMS
from harness.paper.differences import Estimate, epochs_after, paired_difference
from harness.paper.groups import Study, complete, how_sure, images_of, keep, length_of, nothing_yet, opened, points
from harness.rows import cell, words
from harness.schedule import number_text
from harness.summary import counted, markdown, rounded
from harness.trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = CLAIMS["lrn_cifar"]
WITHOUT, WITH = "without LRN", "with LRN"
NETS = {WITHOUT: "cifar-13pct", WITH: "cifar-13pct-lrn"}
LOOKS = {WITHOUT: DASHED, WITH: SOLID}
ERROR = "val_top1_error_pct"


def config_of(how: Mapping[str, Any]) -> RunConfig:
    """The run of the net without LRN; `how` may give another length."""
    epochs = how.get("epochs", LRN_EPOCHS)
    plain = {
        "model": NETS[WITHOUT],
        "augment": "none",
        "image_size": 32,
        "init": None,
        "learning_rate": 0.001,
        "weight_decay": 0.004,
        "epochs": epochs,
        "schedule": "epochs",
        "drops": ",".join(map(number_text, (epochs - 2, epochs - 1))),
    }
    return RunConfig(**{**plain, **how})


def config_of_newest(newest: RunConfig | None, typed: dict[str, Any]) -> RunConfig:
    """The run of the net without LRN, as long as the newest run unless another length was typed."""
    length = {"epochs": newest.epochs} if newest and newest.epochs else {}
    return config_of({**length, **typed, **of_the_batch(typed, None)})


def wanted(base: RunConfig, seeds: int) -> list[RunConfig]:
    return [base.with_(model=net, seed=seed) for seed in range(1, seeds + 1) for net in NETS.values()]


# --- what they say ------------------------------------------------------------------------------------------------


def errors_of(study: Study, base: RunConfig) -> dict[str, dict[int, float]]:
    """The validation error at the end of each run, per cent, by net and seed."""
    return {side: study.by_seed(base.with_(model=net), ERROR) for side, net in NETS.items()}


def seed_lines(errors: Mapping[str, Mapping[int, float]]) -> list[dict[str, str]]:
    lines = []
    for seed in sorted({*errors[WITHOUT], *errors[WITH]}):
        each = {side: errors[side].get(seed) for side in NETS}
        without, with_lrn = each[WITHOUT], each[WITH]
        difference = "" if without is None or with_lrn is None else points(with_lrn - without)
        told = {f"{side}, %": "" if error is None else rounded(error) for side, error in each.items()}
        lines.append({"seed": str(seed), **told, "difference, points": difference})
    return lines


def verdict(found: Estimate) -> str:
    return (
        f"LRN changes the validation error by {points(found.value)} points ({how_sure(found, points)}); the paper: from "
        f"{CLAIM.before_pct:g} % to {CLAIM.after_pct:g} % of CIFAR-10's test images, {CLAIM.top1_points:g} points (section {CLAIM.section})."
    )


HEADER = words("seed without_pct with_pct difference_points low_points high_points paper_points")


def summary_lines(errors: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """lrn-summary.csv: a line a seed, and the mean difference."""
    lines: list[dict[str, Any]] = []
    for seed in sorted({*errors[WITHOUT], *errors[WITH]}):
        without, with_lrn = errors[WITHOUT].get(seed), errors[WITH].get(seed)
        difference = None if without is None or with_lrn is None else with_lrn - without
        lines.append({"seed": seed, "without_pct": without, "with_pct": with_lrn, "difference_points": difference})
    found = paired_difference(errors[WITH], errors[WITHOUT])
    if found:
        ends = {"difference_points": found.value, "low_points": found.low, "high_points": found.high}
        lines.append({"seed": "mean", **ends, "paper_points": CLAIM.top1_points})
    return [[cell(line.get(name)) for name in HEADER] for line in lines]


def curve_of(side: str, trial: Trial, seeds: int) -> Curve:
    evaluated = [(point.step, errors_pct(point)[0]) for point in evaluation_points(trial)]
    known = [(epochs_after(trial, step), error) for step, error in evaluated if error is not None]
    return Curve(
        f"{side} ({counted(seeds, 'seed')})",
        LOOKS[side],
        [epochs for epochs, _ in known],
        [error for _, error in known],
    )


def drawn(study: Study, base: RunConfig, errors: Mapping[str, Mapping[int, float]]) -> Figure:
    """The validation error of every run by epoch."""
    rows = [
        (side, study.row_of(base.with_(model=net, seed=seed))) for side, net in NETS.items() for seed in errors[side]
    ]
    curves = [curve_of(side, study.trial_of(row), len(errors[side])) for side, row in rows if row]
    return error_curves(
        curves,
        title=f"A four-layer CNN on {study.name} with and without LRN, batch {IMAGES_PER_STEP}",
        x_label="Epochs",
        y_label="Validation error, %",
    )


def show(study: Study, base: RunConfig) -> None:
    """Print what the study's table holds, and write its figure and summary beside it; nothing is written of nothing."""
    errors = errors_of(study, base)
    lines, found = seed_lines(errors), paired_difference(errors[WITH], errors[WITHOUT])
    if not lines:
        print(nothing_yet(study, CLAIM, "python -m harness paper lrn --data FOLDER-OF-CIFAR-10"))
        return
    print(f"Validation error after {length_of(base)} on {study.name}:\n\n{markdown(lines)}\n")
    if found:
        print(f"{verdict(found)}\n")
    keep(study, HEADER, summary_lines(errors), drawn(study, base, errors))


def main(typed: dict[str, Any], table: Path, seeds: int) -> int:
    """The missing runs made where `typed` names images, and all that there are told; an exit status."""
    nets = tuple(NETS.values())
    if "data" not in typed:
        study = opened(table, nets, None)
        show(study, config_of_newest(study.newest(), typed))
        return 0
    images = images_of(RunConfig(**typed), validated=True)
    base = config_of({**typed, **of_the_batch(typed, len(images.train)), "recipe": "paper lrn"})
    study, status = complete(opened(table, nets, images), lambda _: wanted(base, seeds), len(images.train))
    show(study, base)
    return status
