"""What the runs of Figure 1 say: two tables, a sentence, a figure and a summary of numbers; and `paper figure1` from its start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.metrics.learning import epochs_done
from harness.paper import differences
from harness.paper.activations import (
    CLAIM,
    LADDER,
    NETS,
    RELU,
    SEARCH_EPOCHS,
    TANH,
    TARGET_PCT,
    Asked,
    chosen_rate,
    rate_of,
    searched,
    wanted,
)
from harness.paper.asked import IMAGES_PER_STEP, of_the_batch
from harness.paper.charts import DASHED, SOLID, Curve, error_curves
from harness.paper.differences import Ratio
from harness.paper.groups import Row, Study, complete, how_sure, images_of, keep, nothing_yet, opened
from harness.rows import cell, words
from harness.summary import counted, markdown, rounded
from harness.trial import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {RELU: SOLID, TANH: DASHED}
POINTS_AN_EPOCH = 8  # of a curve as it is drawn


@dataclass(frozen=True)
class Final:
    """A seed's run at its activation's rate."""

    activation: str
    seed: int
    row: Row
    trial: Trial

    @property
    def epochs_to_target(self) -> float | None:
        return differences.epochs_to_training_error(self.trial, TARGET_PCT)

    @property
    def epochs_run(self) -> float:
        epochs = epochs_done(self.trial)
        assert epochs is not None  # it counts, or diverged: it has ranks
        return epochs


def finals_of(study: Study, asked: Asked) -> list[Final]:
    """By activation and seed, of every seed that the table has."""
    finals = []
    for activation in NETS:
        rate = rate_of(study, asked, activation)
        if rate is None:
            continue
        for seed in study.seeds:
            row = study.row_of(asked.final(activation, rate, seed))
            finals += [Final(activation, seed, row, study.trial_of(row))] if row else []
    return finals


def ratios_of(finals: Sequence[Final]) -> dict[int, Ratio]:
    """By seed, epochs of tanh to the target over ReLU's; no ratio of a seed whose ReLU run did not reach it, or that diverged."""
    by_seed = {(final.activation, final.seed): final for final in finals if final.row["status"] != "diverged"}
    ratios = {}
    for seed in sorted({final.seed for final in finals}):
        relu, tanh = (by_seed.get((activation, seed)) for activation in (RELU, TANH))
        ratio = relu and tanh and differences.ratio_of(tanh.epochs_to_target, relu.epochs_to_target, tanh.epochs_run)
        if ratio:
            ratios[seed] = ratio
    return ratios


def search_lines(study: Study, asked: Asked) -> list[dict[str, str]]:
    lines = []
    for activation in NETS:
        errors = searched(study, asked, activation)
        for rate, error in sorted(errors.items()):
            lines.append(
                {
                    "activation": activation,
                    "learning rate": cell(rate),
                    "training error, %": rounded(error) if error < math.inf else "diverged",
                    "": "chosen" if rate == chosen_rate(errors) else "",
                }
            )
    return lines


def seed_lines(finals: Sequence[Final], ratios: Mapping[int, Ratio]) -> list[dict[str, str]]:
    lines = []
    for seed in sorted({final.seed for final in finals}):
        epochs = {final.activation: epochs_told(final) for final in finals if final.seed == seed}
        ratio = ratios.get(seed)
        lines.append(
            {
                "seed": str(seed),
                **{f"{activation}, epochs": epochs.get(activation, "") for activation in NETS},
                "tanh / ReLU": told_ratio(ratio) if ratio else "",
            }
        )
    return lines


def epochs_told(final: Final) -> str:
    if final.row["status"] == "diverged":
        return "diverged"
    reached = final.epochs_to_target
    return f"not in {rounded(final.epochs_run)}" if reached is None else rounded(reached)


def told_ratio(ratio: Ratio) -> str:
    return f"{'at least ' if ratio.at_least else ''}{rounded(ratio.value)}"


def verdict(ratios: Mapping[int, Ratio]) -> str:
    """The ratio beside the paper's, in a sentence; "" where there is none yet."""
    found = differences.geometric_mean(ratios.values())
    if found is None:
        return ""
    estimate, at_least = found
    least = "at least " if at_least else ""
    return (
        f"To {TARGET_PCT:g} % training error tanh needs {least}{rounded(estimate.value)} times ReLU's epochs "
        f"({how_sure(estimate)}); the paper: {CLAIM.times:g} times (section {CLAIM.section})."
    )


HEADER = words(
    "part activation model learning_rate seed status epochs_run training_error_pct epochs_to_target "
    "ratio ratio_low ratio_high at_least paper run_id"
)


def summary_lines(study: Study, asked: Asked, finals: Sequence[Final], ratios: Mapping[int, Ratio]) -> list[list[str]]:
    """figure1-summary.csv: each run, each seed's ratio, and that of all."""
    lines: list[dict[str, Any]] = []
    for activation in NETS:
        found = [study.row_of(asked.search(activation, rate)) for rate in LADDER]
        lines += [run_line("search", activation, row, study.trial_of(row)) for row in found if row]
    lines += [run_line("run", final.activation, final.row, final.trial) for final in finals]
    for seed, ratio in ratios.items():
        lines.append({"part": "ratio", "seed": seed, "ratio": ratio.value, "at_least": ratio.at_least})
    together = differences.geometric_mean(ratios.values())
    if together:
        estimate, at_least = together
        ends = {"ratio": estimate.value, "ratio_low": estimate.low, "ratio_high": estimate.high}
        lines.append({"part": "ratio of all seeds", **ends, "at_least": at_least, "paper": CLAIM.times})
    return [[cell(line.get(name)) for name in HEADER] for line in lines]


def run_line(part: str, activation: str, row: Row, trial: Trial) -> dict[str, Any]:
    told = {name: row[name] for name in ("model", "learning_rate", "seed", "status", "run_id")}
    return {
        "part": part,
        "activation": activation,
        **told,
        "epochs_run": epochs_done(trial),
        "training_error_pct": differences.last_training_error_pct(trial),
        "epochs_to_target": differences.epochs_to_training_error(trial, TARGET_PCT),
    }


def curves_of(finals: Sequence[Final]) -> list[Curve]:
    return [curve_of(final, sum(other.activation == final.activation for other in finals)) for final in finals]


def curve_of(final: Final, seeds: int) -> Curve:
    trial, reached = final.trial, final.epochs_to_target
    errors, before = differences.training_errors_pct(trial), differences.epoch_steps(trial)
    every = max(1, before // POINTS_AN_EPOCH)
    places = sorted({*range(0, len(errors), every), len(errors) - 1})
    return Curve(
        f"{final.activation}, learning rate {final.row['learning_rate']} ({counted(seeds, 'seed')})",
        LOOKS[final.activation],
        [differences.epochs_after(trial, before + place) for place in places],
        [errors[place] for place in places],
        None if reached is None else (reached, TARGET_PCT),
    )


def drawn(finals: Sequence[Final]) -> Figure:
    """The paper's Figure 1 of these runs."""
    row = finals[0].row
    return error_curves(
        curves_of(finals),
        title=f"A four-layer CNN on {row['data']} without regularisation, batch {IMAGES_PER_STEP}",
        x_label=f"Epochs of {int(row['train_images']):,} images",
        y_label="Training error over the newest epoch, %",
        level_pct=TARGET_PCT,
    )


def show(study: Study, asked: Asked) -> None:
    """Print what the study's table holds, and write its figure and summary beside it; nothing is written of nothing."""
    searches, finals = search_lines(study, asked), finals_of(study, asked)
    ratios = ratios_of(finals)
    if not searches:
        print(nothing_yet(study, CLAIM, "python -m harness paper figure1 --data FOLDER-OF-CIFAR-10"))
        return
    print(f"The search, {SEARCH_EPOCHS} epochs of seed 1 on {study.name}:\n\n{markdown(searches)}\n")
    if finals:
        print(f"Epochs to {TARGET_PCT:g} % training error:\n\n{markdown(seed_lines(finals, ratios))}\n")
    if ratios:
        print(f"{verdict(ratios)}\n")
    keep(study, HEADER, summary_lines(study, asked, finals, ratios), drawn(finals) if finals else None)


def main(typed: dict[str, Any], table: Path, seeds: int) -> int:
    """The missing runs made where `typed` names images, and all that there are told; an exit status."""
    nets = tuple(NETS.values())
    if "data" not in typed:
        show(opened(table, nets, None), Asked({**typed, **of_the_batch(typed, None)}))
        return 0
    images = images_of(RunConfig(**typed), validated=False)
    asked = Asked({**typed, **of_the_batch(typed, len(images.train)), "recipe": "paper figure1"})
    study, status = complete(opened(table, nets, images), lambda study: wanted(study, asked, seeds), len(images.train))
    show(study, asked)
    return status
