"""How long `compare` takes over 10,000 rows, a whole process from the command line: promised under 2 s."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from literals import launch_of

from harness.results import csv_text
from harness.rows import COLUMNS, identities, row_of


def rows(side: str, count: int) -> list[dict[str, str]]:
    """Rows of a hundred conditions on a machine of this name."""
    plain = row_of(launch_of(200))
    changes = ({"run_id": f"{side}{n}", "images_per_gpu": str(n % 100 + 1), "cpu_name": side} for n in range(count))
    return [{**row, **identities(row)} for change in changes if (row := {**plain, **change})]


@pytest.mark.benchmark(group="compare")
def test_compare_two_tables_cpu_rows5000_each(benchmark: Any, tmp_path: Path) -> None:
    paths = [tmp_path / f"{side}.csv" for side in "AB"]
    for path in paths:
        path.write_text(csv_text(COLUMNS, [row.values() for row in rows(path.stem, 5000)]))
    command = [sys.executable, "-m", "harness", "compare", *map(str, paths)]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=5)
