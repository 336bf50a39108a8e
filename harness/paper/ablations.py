"""The command `paper ablations`, and what it compares: the paper's network against itself with one thing changed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config import AskedWrongly, RunConfig
from harness.paper.asked import add_fields, add_study, typed_fields
from harness.paper.claims import CLAIMS, Claim
from harness.schedule import drops

TABLE = Path("results/paper/ablations.csv")
TASK = ("learning_rate", "patience", "warmup_epochs", "init", "precision")


@dataclass(frozen=True)
class Ablation:
    """Two runs that differ in the thing named. Both are the paper's network but for these fields of RunConfig."""

    name: str
    claim: Claim
    with_it: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, Any] = field(default_factory=dict)

    def sides(self, base: RunConfig) -> tuple[RunConfig, RunConfig]:
        return base.with_(**self.with_it), base.with_(**self.without)


def against(name: str, claim: str, model: str) -> Ablation:
    """The paper's network against another."""
    return Ablation(name, CLAIMS[claim], without={"model": model})


def removed(layer: str) -> Ablation:
    """The network without a layer against the paper's: what removing it does."""
    return Ablation(f"no-{layer}", CLAIMS["middle_layers"], with_it={"model": f"alexnet-no-{layer}"})


ABLATIONS = (
    against("relu", "relu", "alexnet-tanh"),
    against("two-gpus", "two_gpus", "alexnet-half"),
    against("lrn", "lrn", "alexnet-nolrn"),
    against("overlapping-pooling", "overlapping_pooling", "alexnet-pool2x2"),
    Ablation("colour-noise", CLAIMS["colour_noise"], without={"noise_epochs": 0.0}),
    against("dropout", "dropout", "alexnet-nodropout"),
    Ablation("weight-decay", CLAIMS["weight_decay"], without={"weight_decay": 0.0}),
    removed("conv3"),
    removed("conv4"),
    removed("conv5"),
)


def add(what: Any) -> None:
    command = add_study(
        what,
        "ablations",
        TABLE,
        "the paper's network with one thing changed at a time, paired by seed (sections 3.1 to 5 and 7)",
        "Trains AlexNet as the paper has it, and with one thing changed at a time, on any set of images, with the same seeds.",
    )
    command.add_argument(
        "--only",
        metavar="NAME",
        nargs="+",
        choices=tuple(each.name for each in ABLATIONS),
        help=f"of {', '.join(each.name for each in ABLATIONS)} (default: all)",
    )
    length = command.add_mutually_exclusive_group()
    add_fields(length, "epochs", "steps")
    add_fields(command, *TASK)
    command.add_argument(
        "--drops",
        type=drops,
        default=argparse.SUPPRESS,
        help="epochs after which the learning rate is divided by ten, as 8,11 (default: when the validation error stops improving)",
    )
    command.set_defaults(call=run_ablations)


def run_ablations(arguments: argparse.Namespace) -> int:
    from harness.paper import ablations_told

    typed = typed_fields(arguments)
    if "drops" in typed:
        if "patience" in typed:
            raise AskedWrongly("--drops and --patience were both given and the first names the epochs: leave one out")
        typed |= {"schedule": "epochs", "patience": None}
    elif "patience" in typed:
        typed |= {"schedule": "plateau", "drops": None}
    wanted = tuple(each for each in ABLATIONS if each.name in (arguments.only or (each.name,)))
    return ablations_told.main(wanted, typed, arguments.table, arguments.seeds)
