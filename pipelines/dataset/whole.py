"""Files that are there whole or not at all: written under another name, brought to the disk, then renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

PARTIAL = ".partial"


def write_whole(path: Path, contents: bytes) -> None:
    """Put a small file in its place, whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(contents)
            to_disk(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
