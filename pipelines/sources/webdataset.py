"""Where the images of a WebDataset shard lie: a walk over the headers of a tar that never reads the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines import DataError
from pipelines.sources.imageset import IMAGE_SUFFIXES
from pipelines.sources.index import Index, ShardError

BLOCK = 512
EMPTY_BLOCK = bytes(BLOCK)
FILE_KINDS = b"0\x007"
LONG_NAME, LONG_LINK, EXTENDED, EXTENDED_FOR_ALL = b"LKxg"
CHUNK_BYTES = 1 << 20
MEND = "make or copy it again"


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int  # first byte of its contents
    size: int
    head: bytes  # at least the first 512 bytes of its contents, where it has so many


class Sample(NamedTuple):
    """An image and its label."""

    name: str  # of the image's member
    start: int
    size: int
    label: int


def index_tar(path: str) -> Index:
    """Spans and labels of the tar's samples, in the order of their images; `DataError` names tar and key."""
    found = samples(path)
    spans = np.array([(each.start, each.size) for each in found], np.int64).reshape(-1, 2)
    return Index(spans, np.array([each.label for each in found], np.int64))


def image_names(path: str) -> list[str]:
    """What, put behind the tar's path, names each image."""
    return [f"/{each.name}" for each in samples(path)]


def samples(path: str) -> list[Sample]:
    """The samples of a tar: members with one key, of which one is an image and one (`.cls`) its integer label.

    A key is a member's name up to the first dot after its last slash. Other components, names without a key and
    `__meta__` names are no part of a sample.
    """
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    keys: set[str] = set()
    for member in members(path):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, component = name.partition(".")
        if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
            continue
        key, component = f"{folder}{slash}{stem}", f".{component.lower()}"
        keys.add(key)
        if component in IMAGE_SUFFIXES:
            if key in images:
                raise DataError(f"{path} has two images of the key {key}: give each sample a key of its own")
            images[key] = member
        elif component == ".cls":
            if key in labels:
                raise DataError(f"{path} has two labels of the key {key}: give each sample a key of its own")
            labels[key] = _label(path, key, member)
    for key in keys:
        if key not in images or key not in labels:
            lacking = "no .cls label" if key in images else f"no image ({' '.join(IMAGE_SUFFIXES)})"
            raise DataError(f"{path} has {lacking} for the key {key}: give each sample an image and a .cls label")
    return [Sample(image.name, image.start, image.size, labels[key]) for key, image in images.items()]


def _label(path: str, key: str, member: Member) -> int:
    text = member.head[: member.size].strip()
    if member.size > BLOCK or not text.removeprefix(b"-").isdigit() or len(text) > 18:
        raise DataError(f"{path} has a .cls of the key {key} that is no whole number: write the class as an integer")
    return int(text)


def members(path: str) -> Iterator[Member]:
    """The regular files of a tar (ustar, pax or GNU); `DataError` for one that is damaged or ends too early."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield from _members(path, file, os.fstat(file).st_size)
    finally:
        os.close(file)


def _members(path: str, file: int, total: int) -> Iterator[Member]:
    at, renamed, resized = 0, "", -1
    while True:
        blocks = os.pread(file, 2 * BLOCK, at)
        header = blocks[:BLOCK]
        if len(header) < BLOCK:
            raise ShardError(path, f"ends at byte {total} without the end mark of a tar: it is truncated; {MEND}")
        if header == EMPTY_BLOCK:
            return _check_rest(path, file, at)
        size = _checked_size(path, header, at)
        kind, start = header[156], at + BLOCK
        if resized >= 0 and kind in FILE_KINDS:
            size = resized
        if start + size > total:
            raise ShardError(path, f"ends at byte {total} inside a member of {size} bytes: it is truncated; {MEND}")
        if kind == LONG_NAME:
            renamed = os.fsdecode(os.pread(file, size, start).rstrip(b"\0"))
        elif kind == EXTENDED:
            try:
                extended = _extended(os.pread(file, size, start))
                renamed = os.fsdecode(extended.get(b"path", b"")) or renamed
                resized = _whole(extended[b"size"]) if b"size" in extended else -1
            except ValueError:
                raise ShardError(path, f"has a damaged pax header at byte {at}; {MEND}") from None
        elif kind not in (LONG_LINK, EXTENDED_FOR_ALL):
            name = renamed or _name(header)
            if kind in FILE_KINDS and not name.endswith("/"):
                yield Member(name, start, size, blocks[BLOCK:])
            renamed, resized = "", -1
        at = start + (size + BLOCK - 1) // BLOCK * BLOCK


def _checked_size(path: str, header: bytes, at: int) -> int:
    """Bytes of a member's contents, from a header whose sum is right."""
    try:
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != _octal(header[148:156]):
            raise ValueError
        if header[124] & 0x80:
            return int.from_bytes(header[125:136], "big")
        return _octal(header[124:136])
    except ValueError:
        raise ShardError(
            path, f"is damaged at byte {at}, or is no plain tar (it must not be compressed); {MEND}"
        ) from None


def _octal(number: bytes) -> int:
    digits = number.partition(b"\0")[0].strip() or b"0"
    if not digits.isdigit():
        raise ValueError("a number has digits alone")
    return int(digits, 8)


def _whole(number: bytes) -> int:
    if not number.isdigit():
        raise ValueError("a number has digits alone")
    return int(number)


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    # GNU's older form, which has a space here, keeps other things in the place of the prefix.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name)


def _extended(records: bytes) -> dict[bytes, bytes]:
    """Keywords and values of a pax header: records `length keyword=value` and a line feed. ValueError where damaged."""
    found = {}
    while records.strip(b"\0"):
        length = records.partition(b" ")[0]
        if not len(length) < _whole(length) <= len(records):
            raise ValueError("a record ends within the header, behind its length")
        record, records = records[: int(length)], records[int(length) :]
        keyword, _, value = record[len(length) + 1 : -1].partition(b"=")
        found[keyword] = value
    return found


def _check_rest(path: str, file: int, at: int) -> None:
    """Nothing may follow the end mark: of tars put one behind the other all but the first would go unseen."""
    while rest := os.pread(file, CHUNK_BYTES, at):
        if rest.count(0) != len(rest):
            raise ShardError(
                path, f"goes on behind its end mark at byte {at}: keep tars put together as separate files"
            )
        at += len(rest)
