"""The random numbers of training images: which way, where, which colours. Functions of seed, shard and images drawn before.

The window of a random-resized crop depends on the picture's size and is drawn where it is decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines import Request
from pipelines.augment import COLOUR_NOISE_STD, IMAGES_A_CROP, mixed_seed
from pipelines.order import normals, uniforms

# What each stream of numbers is for: two streams never share a number.
MIRROR, OFFSET, NOISE, JITTER = 10, 11, 12, 13


class Draws(NamedTuple):
    """Numbers of `number` images in a row."""

    mirror: NDArray[np.int32]  # (N,) 1: the image is flipped left to right
    offset: NDArray[np.float32]  # (N, 2) first row and column of the crop in the centre square, whole pixels
    noise: NDArray[np.float32]  # (N, 3) colour added to all pixels of the image: section 4.1 of the paper
    jitter: NDArray[np.float32]  # (N, 4) factors of brightness, contrast and saturation; degrees that the hue turns


def draws(request: Request, drawn: int, number: int) -> Draws:
    """The numbers of the `number` images that follow after `drawn` of this shard."""
    counters = np.arange(drawn, drawn + number, dtype=np.int64)
    # The source released with the paper cuts this many consecutive images at one place, and flips them together.
    shared = counters // IMAGES_A_CROP if request.augment == "code2012" else counters

    def key(stream: int) -> int:
        return mixed_seed(request.seed, stream, request.shard)

    places = request.resized_side - request.image_size + 1
    basis = np.array(request.colour_basis)
    noisy = counters < request.noise_images if request.noise_images is not None else np.ones(number, bool)
    reach = np.array(request.jitter) * (1, 1, 1, 360)
    return Draws(
        mirror=(uniforms(key(MIRROR), shared, 1)[:, 0] < 0.5).astype(np.int32),
        offset=np.floor(uniforms(key(OFFSET), shared, 2) * places).astype(np.float32),
        noise=(COLOUR_NOISE_STD * normals(key(NOISE), counters, 3) @ basis.T * noisy[:, None]).astype(np.float32),
        jitter=((1, 1, 1, 0) + reach * (2 * uniforms(key(JITTER), counters, 4) - 1)).astype(np.float32),
    )
