"""Runs of a study of the paper as literals, put into a table as if they had been made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from literals import TEN_CLASSES, rank_of, record_of, trial_of, window_of

from harness.config import RunConfig
from harness.results import append, run_folder, write_record
from harness.rows import row_of
from harness.trial import Evaluation, Trial

BATCH = 128
EPOCH_STEPS = 8
TRAIN_IMAGES = BATCH * EPOCH_STEPS
VAL_IMAGES = 1000


def trial_with(errors_pct: list[float], val_error_pct: float = 50.0, train_images: int = TRAIN_IMAGES) -> Trial:
    """One rank that got so many per cent of each step's 128 images wrong."""
    correct = tuple(round(BATCH * (1 - error / 100)) for error in errors_pct)
    steps = len(correct)
    right = round(VAL_IMAGES * (1 - val_error_pct / 100))
    rank = rank_of(
        images_per_step=BATCH,
        warmup_steps=0,
        windows=(window_of(steps),),
        correct=correct,
        losses=(TEN_CLASSES,) * steps,
        indices_count=steps * BATCH,
        index_repeats_max=-(-steps * BATCH // train_images),
        shard_images=train_images,
        evaluations=(Evaluation(steps, VAL_IMAGES, right, VAL_IMAGES),),
    )
    return trial_of(rank, train_images=train_images)


def plant(table: Path, config: RunConfig, trial: Trial, *, dataset: dict[str, Any] | None = None) -> dict[str, str]:
    """The row of a run, with its record, as the newest of the table."""
    number = len(list(table.parent.glob("runs/*")))
    record = record_of(
        trial,
        asked=config.with_(gpus=0, cpus=config.cpus or 1, data="/somewhere/drawings").columns(),
        dataset={"train_images": trial.train_images, "val_images": VAL_IMAGES, **(dataset or {})},
        run_id=f"run-{number}",
        group_id=f"group-{number}",
    )
    folder = run_folder(table, record["run_id"])
    folder.mkdir(parents=True)
    write_record(folder, record)
    row = row_of(record)
    append(table, row)
    return row
