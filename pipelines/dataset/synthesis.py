"""The pictures of the embedded set, made from integers alone: equal bytes on every CPU and numpy version.

A picture is fractal noise, blurred less in brightness than in colour as in a photograph, over its class's colour, with
the class's stripes and a few ellipses. What differs between classes fills the whole picture, so that a crop of a
twelfth of it still tells. Sizes, sampling and quality follow ImageNet's photographs, so that it decodes as they do.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SEED = 20120930
CLASSES = ("amber", "azure", "brick", "fern", "jade", "lilac", "olive", "plum", "rose", "slate")

# Colour of a class: brightness, and blue and red differences from grey. The hues are a tenth of a turn apart.
PALETTE = (
    (150, -57, 19), (105, 35, -48), (100, -19, 57), (140, -35, -48), (110, 0, -59),
    (155, 35, 48), (100, -57, -19), (95, 0, 59), (150, 57, 19), (115, 57, -19),
)  # fmt: skip
# Stripes of a class: steps along x and y in 1/256 turn a pixel; several periods fit into a small crop.
STRIPES = ((24, 0), (0, 24), (14, 14), (14, -14), (9, 0), (0, 9), (20, 8), (8, 20), (20, -8), (8, -20))

# Width and height with weights out of 64.
SIZES_444 = (
    ((500, 375), 30), ((500, 333), 13), ((375, 500), 8), ((333, 500), 5), ((500, 334), 4), ((400, 300), 2), ((500, 500), 2),
)  # fmt: skip
SIZES_420 = (
    ((500, 375), 30), ((375, 500), 8), ((500, 333), 8), ((640, 480), 8), ((800, 600), 8), ((320, 240), 4),
)  # fmt: skip
FINEST_CELL_LOG2 = 6  # the noise starts from cells of 64 pixels
CHROMA_444, CHROMA_420 = 0, 2  # Pillow's numbers for the sampling

Plane = NDArray[np.int16]


@dataclass(frozen=True)
class Format:
    """How a picture is stored."""

    width: int
    height: int
    subsampling: int
    quality: int
    grey: bool


class Draws:
    """Numbers from a counter put through an integer hash (the finaliser of MurmurHash3, public domain)."""

    def __init__(self, stream: int) -> None:
        self.start = (SEED * 2654435761 + stream * 0x9E3779B9) & 0xFFFFFFFF
        self.counter = 0

    def words(self, count: int) -> NDArray[np.uint32]:
        """`count` numbers of 32 bits."""
        x = np.arange(self.counter, self.counter + count, dtype=np.uint32)
        self.counter += count
        x *= np.uint32(0x9E3779B1)
        x ^= np.uint32(self.start)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        return x

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound - 1`."""
        return int(self.words(1)[0]) * bound >> 32

    def noise(self, height: int, width: int, amplitude: int) -> Plane:
        """(height, width), evenly from -amplitude to amplitude."""
        words = self.words((height * width + 3) // 4).astype("<u4")
        plane = words.view(np.uint8)[: height * width].reshape(height, width).astype(np.int16)
        plane -= 128
        plane *= np.int16(amplitude)
        plane >>= 7
        return plane


def picture(number: int, label: int) -> bytes:
    """JPEG file of picture `number` (the file's bytes are a function of the two numbers alone)."""
    draws = Draws(number)
    how = _format(draws)
    planes = _planes(draws, how, label)
    bands = [Image.fromarray(plane) for plane in planes]
    image = bands[0] if how.grey else Image.merge("YCbCr", bands)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=how.quality, subsampling=how.subsampling)
    return file.getvalue()


def _format(draws: Draws) -> Format:
    kind = draws.below(64)
    sizes = SIZES_444 if kind < 50 else SIZES_420
    width, height = _weighted(draws, sizes)
    if kind < 50:
        return Format(width, height, CHROMA_444, 96, grey=False)
    return Format(width, height, CHROMA_420, 84, grey=kind >= 62)


def _weighted(draws: Draws, choices: tuple[tuple[tuple[int, int], int], ...]) -> tuple[int, int]:
    place = draws.below(sum(weight for _, weight in choices))
    for choice, weight in choices:
        place -= weight
        if place < 0:
            return choice
    raise AssertionError("the weights cover every draw")


def _planes(draws: Draws, how: Format, label: int) -> list[NDArray[np.uint8]]:
    """Brightness, blue and red difference of a picture, each (height, width) uint8."""
    grain = 1 + draws.below(9) + draws.below(24) * (draws.below(3) == 0)
    base = [value + draws.below(17) - 8 for value in PALETTE[label]]
    luma = fractal(draws, how.height, how.width, 48, grain)
    luma += _stripes(draws, luma, label)
    half = [fractal(draws, (how.height + 1) // 2, (how.width + 1) // 2, 10, grain // 3) for _ in range(2)]
    planes = [luma, *(_doubled(plane)[: how.height, : how.width] for plane in half)]
    for _ in range(2 + draws.below(4)):
        _ellipse(draws, planes)
    planes[0] += np.int16(base[0])
    planes[1] += np.int16(128 + base[1])
    planes[2] += np.int16(128 + base[2])
    return [np.clip(plane, 0, 255).astype(np.uint8) for plane in planes]


def fractal(draws: Draws, height: int, width: int, coarse: int, fine: int) -> Plane:
    """Noise (height, width) whose octaves fall from amplitude `coarse` at 64 pixels to `fine` at one."""
    cell = 1 << FINEST_CELL_LOG2
    rows, columns = -(-height // cell) + 1, -(-width // cell) + 1
    plane = draws.noise(rows, columns, coarse)
    for octave in range(1, FINEST_CELL_LOG2 + 1):
        rows, columns = min(2 * rows - 1, height + 1), min(2 * columns - 1, width + 1)
        plane = _between(plane)[:rows, :columns]
        plane += draws.noise(rows, columns, max(fine, coarse >> octave))
    return np.ascontiguousarray(plane[:height, :width])


def _between(plane: Plane) -> Plane:
    """(2 rows - 1, 2 columns - 1): the plane's points with their means between them."""
    rows, columns = plane.shape
    wide = np.empty((rows, 2 * columns - 1), np.int16)
    wide[:, ::2] = plane
    wide[:, 1::2] = (plane[:, :-1] + plane[:, 1:]) >> 1
    tall = np.empty((2 * rows - 1, 2 * columns - 1), np.int16)
    tall[::2] = wide
    tall[1::2] = (wide[:-1] + wide[1:]) >> 1
    return tall


def _doubled(plane: Plane) -> Plane:
    return _between(np.pad(plane, ((0, 1), (0, 1)), mode="edge"))


def _stripes(draws: Draws, warp: Plane, label: int) -> Plane:
    """The class's stripes, bent by the picture's own noise: a triangle wave of amplitude 32."""
    height, width = warp.shape
    along_x, along_y = STRIPES[label]
    phase = draws.below(256)
    x = (np.arange(width, dtype=np.int32) * along_x + phase).astype(np.int16)
    y = (np.arange(height, dtype=np.int32) * along_y).astype(np.int16)
    turn = y[:, None] + x[None, :] + (warp >> 1)
    turn &= 255
    return (np.abs(turn - np.int16(128)) - np.int16(64)) >> 1


def _ellipse(draws: Draws, planes: list[Plane]) -> None:
    """One ellipse of another brightness and a slightly other colour, drawn into the planes."""
    height, width = planes[0].shape
    radius_y, radius_x = height // 16 + draws.below(height // 6), width // 16 + draws.below(width // 6)
    centre_y, centre_x = draws.below(height), draws.below(width)
    top, bottom = max(0, centre_y - radius_y), min(height, centre_y + radius_y + 1)
    left, right = max(0, centre_x - radius_x), min(width, centre_x + radius_x + 1)
    y = (np.arange(top, bottom, dtype=np.int64) - centre_y) ** 2 * radius_x**2
    x = (np.arange(left, right, dtype=np.int64) - centre_x) ** 2 * radius_y**2
    inside = y[:, None] + x[None, :] <= radius_x**2 * radius_y**2
    for plane, reach in zip(planes, (60, 16, 16), strict=True):
        plane[top:bottom, left:right] += inside * np.int16(draws.below(2 * reach + 1) - reach)
