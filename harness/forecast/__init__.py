"""What it should cost, before it is seen, and the command `predict`: the page, real rows held against it, a CPU's rates.

cards.py     devices, links and every assumption, each with its kind and source
counts.py    the network's layers, and what crosses between ranks by scheme
roofline.py  the model: seconds of a step, images/s, memory, what bounds them; intervals in, intervals out
page.py      docs/predictions.md; confront.py: real rows; rates.py: what a CPU gives, measured
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.config import AskedWrongly


def add_predict(commands: Any) -> None:
    command = commands.add_parser(
        "predict", help="say what cards and CPU ranks should give, from a model with stated assumptions"
    )
    command.add_argument(
        "tables", metavar="TABLE.csv", type=Path, nargs="*", help="rows shown beside the CPU's predictions"
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--confront", action="store_true", help="hold every row of the tables against its prediction")
    what.add_argument(
        "--measure", action="store_true", help="measure this CPU's rates, for harness/forecast/cards.py: 20 s"
    )
    command.set_defaults(call=run_predict)


def run_predict(arguments: argparse.Namespace) -> int:
    if arguments.measure:
        if arguments.tables:
            raise AskedWrongly("--measure measures this machine and a table was given: leave it out")
        from harness.forecast import rates

        print(rates.measure())
        return 0
    if arguments.confront and not arguments.tables:
        raise AskedWrongly("--confront was asked and no table was given: name one, as results/<machine>.csv")
    from harness import results
    from harness.forecast import confront, page

    rows = [row for path in arguments.tables for row in results.read_table(path)]
    names = " ".join(map(str, arguments.tables))
    print(confront.confrontation(rows) if arguments.confront else page.page(rows, names))
    return 0
