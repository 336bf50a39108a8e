"""The runs that a study of the paper consists of: those that its table holds already, and the others, run now.

A row is a run of the study if it computed the same: the task fields, the batch, the length, the seed and the images. How it
was computed (threads, ranks, compiled or not) and under what label does not matter, so that a stopped study goes on, also
with rows that were made by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import AskedWrongly, RunConfig, names
from harness.paper.claims import Claim
from harness.paper.differences import Estimate
from harness.paper.drawing import save_figure, save_table, wrote
from harness.recipes import LENGTHS
from harness.results import check_table, read_record, rows_before, run_folder
from harness.rows import COUNTS, cell, ranks_of
from harness.summary import counted, number, rounded
from harness.trial import Trial, from_json
from pipelines.sources.imageset import ImageSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, str]
# Of the images; `statistics_id` says what was subtracted from them.
SAME_IMAGES = ("dataset_id", "source_form", "statistics_id")
SAME_RUN = (*names("task"), *LENGTHS, "seed", "target_train_error_pct", "views")
# What older rows lack had its default, as in RunConfig.of.
DEFAULTS = {item.name: cell(item.default) for item in fields(RunConfig)}
INTERRUPTED = 128


@dataclass(frozen=True)
class Study:
    """A table's rows of these models, and the images that its runs are looked for of; none are known where nothing is to be run
    and none was found."""

    table: Path
    rows: tuple[Row, ...]
    images: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    def row_of(self, config: RunConfig) -> Row | None:
        """The newest row that is this run and counts, or that diverged, which it would again."""
        return next((row for row in reversed(self.rows) if is_run(row, config) and is_of(row, self.images)), None)

    def trial_of(self, row: Row) -> Trial:
        """What was seen in a run of this study; TableError where its record is gone."""
        return trial_in(run_folder(self.table, row["run_id"]))

    def by_seed(self, config: RunConfig, column: str) -> dict[int, float]:
        """A column's numbers in the rows of this run with each seed; of one that diverged there is none."""
        rows = {seed: self.row_of(config.with_(seed=seed)) for seed in self.seeds}
        cells = {seed: number(row[column]) for seed, row in rows.items() if row and row["status"] in COUNTS}
        return {seed: value for seed, value in cells.items() if value is not None}

    @property
    def seeds(self) -> list[int]:
        """Every seed that the table has."""
        return sorted({int(row["seed"]) for row in self.rows if row["seed"].isdecimal()})

    @property
    def name(self) -> str:
        """The images, as their rows call them."""
        return next((row["data"] for row in reversed(self.rows) if is_of(row, self.images)), "")

    def newest(self) -> RunConfig | None:
        """What was asked of the newest run that counts."""
        row = next((row for row in reversed(self.rows) if row["status"] in COUNTS and is_of(row, self.images)), None)
        return RunConfig.of(read_record(run_folder(self.table, row["run_id"]))["asked"]) if row else None

    def reread(self) -> Study:
        """With what its table holds by now."""
        return replace(self, rows=rows_of(self.table, self.models))


@functools.lru_cache(maxsize=256)
def trial_in(folder: Path) -> Trial:
    """Of a record, which is written once."""
    trial: Trial = from_json(Trial, read_record(folder)["trial"])
    return trial


def is_run(row: Row, config: RunConfig) -> bool:
    cells = {name: cell(value) for name, value in config.columns().items()}
    if row["status"] not in (*COUNTS, "diverged") or number(row["images_per_gpu"]) is None:
        return False
    if int(row["images_per_gpu"]) * ranks_of(row) != config.images_per_step:
        return False
    return all(row[name] == cells[name] or (not row[name] and cells[name] == DEFAULTS[name] != "") for name in SAME_RUN)


def is_of(row: Row, images: dict[str, str]) -> bool:
    return bool(images) and all(row[name] == images[name] for name in SAME_IMAGES)


# --- opened -------------------------------------------------------------------------------------------------------


def opened(table: Path, models: Iterable[str], images: ImageSet | None) -> Study:
    """The study of these images, or of those of its newest row where None are given."""
    from harness.run import settle_unfinished

    if images is not None:
        check_table(table)
    settle_unfinished(table)
    models = tuple(models)
    rows = rows_of(table, models)
    return Study(table, rows, cells_of(images) if images else images_of_newest(rows), models)


def rows_of(table: Path, models: Sequence[str]) -> tuple[Row, ...]:
    return tuple(row for row in rows_before(table) if row["model"] in models)


def images_of_newest(rows: Sequence[Row]) -> dict[str, str]:
    row = next((row for row in reversed(rows) if row["status"] in COUNTS), None)
    return {name: row[name] for name in SAME_IMAGES} if row else {}


def cells_of(images: ImageSet) -> dict[str, str]:
    statistics_id = images.statistics.statistics_id if images.statistics else None
    return dict(zip(SAME_IMAGES, map(cell, (images.dataset_id, images.source_form, statistics_id)), strict=True))


def images_of(config: RunConfig, *, validated: bool) -> ImageSet:
    """The images that were asked; AskedWrongly where the study compares errors of validation and there are none."""
    from harness.images import open_images
    from harness.progress import Display

    with Display(quiet=False) as display:
        images = open_images(config, lambda done, of: display.show({"phase": "data", "share": done / of}))
    if validated and images.val is None:
        raise AskedWrongly(
            f"--data {config.data} has no validation images and this study compares errors on them: add a val/ folder beside train/"
        )
    return images


# --- the missing ones ---------------------------------------------------------------------------------------------


def complete(study: Study, wanted: Callable[[Study], Sequence[RunConfig]], train_images: int) -> tuple[Study, int]:
    """Runs what is wanted and missing, until nothing is; the study with their rows, and an exit status.

    What is wanted may depend on what was found. A run that fails is not tried again, and ends it with 1 once the others
    are through; an interruption ends it at once.
    """
    tried: set[RunConfig] = set()
    while missing := [config for config in missing_of(study, wanted) if config not in tried]:
        print(plan(study, missing, train_images), flush=True)
        status = run_all(missing, study.table)
        tried.update(missing)
        study = study.reread()
        if status >= INTERRUPTED:
            return study, status
    return study, int(bool(missing_of(study, wanted)))


def missing_of(study: Study, wanted: Callable[[Study], Sequence[RunConfig]]) -> list[RunConfig]:
    return [config for config in dict.fromkeys(wanted(study)) if study.row_of(config) is None]


def run_all(configs: Sequence[RunConfig], table: Path) -> int:
    """Ordinary launches of `run`; its exit status."""
    from harness.run import run

    return run(list(configs), table, several=True, quiet=False)


def plan(study: Study, missing: Sequence[RunConfig], train_images: int) -> str:
    """What is about to run, and the hours that it should take by the speeds in the study's own table."""
    hours = expected_hours(study.rows, missing, train_images)
    runs = f"{len(missing)} run{'s are' if len(missing) > 1 else ' is'} missing from {study.table}"
    if hours is None:
        return f"{runs}; how long that takes is unknown: it has no speed of every network among them yet"
    most = " at most" if any(config.target_train_error_pct for config in missing) else ""
    time = f"{rounded(hours)} hours" if hours >= 1 else f"{rounded(60 * hours)} minutes"
    return f"{runs}:{most} {time} of training at the images/s of its rows"


def expected_hours(rows: Sequence[Row], configs: Sequence[RunConfig], train_images: int) -> float | None:
    """Training alone, each network at the images/s of its newest row; None where one has none."""
    speeds = {row["model"]: speed for row in rows if row["status"] in COUNTS and (speed := number(row["images_per_s"]))}
    if any(config.model not in speeds for config in configs):
        return None
    return sum(images_asked(config, train_images) / speeds[config.model] for config in configs) / 3600


def images_asked(config: RunConfig, train_images: int) -> float:
    """How many images a run of a stated length trains on, warm-up aside."""
    if config.steps is not None:
        return config.steps * config.images_per_step
    assert config.epochs is not None
    return config.epochs * train_images


# --- told ---------------------------------------------------------------------------------------------------------


def how_sure(estimate: Estimate, told: Callable[[float], str] = rounded) -> str:
    """`95 % interval 3.1 to 4.2, 3 seeds`."""
    seeds = counted(estimate.seeds, "seed")
    if estimate.low is None or estimate.high is None:
        return seeds
    return f"95 % interval {told(estimate.low)} to {told(estimate.high)}, {seeds}"


def nothing_yet(study: Study, claim: Claim, command: str) -> str:
    """What stands where no run does: the paper's words, and what would fill the table."""
    return f"{study.table} has no run of this yet.\nThe paper (section {claim.section}): {claim.says}.\nTo run it: {command}"


def points(value: float) -> str:
    """Percentage points, with a sign: an error that falls is below zero."""
    return f"{value:+.2f}"


def length_of(config: RunConfig) -> str:
    """How long a run was asked to be."""
    if config.steps is not None:
        return counted(config.steps, "step")
    if config.timed_seconds is not None:
        return f"{config.timed_seconds:g} timed seconds"
    return f"{config.epochs:g} epochs"


def keep(study: Study, header: Iterable[str], lines: Iterable[Iterable[str]], figure: Figure | None = None) -> None:
    """Write the study's summary and its figure beside its table, and say so."""
    folder, name = study.table.parent, study.table.stem
    written = [save_table(folder, f"{name}-summary", header, lines)]
    if figure:
        written += save_figure(figure, folder, name)
    print(wrote(written))
