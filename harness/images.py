"""Which images a run is asked to train on, read without torch."""

from __future__ import annotations

from collections.abc import Callable

from harness.config import RunConfig
from pipelines import dataset, sources
from pipelines.sources import ImageSet, Split

SYNTHETIC_CLASSES = 1000


def open_images(config: RunConfig, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """The folder of --data, the embedded set (made first where it is missing), or nothing but names for `synthetic`.

    pipelines.DataError says what is wrong with a folder; `progress(done, of)` is told while the embedded set is made.
    """
    if config.pipeline == "synthetic":
        return synthetic(config.images_per_step)
    if config.data is not None:
        return sources.open_folder(config.data)
    return dataset.open_embedded_set(progress=progress)


def synthetic(images: int) -> ImageSet:
    """As many images as a step takes, which exist nowhere."""
    labels = tuple(index % SYNTHETIC_CLASSES for index in range(images))
    split = Split(files=tuple(map(str, range(images))), labels=labels, num_classes=SYNTHETIC_CLASSES)
    classes = tuple(map(str, range(SYNTHETIC_CLASSES)))
    return ImageSet(train=split, val=None, classes=classes, dataset_id="synthetic", source_form="synthetic")
