"""The images of a prepared set: pictures already cut to squares, as JPEGs in tars or as the pixels themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import DataError
from pipelines.sources import webdataset
from pipelines.sources.imageset import Exclusions, ImageSet, Progress, digest
from pipelines.sources.index import Index, Ints, Shard, indexed
from pipelines.sources.prepared_set import SET, VERSION, check_sizes, damaged, files_of, read_description
from pipelines.sources.shards import split_of

Entry = dict[str, Any]  # what set.json says of a shard
Read = Callable[[dict[str, Any], list[Shard], list[Entry], str, Progress | None], tuple[Index, Ints]]


def open_prepared(root: Path, exclusions: Exclusions, progress: Progress | None) -> ImageSet:
    """The prepared set in `root`, held to its `set.json`: every shard there in its size, with as many images."""
    if exclusions.names:
        raise DataError(
            f"--exclude {exclusions.file} cannot leave images out of the prepared set {root}: leave them out when "
            "preparing it"
        )
    described = read_description(root / SET)
    if described is None:
        raise DataError(
            f"{root} is a prepared set that is not finished: run `data prepare` again, which goes on with it"
        )
    if described.get("version") != VERSION or described.get("form") not in READERS:
        raise DataError(
            f"{root / SET} is of version {described.get('version')} and form {described.get('form')}, and only version "
            f"{VERSION} of {' and '.join(READERS)} is known here: update the harness, or prepare the set again"
        )
    try:
        check_sizes(root, described)
        return _opened(root, described, progress)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{root / SET} lacks what it should say ({error}): prepare the set again") from error


def _opened(root: Path, described: dict[str, Any], progress: Progress | None) -> ImageSet:
    entries = [entry for purpose in ("train", "val") for entry in described["splits"].get(purpose, ())]
    shards = [Shard.at(root, entry["file"]) for entry in entries]
    contents = (root / SET).read_bytes()
    names = [(os.fsencode(shard.name), shard.size_bytes) for shard in shards]
    dataset_id = digest([*names, (hashlib.sha256(contents).hexdigest().encode(), len(contents))])
    index, counts = READERS[described["form"]](described, shards, entries, dataset_id, progress)
    for shard, count, entry in zip(shards, counts.tolist(), entries, strict=True):
        if count != entry["images"]:
            raise damaged(Path(shard.path), f"it has {count} images instead of {entry['images']}")
    classes = tuple(described["classes"])
    if index.labels.min() < 0 or index.labels.max() >= len(classes):
        raise DataError(f"{root} has labels beyond its {len(classes)} classes: prepare the set again")
    training = sum(entry["images"] for entry in described["splits"]["train"])
    places = np.repeat(np.arange(len(shards)), counts)
    parts = [
        split_of(
            shards,
            places[part],
            Index(index.spans[part], index.labels[part]),
            len(classes),
            square=described["side"],
            raw=described["form"] == "prepared-raw",
        )
        for part in (slice(0, training), slice(training, None))
    ]
    return ImageSet(
        parts[0],
        parts[1] if len(parts[1]) else None,
        classes,
        dataset_id,
        described["form"],
        described["excluded"],
    )


def _jpeg(
    described: dict[str, Any], shards: list[Shard], _entries: list[Entry], dataset_id: str, progress: Progress | None
) -> tuple[Index, Ints]:
    return indexed(described["form"], dataset_id, shards, webdataset.index_tar, progress)


def _raw(
    described: dict[str, Any], shards: list[Shard], entries: list[Entry], _dataset_id: str, progress: Progress | None
) -> tuple[Index, Ints]:
    """Spans follow from the sizes; the labels' files are small enough to be held to their digests."""
    image_bytes = described["side"] ** 2 * 3
    spans, labels = [], []
    for shard, entry in zip(shards, entries, strict=True):
        count, rest = divmod(shard.size_bytes, image_bytes)
        _, (file, wanted) = files_of(Path(shard.path).parent, {**entry, "file": Path(shard.path).name})
        contents = file.read_bytes()
        if rest or len(contents) != 2 * count or hashlib.sha256(contents).hexdigest() != wanted:
            raise damaged(file, "it is not the file of labels that was written")
        starts = np.arange(count, dtype=np.int64) * image_bytes
        spans.append(np.stack([starts, np.full_like(starts, image_bytes)], axis=1))
        labels.append(np.frombuffer(contents, "<u2").astype(np.int64))
        if progress is not None:
            progress(len(labels), len(shards))
    counts = np.array([len(each) for each in labels], np.int64)
    return Index(np.concatenate(spans), np.concatenate(labels)), counts


READERS: dict[str, Read] = {"prepared-jpeg": _jpeg, "prepared-raw": _raw}
