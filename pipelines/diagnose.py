"""Which image of a batch cannot be decoded: DALI does not always say."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines import DataError, Request
from pipelines.feed import Feed
from pipelines.sources import name_of
from pipelines.sources.imageset import Split
from pipelines.sources.s3 import SCHEME

Look = Callable[[Feed, int], str | None]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def bad_image(request: Request, batch: int, told: str) -> DataError | None:
    """The error that names the bad image that DALI gave up on; None where no image it may have met is bad.

    `batch` counts from 0 in this shard's order; `told` is DALI's own message. The queue runs ahead of the batch.
    """
    feed = Feed(request)
    batches = range(batch, batch + 1 + request.prefetch)
    places = [int(place) for number in batches for place in feed.places(number) if place >= 0]
    for look in (named_in(told), fault_at, refused_at):
        for place in places:
            found = look(feed, place)
            if found:
                return DataError(
                    f"the image {name_of(request.split, place)} cannot be decoded ({found}): mend or remove it, or leave "
                    "it out with --exclude (`data check` finds all such images), and run again"
                )
    return None


def named_in(told: str) -> Look:
    """Whether DALI's message names the file, as it does for one that cannot be read."""
    return lambda feed, place: "it cannot be read" if feed.request.split.files[place] in told else None


def fault_at(feed: Feed, place: int) -> str | None:
    """`fault_in` of one image of a split."""
    try:
        return None if unseen(feed.request.split, place) else fault_in(encoded_at(feed, place))
    except (OSError, DataError) as error:
        return str(error)


def refused_at(feed: Feed, place: int) -> str | None:
    """What Pillow decodes and DALI does not."""
    passed = unseen(feed.request.split, place) or decodes(encoded_at(feed, place))
    return None if passed else "DALI's decoder refuses it"


def unseen(split: Split, place: int) -> bool:
    """Whether there is nothing here to decode: raw pixels, or a file in a bucket."""
    return split.raw or split.files[place].startswith(SCHEME)


def encoded_at(feed: Feed, place: int) -> bytes:
    """The encoded image, read whole."""
    split = feed.request.split
    return Path(split.files[place]).read_bytes() if split.spans is None else feed.image(place).tobytes()


def decodes(encoded: bytes) -> bool:
    """Whether DALI's own decoder, which may be stricter than Pillow's, takes one image."""
    from nvidia.dali import Pipeline, fn

    pipeline: Any = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    with pipeline:
        source = fn.external_source([[np.frombuffer(encoded, np.uint8)]], batch=True)
        pipeline.set_outputs(fn.decoders.image(source, adjust_orientation=False))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def fault(path: str) -> str | None:
    """What is wrong with an image file, in a few words; None where Pillow can decode it."""
    try:
        return fault_in(Path(path).read_bytes())
    except OSError as error:
        return str(error)


def fault_in(encoded: bytes) -> str | None:
    """What is wrong with an encoded image, in a few words; None where Pillow can decode it."""
    if not encoded:
        return "the file is empty"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format not in FORMATS:
                return f"it is {image.format}, not {', '.join(FORMATS)}"
            image.load()
    except UnidentifiedImageError:
        return "it is no image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None
