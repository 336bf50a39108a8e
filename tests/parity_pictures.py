"""The pictures that DALI is compared on: photographs by how they store colour, and what Pillow makes of some of them."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SQUARE = 224
ORIENTATION_TAG, TURNED = 0x0112, 6  # of EXIF: to be shown turned by a quarter, clockwise
SAMPLINGS = {b"\x11\x11\x11": "4:4:4", b"\x21\x11\x11": "4:2:2", b"\x22\x11\x11": "4:2:0"}
FRAME_HEADERS = range(0xC0, 0xC3)  # baseline, extended and progressive


@functools.lru_cache(maxsize=2048)
def opened(picture: bytes) -> Image.Image:
    """The picture as Pillow decodes it, in RGB, not turned by EXIF."""
    with Image.open(io.BytesIO(picture)) as image:
        plain = image.convert("RGB")
    plain.info.clear()  # no colour profile is to go into files made of it
    return plain


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sampling(picture: bytes) -> str:
    """How a JPEG stores its colours: 4:4:4, 4:2:2, 4:2:0, grey or other."""
    place = 2
    while place + 9 < len(picture) and picture[place] == 0xFF:
        if picture[place + 1] in FRAME_HEADERS:
            components = picture[place + 9]
            factors = picture[place + 11 : place + 10 + 3 * components : 3]
            return "grey" if components == 1 else SAMPLINGS.get(factors, "other")
        place += 2 + int.from_bytes(picture[place + 2 : place + 4], "big")
    return "other"


def kinds(photos: Sequence[bytes]) -> dict[str, list[bytes]]:
    """The pictures of each kind that a comparison may name; a kind that the photographs lack is empty."""
    some = [opened(photo) for photo in photos[:: max(1, len(photos) // 60)]]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = TURNED
    squares = (ImageOps.fit(opened(photo), (SQUARE, SQUARE), Image.Resampling.BILINEAR) for photo in photos)
    return {
        "photographs": list(photos),
        "squares": [stored(square, "PNG", compress_level=1) for square in squares],
        **{name: [photo for photo in photos if sampling(photo) == name] for name in (*SAMPLINGS.values(), "grey")},
        "CMYK": [stored(image.convert("CMYK"), "JPEG", quality=95) for image in some],
        "progressive": [stored(image, "JPEG", quality=90, progressive=True, subsampling=2) for image in some],
        "PNG": [stored(image, "PNG", compress_level=1) for image in some],
        "turned": [stored(image, "JPEG", quality=90, exif=exif) for image in some],
    }


def plain_chroma(picture: bytes) -> NDArray[np.float64]:
    """A 4:2:0 JPEG (H, W, 3) whose stored colours are each repeated four times, not smoothed as they are enlarged."""
    luma = _drafted(picture, 1)[:, :, 0]
    # At half its size such a picture needs no enlarging: these are the stored values.
    chroma = _drafted(picture, 2)[:, :, 1:].repeat(2, 0).repeat(2, 1) - 128
    blue, red = np.moveaxis(chroma[: luma.shape[0], : luma.shape[1]], 2, 0)
    rgb = (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue)
    return np.asarray(np.clip(np.rint(np.stack(rgb, axis=-1)), 0, 255))


def _drafted(picture: bytes, part: int) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("YCbCr", (image.width // part, image.height // part))
        return np.asarray(image, np.float64)
