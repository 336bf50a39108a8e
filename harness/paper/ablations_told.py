"""The ablations' runs, and what they say: differences of errors, paired by seed, beside what the paper found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config import RunConfig, names
from harness.paper.ablations import ABLATIONS, Ablation
from harness.paper.asked import of_the_batch
from harness.paper.claims import Claim
from harness.paper.differences import Estimate, paired_difference
from harness.paper.groups import Study, complete, how_sure, images_of, keep, length_of, opened, points
from harness.recipes import LENGTHS, PATIENCE, RECIPES, settings
from harness.rows import cell, words
from harness.summary import markdown

# What the recipe says of the task, for whatever length is asked; the batch is shared by the ranks that are asked.
PAPER: dict[str, Any] = {
    **{name: value for name, value in RECIPES["paper"].items() if name in (*names("task"), *LENGTHS)},
    "patience": PATIENCE,
}
MEASURES = {"top-1": "val_top1_error_pct", "top-5": "val_top5_error_pct", "training": "train_top1_error_pct"}
NOT_RUN = "not run"


def base_of(how: dict[str, Any]) -> RunConfig:
    """The paper's network and its training, as far as nothing else was typed; a typed length replaces the paper's."""
    return RunConfig(**settings("paper ablations", how, PAPER))


def base_of_newest(newest: RunConfig, typed: dict[str, Any]) -> RunConfig:
    """The paper's network as it was trained beside the newest run, whichever of the study's that is, and on how many ranks."""
    plain = RunConfig()
    changed = {name: getattr(plain, name) for each in ABLATIONS for name in (*each.with_it, *each.without)}
    lengths = dict.fromkeys(LENGTHS) if any(name in typed for name in LENGTHS) else {}
    ranks = {"gpus": None, "cpus": None}
    return newest.with_(**{**changed, **lengths, **ranks, **typed, **of_the_batch(typed, None)})


def models_of(ablations: Sequence[Ablation]) -> tuple[str, ...]:
    sides = (side for each in ablations for side in each.sides(RunConfig()))
    return tuple(dict.fromkeys(side.model for side in sides))


def wanted(ablations: Sequence[Ablation], base: RunConfig, seeds: int) -> list[RunConfig]:
    """Seed by seed, so that all is there of the first before the next begins; the network that all share once."""
    sides = [side for each in ablations for side in each.sides(base)]
    return [side.with_(seed=seed) for seed in range(1, seeds + 1) for side in dict.fromkeys(sides)]


# --- what they say ------------------------------------------------------------------------------------------------


def difference(study: Study, ablation: Ablation, base: RunConfig, column: str) -> Estimate | None:
    """The error with the thing less that without it, points, over the seeds that have both."""
    with_it, without = (study.by_seed(side, column) for side in ablation.sides(base))
    return paired_difference(with_it, without)


def line_of(study: Study, ablation: Ablation, base: RunConfig) -> dict[str, str]:
    found = {name: difference(study, ablation, base, column) for name, column in MEASURES.items()}
    return {
        "with and without": ablation.name,
        "section": ablation.claim.section,
        **{f"{name} error, points": told(estimate) for name, estimate in found.items()},
        "the paper: top-1 / top-5": printed(ablation.claim),
    }


def told(estimate: Estimate | None) -> str:
    return NOT_RUN if estimate is None else f"{points(estimate.value)} ({how_sure(estimate, points)})"


def printed(claim: Claim) -> str:
    """The paper's numbers; "" where it gives none."""
    numbers = ["" if value is None else f"{value:+g}" for value in (claim.top1_points, claim.top5_points)]
    return " / ".join(numbers).removesuffix(" / ")


def claims_told(ablations: Sequence[Ablation]) -> str:
    claims = dict.fromkeys(each.claim for each in ablations)
    return "\n".join(f"- section {claim.section}: {claim.says}" for claim in claims)


def diverged(study: Study, ablations: Sequence[Ablation], base: RunConfig) -> list[str]:
    """A sentence for every run that is in no difference since its loss was not finite."""
    runs = [side.with_(seed=seed) for each in ablations for side in each.sides(base) for seed in study.seeds]
    rows = [row for run in dict.fromkeys(runs) if (row := study.row_of(run)) and row["status"] == "diverged"]
    return [f"{row['model']} of seed {row['seed']} diverged: {row['status_reason']}" for row in rows]


HEADER = words("ablation section error seed with_pct without_pct difference_points low_points high_points paper_points")


def summary_lines(study: Study, ablation: Ablation, base: RunConfig) -> list[list[str]]:
    """Of ablations-summary.csv: for each kind of error a line a seed, and the mean difference."""
    lines: list[dict[str, Any]] = []
    paper = {"top-1": ablation.claim.top1_points, "top-5": ablation.claim.top5_points}
    for name, column in MEASURES.items():
        which = {"ablation": ablation.name, "section": ablation.claim.section, "error": name}
        with_it, without = (study.by_seed(side, column) for side in ablation.sides(base))
        for seed in sorted(with_it.keys() & without.keys()):
            pair = {"with_pct": with_it[seed], "without_pct": without[seed]}
            lines.append({**which, "seed": seed, **pair, "difference_points": with_it[seed] - without[seed]})
        found = paired_difference(with_it, without)
        ends = (found.value, found.low, found.high) if found else (None, None, None)
        mean = dict(zip(("difference_points", "low_points", "high_points"), ends, strict=True))
        lines.append({**which, "seed": "mean", **mean, "paper_points": paper.get(name)})
    return [[cell(line.get(name)) for name in HEADER] for line in lines]


def show(study: Study, ablations: Sequence[Ablation], base: RunConfig) -> None:
    """Print what the study's table holds, and write its summary beside it; nothing is written of nothing."""
    lines = [line_of(study, each, base) for each in ablations]
    length = f" after {length_of(base)} on {study.name}" if study.images else ""
    print(f"What each thing changes the error by{length}, error with it minus error without:\n\n{markdown(lines)}\n")
    for sentence in diverged(study, ablations, base):
        print(sentence)
    print(f"The paper says:\n{claims_told(ablations)}\n")
    if not any(study.by_seed(side, MEASURES["training"]) for each in ablations for side in each.sides(base)):
        print(f"{study.table} has none of these runs. To make them: python -m harness paper ablations --data FOLDER")
        return
    table = [line for each in ablations for line in summary_lines(study, each, base)]
    keep(study, HEADER, table)


def main(ablations: Sequence[Ablation], typed: dict[str, Any], table: Path, seeds: int) -> int:
    """The missing runs made where `typed` names images, and all that there are told; an exit status."""
    models = models_of(ABLATIONS)
    if "data" not in typed:
        study = opened(table, models, None)
        newest = study.newest()
        base = base_of_newest(newest, typed) if newest else base_of({**typed, **of_the_batch(typed, None)})
        show(study, ablations, base)
        return 0
    images = images_of(RunConfig(**typed), validated=True)
    base = base_of({**typed, **of_the_batch(typed, len(images.train))})
    print(f"{len(ablations)} comparisons of {len(wanted(ablations, base, 1))} networks, with seeds 1 to {seeds}")
    study, status = complete(opened(table, models, images), lambda _: wanted(ablations, base, seeds), len(images.train))
    show(study, ablations, base)
    return status
