"""Sets that lie in shards, files of many images each: WebDataset and TFRecord, told apart by the files' names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import DataError
from pipelines.sources import tfrecord, webdataset
from pipelines.sources.imageset import Entry, Exclusions, ImageSet, Progress, Split, digest, three, unreadable
from pipelines.sources.index import Index, Ints, Shard, indexed

PURPOSES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
FOLDERS = ("", "train", "val", "validation")  # of a set, in which shards may lie


@dataclass(frozen=True)
class Form:
    """A kind of shard."""

    name: str
    plural: str
    holds: Callable[[str], bool]  # whether a file of this name is such a shard
    index: Callable[[str], Index]
    image_names: Callable[[str], list[str]]  # what, put behind the shard's name, names each image


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not name.startswith(".")


def _is_tfrecord(name: str) -> bool:
    named = "tfrecord" in name.lower() or re.search(r"-\d{5}-of-\d{5}$", name)
    return bool(named) and not name.lower().endswith((".idx", ".tar")) and not name.startswith(".")


WEBDATASET = Form("webdataset", "tar files", _is_tar, webdataset.index_tar, webdataset.image_names)
TFRECORD = Form("tfrecord", "TFRecord files", _is_tfrecord, tfrecord.index_tfrecord, tfrecord.image_names)
FORMS = (WEBDATASET, TFRECORD)


def shard_names(root: Path, form: Form) -> list[str]:
    """Relative names of the shards of a form in `root`, `root/train` and `root/val`, sorted."""
    names = []
    for folder in FOLDERS:
        if (root / folder).is_dir():
            try:
                with os.scandir(root / folder) as entries:
                    found = [entry.name for entry in entries if form.holds(entry.name) and entry.is_file()]
            except OSError as error:
                raise unreadable(error) from error
            names += [f"{folder}/{name}" if folder else name for name in found]
    return sorted(names)


def purpose(name: str) -> str:
    """What a shard is for: the first word of its relative name that says `train`, `val` or `test`, else `train`."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((PURPOSES[word] for word in words if word in PURPOSES), "train")


def open_shards(root: Path, form: Form, exclusions: Exclusions, progress: Progress | None) -> ImageSet:
    """The set in the shards of `root`, those for testing left aside; classes are the distinct labels of training."""
    names = shard_names(root, form)
    purposes = {name: purpose(name) for name in names}
    try:
        train, val = ([Shard.at(root, name) for name in names if purposes[name] == each] for each in ("train", "val"))
    except OSError as error:
        raise unreadable(error) from error
    if not train:
        raise DataError(f"{root} has no {form.plural} for training ({three(names)}): name them train-...")
    shards = [*train, *val]
    entries = [(os.fsencode(shard.name), shard.size_bytes) for shard in shards]
    index, counts = indexed(form.name, digest(entries), shards, form.index, progress)
    training = int(counts[: len(train)].sum())
    values = np.unique(index.labels[:training])
    _check_labels(root, values, index.labels[training:])
    left, out = _remaining(form, shards, counts, exclusions)
    index = Index(index.spans, np.searchsorted(values, index.labels).astype(np.int64))
    _check_left(index.labels[:training][left[:training]], values, exclusions)
    places = np.repeat(np.arange(len(shards)), counts)
    parts = [
        split_of(shards, places[images], Index(index.spans[images], index.labels[images]), len(values))
        for images in (np.flatnonzero(left[:training]), training + np.flatnonzero(left[training:]))
    ]
    return ImageSet(
        parts[0],
        parts[1] if len(parts[1]) else None,
        tuple(str(value) for value in values),
        digest([*entries, *out]),
        form.name,
        len(out),
    )


def split_of(
    shards: Sequence[Shard],
    places: NDArray[np.intp],
    index: Index,
    num_classes: int,
    *,
    square: int | None = None,
    raw: bool = False,
) -> Split:
    """Images that lie in the shards of these places. Paths and labels are shared objects: a million images stay small."""
    paths, labels = [shard.path for shard in shards], list(range(num_classes))
    return Split(
        tuple(paths[place] for place in places.tolist()),
        tuple(labels[label] for label in index.labels.tolist()),
        num_classes,
        index.spans,
        square,
        raw,
    )


def _check_labels(root: Path, values: Ints, evaluated: Ints) -> None:
    if len(values) < 2:
        raise DataError(f"{root} has one class only ({values[0]}): there is nothing to tell apart; give shards of more")
    if len(unknown := np.setdiff1d(evaluated, values)):
        raise DataError(
            f"{root} has {len(unknown)} labels in its validation shards that training lacks "
            f"({three(map(str, unknown))}): give both the same classes"
        )


def _check_left(labels: Ints, values: Ints, exclusions: Exclusions) -> None:
    emptied = values[np.bincount(labels, minlength=len(values)) == 0]
    if len(emptied):
        raise DataError(
            f"--exclude {exclusions.file} leaves {len(emptied)} classes without a training image "
            f"({three(map(str, emptied))}): leave fewer images out"
        )


def _remaining(
    form: Form, shards: Sequence[Shard], counts: Ints, exclusions: Exclusions
) -> tuple[NDArray[np.bool_], list[Entry]]:
    """Which images of all shards are not left out, and what of the others enters `dataset_id`."""
    left = np.ones(int(counts.sum()), bool)
    firsts = np.cumsum(counts) - counts
    for shard, first in zip(shards, firsts.tolist(), strict=True):
        if any(name.startswith(shard.name) for name in exclusions.names):
            for number, behind in enumerate(form.image_names(shard.path)):
                if exclusions.leaves_out(shard.name + behind):
                    left[first + number] = False
    exclusions.check()
    return left, [(b"without " + os.fsencode(name), 0) for name in sorted(exclusions.met)]


def image_name(split: Split, place: int) -> str:
    """File and, behind it, what names the image there: a tar's member, a record's number, or its place in raw pixels."""
    path = split.files[place]
    if split.spans is None:
        return path
    start, size = map(int, split.spans[place])
    if split.raw:
        return f"image {start // size} of {path}"
    form = WEBDATASET if WEBDATASET.holds(os.path.basename(path)) else TFRECORD
    try:
        number: int = form.index(path).spans[:, 0].tolist().index(start)
        return path + form.image_names(path)[number]
    except (OSError, ValueError):
        # The shard changed since: the name is lost, the place is not. DataError is a ValueError.
        return f"the image at byte {start} of {path}"
