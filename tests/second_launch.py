"""The command line for a group's second launch, which measures no parts alone after training: `python tests/second_launch.py run ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import cli, folders

FIRST = folders.Launch.begin


def begin(config: Any, images: Any, table: Path, group_id: str, _: int, ranks_here: int) -> folders.Launch:
    return FIRST(config, images, table, group_id, 2, ranks_here)


if __name__ == "__main__":
    folders.Launch.begin = begin
    raise SystemExit(cli.main())
