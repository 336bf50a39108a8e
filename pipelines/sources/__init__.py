"""Where a data set lies and in which form: one entry for all of them, told apart by what is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipelines import DataError
from pipelines.sources.folders import existing, is_image, open_class_folders, open_folder
from pipelines.sources.imagenet import base_of, open_imagenet
from pipelines.sources.imageset import Exclusions, ImageSet, Progress, Split, StrPath, unreadable
from pipelines.sources.prepared import open_prepared
from pipelines.sources.prepared_set import SET, UNFINISHED
from pipelines.sources.s3 import SCHEME, open_s3
from pipelines.sources.shards import FOLDERS, FORMS, image_name, open_shards, shard_names

__all__ = ["ImageSet", "Split", "described", "name_of", "open_folder", "open_source"]

FORM_WORDS = {
    "folders": "class folders",
    "imagenet": "ImageNet's own folders",
    "webdataset": "WebDataset shards",
    "tfrecord": "TFRecord files",
    "prepared-jpeg": "prepared JPEG shards",
    "prepared-raw": "prepared shards of raw pixels",
    "synthetic": "random pixels, of no file",
}


def open_source(root: StrPath, exclude: StrPath | None = None, progress: Progress | None = None) -> ImageSet:
    """The data set in `root`, a folder or an `s3://bucket/prefix`, in whichever form of `FORM_WORDS` it lies.

    `exclude` is a text file with the names of images to leave out, one a line: a file's path relative to `root`; in a
    tar `SHARD/MEMBER`; in a TFRecord file `SHARD#NUMBER`, counted from 0. `progress(done, of)` counts the shards read.
    `DataError` where the set cannot be used, or where more than one form is found.
    """
    exclusions = Exclusions.read(exclude)
    if os.fspath(root).startswith(SCHEME):
        return open_s3(os.fspath(root), exclusions)
    folder = existing(root)
    try:
        return _open(folder, exclusions, progress)
    except OSError as error:
        raise unreadable(error, folder) from error


def _open(folder: Path, exclusions: Exclusions, progress: Progress | None) -> ImageSet:
    base = base_of(folder)
    if any((folder / name).is_file() for name in (SET, UNFINISHED)):
        _refuse_mixture(folder, ["a prepared set", *_loose_forms(base)])
        return open_prepared(folder, exclusions, progress)
    sharded = [form for form in FORMS if shard_names(folder, form)]
    _refuse_mixture(folder, [*(form.plural for form in sharded), *_loose_forms(base)])
    if sharded:
        return open_shards(folder, sharded[0], exclusions, progress)
    if _has_flat_validation(base):
        return open_imagenet(folder, exclusions)
    return open_class_folders(base, folder, exclusions)


def _loose_forms(base: Path) -> list[str]:
    """What is found of files that are images themselves."""
    parts = ("train", "val") if (base / "train").is_dir() else ("",)
    found = []
    if any(_has_images(folder) for part in parts for folder in _folders(base / part)):
        found.append("class folders")
    if _has_flat_validation(base) and any(_has_images(folder) for folder in _folders(base / "val")):
        found.append("validation images outside them")
    return found


def _has_flat_validation(base: Path) -> bool:
    return (base / "train").is_dir() and (base / "val").is_dir() and _has_images(base / "val")


def _refuse_mixture(folder: Path, found: list[str]) -> None:
    if len(found) > 1:
        raise DataError(f"--data {folder} holds {' and '.join(found)}: keep one form there and move the rest elsewhere")


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in `folder` that could be classes."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith(".") and entry.name not in FOLDERS:
                    yield Path(entry.path)


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and entry.is_file() for entry in entries)


def name_of(split: Split, place: int) -> str:
    """The image at `place`: the path of its file and, where it shares that, its name or number there.

    An address of a tar's member or a record ends in what `exclude` calls it. The shard is read again.
    """
    return image_name(split, place)


def described(images: ImageSet) -> str:
    """What a run says aloud of its images."""
    evaluated = len(images.val) if images.val else 0
    left_out = f", {images.excluded:,} left out" if images.excluded else ""
    form = FORM_WORDS.get(images.source_form, images.source_form)
    return (
        f"{len(images.train):,} training and {evaluated:,} validation images of {len(images.classes):,} classes "
        f"in {form} (dataset {images.dataset_id}{left_out})"
    )
