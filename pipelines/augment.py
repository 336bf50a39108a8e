"""The numbers of preparing an image, shared by every pipeline. Pixels are 0 to 255, channels R, G, B."""

from __future__ import annotations

import math

# ImageNet's, from the metadata file that cuda-convnet2 ships: means over the pixels of its mean image.
CHANNEL_MEANS = (127.30, 119.72, 104.91)

# Of the covariance of RGB over ImageNet's training pixels, from the same file. The paper (section 4.1) prints
# eigenvalues; on this scale those would drown the picture, and the code released with it uses their square roots.
EIGENVALUE_ROOTS = (19.7208, 37.0939, 121.7801)
EIGENVECTORS = (  # one a row, in the order of the roots
    (0.41796, -0.81698, 0.39731),
    (-0.71258, -0.02354, 0.70120),
    (-0.56351, -0.57618, -0.59200),
)
COLOUR_NOISE_STD = 0.1

# Colour noise of one image = COLOUR_NOISE_BASIS @ a with a ~ N(0, COLOUR_NOISE_STD^2) in three dimensions.
COLOUR_NOISE_BASIS = tuple(
    tuple(vector[channel] * root for vector, root in zip(EIGENVECTORS, EIGENVALUE_ROOTS, strict=True))
    for channel in range(3)
)

# Random-resized crop: share of the picture's area, and width over height, drawn evenly on a log scale.
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)

# Colour jitter: brightness, contrast and saturation are multiplied by 1 plus or minus at most this; the hue turns by at
# most this share of a full turn either way.
JITTER = (0.4, 0.4, 0.4, 0.1)

# Where the source released with the paper (`code2012`) differs from the print: crop and flip are shared by so many
# consecutive images, and the noisy image is divided.
IMAGES_A_CROP = 32
CODE2012_DIVISOR = 1.1


def centre_square(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels of a picture, of what becomes its centre square of `side` x `side`.

    What DALI's `resize_shorter` and `crop` show: the picture is resized about its middle, to a longer side of whole pixels,
    and the square begins at a whole pixel of that; both are rounded to the nearest, halves up.
    """
    scale = min(width, height) / side
    left, top = (
        extent / 2 + (math.floor((resized - side) / 2 + 0.5) - resized / 2) * scale
        for extent, resized in ((extent, math.floor(extent / scale + 0.5)) for extent in (width, height))
    )
    return left, top, left + side * scale, top + side * scale


def mixed_seed(*parts: int) -> int:
    """A seed of 31 bits made of several numbers, the same on every machine and Python."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
        state = state * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 32
    return state & 0x7FFFFFFF
