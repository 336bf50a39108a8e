"""Shards as other programs write them, for tests: a tar by the standard library, a TFRecord by a few lines."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import DataError
from pipelines.sources import Split, open_source

Members = Iterable[tuple[str, bytes]]


def picture(number: int, kind: str = "JPEG") -> bytes:
    """An image of a colour of its own."""
    file = io.BytesIO()
    Image.new("RGB", (20 + number % 7, 18), (number * 37 % 256, number * 91 % 256, 128)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    return path


def pairs(samples: Iterable[tuple[str, bytes, int]]) -> list[tuple[str, bytes]]:
    """Members of samples (key, JPEG, label)."""
    return [
        member
        for key, contents, label in samples
        for member in ((f"{key}.jpg", contents), (f"{key}.cls", str(label).encode()))
    ]


def write_tfrecord(path: Path, records: Iterable[bytes]) -> Path:
    """Records in their frames; the checksums are left zero, as readers do not look at them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(struct.pack("<QI", len(each), 0) + each + bytes(4) for each in records))
    return path


def example(features: dict[str, bytes | int], packed: bool = True) -> bytes:
    """A tf.train.Example with a bytes_list or an int64_list of one value for each feature."""
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, _feature(value, packed))) for key, value in features.items()))  # fmt: skip


def _feature(value: bytes | int, packed: bool) -> bytes:
    if isinstance(value, bytes):
        return field(1, field(1, value))
    number = varint(value % (1 << 64))
    return field(3, field(1, number) if packed else varint(1 << 3) + number)


def field(number: int, contents: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(contents)) + contents


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


LABELS = [7, 3, 11, 3, 7, 7, 11, 3, 3, 11]
PICTURES = [picture(number) for number in range(len(LABELS))]
SAMPLES = [(f"{number:04}", PICTURES[number], label) for number, label in enumerate(LABELS)]


def contents(split: Split) -> list[bytes]:
    """The bytes of each image of a split that lies in shards."""
    assert split.spans is not None
    assert split.spans.shape == (len(split), 2)
    assert split.spans.dtype == np.int64
    return [
        Path(path).read_bytes()[start : start + size]
        for path, (start, size) in zip(split.files, split.spans.tolist(), strict=True)
    ]


def tars(root: Path) -> Path:
    """Ten samples in two tars for training, two in one for validation."""
    write_tar(root / "train-000.tar", pairs(SAMPLES[:6]))
    write_tar(root / "train-001.tar", pairs(SAMPLES[6:]))
    write_tar(root / "val-000.tar", pairs(SAMPLES[:2]))
    return root


def records(labels: Iterable[int] = LABELS, **options: Any) -> list[bytes]:
    """The samples as tf.train.Examples."""
    return [
        example({"image/height": 18, "image/class/label": label, "image/format": b"JPEG", "image/encoded": contents}, **options)
        for label, contents in zip(labels, PICTURES, strict=False)
    ]  # fmt: skip


def tfrecords(root: Path) -> Path:
    """The same samples as TFRecord files."""
    write_tfrecord(root / "train-00000-of-00002", records()[:6])
    write_tfrecord(root / "train-00001-of-00002", records()[6:])
    write_tfrecord(root / "validation-00000-of-00001", records()[:2])
    return root


def refused(root: Path, sentence: str, **arguments: Any) -> None:
    """Opening the set raises a DataError of one line that matches."""
    with pytest.raises(DataError, match=sentence) as told:
        open_source(root, **arguments)
    assert "\n" not in str(told.value)
    assert str(root.name) in str(told.value)


def by_dali(outputs: tuple[Any, ...], pipeline: Any) -> list[list[Any]]:
    """What one batch of these outputs holds, a list an output."""
    with pipeline:
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return [[np.asarray(output.at(place)) for place in range(len(output))] for output in pipeline.run()]
