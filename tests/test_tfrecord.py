"""TFRecord files: where DALI's own reader finds the images, ours does; a record that is no labelled image is named."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import Pipeline, fn
from nvidia.dali import tfrecord as dali_tfrecord
from shard_files import (
    LABELS,
    PICTURES,
    by_dali,
    contents,
    example,
    field,
    records,
    refused,
    write_tfrecord,
)

from pipelines.sources import open_source

pytestmark = pytest.mark.usefixtures("cache")


def test_dalis_own_reader_reads_the_same_from_a_tfrecord(root: Path, tmp_path: Path) -> None:
    path = write_tfrecord(root / "train.tfrecord", records())
    starts = np.cumsum([0, *(len(each) + 16 for each in records())]).tolist()
    listed = tmp_path / "listed.idx"
    listed.write_text("".join(f"{start} {stop - start}\n" for start, stop in itertools.pairwise(starts)))
    features = {
        "image/encoded": dali_tfrecord.FixedLenFeature((), dali_tfrecord.string, ""),
        "image/class/label": dali_tfrecord.FixedLenFeature([1], dali_tfrecord.int64, -1),
    }
    pipeline = Pipeline(batch_size=len(LABELS), num_threads=1, device_id=None)
    with pipeline:
        output = fn.readers.tfrecord(path=[str(path)], index_path=[str(listed)], features=features)
    found, labels = by_dali((output["image/encoded"], output["image/class/label"]), pipeline)
    images = open_source(root)
    assert [each.tobytes() for each in found] == contents(images.train)
    assert [int(each[0]) for each in labels] == [int(images.classes[label]) for label in images.train.labels]


def test_labels_of_a_tfrecord_may_be_packed_or_not_and_keys_may_be_short(root: Path) -> None:
    short = [example({"label": -label, "image": image}) for label, image in zip(LABELS, PICTURES, strict=True)]
    write_tfrecord(root / "a.tfrecord", [*records(packed=False)[:4], *short[4:]])
    images = open_source(root)
    assert contents(images.train) == PICTURES
    assert [int(images.classes[label]) for label in images.train.labels] == [*LABELS[:4], *(-label for label in LABELS[4:])]  # fmt: skip
    assert images.classes == ("-11", "-7", "-3", "3", "7", "11")


def test_an_index_file_beside_a_tfrecord_is_not_believed(root: Path) -> None:
    write_tfrecord(root / "train.tfrecord", records())
    (root / "train.tfrecord.idx").write_text("0 10\n")
    assert len(open_source(root).train) == len(LABELS)


IMAGE, LABEL = "image/encoded", "image/class/label"
GOOD = example({IMAGE: b"x", LABEL: 1})


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (example({"jpeg": b"x", "cls": 1}), "record 1 with the features cls, jpeg: name them image/encoded and"),
        (example({IMAGE: b"x"}), "record 1 with the features image/encoded: name"),
        (example({}), "record 1 with the features none: name"),
        (b"", "record 1 with the features none"),
        (example({IMAGE: 3, LABEL: 1}), "record 1 that is no tf.train.Example"),
        (example({IMAGE: b"x", LABEL: b"1"}), "record 1 that is no tf.train.Example"),
        (b"this is no message", "record 1 that is no tf.train.Example"),
        (b"\xff" * 40, "record 1 that is no tf.train.Example"),
        (GOOD[:-1], "record 1 that is no tf.train.Example"),
        (field(1, field(1, field(1, IMAGE.encode()) + field(2, field(1, field(1, b"x") * 2))) + field(1, field(1, LABEL.encode()) + field(2, field(3, field(1, b"\x01"))))), "record 1 that is no tf.train.Example"),
        (field(1, field(1, field(1, IMAGE.encode()) + field(2, field(1, field(1, b"x")))) + field(1, field(1, LABEL.encode()) + field(2, field(3, field(1, b"\x01\x02"))))), "record 1 that is no tf.train.Example"),
    ],
)  # fmt: skip
def test_a_record_that_is_no_labelled_image_is_named(root: Path, record: bytes, sentence: str) -> None:
    write_tfrecord(root / "a.tfrecord", [GOOD, record, GOOD])
    refused(root, rf"a\.tfrecord has a {sentence}")


def test_a_truncated_or_compressed_tfrecord_is_named(root: Path) -> None:
    path = write_tfrecord(root / "a.tfrecord", [GOOD, GOOD])
    whole = path.read_bytes()
    for cut, number in ((len(whole) - 1, 1), (len(whole) // 2 + 5, 1), (20, 0), (3, 0)):
        path.write_bytes(whole[:cut])
        refused(root, rf"a\.tfrecord ends at byte {cut} inside record {number}: it is truncated")
    path.write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x7f" + whole)
    refused(root, r"a\.tfrecord ends .* compressed")
    path.write_bytes(b"")
    refused(root, r"a\.tfrecord holds no images")
