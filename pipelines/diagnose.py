"""Which image of a batch cannot be decoded: DALI does not always say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines import DataError, Request
from pipelines.feed import Feed
from pipelines.pictures import fault_in
from pipelines.sources import name_of
from pipelines.sources.imageset import Split
from pipelines.sources.s3 import SCHEME


def bad_image(request: Request, batch: int, told: str) -> DataError | None:
    """The error that names the bad image that DALI gave up on; None where no image it may have met is bad.

    `batch` counts from 0 in this shard's order; `told` is DALI's own message. The queue runs ahead of the batch.
    """
    feed = Feed(request)
    finder = "check" if request.split.spans is None else "prepare"
    for number in range(batch, batch + 1 + request.prefetch):
        places = [int(place) for place in feed.places(number) if place >= 0]
        for place, reason in found_at(feed, places, told):
            return DataError(
                f"the image {name_of(request.split, place)} cannot be decoded ({reason}): mend or remove it, or leave "
                f"it out with --exclude (`data {finder}` finds all such images), and run again"
            )
    return None


def found_at(feed: Feed, places: list[int], told: str) -> list[tuple[int, str]]:
    """The first bad image among these places, with the reason; empty where all are good."""
    split, encoded = feed.request.split, []
    for place in places:
        if split.files[place] in told:
            return [(place, "it cannot be read")]
        if unseen(split, place):
            continue
        try:
            encoded.append((place, encoded_at(feed, place)))
        except (OSError, DataError) as error:
            return [(place, str(error))]
    refused = first_refused([contents for _, contents in encoded], feed.request.threads)
    if refused is None:
        return []
    place, contents = encoded[refused]
    return [(place, fault_in(contents) or "DALI's decoder refuses it")]


def unseen(split: Split, place: int) -> bool:
    """Whether there is nothing here to decode: raw pixels, or a file in a bucket."""
    return split.raw or split.files[place].startswith(SCHEME)


def encoded_at(feed: Feed, place: int) -> bytes:
    """The encoded image, read whole."""
    split = feed.request.split
    return Path(split.files[place]).read_bytes() if split.spans is None else feed.image(place).tobytes()


def first_refused(images: list[bytes], threads: int) -> int | None:
    """Which of these encoded images is the first that DALI's decoder does not take: halves of halves are decoded."""
    if not images or decodes(images, threads):
        return None
    if len(images) == 1:
        return 0
    half = len(images) // 2
    first = first_refused(images[:half], threads)
    if first is not None:
        return first
    second = first_refused(images[half:], threads)
    return None if second is None else half + second


def decodes(images: list[bytes], threads: int) -> bool:
    """Whether DALI's decoder takes all of these."""
    if not all(images):
        return False
    from nvidia.dali import Pipeline, fn

    pipeline: Any = Pipeline(len(images), threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
    with pipeline:
        source = fn.external_source([[np.frombuffer(image, np.uint8) for image in images]], batch=True)
        pipeline.set_outputs(fn.decoders.image(source, adjust_orientation=False))
    try:
        pipeline.run()
    except RuntimeError:
        return False
    finally:
        pipeline._shutdown()
    return True
