"""The commands `paper figure1` and `paper lrn`, thin: what the paper found on CIFAR-10, run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.config import whole
from harness.paper.asked import add_study, typed_fields

FIGURE1_TABLE, LRN_TABLE = Path("results/paper/figure1.csv"), Path("results/paper/lrn.csv")
LRN_EPOCHS = 12


def add(what: Any) -> None:
    figure1 = add_study(
        what,
        "figure1",
        FIGURE1_TABLE,
        "ReLU against tanh in epochs to 25 %% training error on CIFAR-10 (section 3.1)",
        "Searches a learning rate for each activation, then trains both with every seed until an epoch's training error is 25 %.",
    )
    figure1.set_defaults(call=run_figure1)
    lrn = add_study(
        what,
        "lrn",
        LRN_TABLE,
        "local response normalisation on CIFAR-10: 13 %% to 11 %% test error in the paper (section 3.3)",
        "Trains cifar-13pct and cifar-13pct-lrn, which differ in nothing else, with the same seeds.",
    )
    lrn.add_argument(
        "--epochs",
        type=whole(3, 10_000),
        metavar="NUMBER",
        default=argparse.SUPPRESS,
        help=f"length; the learning rate is divided by ten before each of the last two (default {LRN_EPOCHS})",
    )
    lrn.set_defaults(call=run_lrn)


def run_figure1(arguments: argparse.Namespace) -> int:
    from harness.paper import activations_told

    return activations_told.main(typed_fields(arguments), arguments.table, arguments.seeds)


def run_lrn(arguments: argparse.Namespace) -> int:
    from harness.paper import normalisation

    return normalisation.main(typed_fields(arguments), arguments.table, arguments.seeds)
