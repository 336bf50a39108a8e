"""A training set's mean image and the covariance of its colours, from exact integer sums over one pass.

Sums of whole numbers do not depend on the order of the images, on threads or on batch sizes, so two machines that
decode alike get the same bits. Everything else follows from the sums, which are what is saved.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines import DataError
from pipelines.dataset.whole import write_whole
from pipelines.sources.imageset import Progress, Split, StrPath

VERSION = 1
ID_CHARACTERS = 12
STRIP_PIXELS = 8192
CONTENTS = ("version", "statistics_id", "dataset_id", "side", "count", "pixel_sums", "product_sums")

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was summed over `count` images (side, side, 3) of pixels 0 to 255, and all that follows from it."""

    side: int
    count: int
    pixel_sums: Int  # (side, side, 3): every pixel, summed over the images
    product_sums: Int  # (3, 3): of every two channels' product, summed over the images and their pixels
    dataset_id: str = ""

    @cached_property
    def statistics_id(self) -> str:
        """Digest of the sums, which names the file: equal sums are the same statistics whatever file holds them."""
        digest = hashlib.sha256(np.array([VERSION, self.side, self.count], "<i8").tobytes())
        for sums in (self.pixel_sums, self.product_sums):
            digest.update(np.ascontiguousarray(sums, "<i8").tobytes())
        return digest.hexdigest()[:ID_CHARACTERS]

    @property
    def mean_image(self) -> Float:
        """(side, side, 3)."""
        mean: Float = self.pixel_sums / self.count
        return mean

    @property
    def channel_means(self) -> Float:
        """(3,)."""
        return np.array([total / self._pixels for total in self._channel_sums])

    @property
    def covariance(self) -> Float:
        """(3, 3), of the colours of all pixels of all images; divided by their number."""
        # Whole numbers of Python: the difference of two sums of 10^20 would leave few digits of a float.
        n, sums, products = self._pixels, self._channel_sums, self.product_sums.tolist()
        return np.array([[(n * products[a][b] - sums[a] * sums[b]) / n**2 for b in range(3)] for a in range(3)])

    @property
    def eigenvalue_roots(self) -> Float:
        """(3,), ascending: standard deviations of the colours along the eigenvectors."""
        roots: Float = np.sqrt(self._eigen[0].clip(min=0))
        return roots

    @property
    def eigenvectors(self) -> Float:
        """(3, 3), one a column, in the order of the roots; the largest component of each is positive."""
        return self._eigen[1]

    @cached_property
    def _eigen(self) -> tuple[Float, Float]:
        values, vectors = np.linalg.eigh(self.covariance)
        largest = vectors[np.abs(vectors).argmax(axis=0), range(3)]
        return values, vectors * np.where(largest < 0, -1.0, 1.0)

    @property
    def _pixels(self) -> int:
        return self.count * self.side**2

    @property
    def _channel_sums(self) -> list[int]:
        return [int(total) for total in self.pixel_sums.sum(axis=(0, 1))]


class Sums:
    """Adds up images, exactly: every number on the way is whole and fits its type.

    A pixel's sum over one batch fits uint32 up to 16 million images; the product of two channels over one strip is at
    most 65,025 x 8,192, far below the 2^53 to which float64 counts; the totals fit int64 up to 2 x 10^9 images of
    256 x 256.
    """

    def __init__(self, side: int) -> None:
        self.side, self.count = side, 0
        self.pixel_sums: Int = np.zeros((side, side, 3), np.int64)
        self.product_sums: Int = np.zeros((3, 3), np.int64)
        self._planes: Float = np.empty((3, STRIP_PIXELS))

    def add(self, images: NDArray[np.uint8]) -> None:
        """Images (N, side, side, 3)."""
        assert images.dtype == np.uint8, images.dtype
        assert images.shape[1:] == self.pixel_sums.shape, images.shape
        self.pixel_sums += images.sum(axis=0, dtype=np.uint32)
        pixels = images.reshape(-1, 3)
        for start in range(0, len(pixels), STRIP_PIXELS):
            self._add_products(pixels[start : start + STRIP_PIXELS])
        self.count += len(images)

    def _add_products(self, pixels: NDArray[np.uint8]) -> None:
        planes = self._planes[:, : len(pixels)]
        np.copyto(planes, pixels.T)
        for a, b in itertools.combinations_with_replacement(range(3), 2):
            # Dot products: a matrix product of this shape is twice as slow, and wider strips wake BLAS's threads, which
            # would take the cores from the decoder.
            self.product_sums[a, b] += int(planes[a] @ planes[b])
            self.product_sums[b, a] = self.product_sums[a, b]

    def statistics(self, dataset_id: str = "") -> Statistics:
        """Of the images added so far."""
        return Statistics(self.side, self.count, self.pixel_sums.copy(), self.product_sums.copy(), dataset_id)


def measure(
    split: Split,
    *,
    side: int = 256,
    threads: int = 2,
    images_per_batch: int = 64,
    progress: Progress | None = None,
    dataset_id: str = "",
) -> Statistics:
    """Of the centre squares, resized to `side`, of every image of a split, each once, decoded by DALI.

    `DataError` for no images, and for one that cannot be decoded.
    """
    if not len(split):
        raise DataError("there are no images to measure: give a set with training images")
    sums = Sums(side)
    batches = pipelines.create(
        "dali", split=split, images_per_batch=min(images_per_batch, len(split)), training=False, image_size=side,
        resized_side=side, dtype="uint8", threads=threads, device="cpu",
    )  # fmt: skip
    with closing(batches):
        for batch in batches:
            images = batch.images.permute(0, 2, 3, 1).numpy()
            sums.add(images[batch.indices.numpy() >= 0])
            if progress is not None:
                progress(sums.count, len(split))
    assert sums.count == len(split), "every image is given once"
    return sums.statistics(dataset_id)


def colour_basis(statistics: Statistics) -> Float:
    """(3, 3): colour noise of an image is this times a ~ N(0, 0.1^2) in three dimensions, as `COLOUR_NOISE_BASIS`."""
    return statistics.eigenvectors * statistics.eigenvalue_roots


def mean_crop(statistics: Statistics, image_size: int) -> NDArray[np.float32]:
    """The middle (image_size, image_size, 3) of the mean image; `DataError` where it is smaller than that."""
    if image_size > statistics.side:
        raise DataError(
            f"a mean image of {image_size} pixels was asked of statistics over {statistics.side} x {statistics.side}: "
            "measure with a larger side, or ask for smaller images"
        )
    first = (statistics.side - image_size) // 2
    part = slice(first, first + image_size)
    return statistics.mean_image[part, part].astype(np.float32)


def save(statistics: Statistics, folder: StrPath) -> Path:
    """Write `statistics-<id>.npz` into a folder, whole or not at all; its path."""
    path = Path(folder) / f"statistics-{statistics.statistics_id}.npz"
    archive = io.BytesIO()
    np.savez(archive, version=np.int64(VERSION), **{name: getattr(statistics, name) for name in CONTENTS[1:]})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, archive.getvalue())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror or error}): name another folder") from error
    return path


def load(path: StrPath) -> Statistics:
    """What `save` wrote; `DataError` for a file that is damaged, of a newer version, or not what its id says."""
    remake = "make it anew with `data statistics`"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            version = int(archive["version"])
            if version > VERSION:
                raise DataError(f"{path} is of version {version} and this program knows {VERSION}: use a newer program")
            found: dict[str, Any] = {name: archive[name] for name in CONTENTS}
        statistics = _statistics(found)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: {remake}") from error
    except DataError:
        raise
    # numpy and zipfile have no error of their own for a file that is none of theirs.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
        raise DataError(f"{path} is damaged or holds no statistics: {remake}") from error
    if statistics.statistics_id != str(found["statistics_id"]):
        raise DataError(
            f"{path} says it is {found['statistics_id']} and holds {statistics.statistics_id}: it was changed, {remake}"
        )
    return statistics


def _statistics(found: dict[str, Any]) -> Statistics:
    """ValueError where shapes, types or counts are none that `save` writes."""
    side, count = int(found["side"]), int(found["count"])
    sums = {"pixel_sums": (side, side, 3), "product_sums": (3, 3)}
    if any(found[name].shape != shape or found[name].dtype != np.int64 for name, shape in sums.items()) or count < 1:
        raise ValueError("these are no sums")
    return Statistics(side, count, **{name: found[name] for name in sums}, dataset_id=str(found["dataset_id"]))
