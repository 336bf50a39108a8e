"""The paper's tables and figures beside what was run here, and the command `paper`.

claims.py            every number that the paper prints
found.py             what was measured of its networks under results/; tables.py: table1, table2
asked.py             a study's command; groups.py: its runs, those that its table has and those that are missing
differences.py       the numbers of comparisons, by seed; drawing.py: how figures are written; charts.py: error curves
cifar.py             the commands figure1 and lrn
activations.py       figure1's runs, ReLU against tanh; activations_told.py: what they say
normalisation.py     lrn: its runs and what they say
ablations.py         the command ablations, and what it changes; ablations_told.py: its runs, and what they say
kernels.py           figure3: conv1's kernels, and how much of them is colour
neighbours.py        figure4: likeliest classes and nearest training images; hidden.py searches, panel.py draws
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.config import PLACES, AskedWrongly, whole
from harness.paper import ablations, cifar
from harness.paper.asked import add_fields
from harness.paper.claims import FIGURE_4_IMAGES

RESULTS = Path("results")


def add_paper(commands: Any, parser_class: Any) -> None:
    """`paper` and its commands."""
    paper = commands.add_parser("paper", help="the paper's tables and figures beside what was run here")
    what = paper.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=parser_class)
    for name, of_what in (("table1", "ILSVRC-2010"), ("table2", "ILSVRC-2012, one network and several averaged")):
        table = what.add_parser(name, help=f"test errors on {of_what}: the paper's rows and ours")
        table.add_argument(
            "--results", metavar="FOLDER", type=Path, help=f"where evaluations and tables lie (default {RESULTS})"
        )
        table.set_defaults(call=run_table)

    cifar.add(what)
    ablations.add(what)

    figure3 = what.add_parser("figure3", help="conv1's kernels as a picture, and how much of each is colour")
    figure4 = what.add_parser("figure4", help="some test images: likeliest classes and nearest training images")
    for figure in (figure3, figure4):
        figure.add_argument(
            "checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help="its folder, or its run's for the newest"
        )
    add_fields(figure4, *PLACES, default=None)
    figure4.add_argument(
        "--images",
        metavar="NUMBER",
        type=whole(1, 100),
        default=FIGURE_4_IMAGES,
        help=f"validation images, evenly spread (default {FIGURE_4_IMAGES})",
    )
    figure4.add_argument(
        "--train-images",
        metavar="NUMBER",
        type=whole(1),
        help="search so many training images, evenly spread (default all)",
    )
    for figure in (figure3, figure4):
        figure.add_argument(
            "--out", metavar="FOLDER", type=Path, default=Path(), help="where the files go (default: here)"
        )
    figure3.set_defaults(call=run_figure3)
    figure4.set_defaults(call=run_figure4)


def run_table(arguments: argparse.Namespace) -> int:
    from harness.paper import tables

    results = arguments.results or RESULTS
    if arguments.results and not results.is_dir():
        raise AskedWrongly(f"--results {results} is no folder: give one that holds evaluations/ or tables")
    print(tables.TABLES[arguments.what](results))
    return 0


def run_figure3(arguments: argparse.Namespace) -> int:
    from harness.paper import kernels

    print(kernels.figure3(arguments.checkpoint, arguments.out) if arguments.checkpoint else kernels.NOT_RUN)
    return 0


def run_figure4(arguments: argparse.Namespace) -> int:
    from harness.paper import neighbours

    if arguments.checkpoint is None:
        print(neighbours.NOT_RUN)
        return 0
    told = neighbours.figure4(
        arguments.checkpoint,
        arguments.out,
        data=arguments.data,
        exclude=arguments.exclude,
        statistics=arguments.statistics,
        tests=arguments.images,
        train_images=arguments.train_images,
    )
    print(told)
    return 0
