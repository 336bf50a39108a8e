"""Class folders on a disk, read into lists of files: `root/train/<class>/*` with `root/val/...`, or `root/<class>/*`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VALIDATION_SHARE = 10  # without a val/ folder one image in so many is held out
DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Split:
    """Images of one purpose; the place of an image in `files` is its index everywhere."""

    files: tuple[str, ...]  # absolute path (or s3:// address) of the file that holds each image
    labels: tuple[int, ...]  # places in `ImageSet.classes`
    num_classes: int
    spans: NDArray[np.int64] | None = field(
        default=None, compare=False
    )  # (N, 2): first byte and bytes; None: whole files
    square: int | None = None  # side of images that were already cut to a square, pixels
    raw: bool = False  # the bytes are the pixels (square, square, 3) uint8 rather than an encoded image

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class ImageSet:
    """A data set: what to train on, what to evaluate on (None: nothing could be held out), and which set it is."""

    train: Split
    val: Split | None
    classes: tuple[str, ...]
    dataset_id: str
    source_form: str = "folders"
    excluded: int = 0  # images left out because the person said so


@dataclass(frozen=True)
class _Image:
    path: str
    name: str
    size_bytes: int


def open_folder(root: str | os.PathLike[str]) -> ImageSet:
    """The images under `root`.

    With `train/` and `val/` inside, those; with `train/` alone, no validation set. Without, each class holds out the
    tenth of its images whose names have the lowest digests (none of a class of one image), so that the split depends
    on nothing but the names. `dataset_id` is a digest of every image's relative path and size: a copy elsewhere is the
    same set. `DataError` for a folder that holds no such set.
    """
    folder = Path(root).absolute()
    if not folder.exists():
        raise DataError(f"--data {root} does not exist: give a folder of class folders, or leave --data out")
    if not folder.is_dir():
        raise DataError(f"--data {root} is a file: give a folder of class folders, or leave --data out")
    if (folder / "train").is_dir():
        return _open_split_folders(folder)
    classes = _scan(folder)
    names = tuple(classes)
    held_out = {name: _held_out(images) for name, images in classes.items()}
    kept = {name: [i for i in images if i not in held_out[name]] for name, images in classes.items()}
    val = _split(held_out, names)
    return ImageSet(_split(kept, names), val if len(val) else None, names, _digest(folder, classes.values()))


def _open_split_folders(folder: Path) -> ImageSet:
    train = _scan(folder / "train")
    val = _scan(folder / "val", least_classes=1) if (folder / "val").is_dir() else {}
    unknown = sorted(set(val) - set(train))
    if unknown:
        raise DataError(
            f"{folder / 'val'} has {len(unknown)} classes that train/ lacks ({', '.join(unknown[:3])}): "
            "give both the same classes"
        )
    names = tuple(train)
    held_out = _split(val, names) if val else None
    return ImageSet(_split(train, names), held_out, names, _digest(folder, [*train.values(), *val.values()]))


def _scan(folder: Path, least_classes: int = 2) -> dict[str, list[_Image]]:
    """Class name -> its images, both sorted by name. `DataError` where there is nothing to learn from."""
    wanted = f"expected {folder}/<class>/*.JPEG"
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        if not names:
            raise DataError(f"{folder} has no class folders: {wanted}, or leave --data out for the built-in set")
        classes = {name: _images_of(folder / name) for name in names}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error
    empty = [name for name, images in classes.items() if not images]
    if len(empty) == len(classes):
        raise DataError(f"the {len(classes)} class folders of {folder} hold no images: {wanted}")
    if empty:
        raise DataError(f"{folder} has {len(empty)} class folders without images ({', '.join(empty[:3])}): remove them")
    if len(classes) < least_classes:
        raise DataError(f"{folder} has one class only ({names[0]}): there is nothing to tell apart; {wanted}")
    return classes


def _images_of(folder: Path) -> list[_Image]:
    with os.scandir(folder) as entries:
        images = [
            _Image(entry.path, entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file() and not entry.name.startswith(".")
        ]
    return sorted(images, key=lambda image: image.name)


def _held_out(images: list[_Image]) -> set[_Image]:
    if len(images) < 2:
        return set()
    by_digest = sorted(images, key=lambda image: hashlib.sha256(os.fsencode(image.name)).digest())
    return set(by_digest[: max(1, len(images) // VALIDATION_SHARE)])


def _split(classes: dict[str, list[_Image]] | dict[str, set[_Image]], names: tuple[str, ...]) -> Split:
    pairs = [
        (image.path, label)
        for label, name in enumerate(names)
        for image in sorted(classes.get(name, ()), key=lambda image: image.name)
    ]
    return Split(tuple(path for path, _ in pairs), tuple(label for _, label in pairs), len(names))


def _digest(root: Path, classes: Iterable[list[_Image]]) -> str:
    """Digest of the sorted (relative path, size) of the images, as hexadecimal."""
    start = len(os.path.join(root, ""))
    pairs = sorted((os.fsencode(image.path[start:]), image.size_bytes) for images in classes for image in images)
    digest = hashlib.sha256()
    for path, size in pairs:
        digest.update(b"%s\0%d\n" % (path, size))
    return digest.hexdigest()[:DIGEST_CHARACTERS]
