"""Class folders, read into lists of files: `root/train/<class>/*` with `root/val/...`, or `root/<class>/*`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines import DataError
from pipelines.sources.imageset import (
    IMAGE_SUFFIXES,
    Entry,
    Exclusions,
    ImageSet,
    Split,
    StrPath,
    digest,
    three,
    unreadable,
)

VALIDATION_SHARE = 10  # without a val/ folder one image in so many is held out


@dataclass(frozen=True, slots=True)
class Listed:
    """An image file as a listing shows it."""

    path: str
    name: str
    size_bytes: int


Classes = dict[str, list[Listed]]  # class name -> its images, both sorted by name


def open_folder(root: StrPath) -> ImageSet:
    """The images under `root`.

    With `train/` and `val/` inside, those; with `train/` alone, no validation set. Without, each class holds out the
    tenth of its images whose names have the lowest digests (none of a class of one image), so that the split depends
    on nothing but the names. `dataset_id` is a digest of every image's relative path and size: a copy elsewhere is the
    same set. `DataError` for a folder that holds no such set.
    """
    folder = existing(root)
    return open_class_folders(folder, folder, Exclusions())


def existing(root: StrPath) -> Path:
    """The absolute path of a folder that exists; `DataError` for anything else."""
    if not os.fspath(root):
        raise DataError("the name of the data set's folder is empty: give one")
    folder = Path(root).absolute()
    if not folder.exists():
        raise DataError(f"{root} does not exist: give the folder of a data set")
    if not folder.is_dir():
        raise DataError(f"{root} is a file: give the folder of a data set")
    return folder


def open_class_folders(folder: Path, root: Path, exclusions: Exclusions) -> ImageSet:
    """The class folders of `folder`; names of images to leave out are relative to `root`."""
    start = prefix_length(root)
    if not (folder / "train").is_dir():
        return held_out_of(kept(scan(folder), start, exclusions), str(folder), exclusions)
    train = scan(folder / "train")
    val = scan(folder / "val", least_classes=1) if (folder / "val").is_dir() else {}
    return assembled(kept(train, start, exclusions), kept(val, start, exclusions), str(folder), exclusions)


def held_out_of(classes: Classes, root: str, exclusions: Exclusions) -> ImageSet:
    """The set of these classes, of each of which a part is held out: what was left out might as well not be there."""
    val = {name: _held_out(images) for name, images in classes.items()}
    held_out = {image for images in val.values() for image in images}
    train = {name: [image for image in images if image not in held_out] for name, images in classes.items()}
    return assembled(train, val, root, exclusions)


def assembled(train: Classes, val: Classes, root: str, exclusions: Exclusions) -> ImageSet:
    """The set of these classes. Errors name `root`."""
    exclusions.check()
    names = tuple(train)
    entries = listing([*train.values(), *val.values()], prefix_length(root))
    if unknown := sorted(set(val) - set(names)):
        raise DataError(
            f"{os.path.join(root, 'val')} has {len(unknown)} classes that train/ lacks ({three(unknown)}): "
            "give both the same classes"
        )
    evaluated = _split(val, names)
    return ImageSet(
        _split(train, names),
        evaluated if len(evaluated) else None,
        names,
        digest(entries),
        excluded=len(exclusions.met),
    )


def scan(folder: Path, least_classes: int = 2) -> Classes:
    """The class folders inside `folder`. `DataError` where there is nothing to learn from."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        classes = {name: images_of(folder / name) for name in names}
    except OSError as error:
        raise unreadable(error) from error
    check_classes(classes, str(folder), least_classes)
    return classes


def check_classes(classes: Mapping[str, Collection[Listed]], folder: str, least_classes: int) -> None:
    """`DataError` where `folder` holds no classes, fewer than `least_classes`, or any without images."""
    wanted = f"expected {folder}/<class>/*.JPEG"
    if not classes:
        raise DataError(f"{folder} has no class folders: {wanted}, or leave --data out for the built-in set")
    empty = [name for name, images in classes.items() if not images]
    if len(empty) == len(classes):
        raise DataError(f"the {len(classes)} class folders of {folder} hold no images: {wanted}")
    if empty:
        raise DataError(f"{folder} has {len(empty)} class folders without images ({three(empty)}): remove them")
    if len(classes) < least_classes:
        raise DataError(
            f"{folder} has one class only ({next(iter(classes))}): there is nothing to tell apart; {wanted}"
        )


def images_of(folder: Path) -> list[Listed]:
    """The images directly in `folder`, sorted by name."""
    images = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and not entry.is_dir():
                if not entry.is_file():
                    raise DataError(
                        f"{entry.path} is named as an image and is no file that can be read: remove or mend it"
                    )
                images.append(Listed(entry.path, entry.name, entry.stat().st_size))
    return sorted(images, key=lambda image: image.name)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def kept(classes: Classes, start: int, exclusions: Exclusions) -> Classes:
    """The classes without the images left out, whose names begin at character `start` of their paths."""
    if not exclusions.names:
        return classes
    left = {
        name: [image for image in images if not exclusions.leaves_out(image.path[start:])]
        for name, images in classes.items()
    }
    if emptied := [name for name, images in left.items() if not images]:
        raise DataError(
            f"--exclude {exclusions.file} leaves {len(emptied)} classes without an image ({three(emptied)}): "
            "remove those class folders, or leave fewer images out"
        )
    return left


def listing(classes: Iterable[Iterable[Listed]], start: int) -> list[Entry]:
    """What of these images enters `dataset_id`; relative paths begin at character `start`."""
    return [(os.fsencode(image.path[start:]), image.size_bytes) for images in classes for image in images]


def prefix_length(root: StrPath) -> int:
    """Characters before the relative path in the path of a file under `root`."""
    return len(os.path.join(root, ""))


def _held_out(images: list[Listed]) -> list[Listed]:
    if len(images) < 2:
        return []
    by_digest = sorted(images, key=lambda image: hashlib.sha256(os.fsencode(image.name)).digest())
    return sorted(by_digest[: max(1, len(images) // VALIDATION_SHARE)], key=lambda image: image.name)


def _split(classes: Classes, names: tuple[str, ...]) -> Split:
    pairs = [(image.path, label) for label, name in enumerate(names) for image in classes.get(name, ())]
    return Split(tuple(path for path, _ in pairs), tuple(label for _, label in pairs), len(names))
