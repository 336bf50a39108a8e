"""Which image comes when, and every random number of an image that does not depend on its size.

All are pure functions of the seed and of how many images were drawn before, and come from integers alone: the same on
every machine, whatever the threads, and as cheap to ask for in the middle of an epoch as at its beginning.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipelines.augment import mixed_seed

Words = NDArray[np.uint64]


class Order:
    """The endless sequence of one shard's images: epoch e is one permutation of all images, cut into equal shards.

    Where `num_shards` does not divide `count`, each epoch leaves out the last few of its own permutation, at most
    `num_shards - 1`, so that shards stay equally long.
    """

    def __init__(self, count: int, seed: int, shard: int = 0, num_shards: int = 1) -> None:
        self.count, self.seed, self.shard = count, seed, shard
        self.share = count // num_shards
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def places(self, drawn: int, number: int) -> NDArray[np.int64]:
        """Places (number,) of the images that follow after `drawn` of this shard."""
        parts = []
        while number:
            epoch, start = divmod(drawn, self.share)
            part = self._epoch(epoch)[start : start + number]
            parts.append(part)
            drawn, number = drawn + len(part), number - len(part)
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """This shard's images of an epoch, in order; the newest two are kept."""
        if epoch not in self._epochs:
            self._epochs = {known: places for known, places in self._epochs.items() if known == epoch - 1}
            places = permutation(mixed_seed(self.seed, 2, epoch), self.count)
            self._epochs[epoch] = places[self.shard * self.share : (self.shard + 1) * self.share]
        return self._epochs[epoch]


def permutation(key: int, count: int) -> NDArray[np.int64]:
    """Places 0 to `count - 1` (count,) in the order of their words, whose lowest bits give way to the place itself.

    Such pairs sort far faster than places by their words: an epoch begins without a stall.
    """
    bits = np.uint64(max(1, (count - 1).bit_length()))
    pairs = words(key, np.arange(count)) >> bits << bits | np.arange(count, dtype=np.uint64)
    pairs.sort()
    return (pairs & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def words(key: int, counters: NDArray[np.int64]) -> Words:
    """64 bits for each counter (the finaliser of SplitMix64, public domain)."""
    x = counters.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64((key << 32 | key) & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(key: int, counters: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """(len(counters), columns) numbers, evenly in [0, 1)."""
    grid = counters.astype(np.int64)[:, None] * columns + np.arange(columns)
    return (words(key, grid) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(key: int, counters: NDArray[np.int64], columns: int) -> NDArray[np.float64]:
    """(len(counters), columns) numbers of the standard normal distribution (Box and Muller)."""
    even = uniforms(key, counters, 2 * columns)
    drawn: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-even[:, :columns])) * np.cos(2 * math.pi * even[:, columns:])
    return drawn
