"""Whole graphs, as `pipelines.create` gives them, against the same steps with the same draws in Pillow and numpy."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import Pipeline, fn
from parity import Array, Pair
from parity_operators import BILINEAR, CUT, SIDE, squared, torchvision_square, twisted
from parity_pictures import opened
from PIL import Image

import pipelines
from pipelines import Request
from pipelines.augment import CHANNEL_MEANS, CODE2012_DIVISOR, CROP_AREA, CROP_ASPECT, mixed_seed
from pipelines.dali import decoder_arguments, fed
from pipelines.draws import draws
from pipelines.order import Order
from pipelines.sources import Split

SEED = 1
IMAGES_PER_BATCH = 20
ROOM = SIDE - CUT
# Top and left of the paper's views in the square of 256: the corners and the middle.
VIEWS = ((0, 0), (0, ROOM), (ROOM, 0), (ROOM, ROOM), (ROOM // 2, ROOM // 2))


# Any picture will do for a mean image that is to be subtracted.
MEAN_IMAGE = np.random.default_rng(0).uniform(80, 150, (CUT, CUT, 3)).astype(np.float32)


class GraphComparison(NamedTuple):
    """A graph's name, what it is compared with, and both sides' pictures of a split."""

    ours: str
    against: str
    pairs: Callable[[Split], Iterable[Pair]]


class Draw(NamedTuple):
    """What was drawn for one training image."""

    place: int
    mirror: bool
    offset: Array
    noise: Array
    jitter: Array


def request_of(split: Split, **arguments: Any) -> Request:
    return Request(split=split, images_per_batch=IMAGES_PER_BATCH, seed=SEED, **arguments)


def made(split: Split, **arguments: Any) -> Iterator[Array]:
    """Pictures (S, S, 3) as the pipeline gives them: as many as the split has; ten for each with `views=10`."""
    count = len(split) * arguments.get("views", 1)
    own = {"split": split, "images_per_batch": IMAGES_PER_BATCH, "seed": SEED}
    with closing(pipelines.create("dali", **own, **arguments)) as batches:
        images = (image for batch in batches for image in batch.images.permute(0, 2, 3, 1).numpy())
        yield from itertools.islice(images, count)


def drawn(split: Split, number: int, **arguments: Any) -> Iterator[Draw]:
    """What the pipeline draws for the first `number` images."""
    places = Order(len(split), SEED).places(0, number)
    numbers = draws(request_of(split, **arguments), 0, number)
    for place, mirror, offset, noise, jitter in zip(places, *numbers, strict=True):
        yield Draw(int(place), bool(mirror), offset, noise, jitter)


def photo(split: Split, place: int) -> Image.Image:
    return opened(Path(split.files[place]).read_bytes())


def cut(image: Image.Image, top: float, left: float, *, mirror: bool = False) -> Image.Image:
    """A crop of 224 x 224 of a square, flipped where asked."""
    image = image.crop((int(left), int(top), int(left) + CUT, int(top) + CUT))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image


def less_mean(image: Any, mean: Any = CHANNEL_MEANS) -> Array:
    return np.asarray(np.asarray(image, np.float64) - mean)


def evaluation(square: Callable[[Image.Image], Image.Image]) -> Callable[[Split], Iterable[Pair]]:
    def pairs(split: Split) -> Iterable[Pair]:
        wanted = (less_mean(cut(square(photo(split, p)), ROOM // 2, ROOM // 2)) for p in range(len(split)))
        return zip(made(split, training=False), wanted, strict=True)

    return pairs


def ten_views(split: Split) -> Iterable[Pair]:
    wanted = (
        less_mean(cut(square, *view, mirror=mirror))
        for square in (squared(photo(split, place)) for place in range(len(split)))
        for mirror in (False, True)
        for view in VIEWS
    )
    return zip(made(split, training=False, views=10), wanted, strict=True)


def paper(augment: str, divisor: float, **arguments: Any) -> Callable[[Split], Iterable[Pair]]:
    """The paper's training images: crop of the square, flip, minus the mean, colour noise, and a divisor."""
    mean = arguments.get("mean_image", CHANNEL_MEANS)

    def pairs(split: Split) -> Iterable[Pair]:
        crops = (
            (one.noise, cut(squared(photo(split, one.place)), *one.offset, mirror=one.mirror))
            for one in drawn(split, len(split), augment=augment)
        )
        wanted = ((less_mean(crop, mean) + noise) / divisor for noise, crop in crops)
        return zip(made(split, augment=augment, **arguments), wanted, strict=True)

    return pairs


def random_resized(augment: str) -> Callable[[Split], Iterable[Pair]]:
    """The window that DALI drew, resized by Pillow, its colours changed by DALI's formula in numpy, flipped."""

    def pairs(split: Split) -> Iterable[Pair]:
        sizes = [photo(split, place).size for place in range(len(split))]
        boxes, _ = windows(sizes, len(split))
        wanted = map(one_of_a_window, itertools.repeat(split), drawn(split, len(split), augment=augment), boxes)
        return zip(made(split, augment=augment), wanted, strict=True)

    def one_of_a_window(split: Split, one: Draw, box: Array) -> Array:
        image: Any = photo(split, one.place).crop(tuple(box.tolist())).resize((CUT, CUT), BILINEAR)
        image = twisted(image, one.jitter) if augment == "rrc+jitter" else np.asarray(image)
        return less_mean(image[:, ::-1] if one.mirror else image)

    return pairs


def windows(sizes: Sequence[tuple[int, int]], number: int) -> tuple[Array, Array]:
    """Boxes (N, 4) that DALI's decoder draws for the first `number` training images, and the place (N,) of each image.

    Random-resized crops are drawn inside the decoder, from a picture's (width, height) and the pipeline's seed. Pictures
    of the same sizes, whose pixels tell where they lie, go through the same operators under the same seed.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{place}.ppm" for place in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            coordinates(*size).save(path)
        request = request_of(Split(tuple(map(str, paths)), (0,) * len(paths), 1))
        pipeline = Pipeline(
            IMAGES_PER_BATCH, 2, None, seed=mixed_seed(SEED, 1, 0), prefetch_queue_depth=1, exec_dynamic=True
        )
        with pipeline:
            encoded, _, _ = fed(request)
            pipeline.set_outputs(
                fn.decoders.image_random_crop(
                    encoded,
                    random_area=list(CROP_AREA),
                    random_aspect_ratio=list(CROP_ASPECT),
                    **decoder_arguments(request),
                )
            )
        pipeline.build()
        boxes: list[Array] = []
        for _ in range(math.ceil(number / IMAGES_PER_BATCH)):
            (parts,) = pipeline.run()
            boxes += [box_of(np.array(parts.at(place))) for place in range(IMAGES_PER_BATCH)]
        pipeline._shutdown()
    return np.array(boxes[:number]), Order(len(sizes), SEED).places(0, number)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose pixels are their own coordinates: low bytes of x and y, then what is above them."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.dstack([x & 255, y & 255, x >> 8 << 4 | y >> 8]).astype(np.uint8))


def box_of(part: Array) -> Array:
    """Left, top, right and bottom of a part of such a picture."""
    corners = part[[0, -1], [0, -1]].astype(int)
    x = corners[:, 0] | corners[:, 2] >> 4 << 8
    y = corners[:, 1] | (corners[:, 2] & 15) << 8
    return np.array([x[0], y[0], x[1] + 1, y[1] + 1])


GRAPHS = (
    GraphComparison("evaluation, centre crop", "Pillow", evaluation(squared)),
    GraphComparison("evaluation, centre crop", "torchvision `Resize`, `CenterCrop`", evaluation(torchvision_square)),
    GraphComparison("evaluation, ten views", "Pillow", ten_views),
    GraphComparison("training, `paper`", "Pillow and numpy", paper("paper", 1.0)),
    GraphComparison("training, `paper`, mean image", "Pillow and numpy", paper("paper", 1.0, mean_image=MEAN_IMAGE)),
    GraphComparison("training, `paper`, float16", "Pillow and numpy", paper("paper", 1.0, dtype="float16")),
    GraphComparison("training, `code2012`", "Pillow and numpy", paper("code2012", CODE2012_DIVISOR)),
    GraphComparison("training, `rrc`", "Pillow", random_resized("rrc")),
    GraphComparison("training, `rrc+jitter`", "Pillow, the colour matrix by numpy", random_resized("rrc+jitter")),
)
