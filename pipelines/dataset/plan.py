"""What `data prepare` is to write: which image becomes which place of which shard. Nothing here touches the folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import DataError
from pipelines.dataset.squares import Shard, Source
from pipelines.order import Order
from pipelines.sources import name_of
from pipelines.sources.imageset import ImageSet, Split
from pipelines.sources.prepared_set import FORMAT, VERSION

SUFFIXES = {"prepared-jpeg": ".tar", "prepared-raw": ".raw"}
ORDER_SEED = 0
MOST_LABELS_RAW = 1 << 16


@dataclass(frozen=True)
class Planned:
    """A shard to be: its name, and the part of its split's order that it takes."""

    file: str
    part: str  # "train" or "val"
    start: int
    stop: int


@dataclass
class Job:
    """All of one preparation. A shard's content follows from the source and `described` alone."""

    images: ImageSet
    out: Path
    form: str
    side: int
    quality: int | None
    images_per_shard: int
    root: Path | None
    left_out: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # by place in the source's split

    def __post_init__(self) -> None:
        self.splits = {"train": self.images.train} | ({"val": self.images.val} if self.images.val else {})
        # Readers that shuffle within a buffer need shards that are a fair sample of the classes.
        self.orders = {
            part: Order(len(split), ORDER_SEED).places(0, len(split)) if part == "train" else np.arange(len(split))
            for part, split in self.splits.items()
        }

    @property
    def described(self) -> dict[str, Any]:
        """What the set is, but for its shards; unequal descriptions never share a folder."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "form": self.form,
            "side": self.side,
            "quality": self.quality,
            "images_per_shard": self.images_per_shard,
            "order": {"train": f"shuffled by seed {ORDER_SEED}", "val": "as in the source"},
            "source_dataset_id": self.images.dataset_id,
            "source_form": self.images.source_form,
            "classes": list(self.images.classes),
        }

    @property
    def excluded(self) -> int:
        return self.images.excluded + sum(int(gone.sum()) for gone in self.left_out.values())

    def planned(self) -> Iterator[Planned]:
        """Every shard, in the set's order; none of a shard whose images are all left out."""
        for part, order in self.orders.items():
            for number, start in enumerate(range(0, len(order), self.images_per_shard)):
                stop = min(start + self.images_per_shard, len(order))
                planned = Planned(f"{part}-{number:05}{SUFFIXES[self.form]}", part, start, stop)
                if len(self.gaps(planned)) < stop - start:
                    yield planned

    def shard(self, planned: Planned) -> Shard:
        """The task of writing one."""
        return Shard(
            str(self.out / planned.file), self.side, self.quality, tuple(self.sources(planned)), self.gaps(planned)
        )

    def gaps(self, planned: Planned) -> tuple[int, ...]:
        """Places in the prepared split that stay empty, because their images are left out."""
        if planned.part not in self.left_out:
            return ()
        gone = self.left_out[planned.part][self.orders[planned.part][planned.start : planned.stop]]
        return tuple(int(place) for place in np.flatnonzero(gone) + planned.start)

    @property
    def all_gaps(self) -> dict[str, list[int]]:
        return {planned.file: list(gaps) for planned in self.planned() if (gaps := self.gaps(planned))}

    def sources(self, planned: Planned) -> Iterator[Source]:
        split, order, gaps = self.splits[planned.part], self.orders[planned.part], set(self.gaps(planned))
        for place in range(planned.start, planned.stop):
            if place not in gaps:
                original = int(order[place])
                start, size = (0, -1) if split.spans is None else map(int, split.spans[original])
                yield Source(place, split.labels[original], split.files[original], start, size)

    def name(self, part: str, original: int) -> str:
        """An image's name in exclusion lists."""
        return name_of(self.splits[part], original).removeprefix(self.before_names)

    @cached_property
    def before_names(self) -> str:
        return os.path.join(self.root.absolute() if self.root else common_folder(self.images), "")


def refuse_wrong(job: Job) -> None:
    """`DataError` for what cannot be prepared, whatever lies in the folder."""
    if job.form not in SUFFIXES:
        raise DataError(f"unknown form {job.form!r} of a prepared set: choose from {', '.join(SUFFIXES)}")
    if job.side < 1 or job.images_per_shard < 1 or not 1 <= (job.quality or 1) <= 100:
        raise DataError(
            f"side {job.side}, quality {job.quality} and {job.images_per_shard} images a shard were asked: "
            "give a side and images of at least 1, and a quality from 1 to 100"
        )
    for split in job.splits.values():
        if split.square or split.raw:
            raise DataError(
                f"the images are squares of {split.square} pixels, prepared already: give the original photographs"
            )
        if remote := next((file for file in split.files if "://" in file), None):
            raise DataError(f"{remote} is not on a disk, and data prepare reads files: copy the set to a disk first")
        if job.form == "prepared-raw" and split.num_classes > MOST_LABELS_RAW:
            raise DataError(
                f"{split.num_classes:,} classes do not fit the labels of prepared-raw, at most {MOST_LABELS_RAW:,}: "
                "ask for prepared-jpeg"
            )


def common_folder(images: ImageSet) -> str:
    """The deepest folder that holds all files."""
    files = [edge(split.files) for split in (images.train, images.val) if split for edge in (min, max)]
    return os.path.commonpath([os.path.dirname(file) for file in files])


def missing_places(whole: ImageSet, images: ImageSet) -> dict[str, NDArray[np.bool_]]:
    """Which images of each split of `whole` are nowhere in `images`."""
    kept = {image for split in (images.train, images.val) if split for image in addresses(split)}
    return {
        part: np.array([image not in kept for image in addresses(split)], bool)
        for part, split in (("train", whole.train), ("val", whole.val))
        if split
    }


def splits_alike(whole: ImageSet, images: ImageSet) -> bool:
    """Whether the images that are left have the purposes that they have in the whole set."""
    return set(addresses(images.train)) <= set(addresses(whole.train))


def addresses(split: Split) -> Iterator[tuple[str, int]]:
    """Where each image begins."""
    starts = itertools.repeat(0) if split.spans is None else map(int, split.spans[:, 0])
    return zip(split.files, starts, strict=False)
