"""DALI's operators against Pillow's, torchvision's and numpy's, one at a time, with the options that our pipelines choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from parity import Array, Comparison, Pair, by_dali
from parity_pictures import opened, plain_chroma
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from pipelines import Request
from pipelines.augment import CHANNEL_MEANS, COLOUR_NOISE_BASIS, COLOUR_NOISE_STD, centre_square
from pipelines.dali import colour_jitter, crop_of_resized
from pipelines.sources import Split

SIDE, CUT = 256, 224
BILINEAR = Image.Resampling.BILINEAR
JITTER = (1.3, 0.7, 1.3, 25.0)  # brightness, contrast, saturation; degrees of hue
PAPER = Request(split=Split(("",), (0,), 1), images_per_batch=1, augment="paper")

Numbers = Callable[[Sequence[bytes]], Array]


def against(graph: Callable[..., Any], reference: Callable[..., Any], numbers: Numbers | None = None) -> Any:
    """`Comparison.pairs` of a DALI graph of a file, and a function of its picture; `numbers` of each go into both."""

    def pairs(pictures: Sequence[bytes]) -> Iterable[Pair]:
        rows = [numbers(pictures)] if numbers else []
        images = map(opened, pictures)
        return zip(by_dali(pictures, graph, *rows), map(reference, images, *rows), strict=True)

    return pairs


def decode(encoded: Any, **options: Any) -> Any:
    return fn.decoders.image(encoded, adjust_orientation=False, **options)


def same(image: Image.Image) -> Image.Image:
    return image


def turned(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_270)


# Crops and sizes. Boxes are (left, top, right, bottom) in pixels of the stored picture, as Pillow writes them.


def windows(pictures: Sequence[bytes]) -> Array:
    """(N, 4) whole pixels: a box of each picture, some 60 % of either side, off its middle."""
    sizes = np.array([opened(picture).size * 2 for picture in pictures])
    return np.rint(sizes * (0.15, 0.1, 0.75, 0.7)).astype(np.int32)


def offsets(pictures: Sequence[bytes]) -> Array:
    """(N, 2) first row and column of a crop in the centre square: the four corners in turn, then at random."""
    corners = np.array([(0, 0), (0, 32), (32, 0), (32, 32)])
    rest = np.random.default_rng(0).integers(0, SIDE - CUT + 1, (max(0, len(pictures) - 4), 2))
    return np.concatenate([corners, rest])[: len(pictures)].astype(np.float32)


def square_box(image: Image.Image) -> tuple[float, float, float, float]:
    """The picture's centre square, not rounded to whole pixels."""
    half = min(image.size) / 2
    x, y = image.width / 2, image.height / 2
    return (x - half, y - half, x + half, y + half)


def exact_square(image: Image.Image) -> Image.Image:
    """256 x 256 of the exact middle, which nobody cuts."""
    return image.resize((SIDE, SIDE), BILINEAR, box=square_box(image))


def squared(image: Image.Image) -> Image.Image:
    """The paper's square of 256 x 256."""
    return image.resize((SIDE, SIDE), BILINEAR, box=centre_square(*image.size, SIDE))


def cropped(image: Image.Image, offset: Array) -> Image.Image:
    """A crop of the paper's square."""
    top, left = map(int, offset)
    return squared(image).crop((left, top, left + CUT, top + CUT))


def slice_and_resize(encoded: Any, box: Any) -> Any:
    start, end = fn.stack(box[1], box[0]), fn.stack(box[3], box[2])
    window = fn.decoders.image_slice(encoded, start=start, end=end, axes=[0, 1], adjust_orientation=False)
    return fn.resize(window, size=[CUT, CUT])


def crop_of_decoded(encoded: Any, offset: Any) -> Any:
    """The paper's crop by DALI's plain graph: all decoded, all resized, the square cut out, then the crop."""
    return fn.slice(shorter_and_crop(encoded), fn.cast(offset, dtype=types.INT32), [CUT, CUT], axes=[0, 1])


def crop_of_part(encoded: Any, offset: Any) -> Any:
    return crop_of_resized(PAPER, encoded, offset, CUT)


def shorter_and_crop(encoded: Any, **options: Any) -> Any:
    """The centre square as DALI's own resize to whole pixels and crop at whole pixels give it."""
    return fn.crop(fn.resize(decode(encoded), resize_shorter=SIDE, **options), crop=[SIDE, SIDE])


def partial_against_whole(pictures: Sequence[bytes]) -> Iterable[Pair]:
    rows = offsets(pictures)
    return zip(by_dali(pictures, crop_of_part, rows), by_dali(pictures, crop_of_decoded, rows), strict=True)


def torchvision_square(image: Image.Image) -> Image.Image:
    square: Image.Image = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE)])(image)
    return square


# Colours.


def jittered_by_dali(**factors: Any) -> Callable[[Any], Any]:
    return lambda encoded: fn.color_twist(decode(encoded), **factors)


def jittered(image: Image.Image, order: Sequence[int] = (0, 1, 2, 3)) -> Image.Image:
    """All four changes by torchvision, in this order."""
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for place in order:
        image = changes[place](image, JITTER[place] if place < 3 else JITTER[3] / 360)
    return image


def twisted(image: Any, jitter: Sequence[float] | Array = JITTER) -> Array:
    """All four changes as DALI defines them: one matrix and one offset, then rounded and clipped once."""
    brightness, contrast, saturation, degrees = jitter
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    to_rgb = np.array([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]])
    cos, sin = (f(math.radians(degrees)) for f in (math.cos, math.sin))
    hue = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    matrix = brightness * contrast * to_rgb @ hue @ np.diag([1, saturation, saturation]) @ to_yiq
    moved = np.asarray(image, np.float64) @ matrix.T + brightness * (128 - 128 * contrast)
    return np.asarray(np.clip(np.rint(moved), 0, 255))


def torchvision_orders(pictures: Sequence[bytes]) -> Iterable[Pair]:
    images = map(opened, pictures)
    return ((jittered(image, (3, 2, 1, 0)), jittered(image)) for image in images)


def noises(pictures: Sequence[bytes]) -> Array:
    normal = np.random.default_rng(0).standard_normal((len(pictures), 3))
    return np.asarray(COLOUR_NOISE_STD * normal @ np.array(COLOUR_NOISE_BASIS).T, np.float32)


def less_mean(dtype: Any) -> Callable[..., Any]:
    """Minus the mean, plus a colour where one is given; the mean is put back afterwards, to show levels."""

    def graph(encoded: Any, noise: Any = 0.0) -> Any:
        mean = types.Constant(np.array(CHANNEL_MEANS, np.float32)) - noise
        return fn.crop_mirror_normalize(decode(encoded), dtype=dtype, output_layout="HWC", mean=mean, std=[1.0] * 3)

    return graph


def less_mean_by_numpy(image: Image.Image, noise: Array | float = 0.0) -> Array:
    return np.asarray(image, np.float64) - CHANNEL_MEANS + noise


SQUARES = "squares"
OPERATORS = (
    *(
        Comparison(f"decode, {kind}", "Pillow", against(decode, same), kind)
        for kind in ("4:4:4", "4:2:2", "4:2:0", "grey", "CMYK", "progressive", "PNG")
    ),
    Comparison("decode, fast IDCT (not used)", "Pillow", against(lambda e: decode(e, use_fast_idct=True), same)),
    Comparison(
        "plain chroma upsampling (not used)", "Pillow", lambda all: ((plain_chroma(p), opened(p)) for p in all), "4:2:0"
    ),
    Comparison("EXIF orientation ignored", "Pillow", against(decode, same), "turned"),
    Comparison("EXIF orientation obeyed (not used)", "Pillow, turned", against(fn.decoders.image, turned), "turned"),
    Comparison(
        "resize to 224 x 224",
        "Pillow",
        against(lambda e: fn.resize(decode(e), size=[CUT, CUT]), lambda image: image.resize((CUT, CUT), BILINEAR)),
    ),
    Comparison(
        "resize to 224 x 224 without antialiasing (not used)",
        "Pillow",
        against(
            lambda e: fn.resize(decode(e), size=[CUT, CUT], antialias=False),
            lambda image: image.resize((CUT, CUT), BILINEAR),
        ),
    ),
    Comparison(
        "window decoded alone, resized to 224",
        "torchvision `resized_crop`",
        against(
            slice_and_resize,
            lambda i, box: tv.resized_crop(
                i, *map(int, (box[1], box[0], box[3] - box[1], box[2] - box[0])), [CUT, CUT]
            ),
            windows,
        ),
    ),
    Comparison(
        "window decoded alone, resized to 224",
        "Pillow `resize(box=)`",
        against(slice_and_resize, lambda i, box: i.resize((CUT, CUT), BILINEAR, tuple(map(int, box))), windows),
    ),
    Comparison("the paper's crop, part decoded", "DALI's plain graph", partial_against_whole),
    Comparison("the paper's crop, part decoded", "Pillow", against(crop_of_part, cropped, offsets)),
    Comparison("`resize_shorter`, crop 256", "Pillow, the same square", against(shorter_and_crop, squared)),
    Comparison("`resize_shorter`, crop 256", "Pillow, exact square", against(shorter_and_crop, exact_square)),
    Comparison(
        "`resize_shorter`, crop 256",
        "torchvision `Resize`, `CenterCrop`",
        against(shorter_and_crop, torchvision_square),
    ),
    Comparison(
        "torchvision `Resize`, `CenterCrop`",
        "Pillow, exact square",
        lambda all: ((torchvision_square(opened(p)), exact_square(opened(p))) for p in all),
    ),
    Comparison(
        "flip",
        "Pillow",
        against(lambda e: fn.flip(decode(e)), lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        SQUARES,
    ),
    Comparison("minus the mean, float32", "numpy", against(less_mean(types.FLOAT), less_mean_by_numpy), SQUARES),
    Comparison("minus the mean, float16", "numpy", against(less_mean(types.FLOAT16), less_mean_by_numpy), SQUARES),
    Comparison(
        "the paper's colour noise", "numpy", against(less_mean(types.FLOAT), less_mean_by_numpy, noises), SQUARES
    ),
    *(
        Comparison(
            f"{name} {value:g}",
            "torchvision",
            against(jittered_by_dali(**{name: value}), lambda image, place=place: jittered(image, (place,))),
            SQUARES,
        )
        for place, (name, value) in enumerate(zip(("brightness", "contrast", "saturation", "hue"), JITTER, strict=True))
    ),
    Comparison(
        "all four, one matrix",
        "torchvision, in this order",
        against(lambda e: colour_jitter(decode(e), types.Constant(list(JITTER))), jittered),
        SQUARES,
    ),
    Comparison("torchvision, all four in this order", "torchvision, in reverse", torchvision_orders, SQUARES),
    Comparison(
        "all four, one matrix",
        "the same formula, by numpy",
        against(lambda e: colour_jitter(decode(e), types.Constant(list(JITTER))), twisted),
        SQUARES,
    ),
)
