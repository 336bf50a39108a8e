"""How far two ways of preparing a picture are apart, in levels of 0 to 255."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn

Array = NDArray[Any]
Pair = tuple[Any, Any]  # pictures (H, W, C), or what numpy makes one of
IMAGES_PER_BATCH = 16


@dataclass(frozen=True)
class Difference:
    """Of pairs of pictures: over all pixels, over those of the outermost rows and columns, and over all others."""

    images: int
    mean: float  # of a picture's pixels, then of pictures
    max_inside: float
    border_mean: float
    border_max: float
    psnr_median_db: float  # infinite where pictures are equal
    psnr_worst_db: float

    @property
    def max(self) -> float:
        return max(self.max_inside, self.border_max)


class Comparison(NamedTuple):
    """What is compared with what: `pairs` makes both of pictures, as they are stored in files."""

    ours: str
    against: str
    pairs: Callable[[Sequence[bytes]], Iterable[Pair]]
    pictures: str = "photographs"  # on which pictures, see `parity_pictures.kinds`


def difference(pairs: Iterable[Pair]) -> Difference:
    """The difference of two ways; ValueError where they give pictures of different sizes."""
    rows = np.array([_of_one(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs])
    mean, inside, border_mean, border, psnr = rows.T
    return Difference(
        len(rows), mean.mean(), inside.max(), border_mean.mean(), border.max(), float(np.median(psnr)), psnr.min()
    )


def _of_one(a: Array, b: Array) -> tuple[float, ...]:
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape} and {b.shape} cannot be compared")
    apart = np.abs(a - b)
    outermost = np.ones(apart.shape[:2], bool)
    outermost[1:-1, 1:-1] = False
    border = apart[outermost]
    square = float(np.square(apart).mean())
    psnr_db = 10 * math.log10(255**2 / square) if square else math.inf
    return float(apart.mean()), float(apart[1:-1, 1:-1].max()), float(border.mean()), float(border.max()), psnr_db


def by_dali(pictures: Sequence[bytes], graph: Callable[..., Any], *numbers: Array) -> Iterator[Array]:
    """What DALI's CPU operators in `graph` make of each encoded picture and of its row of each of `numbers`."""
    # A deeper queue would ask for batches that were not fed yet.
    depth = {"prefetch_queue_depth": 1, "exec_dynamic": True}
    pipeline = Pipeline(batch_size=IMAGES_PER_BATCH, num_threads=2, device_id=None, **depth)
    with pipeline:
        inputs = [fn.external_source(name=str(place)) for place in range(1 + len(numbers))]
        pipeline.set_outputs(graph(*inputs))
    pipeline.build()
    for first in range(0, len(pictures), IMAGES_PER_BATCH):
        batch = range(first, min(first + IMAGES_PER_BATCH, len(pictures)))
        pipeline.feed_input("0", [np.frombuffer(pictures[place], np.uint8) for place in batch])
        for name, values in enumerate(numbers, 1):
            pipeline.feed_input(str(name), [np.asarray(values[place]) for place in batch])
        (made,) = pipeline.run()
        yield from (np.array(made.at(place)) for place in range(len(batch)))
    pipeline._shutdown()
