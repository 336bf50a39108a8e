"""Where the images of a TFRecord file lie: a walk over its records that never reads the images.

A file of indices (.idx) beside it is never used: one that is too short would leave out images, unseen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.sources.index import Index, ShardError

KEYS = (("image/encoded", "image/class/label"), ("image", "label"))  # of image and label, tried in this order
HEADER_BYTES, FOOTER_BYTES = 12, 4  # length and its checksum before a record, a checksum behind it
WINDOW_BYTES = 2048
VARINT_BYTES = 10  # the longest
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types

Field = tuple[int, int, int, int]  # number, wire type, and (first byte, end) of its contents or (value, 0)


class Window:
    """A file read in small pieces, each kept until another place is asked for."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.start = 0
        self.bytes = b""

    def at(self, place: int, size: int) -> int:
        """Where in `bytes` the file's byte `place` now is; as many as `size` bytes follow unless the file ends."""
        offset = place - self.start
        if offset < 0 or offset + size > len(self.bytes):
            self.bytes = os.pread(self.file, max(size, WINDOW_BYTES), place)
            self.start, offset = place, 0
        return offset

    def read(self, place: int, size: int) -> bytes:
        offset = self.at(place, size)
        return self.bytes[offset : offset + size]


def index_tfrecord(path: str) -> Index:
    """Spans and labels of the file's records; `DataError` names file and record."""
    spans, labels = [], []
    with opened(path) as window:
        for number, (start, size) in enumerate(records(path, window)):
            image_start, image_size, label = example(path, number, window, start, start + size)
            spans.append((image_start, image_size))
            labels.append(label)
    return Index(np.array(spans, np.int64).reshape(-1, 2), np.array(labels, np.int64))


def image_names(path: str) -> list[str]:
    """What, put behind the file's path, names each image."""
    with opened(path) as window:
        return [f"#{number}" for number, _ in enumerate(records(path, window))]


@contextmanager
def opened(path: str) -> Iterator[Window]:
    """The file, to be read through a window."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield Window(file)
    finally:
        os.close(file)


def records(path: str, window: Window) -> Iterator[tuple[int, int]]:
    """First byte and bytes of each record's contents."""
    at, total, number = 0, os.fstat(window.file).st_size, 0
    while at < total:
        size = int.from_bytes(window.read(at, HEADER_BYTES)[:8], "little")
        after = at + HEADER_BYTES + size + FOOTER_BYTES
        if after > total:
            raise ShardError(
                path,
                f"ends at byte {total} inside record {number}: it is truncated, or no plain TFRecord (it must not be "
                "compressed); make or copy it again",
            )
        yield at + HEADER_BYTES, size
        at, number = after, number + 1


def example(path: str, number: int, window: Window, start: int, stop: int) -> tuple[int, int, int]:
    """Where the image of the tf.train.Example in these bytes begins, its size in bytes, and its label."""
    try:
        features = dict(_features(window, start, stop))
        for image_key, label_key in KEYS:
            if image_key in features and label_key in features:
                return *_image(window, *features[image_key]), _label(window, *features[label_key])
    except (ValueError, IndexError):
        raise ShardError(
            path,
            f"has a record {number} that is no tf.train.Example with one encoded image and one integer label: "
            "write it as such",
        ) from None
    raise ShardError(
        path,
        f"has a record {number} with the features {', '.join(sorted(features)) or 'none'}: name them "
        + " or ".join(" and ".join(keys) for keys in KEYS),
    )


def _features(window: Window, start: int, stop: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Key, first byte and end of every Feature of an Example: Example.features = 1, Features.feature = 1 (a map)."""
    for _, _, first, end in _of(window, start, stop, 1, BYTES):
        for _, _, entry, entry_end in _of(window, first, end, 1, BYTES):
            key, place = "", (entry, entry)
            for field, wire, at, at_end in fields(window, entry, entry_end):
                if (field, wire) == (1, BYTES):
                    key = window.read(at, at_end - at).decode()
                elif (field, wire) == (2, BYTES):
                    place = at, at_end
            yield key, place


def _image(window: Window, start: int, stop: int) -> tuple[int, int]:
    """First byte and bytes of the one value of a Feature.bytes_list = 1."""
    ((_, _, first, end),) = _of(window, start, stop, 1, BYTES)
    ((_, _, image, image_end),) = _of(window, first, end, 1, BYTES)
    return image, image_end - image


def _label(window: Window, start: int, stop: int) -> int:
    """The one value of a Feature.int64_list = 3, packed or not."""
    ((_, _, first, end),) = _of(window, start, stop, 3, BYTES)
    ((number, wire, value, value_end),) = fields(window, first, end)
    if number != 1 or wire not in (VARINT, BYTES):
        raise ValueError
    if wire == BYTES:
        contents = window.read(value, value_end - value)
        value, behind = varint(contents, 0)
        if behind != len(contents):
            raise ValueError
    return value - (1 << 64) if value >> 63 else value


def _of(window: Window, start: int, stop: int, number: int, wire: int) -> list[Field]:
    """The fields of one number; ValueError for one of another wire type."""
    found = [field for field in fields(window, start, stop) if field[0] == number]
    if any(field[1] != wire for field in found):
        raise ValueError
    return found


def fields(window: Window, start: int, stop: int) -> Iterator[Field]:
    """The fields of a protobuf message in these bytes; ValueError or IndexError for bytes that are none."""
    at = start
    while at < stop:
        offset = window.at(at, 2 * VARINT_BYTES)
        tag, behind = varint(window.bytes, offset)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, behind = varint(window.bytes, behind)
            at += behind - offset
            yield number, wire, value, 0
            continue
        if wire == BYTES:
            size, behind = varint(window.bytes, behind)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError
        first = at + behind - offset
        at = first + size
        if at > stop:
            raise ValueError
        yield number, wire, first, at
    if at != stop:
        raise ValueError


def varint(contents: bytes, offset: int) -> tuple[int, int]:
    """The number at `offset`, and the offset behind it."""
    value = contents[offset]
    if value < 0x80:
        return value, offset + 1
    value &= 0x7F
    for length in range(1, VARINT_BYTES):
        byte = contents[offset + length]
        value |= (byte & 0x7F) << (7 * length)
        if byte < 0x80:
            return value, offset + length + 1
    raise ValueError
