"""One set in every form: 20,000 images as class folders, WebDataset, TFRecord and prepared give the same labels and pixels."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_files import example, pairs, write_tar, write_tfrecord

import pipelines
from pipelines.dataset.prepare import prepare
from pipelines.sources import open_source
from pipelines.sources.imageset import ImageSet

IMAGES, CLASSES, SIDE = 20_000, 40, 16
SHARDS = 4
Sample = tuple[str, bytes, int]


def samples() -> list[Sample]:
    """Key, JPEG and label: every image of its own pixels, classes of unequal size, shuffled."""
    draw = np.random.default_rng(5)
    made = []
    for number, label in enumerate(draw.integers(0, CLASSES, IMAGES) ** 2 // CLASSES):
        file = io.BytesIO()
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        made.append((f"{number:05}", file.getvalue(), int(label)))
    return made


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet]:
    root, made = tmp_path_factory.mktemp("forms"), samples()
    for key, contents, label in made:
        folder = root / "folders" / "train" / f"class-{label:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.JPEG").write_bytes(contents)
    for shard in range(SHARDS):
        own = made[shard::SHARDS]
        write_tar(root / "webdataset" / f"train-{shard:04}.tar", pairs(own))
        write_tfrecord(
            root / "tfrecord" / f"train-{shard:05}-of-{SHARDS:05}",
            [example({"image/encoded": contents, "image/class/label": label}) for _, contents, label in own],
        )
    opened = {form: open_source(root / form) for form in ("folders", "webdataset", "tfrecord")}
    raw = prepare(opened["folders"], root / "raw", form="prepared-raw", side=SIDE)
    return {**opened, "prepared-raw": open_source(raw)}


def seen(images: ImageSet, look: Callable[[pipelines.Batch], Any], **arguments: Any) -> Counter[Any]:
    """How often each thing is seen in one pass."""
    asked = {"images_per_batch": 500, "image_size": SIDE, "resized_side": SIDE, "augment": "paper", **arguments}
    found: Counter[Any] = Counter()
    with closing(pipelines.create("dali", split=images.train, **asked)) as batches:
        for _ in range(IMAGES // 500):
            found.update(look(next(batches)))
    return found


def labels(batch: pipelines.Batch) -> list[int]:
    return batch.labels.tolist()


def labelled_pixels(batch: pipelines.Batch) -> list[tuple[int, bytes]]:
    pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    return [(label, image.tobytes()) for label, image in zip(batch.labels.tolist(), pixels, strict=True)]


def test_forms_say_which_they_are(forms: dict[str, ImageSet]) -> None:
    for form, images in forms.items():
        assert images.source_form == form
        assert len(images.train) == IMAGES
    assert len({images.dataset_id for images in forms.values()}) == len(forms)


def test_an_epoch_of_training_gives_the_same_labels_from_every_form(forms: dict[str, ImageSet]) -> None:
    wanted = Counter(label for _, _, label in samples())
    ranks = {label: rank for rank, label in enumerate(sorted(wanted))}
    for images in forms.values():
        assert seen(images, labels) == {ranks[label]: count for label, count in wanted.items()}


def test_without_augmentation_every_form_gives_the_same_pixels(forms: dict[str, ImageSet]) -> None:
    folders, webdataset, tfrecord = (
        seen(forms[form], labelled_pixels, training=False, dtype="uint8")
        for form in ("folders", "webdataset", "tfrecord")
    )
    assert len(folders) == IMAGES
    assert folders == webdataset == tfrecord
