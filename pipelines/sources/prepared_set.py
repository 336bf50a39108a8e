"""A prepared set as it lies in its folder: what `set.json` says, and whether the shards are what it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelines import DataError
from pipelines.sources.imageset import Progress

FORMAT, VERSION = "alexnet-harness prepared set", 1
SET = "set.json"  # its presence means that the set is whole
UNFINISHED = "unfinished.json"  # beside shards of a set that is not whole yet


def verify(folder: Path, progress: Progress | None = None) -> None:
    """Read every shard of a prepared set; `DataError` that names the first whose bytes are not those written."""
    described = read_description(folder / SET)
    if described is None:
        raise DataError(f"{folder} has no readable {SET}, so it is no finished prepared set: prepare it")
    check_sizes(folder, described)
    entries = [entry for entries in described["splits"].values() for entry in entries]
    done, total = 0, sum(entry["images"] for entry in entries)
    for entry in entries:
        for path, digest in files_of(folder, entry):
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise damaged(path, "its bytes are not those that were written")
        done += entry["images"]
        if progress is not None:
            progress(done, total)


def check_sizes(folder: Path, described: dict[str, Any]) -> None:
    """`DataError` that names the first file which is missing or of another size."""
    for entries in described["splits"].values():
        for entry in entries:
            for path, wanted in zip(
                (path for path, _ in files_of(folder, entry)), (entry["bytes"], 2 * entry["images"]), strict=False
            ):
                if not path.is_file():
                    raise damaged(path, "it is missing")
                if path.stat().st_size != wanted:
                    raise damaged(path, f"it has {path.stat().st_size:,} bytes instead of {wanted:,}")


def files_of(folder: Path, entry: dict[str, Any]) -> list[tuple[Path, str]]:
    """The files of a shard, with their digests."""
    shard = folder / entry["file"]
    labels = [(labels_path(shard), entry["labels_sha256"])] if "labels_sha256" in entry else []
    return [(shard, entry["sha256"]), *labels]


def labels_path(shard_path: Path | str) -> Path:
    return Path(shard_path).with_suffix(".cls")


def damaged(path: Path, how: str) -> DataError:
    return DataError(f"the shard {path} is damaged ({how}): empty the folder and prepare the set again")


def read_description(path: Path) -> dict[str, Any] | None:
    """A description of a set; None where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): empty the folder and prepare the set again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path} is not of a prepared set: give another folder")
    if path.name == SET and not _is_whole(found):
        raise DataError(f"{path} lacks what it should say: empty the folder and prepare the set again")
    return found


def _is_whole(described: dict[str, Any]) -> bool:
    """Whether a finished set's description has what readers of it look up; another version may say other things."""
    if described.get("version") != VERSION:
        return True
    splits = described.get("splits")
    entries = [entry for entries in splits.values() for entry in entries] if isinstance(splits, dict) else [None]
    types = {"file": str, "images": int, "bytes": int, "sha256": str}
    return "train" in (splits or ()) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in types.items())
        for entry in entries
    )


def as_json(described: dict[str, Any]) -> bytes:
    return (json.dumps(described, indent=1) + "\n").encode()
