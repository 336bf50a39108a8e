"""The commands that run a study of the paper: flags of `run`, and where the study's table lies."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.config import AskedWrongly, RunConfig, names, whole
from harness.flags import add_field, typed_of
from harness.recipes import RECIPES

# "auto" chooses the block network by network: not all have one.
SETTINGS = tuple(name for name in names("setting") if name not in ("pipeline", "block"))
HOW = (*SETTINGS, "checkpoint_every", "heartbeat")
IMAGES_PER_STEP: int = RECIPES["paper"]["images_per_step"]  # the paper's batch (section 5), of the whole job
SEEDS = 3
FIELDS = {field.name: field for field in fields(RunConfig)}


def add_study(what: Any, name: str, table: Path, subject: str, does: str) -> argparse.ArgumentParser:
    """A study's command, with the flags that every study has; `subject` tells it from others in their list, `does` what it runs."""
    command: argparse.ArgumentParser = what.add_parser(
        name,
        help=subject,
        description=f"{does} Runs that the table holds are not made again. Without --data: what was found so far.",
    )
    of_images = "images, as `run --data` takes them; without, nothing is run"
    add_field(command, FIELDS["data"], metavar="FOLDER", help=of_images)
    add_fields(command, "exclude", "statistics")
    command.add_argument("--seeds", type=whole(1, 1000), default=SEEDS, help=f"runs of each network (default {SEEDS})")
    command.add_argument("--table", type=Path, default=table, help=f"the study's table (default {table})")
    for kind in ("gpus", "cpus"):
        add_field(command, FIELDS[kind], help=f"ranks on {kind[:-1].upper()}s")
    add_fields(command, *HOW)
    return command


def add_fields(command: argparse._ActionsContainer, *wanted: str, **changes: Any) -> None:
    """Flags of `run`, by the names of their fields and in their order there, but for `changes`."""
    for name, field in FIELDS.items():
        if name in wanted:
            add_field(command, field, **changes)


def typed_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of RunConfig that were typed; AskedWrongly where they exclude each other."""
    typed = typed_of(arguments)
    for name in ("exclude", "statistics"):
        if name in typed and "data" not in typed:
            raise AskedWrongly(f"--{name} was given and nothing is run without --data: give the images' folder too")
    return typed


def of_the_batch(typed: dict[str, Any], train_images: int | None) -> dict[str, int]:
    """Each rank's share of the paper's batch, and where the images are known an evaluation an epoch, of whole steps."""
    share = {"images_per_gpu": images_per_gpu(typed)}
    if train_images is None:
        return share
    return {**share, "evaluate_every": math.ceil(train_images / IMAGES_PER_STEP) * IMAGES_PER_STEP}


def images_per_gpu(typed: dict[str, Any]) -> int:
    """Each rank's share of the paper's batch."""
    ranks = typed.get("gpus") or typed.get("cpus") or 1
    if IMAGES_PER_STEP % ranks:
        raise AskedWrongly(
            f"{ranks} ranks were asked and the paper's batch is {IMAGES_PER_STEP}: give a number that divides it"
        )
    return int(IMAGES_PER_STEP // ranks)
