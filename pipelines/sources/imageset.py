"""What a data set is, whatever form it lies in: its splits, its identity, and the images a person leaves out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines import DataError

if TYPE_CHECKING:
    from pipelines.dataset.statistics import Statistics

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DIGEST_CHARACTERS = 16
SIZES_ASKED = 1000

StrPath = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # how many are done so far, and of how many: shards, files or images
Entry = tuple[bytes, int]  # relative path and bytes of a file, as they enter `dataset_id`


@dataclass(frozen=True)
class Split:
    """Images of one purpose; the place of an image in `files` is its index everywhere."""

    files: tuple[str, ...]  # absolute path (or s3:// address) of the file that holds each image
    labels: tuple[int, ...]  # places in `ImageSet.classes`
    num_classes: int
    # (N, 2): first byte and bytes of each image in its file; None: whole files.
    spans: NDArray[np.int64] | None = field(default=None, compare=False)
    square: int | None = None  # side of images that were already cut to a square, pixels
    raw: bool = False  # the bytes are the pixels (square, square, 3) uint8 rather than an encoded image

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_bytes(self) -> float | None:
        """Bytes of an image as it lies on the disk, the mean over some spread evenly; None where a file cannot be asked."""
        if self.spans is not None:
            return float(self.spans[:, 1].mean()) if len(self.spans) else None
        try:
            sizes = [os.path.getsize(file) for file in self.files[:: max(1, len(self.files) // SIZES_ASKED)]]
        except OSError:
            return None
        return sum(sizes) / len(sizes) if sizes else None


@dataclass(frozen=True)
class ImageSet:
    """A data set: what to train on, what to evaluate on (None: nothing could be held out), and which set it is."""

    train: Split
    val: Split | None
    classes: tuple[str, ...]
    dataset_id: str
    source_form: str = "folders"
    excluded: int = 0  # images left out because the person said so
    statistics: Statistics | None = None  # whose means and colours; None: ImageNet's


class Exclusions:
    """Names of images to leave out, and which of them were met."""

    def __init__(self, names: Iterable[str] = (), file: StrPath = "") -> None:
        self.names = frozenset(names)
        self.file = file
        self.met: set[str] = set()

    @classmethod
    def read(cls, file: StrPath | None) -> Exclusions:
        """The names in a text file, one a line; lines that are blank or begin with # are skipped."""
        if file is None:
            return cls()
        try:
            contents = Path(file).read_bytes().removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise DataError(f"--exclude {file} cannot be read ({error.strerror}): give a text file of names") from error
        if b"\0" in contents:
            raise DataError(f"--exclude {file} is no text file: give a list of names, one a line")
        names = (line.strip() for line in os.fsdecode(contents).splitlines())
        return cls((name for name in names if name and not name.startswith("#")), file)

    def leaves_out(self, name: str) -> bool:
        """Whether the image of this name is to be left out; it then counts as met."""
        if name not in self.names:
            return False
        self.met.add(name)
        return True

    def check(self) -> None:
        """`DataError` where a name was not met: a list of another set would leave out nothing, unseen."""
        if unknown := sorted(self.names - self.met):
            raise DataError(
                f"--exclude {self.file} names {len(unknown)} images that the set lacks ({', '.join(unknown[:3])}): "
                "make the list from this set"
            )


def digest(entries: Iterable[Entry]) -> str:
    """Digest of the sorted (relative path, bytes) of files, as hexadecimal."""
    whole = hashlib.sha256()
    for path, size in sorted(entries):
        whole.update(b"%s\0%d\n" % (path, size))
    return whole.hexdigest()[:DIGEST_CHARACTERS]


def default_cache_root() -> Path:
    """$HARNESS_CACHE, else alexnet-harness in $XDG_CACHE_HOME, else in ~/.cache."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet-harness"


def unreadable(error: OSError, path: StrPath = "") -> DataError:
    """The sentence about a file or folder that cannot be read."""
    return DataError(f"{error.filename or path} cannot be read ({error.strerror or error}): make it readable")


def three(names: Iterable[str]) -> str:
    """The first three names, for a sentence."""
    return ", ".join(list(names)[:3])
