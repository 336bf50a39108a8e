"""What Pillow makes of one encoded image: the formats that are taken, its RGB pixels, and what is wrong with it."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MULTI_PICTURE = "MPO"  # a JPEG with further pictures behind it, as cameras write: decoders show the first
PIXEL_LIMIT = 100_000_000  # 300 MB decoded


def rgb(picture: Image.Image) -> Image.Image:
    """An open picture's pixels in RGB, not turned by EXIF; 16 bits become 8 as DALI's decoder makes them."""
    if picture.mode.startswith("I"):
        # Pillow's own conversion would make all that is over 255 white.
        scaled = np.rint(np.asarray(picture).astype(np.float32) / 257)
        picture = Image.fromarray(scaled.clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")


def fault_in(encoded: bytes) -> str | None:
    """What is wrong with an encoded image, in a few words; None where Pillow can decode it."""
    if not encoded:
        return "the file is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a picture's oddities are `data check`'s to tell
            with Image.open(io.BytesIO(encoded)) as image:
                if image.format not in (*FORMATS, MULTI_PICTURE):
                    return f"it is {image.format}, not {', '.join(FORMATS)}"
                image.load()
    except UnidentifiedImageError:
        return "it is no image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None
