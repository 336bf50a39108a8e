"""Where every image of a set of shards lies: made by reading the shards in parallel, then kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import DataError
from pipelines.sources.imageset import Progress, default_cache_root, unreadable

VERSION = 1  # of what is kept; another one makes every kept index stale
THREADS = 16  # most of the time goes into waiting for the disk
Ints = NDArray[np.int64]


class Index(NamedTuple):
    """Where the images of one shard, or of all, lie."""

    spans: Ints  # (N, 2): first byte and bytes
    labels: Ints  # (N,), as the shard writes them


@dataclass(frozen=True)
class Shard:
    """A file that holds many images."""

    path: str
    name: str  # relative to the root of the set
    size_bytes: int
    modified_ns: int

    @classmethod
    def at(cls, root: Path, name: str) -> Shard:
        """The shard of this relative name; OSError where there is none."""
        path = root / name
        found = path.stat()
        return cls(str(path), name, found.st_size, found.st_mtime_ns)


class ShardError(DataError):
    """A shard that cannot be read as what it should be."""

    def __init__(self, path: str, told: str) -> None:
        super().__init__(f"{path} {told}")


def indexed(
    kind: str, dataset_id: str, shards: Sequence[Shard], read: Callable[[str], Index], progress: Progress | None
) -> tuple[Index, Ints]:
    """The index of all shards, in their order, and how many images each has.

    Read from the cache where it is there, whole, and of shards not changed since; else made anew and kept. A cache
    that cannot be written is no error. `progress` is called from the calling thread.
    """
    version = hashlib.sha256(f"{kind} {VERSION}".encode()).hexdigest()[:8]
    file = default_cache_root() / "index" / f"{dataset_id}-{version}.npz"
    if kept := _kept(file, shards):
        return kept
    parts: list[Index] = []
    pool = ThreadPoolExecutor(THREADS)
    try:
        for part in pool.map(lambda shard: _read(shard, read), shards):
            parts.append(part)
            if progress is not None:
                progress(len(parts), len(shards))
    finally:
        pool.shutdown(cancel_futures=True)
    whole = Index(np.concatenate([part.spans for part in parts]), np.concatenate([part.labels for part in parts]))
    counts = np.array([len(part.labels) for part in parts], np.int64)
    _keep(file, whole, counts, shards)
    return whole, counts


def _read(shard: Shard, read: Callable[[str], Index]) -> Index:
    try:
        index = read(shard.path)
    except OSError as error:
        raise unreadable(error, shard.path) from error
    if not len(index.labels):
        raise ShardError(shard.path, "holds no images: remove it, or make or copy it again")
    return index


def _kept(file: Path, shards: Sequence[Shard]) -> tuple[Index, Ints] | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            index, counts, modified_ns = Index(kept["spans"], kept["labels"]), kept["counts"], kept["modified_ns"]
    except Exception:  # numpy raises whatever a damaged file leads it to
        return None
    fits = (
        [array.dtype for array in (*index, counts, modified_ns)] == [np.dtype(np.int64)] * 4
        and modified_ns.tolist() == [shard.modified_ns for shard in shards]
        and counts.shape == (len(shards),)
        and index.labels.shape == (counts.sum(),)
        and index.spans.shape == (counts.sum(), 2)
    )
    return (index, counts) if fits else None


def _keep(file: Path, index: Index, counts: Ints, shards: Sequence[Shard]) -> None:
    modified_ns = np.array([shard.modified_ns for shard in shards], np.int64)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as partial:
            try:
                np.savez(partial, spans=index.spans, labels=index.labels, counts=counts, modified_ns=modified_ns)
                partial.flush()
                os.fsync(partial.fileno())
                os.replace(partial.name, file)
            except BaseException:
                os.unlink(partial.name)
                raise
