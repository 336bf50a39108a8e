"""Print the tables of docs/kernels.md, or write them into it: python tests/kernel_tables.py [--write]."""

from __future__ import annotations

import sys
from pathlib import Path

import block_counts
import lrn_counts

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def by_architecture(values: dict[int, int] | dict[int, float]) -> str:
    return " / ".join(f"{value:.0%}" if isinstance(value, float) else str(value) for value in values.values())


def block() -> str:
    header = "layer, direction | programs | read | written | passes | least | unfused | distinct | sectors | registers | occupancy"
    rows = [
        [
            f"{row.layer}, {row.direction}",
            f"{row.programs:,}",
            *(f"{passes:.2f}" for passes in (row.read_passes, row.written_passes, row.passes, row.least, row.unfused)),
            *(f"{figure:.2f}" for figure in (row.distinct_passes, row.sectors)),
            by_architecture(row.registers),
            by_architecture(row.occupancy),
        ]
        for row in block_counts.rows()
    ]
    return table(header.split(" | "), rows)


def lrn() -> str:
    header = "layer, direction | memory format | passes | distinct | sectors issued | sectors distinct | registers | occupancy"
    rows = [
        [
            f"{row.layer}, {row.direction}",
            row.layout.replace("_", "-"),
            *(f"{passes:.2f}" for passes in (row.issued_passes, row.distinct_passes)),
            *(f"{figure:.2f}" for figure in (row.sectors_issued, row.sectors_distinct)),
            by_architecture(row.registers),
            by_architecture(row.occupancy),
        ]
        for row in lrn_counts.rows()
    ]
    return table(header.split(" | "), rows)


TABLES = {"block": block, "lrn": lrn}


def filled(page: str) -> str:
    """The page with every table between its markers as it is counted now."""
    for name, make in TABLES.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}{start}{make()}\n{end}{after}"
    return page


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(filled(PAGE.read_text()))
    else:
        print("\n\n".join(make() for make in TABLES.values()))
