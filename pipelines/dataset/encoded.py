"""One encoded image: what its header says, read before anything is decoded, and whether DALI's decoder takes it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines import DataError
from pipelines.pictures import FORMATS, MULTI_PICTURE, fault_in

TINY_PIXELS = 8  # a side below this is worth a note
HEADER_BYTES = 4096  # enough to tell what a file is that is no image
# An uncompressed picture of 16 bits and four channels takes 8 bytes a pixel; profiles and previews come on top.
BYTES_PER_PIXEL, BYTES_BESIDE = 8, 64 << 20

SUFFIX_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
ORIENTATION_TAG = 0x0112
# First bytes of what is often met under an image's name.
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"), (b"RIFF....WEBP", "WEBP"),
    (b"GIF8", "GIF"), (b"II\\*\0", "TIFF"), (b"MM\0\\*", "TIFF"), (b"II\\+\0", "BigTIFF"), (b"....ftypavi", "AVIF"),
    (b"....ftyp", "HEIF or a film"), (b"\0\0\0\x0cjP", "JPEG 2000"), (b"\xffO\xffQ", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"), (b"\0\0\1\0", "ICO"), (b"P[1-7]\\s", "PNM"), (b"%PDF", "PDF"), (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
)  # fmt: skip
MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+|!--|\?)?(html|head|body|svg|xml)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image before it is decoded: `fault` is empty where nothing speaks against decoding it.

    Faults and notes begin with their kind, which a colon ends where more is said.
    """

    width: int | None = None
    height: int | None = None
    channels: int | None = None  # as stored: one for a palette
    format: str = ""
    fault: str = ""
    notes: tuple[str, ...] = ()


def header_of(file: BinaryIO, name: str, size_bytes: int, pixel_limit: int) -> Header:
    """Of a file that can be read, from its first bytes; inside `pillow_quiet` only."""
    first = file.read(HEADER_BYTES)
    file.seek(0)
    if not first:
        return Header(fault="empty")
    try:
        with Image.open(file, formats=FORMATS) as image:
            return _described(image, first, name, size_bytes, pixel_limit)
    except UnidentifiedImageError:
        return Header(fault=_unidentified(first))
    # A damaged header makes Pillow raise nearly anything.
    except Exception as error:
        return Header(fault=broken(str(error) or type(error).__name__))


def broken(reason: str) -> str:
    """The fault of an image that cannot be decoded, as a decoder tells it."""
    short = re.search(r"truncat|premature|unexpected end|incomplete|not big enough", reason, re.IGNORECASE)
    return f"{'truncated' if short else 'damaged'}: {' '.join(reason.split())}"


@contextlib.contextmanager
def pillow_quiet() -> Iterator[None]:
    """Pillow without its own pixel limit and warnings: for the whole process, so entered once, around all threads."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _described(image: Image.Image, first: bytes, name: str, size_bytes: int, pixel_limit: int) -> Header:
    width, height = image.size
    pixels, pictures = width * height, getattr(image, "n_frames", 1)
    fault = ""
    if pixels > pixel_limit:
        fault = f"too many pixels: {width} x {height} = {pixels:,}, over the limit of {pixel_limit:,}"
    elif size_bytes > BYTES_PER_PIXEL * pixels + BYTES_BESIDE:
        fault = f"too many bytes: {size_bytes:,} for {width} x {height} pixels"
    elif pictures > 1 and image.format != MULTI_PICTURE:
        fault = f"animated: {pictures} pictures in one file"
    notes = tuple(_notes(image, first, PurePosixPath(name).suffix))
    return Header(width, height, len(image.getbands()), image.format or "", fault, notes)


def _notes(image: Image.Image, first: bytes, suffix: str) -> Iterator[str]:
    file_format = "JPEG" if image.format == MULTI_PICTURE else image.format
    if SUFFIX_FORMATS.get(suffix.lower()) != file_format:
        yield f"{file_format} named {suffix}"
    if image.format == MULTI_PICTURE:
        yield "several pictures"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.getbands()[0] in ("L", "1", "I", "F"):
        yield "grey"
    if image.mode.startswith("I") or (image.format == "PNG" and first[24:25] == b"\x10"):
        yield "16-bit"
    if image.mode == "P":
        yield "palette"
    if "A" in image.getbands() or "transparency" in image.info:
        yield "alpha"
    if _orientation(image) not in (None, 1):
        yield "rotated by EXIF"
    if image.info.get("progressive"):
        yield "progressive"
    if min(image.size) < TINY_PIXELS:
        yield "tiny"


def _orientation(image: Image.Image) -> int | None:
    """As EXIF gives it; None where there is none. Of a PNG only what lies before its pixels: the rest needs decoding."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(ORIENTATION_TAG)
    # Whatever a damaged EXIF block makes of this, the picture beside it is none the worse.
    except Exception:
        return None
    return value if isinstance(value, int) else None


def _unidentified(first: bytes) -> str:
    for signature, what in SIGNATURES:
        if re.match(signature, first, re.DOTALL):
            if what in FORMATS:
                return broken(f"it begins as {what} and its header cannot be read")
            return f"wrong format: it is {what}, not {', '.join(FORMATS)}"
    if markup := MARKUP.match(first):
        return f"no image: it is {markup[1].decode().upper()}"
    return "no image: it is text" if _is_text(first) else "no image: its first bytes are those of no known format"


def _is_text(first: bytes) -> bool:
    try:
        text = first.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut in two.
        if error.start < HEADER_BYTES - 4:
            return False
        text = first[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


@dataclass(frozen=True)
class Verdict:
    """What became of one image in DALI's decoder."""

    decoded: bool
    told: str = ""  # what the decoders wrote meanwhile

    @property
    def damaged(self) -> bool:
        """Whether it was decoded in spite of damage that the decoder noticed."""
        return self.decoded and "Corrupt JPEG data" in self.told


class Decoder:
    """DALI's CPU decoder, as runs use it, asked image by image only where a batch does not pass.

    The decoders under DALI write complaints to this process's standard error: while they work it is led into a file,
    and what they say of damaged data that they decode all the same is kept.
    """

    def __init__(self, threads: int, images_per_batch: int) -> None:
        self.threads, self.images_per_batch = threads, images_per_batch
        self.pipeline: Any = None

    def verdicts(self, images: Sequence[bytes]) -> list[Verdict]:
        """One for each encoded image, in order."""
        if not images:
            return []
        verdict = self._decoded(images)
        if len(images) == 1 or (verdict.decoded and not verdict.damaged):
            return [verdict] * len(images)
        half = len(images) // 2
        return self.verdicts(images[:half]) + self.verdicts(images[half:])

    def close(self) -> None:
        """Free DALI's threads and memory."""
        if self.pipeline is not None:
            pipeline, self.pipeline = self.pipeline, None
            pipeline._shutdown()

    def _decoded(self, images: Sequence[bytes]) -> Verdict:
        error = ""
        with tempfile.TemporaryFile() as log:
            with _standard_error_into(log.fileno()):
                try:
                    self._run(images)
                except RuntimeError as failed:
                    error = str(failed)
                    # DALI gives up a pipeline that failed once.
                    self.close()
            log.seek(0)
            told = log.read().decode(errors="replace")
        if any(sign in error.lower() for sign in ("out of memory", "bad_alloc")):
            raise DataError("decoding takes more memory than there is: use fewer workers or a lower pixel limit")
        return Verdict(not error, told)

    def _run(self, images: Sequence[bytes]) -> None:
        from nvidia.dali import Pipeline, fn, types

        if self.pipeline is None:
            pipeline: Any = Pipeline(
                self.images_per_batch, self.threads, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
            )
            with pipeline:
                encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
                pipeline.set_outputs(fn.decoders.image(encoded, adjust_orientation=False))
            pipeline.build()
            self.pipeline = pipeline
        self.pipeline.feed_input("encoded", [np.frombuffer(image, np.uint8) for image in images])
        self.pipeline.run()


def refusal(encoded: bytes, told: str) -> str:
    """The fault of an image that DALI refused: Pillow's reason, else what DALI's decoders `told`."""
    found = fault_in(encoded)
    complaints = re.findall(r"\[ERROR\]\W*(?:\[0m)?\s*(?:\[\w+\])?\s*(.+)", told)
    return broken(found or (complaints[-1] if complaints else "DALI's decoder refuses it"))


@contextlib.contextmanager
def _standard_error_into(descriptor: int) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
