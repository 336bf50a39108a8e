"""Sets in shards become splits whose spans are the very images, told apart and named as people name them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from shard_files import (
    LABELS,
    PICTURES,
    SAMPLES,
    contents,
    example,
    pairs,
    refused,
    tars,
    tfrecords,
    write_tar,
    write_tfrecord,
)

import pipelines
from pipelines import DataError
from pipelines.sources import name_of, open_source

pytestmark = pytest.mark.usefixtures("cache")


def folders(root: Path) -> Path:
    """The same samples as class folders."""
    for part, number in [*(("train", number) for number in range(10)), ("val", 0), ("val", 1)]:
        path = root / part / f"{LABELS[number]:02}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURES[number])
    return root


@pytest.mark.parametrize(("make", "form"), [(tars, "webdataset"), (tfrecords, "tfrecord")])
def test_spans_are_the_images_in_the_order_of_the_shards(root: Path, make: Any, form: str) -> None:
    images = open_source(make(root))
    assert images.source_form == form
    assert images.classes == ("3", "7", "11")
    assert contents(images.train) == PICTURES
    assert [images.classes[label] for label in images.train.labels] == [str(label) for label in LABELS]
    assert images.val is not None
    assert contents(images.val) == PICTURES[:2]
    assert images.val.labels == (1, 0)
    assert images.train.num_classes == images.val.num_classes == 3
    assert all(Path(file).is_absolute() for file in images.train.files)


def test_every_form_holds_the_same_images_and_labels(tmp_path: Path) -> None:
    sharded = [open_source(tars(tmp_path / "tars")), open_source(tfrecords(tmp_path / "records"))]
    plain = open_source(folders(tmp_path / "folders"))
    wanted = Counter(
        (int(plain.classes[label]), Path(path).read_bytes())
        for path, label in zip(plain.train.files, plain.train.labels, strict=True)
    )
    for images in sharded:
        assert Counter((int(images.classes[label]), image) for label, image in zip(images.train.labels, contents(images.train), strict=True)) == wanted  # fmt: skip


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("train-000.tar", "train"),
        ("shard-000.tar", "train"),
        ("validation_3.tar", "val"),
        ("imagenet-val-000007.tar", "val"),
        ("val/shard-000.tar", "val"),
        ("validation/train-000.tar", "val"),
        ("train/val-000.tar", "train"),
        ("interval-000.tar", "train"),
        ("test-000.tar", "none"),
    ],
)
def test_names_tell_what_a_shard_is_for(root: Path, name: str, purpose: str) -> None:
    write_tar(root / "train-999.tar", pairs(SAMPLES))
    write_tar(root / name, pairs(SAMPLES[:3]))
    images = open_source(root)
    assert len(images.train) - 10 == (3 if purpose == "train" else 0)
    assert (len(images.val) if images.val else 0) == (3 if purpose == "val" else 0)


def test_labels_that_training_lacks_and_sets_without_training_are_refused(root: Path) -> None:
    write_tar(root / "val-0.tar", pairs(SAMPLES))
    refused(root, "has no tar files for training")
    write_tar(root / "train-0.tar", pairs([(key, image, label % 2) for key, image, label in SAMPLES[:2]] + SAMPLES[3:4] * 1 + [("x", b"", 0)]))  # fmt: skip
    refused(root, r"2 labels in its validation shards that training lacks \(7, 11\)")


def test_images_are_named_by_shard_and_member_or_number(tmp_path: Path) -> None:
    images = open_source(tars(tmp_path / "tars"))
    assert name_of(images.train, 7) == f"{tmp_path}/tars/train-001.tar/0007.jpg"
    (tmp_path / "tars/train-001.tar").unlink()
    assert name_of(images.train, 7).startswith("the image at byte ")
    images = open_source(tfrecords(tmp_path / "records"))
    assert name_of(images.train, 7) == f"{tmp_path}/records/train-00001-of-00002#1"


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tars, ["train-001.tar/0007.jpg", "val-000.tar/0000.jpg"]),
        (tfrecords, ["train-00001-of-00002#1", "validation-00000-of-00001#0"]),
    ],
)
def test_images_left_out_by_name_are_gone_and_the_set_is_another(
    root: Path, tmp_path: Path, make: Any, names: list[str]
) -> None:
    whole = open_source(make(root))
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("# bad images\n\n" + "\n".join(names) + "\n")
    images = open_source(root, exclude)
    assert contents(images.train) == PICTURES[:7] + PICTURES[8:]
    assert images.val is not None
    assert contents(images.val) == PICTURES[1:2]
    assert images.classes == whole.classes
    assert (images.excluded, whole.excluded) == (2, 0)
    assert images.dataset_id != whole.dataset_id
    exclude.write_text(names[0])
    assert open_source(root, exclude).dataset_id not in (whole.dataset_id, images.dataset_id)


def test_a_name_that_the_set_lacks_and_a_class_left_without_images_are_refused(root: Path, tmp_path: Path) -> None:
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("train-000.tar/9999.jpg\nother.tar/0001.jpg\n")
    with pytest.raises(DataError, match=r"names 2 images that the set lacks \(other\.tar/0001\.jpg, train-000"):
        open_source(tars(root), exclude)
    exclude.write_text("".join(f"train-00{n // 6}.tar/{n:04}.jpg\n" for n, label in enumerate(LABELS) if label == 11))
    with pytest.raises(DataError, match=r"leaves 1 classes without a training image \(11\)"):
        open_source(root, exclude)


def test_a_copy_elsewhere_is_the_same_set_and_another_size_another(tmp_path: Path) -> None:
    first = open_source(tars(tmp_path / "one")).dataset_id
    assert open_source(tars(tmp_path / "two")).dataset_id == first
    write_tar(tmp_path / "two/train-002.tar", pairs(SAMPLES))
    assert open_source(tmp_path / "two").dataset_id != first


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda root, made: write_tar(root / "train-000.tar", pairs(made)), r"train-000\.tar/0004\.jpg"),
        (
            lambda root, made: write_tfrecord(
                root / "train-00000-of-00001",
                [example({"image/encoded": contents, "image/class/label": label}) for _, contents, label in made],
            ),
            "train-00000-of-00001#4",
        ),
    ],
    ids=["webdataset", "tfrecord"],
)
def test_a_bad_image_met_in_a_shard_is_named_by_its_member(
    tmp_path: Path, write: Callable[[Path, list[tuple[str, bytes, int]]], Path], name: str
) -> None:
    made = [(key, contents[:-60] if key == "0004" else contents, label) for key, contents, label in SAMPLES]
    write(tmp_path / "set", made)
    images = open_source(tmp_path / "set")
    batches = pipelines.create("dali", split=images.train, images_per_batch=2, image_size=16, augment="paper")
    with closing(batches), pytest.raises(DataError, match=rf"{name} cannot be decoded") as told:
        list(itertools.islice(batches, 20))
    assert "\n" not in str(told.value)
