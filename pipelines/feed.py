"""What goes into the graph for each batch: where its images' bytes are, which images they are, and their random numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import NOISY, DataError, Request
from pipelines.draws import draws
from pipelines.order import Order

Bytes = NDArray[np.uint8]


class Feed:
    """Batches by their number, counted from 0 in this shard: functions of the request and that number alone."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.order = Order(len(request.split), request.seed, request.shard, request.num_shards)
        self._maps: dict[str, Bytes] = {}

    def places(self, batch: int) -> NDArray[np.int64]:
        """Place of each image of a batch in the split; -1 where an evaluation pads."""
        size = self.request.images_per_batch
        if self.request.training:
            return self.order.places(batch * size, size)
        own = self.request.evaluation_slice
        places = np.arange(own.start + batch * size, own.start + (batch + 1) * size)
        return np.where(places < own.stop, places, -1)

    def images(self, batch: int) -> Sequence[Bytes]:
        """For each image its file's name as bytes, or where a file holds many images, its own bytes, not copied."""
        places = self.places(batch)
        # Padding shows an image that is there anyway: the graph must have something to decode.
        shown = np.where(places < 0, self.request.evaluation_slice.start, places)
        return [self.image(place) for place in shown.tolist()]

    def image(self, place: int) -> Bytes:
        """One image as `images` gives it. `DataError` where its file cannot be opened or is shorter than it was."""
        split = self.request.split
        if split.spans is None:
            return np.frombuffer(os.fsencode(split.files[place]), np.uint8)
        start, size = map(int, split.spans[place])
        part = self._mapped(split.files[place])[start : start + size]
        if len(part) < size:
            raise DataError(f"{split.files[place]} is shorter than it was: leave it alone while a run reads it")
        return part.reshape(split.square, split.square, 3) if split.raw and split.square else part

    def numbers(self, batch: int) -> tuple[NDArray[Any], ...]:
        """What goes in beside the images, an array (N, ...) each: indices, then what `numbers_of` names."""
        request = self.request
        indices = self.places(batch).astype(np.int32)[:, None]
        if not request.training:
            return (indices,)
        drawn = draws(request, batch * request.images_per_batch, request.images_per_batch)
        return (indices, *(getattr(drawn, name) for name in numbers_of(request)))

    def _mapped(self, path: str) -> Bytes:
        if path not in self._maps:
            try:
                # A batch is many slices, and those of a plain array cost less than those of numpy.memmap.
                self._maps[path] = np.asarray(np.memmap(path, np.uint8, "r"))
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read ({error}): put it back, and run again") from error
        return self._maps[path]


def numbers_of(request: Request) -> tuple[str, ...]:
    """Fields of `Draws` that the graph takes in training."""
    if request.augment in NOISY:
        return ("mirror", "offset", "noise")
    return {"rrc": ("mirror",), "rrc+jitter": ("mirror", "jitter"), "none": ()}[request.augment]
