"""The embedded set `embedded-v1`: made on this machine, the same bytes on every machine, kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from pipelines import DataError
from pipelines.dataset.synthesis import CLASSES, picture
from pipelines.sources import ImageSet, open_folder
from pipelines.sources.imageset import Progress, StrPath, default_cache_root


@dataclass(frozen=True)
class Edition:
    """Which pictures make up a set, and what they must come out as."""

    name: str
    train: int
    val: int
    content_digest: str  # sha256 over the sha256 of every file's bytes, in the order of their numbers
    listing_digest: str  # the folder's own `dataset_id`: names and sizes, which tell a whole set without reading it

    @property
    def files(self) -> int:
        return self.train + self.val

    def path(self, number: int) -> Path:
        """Where picture `number` lies in the set."""
        part = "train" if number < self.train else "val"
        return Path(part, CLASSES[label_of(number)], f"{self.name}_{number:05}.JPEG")


EMBEDDED_V1 = Edition(
    name="embedded-v1",
    train=2048,
    val=512,
    content_digest="4ab224c5d99ac3d4a35a1783b72e794ec3499475bf8838957b0bf31f9c35aa8b",
    listing_digest="6c0b6e3783b6fd67",
)


def open_embedded_set(
    cache_root: StrPath | None = None, progress: Progress | None = None, edition: Edition = EMBEDDED_V1
) -> ImageSet:
    """The embedded set as an `ImageSet`, made first where it is not yet cached; errors as `make_embedded_set`."""
    return replace(open_folder(make_embedded_set(cache_root, progress, edition)), dataset_id=edition.name)


def make_embedded_set(
    cache_root: StrPath | None = None, progress: Progress | None = None, edition: Edition = EMBEDDED_V1
) -> Path:
    """The folder of the embedded set, with `train/<class>/` and `val/<class>/`; made where missing or damaged.

    It lies in `cache_root`, else in $HARNESS_CACHE, else in alexnet-harness/ of the user's cache folder, and appears
    there whole or not at all; a second process waits for the first. `progress` is called from the calling thread.
    `DataError` where the cache cannot be written, or where this machine's libraries make other bytes.
    """
    root = Path(cache_root) if cache_root is not None else default_cache_root()
    folder = root / edition.name
    if is_complete(folder, edition):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{edition.name}.lock"):
            # Another process may have made it while this one waited.
            if not is_complete(folder, edition):
                _replace(folder, progress, edition)
    except OSError as error:
        raise DataError(
            f"the built-in set ({edition.files} files) cannot be written to {root} ({error.strerror or error}): "
            "free some space or name another folder in HARNESS_CACHE"
        ) from error
    return folder


def is_complete(folder: Path, edition: Edition = EMBEDDED_V1) -> bool:
    """Whether every file of the set is there in its right size. The bytes were checked before the folder appeared."""
    try:
        return open_folder(folder).dataset_id == edition.listing_digest
    except (DataError, OSError):
        return False


def label_of(number: int) -> int:
    """Class of picture `number`: the classes take turns, so that each has its share of both parts."""
    return number % len(CLASSES)


def _replace(folder: Path, progress: Progress | None, edition: Edition) -> None:
    """Make the set beside `folder`, then put it in its place. Only the holder of the lock comes here."""
    partial = folder.with_name(f"{edition.name}.partial")
    discarded = folder.with_name(f"{edition.name}.discarded")
    for leftover in (partial, discarded):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        _make(partial, progress, edition)
        if folder.exists():
            folder.rename(discarded)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(discarded, ignore_errors=True)


def _make(folder: Path, progress: Progress | None, edition: Edition) -> None:
    """All pictures under `folder`; `DataError` where their bytes are not the pinned ones."""
    for place in {edition.path(number).parent for number in range(edition.files)}:
        (folder / place).mkdir(parents=True)
    digest = hashlib.sha256()
    # numpy and the JPEG encoder let other threads run; processes would have to be started anew beside torch and DALI.
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        made = pool.map(lambda number: _write(folder, number, edition), range(edition.files))
        for done, part in enumerate(made, start=1):
            digest.update(part)
            if progress is not None:
                progress(done, edition.files)
    finally:
        pool.shutdown(cancel_futures=True)
    if digest.hexdigest() != edition.content_digest:
        raise DataError(
            f"the built-in set made here differs from {edition.name} (digest {digest.hexdigest()[:12]}, expected "
            f"{edition.content_digest[:12]}): this Pillow encodes JPEG in its own way; install Pillow from PyPI"
        )


def _write(folder: Path, number: int, edition: Edition) -> bytes:
    """Make one picture's file; the digest of its bytes."""
    file = picture(number, label_of(number))
    (folder / edition.path(number)).write_bytes(file)
    return hashlib.sha256(file).digest()
