"""Which images a run is asked to train on, read without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.config import AskedWrongly, RunConfig
from pipelines import sources
from pipelines.dataset import embedded, statistics
from pipelines.sources.imageset import ImageSet, Split

SYNTHETIC_CLASSES = 1000


def open_images(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """What --data names, the embedded set (made first where it is missing), or nothing but names for `synthetic`.

    With --statistics, its statistics too. AskedWrongly for an --exclude without --data; pipelines.DataError says what is wrong
    with a folder or file; `progress(done, of)` is told while shards are read through or the embedded set is made.
    """
    if config.pipeline == "synthetic":
        images = synthetic(config.images_per_step)
    elif config.data is not None:
        images = sources.open_source(config.data, config.exclude, progress)
    elif config.exclude is not None:
        raise AskedWrongly("--exclude was given and the embedded set has nothing to leave out: give --data too")
    else:
        images = embedded.open_embedded_set(progress=progress)
    return replace(images, statistics=statistics.load(config.statistics)) if config.statistics else images


def synthetic(images: int) -> ImageSet:
    """As many images as a step takes, which exist nowhere."""
    labels = tuple(index % SYNTHETIC_CLASSES for index in range(images))
    split = Split(files=tuple(map(str, range(images))), labels=labels, num_classes=SYNTHETIC_CLASSES)
    classes = tuple(map(str, range(SYNTHETIC_CLASSES)))
    return ImageSet(train=split, val=None, classes=classes, dataset_id="synthetic", source_form="synthetic")
