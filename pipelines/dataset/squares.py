"""One shard of a prepared set: pictures in, a file of squares out, there whole or not at all under its name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import warnings
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL import Image, UnidentifiedImageError

from pipelines.augment import centre_square
from pipelines.dataset.whole import PARTIAL, to_disk, write_whole
from pipelines.pictures import FORMATS, PIXEL_LIMIT, rgb
from pipelines.sources.prepared_set import labels_path

# Chroma at half resolution: readers decode such squares faster, at every epoch, for a larger error. Who wants exact
# squares takes raw ones.
SUBSAMPLING_420 = 2


class Source(NamedTuple):
    """Where an encoded picture lies, and what it becomes."""

    place: int  # in its split of the prepared set
    label: int
    file: str
    start: int  # first byte
    size: int  # bytes; -1: the whole file


@dataclass(frozen=True)
class Shard:
    """One file to write: a task for any process."""

    path: str  # ends in .tar (JPEG) or .raw (pixels, with a .cls of labels beside it)
    side: int
    quality: int | None
    sources: tuple[Source, ...]
    left_out: tuple[int, ...]  # places that were to be here, but for the person's exclusion list


@dataclass(frozen=True)
class Written:
    """What a finished shard is, as its sidecar says."""

    images: int
    bytes: int
    sha256: str
    labels_sha256: str | None
    left_out: tuple[int, ...]


class Bad(NamedTuple):
    """A picture that cannot be used, and what is wrong with it in a few words."""

    place: int
    reason: str


def write(shard: Shard, tell: Callable[[int], None]) -> Written | tuple[Bad, ...]:
    """Write a shard, its labels and its sidecar, in this order; nothing of them where a picture is bad.

    One picture is in memory at a time. OSError where the disk does not take it.
    """
    partial = Path(f"{shard.path}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            digesting = _Digesting(file)
            bad = _pictures(shard, _Tar(digesting, shard) if is_tar(shard) else _Raw(digesting), tell)
            if bad:
                return bad
            to_disk(file)
        labels = array("H", [source.label for source in shard.sources])
        if sys.byteorder == "big":
            labels.byteswap()
        labels_sha256 = None if is_tar(shard) else hashlib.sha256(labels).hexdigest()
        if labels_sha256:
            write_whole(labels_path(shard.path), labels.tobytes())
        partial.replace(shard.path)
    finally:
        partial.unlink(missing_ok=True)
    written = Written(len(shard.sources), digesting.size, digesting.sha256, labels_sha256, shard.left_out)
    write_whole(sidecar_path(shard.path), json.dumps(asdict(written)).encode())
    return written


def finished(shard_path: Path) -> Written | None:
    """What the sidecar says of a shard that was written before; None unless all of it is there."""
    try:
        told = json.loads(sidecar_path(shard_path).read_bytes())
        written = Written(**{**told, "left_out": tuple(told["left_out"])})
        whole = shard_path.stat().st_size == written.bytes
        if written.labels_sha256:
            whole = whole and labels_path(shard_path).stat().st_size == 2 * written.images
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return written if whole else None


def sidecar_path(shard_path: Path | str) -> Path:
    return Path(f"{shard_path}.json")


def is_tar(shard: Shard) -> bool:
    return shard.path.endswith(".tar")


def square(encoded: bytes, side: int) -> Image.Image:
    """The centre square of a picture in RGB, resized to `side` with antialiased bilinear weights.

    EXIF rotation is not applied. Pillow's errors for what is no picture, and before any pixel is decoded for more than
    PIXEL_LIMIT of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a picture's oddities are `data check`'s to tell
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > PIXEL_LIMIT:
                raise Image.DecompressionBombError
            box = centre_square(width, height, side)
            return rgb(picture).resize((side, side), Image.Resampling.BILINEAR, box=box)


def jpeg(picture: Image.Image, quality: int | None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=SUBSAMPLING_420)
    return file.getvalue()


def read(source: Source) -> bytes:
    """The encoded picture. OSError where it cannot be read, or not as far as its index says."""
    with open(source.file, "rb") as file:
        if source.start:
            file.seek(source.start)
        encoded = file.read(source.size)
    if 0 <= source.size != len(encoded):
        raise OSError(f"{source.file} ends before the {source.size} bytes that its index gives this image")
    return encoded


def middle(source: Source, side: int) -> Image.Image | Bad:
    """The square of a picture, or what is wrong with it."""
    try:
        encoded = read(source)
        if not encoded:
            return Bad(source.place, "the file is empty")
        return square(encoded, side)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        return Bad(source.place, f"it is none of {', '.join(FORMATS)}")
    except Image.DecompressionBombError:
        return Bad(source.place, f"it has more than {PIXEL_LIMIT:,} pixels")
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        return Bad(source.place, str(error) or type(error).__name__)


def _pictures(shard: Shard, target: _Tar | _Raw, tell: Callable[[int], None]) -> tuple[Bad, ...]:
    """Write every picture to `target`; from the first bad one on, only look for further ones."""
    bad: list[Bad] = []
    for done, source in enumerate(shard.sources):
        tell(done)
        found = middle(source, shard.side)
        if isinstance(found, Bad):
            bad.append(found)
        elif not bad:
            target.add(source, found)
    if not bad:
        target.end()
    return tuple(bad)


class _Digesting:
    """A file to write to that knows its size and digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, part: bytes) -> int:
        self._digest.update(part)
        self.size += len(part)
        return self._file.write(part)

    def tell(self) -> int:
        return self.size


class _Raw:
    def __init__(self, file: _Digesting) -> None:
        self._file = file

    def add(self, _source: Source, picture: Image.Image) -> None:
        self._file.write(picture.tobytes())

    def end(self) -> None:
        pass


class _Tar:
    """Members `<place>.jpg` and `<place>.cls`, without anything of this machine or this moment."""

    def __init__(self, file: _Digesting, shard: Shard) -> None:
        self._tar = tarfile.TarFile(fileobj=cast(IO[bytes], file), mode="w", format=tarfile.USTAR_FORMAT)
        self._quality = shard.quality

    def add(self, source: Source, picture: Image.Image) -> None:
        self._member(f"{source.place:08}.jpg", jpeg(picture, self._quality))
        self._member(f"{source.place:08}.cls", str(source.label).encode())

    def _member(self, name: str, contents: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(contents)
        self._tar.addfile(member, io.BytesIO(contents))

    def end(self) -> None:
        self._tar.close()
