"""The random numbers of training images, each held against the distribution that it should have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from parity import Array
from parity_graphs import SEED, request_of, windows
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from pipelines.augment import COLOUR_NOISE_BASIS, COLOUR_NOISE_STD, CROP_AREA, CROP_ASPECT, JITTER
from pipelines.draws import draws
from pipelines.sources import Split

ONE_SAMPLE, TWO_SAMPLES = "Kolmogorov-Smirnov", "Kolmogorov-Smirnov, two samples"


class Verdict(NamedTuple):
    """A statistical test: p is the chance of a statistic at least as large where the distribution is as it should be."""

    quantity: str
    expected: str
    test: str
    numbers: int
    statistic: float
    p: float


def verdicts(sizes: Sequence[tuple[int, int]], windows_drawn: int, images_drawn: int) -> list[Verdict]:
    """All of them: windows in pictures of these (width, height), and what does not depend on a picture's size."""
    boxes, places = windows(sizes, windows_drawn)
    drawn_in = np.array(sizes)[places]
    return [*of_windows(boxes, torchvision_windows(drawn_in), drawn_in), *_of_draws(images_drawn)]


def of_windows(ours: Array, theirs: Array, sizes: Array) -> list[Verdict]:
    """Boxes (N, 4) of random-resized crops against torchvision's, in pictures of the same sizes (N, 2)."""
    quantities = {"crop area, share of the picture's": _area, "crop aspect, log": _aspect}
    quantities |= {"crop position, across": _across, "crop position, down": _down}
    return [
        Verdict(
            name, "torchvision's", TWO_SAMPLES, len(ours), *_figures(stats.ks_2samp(of(ours, sizes), of(theirs, sizes)))
        )
        for name, of in quantities.items()
    ]


def torchvision_windows(sizes: Array) -> Array:
    """Boxes (N, 4) that torchvision draws in pictures of these sizes."""
    blank = torch.zeros(1, 1, 1)
    boxes = []
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        for width, height in sizes.tolist():
            picture = blank.expand(3, height, width)
            top, left, h, w = RandomResizedCrop.get_params(picture, list(CROP_AREA), list(CROP_ASPECT))
            boxes.append((left, top, left + w, top + h))
    return np.array(boxes)


def _sides(boxes: Array) -> tuple[Array, Array]:
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _area(boxes: Array, sizes: Array) -> Array:
    width, height = _sides(boxes)
    return np.asarray(width * height / (sizes[:, 0] * sizes[:, 1]))


def _aspect(boxes: Array, _sizes: Array) -> Array:
    width, height = _sides(boxes)
    return np.asarray(np.log(width / height))


def _across(boxes: Array, sizes: Array) -> Array:
    room = sizes[:, 0] - _sides(boxes)[0]
    return np.asarray(boxes[room > 0, 0] / room[room > 0])


def _down(boxes: Array, sizes: Array) -> Array:
    room = sizes[:, 1] - _sides(boxes)[1]
    return np.asarray(boxes[room > 0, 1] / room[room > 0])


def _of_draws(number: int) -> Iterator[Verdict]:
    """Flips, offsets, jitter and colour noise: the numbers that go into the graph."""
    request = request_of(Split(("",), (0,), 1), augment="rrc+jitter")
    mirror, offset, noise, jitter = draws(request, 0, number)
    flips = stats.binomtest(int(mirror.sum()), number, 0.5)
    yield Verdict("flip", "one half", "binomial", number, *_figures(flips))
    places = request.resized_side - request.image_size + 1
    cells = np.bincount((offset @ (places, 1)).astype(int), minlength=places**2)
    even = f"even over {places} x {places} places"
    yield Verdict("offset of the paper's crop", even, "chi-square", number, *_figures(stats.chisquare(cells)))
    reach = np.array(JITTER) * (1, 1, 1, 360)
    for name, values, middle, width in zip(
        ("brightness", "contrast", "saturation", "hue"), jitter.T, (1, 1, 1, 0), reach, strict=True
    ):
        result = stats.kstest(values, stats.uniform(middle - width, 2 * width).cdf)
        unit = " degrees" if name == "hue" else ""
        expected = f"even, {middle - width:g} to {middle + width:g}{unit}"
        yield Verdict(f"jitter, {name}", expected, ONE_SAMPLE, number, *_figures(result))
    # The paper's a1, a2 and a3, scaled to the standard normal distribution.
    alphas = noise @ np.linalg.inv(np.array(COLOUR_NOISE_BASIS).T) / COLOUR_NOISE_STD
    for place, values in enumerate(alphas.T, 1):
        result = stats.kstest(values, "norm")
        yield Verdict(f"colour noise, component {place}", "normal, 0.1", ONE_SAMPLE, number, *_figures(result))
    yield Verdict("colour noise, covariance", "ImageNet's, by 0.01", "likelihood ratio", number, *identity(alphas))


def identity(values: Array) -> tuple[float, float]:
    """Statistic and p that normal numbers (N, k) of mean 0 have the unit matrix for their covariance."""
    number, columns = values.shape
    covariance = values.T @ values / number
    statistic = number * (np.trace(covariance) - np.linalg.slogdet(covariance)[1] - columns)
    return float(statistic), float(stats.chi2(columns * (columns + 1) / 2).sf(statistic))


def _figures(result: Any) -> tuple[float, float]:
    return float(result.statistic), float(result.pvalue)
