"""What the commands that run a study of the paper take: flags of `run`, and where the study's table lies."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.config import AskedWrongly, RunConfig, names, whole

# "auto" chooses the block network by network: not all have one.
SETTINGS = tuple(name for name in names("setting") if name not in ("pipeline", "block"))
HOW = (*SETTINGS, "checkpoint_every", "heartbeat")
IMAGES_PER_STEP = 128  # the paper's batch (section 5), of the whole job
SEEDS = 3
LRN_EPOCHS = 12  # of `paper lrn`


def add_study(command: argparse.ArgumentParser, table: Path, *, seeds: int = SEEDS) -> None:
    """The flags that every study has."""
    command.add_argument(
        "--data",
        metavar="FOLDER",
        default=argparse.SUPPRESS,
        help="images, as `run --data` takes them; without, nothing is run",
    )
    add_fields(command, "exclude", "statistics")
    command.add_argument("--seeds", type=whole(1, 1000), default=seeds, help=f"runs of each network (default {seeds})")
    command.add_argument("--table", type=Path, default=table, help=f"the study's table (default {table})")
    for kind in ("gpus", "cpus"):
        command.add_argument(
            f"--{kind}",
            type=whole(1),
            metavar="NUMBER",
            default=argparse.SUPPRESS,
            help=f"ranks on {kind[:-1].upper()}s",
        )
    add_fields(command, *HOW)


def add_fields(command: argparse._ActionsContainer, *wanted: str) -> None:
    """Flags of `run`, by the names of their fields; one that is not typed is no attribute."""
    for item in fields(RunConfig):
        about = item.metadata
        if item.name in wanted:
            command.add_argument(
                "--" + item.name.replace("_", "-"),
                dest=item.name,
                type=about["parse"],
                choices=about["choices"],
                metavar=None if about["choices"] else about["parse"].__name__.split()[-1].upper(),
                default=argparse.SUPPRESS,
                help=about["help"],
            )


def typed_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of RunConfig that were typed; AskedWrongly where they exclude each other."""
    typed = {item.name: getattr(arguments, item.name) for item in fields(RunConfig) if hasattr(arguments, item.name)}
    if "gpus" in typed and "cpus" in typed:
        raise AskedWrongly("--gpus and --cpus were both asked and a run has ranks of one kind: give one of them")
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
