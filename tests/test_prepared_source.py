"""A prepared set is opened by what its set.json says, and held to it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import (
    LABELS,
    PICTURES,
    contents,
    pairs,
    refused,
    write_tar,
)

from pipelines.sources import name_of, open_source

pytestmark = pytest.mark.usefixtures("cache")


SIDE = 4


def prepared(root: Path, form: str) -> Path:
    """Ten training images in two shards and two for validation, as `data prepare` writes them."""
    root.mkdir()
    parts = {"train-00000": range(6), "train-00001": range(6, 10), "val-00000": range(2)}
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for name, numbers in parts.items():
        labels = [{3: 0, 7: 1, 11: 2}[LABELS[number]] for number in numbers]
        if form == "prepared-raw":
            path = root / f"{name}.raw"
            path.write_bytes(b"".join(raw(number) for number in numbers))
            told = np.array(labels, "<u2").tobytes()
            (root / f"{name}.cls").write_bytes(told)
            more = {"labels_sha256": hashlib.sha256(told).hexdigest()}
        else:
            path = write_tar(root / f"{name}.tar", pairs((f"{number:08}", PICTURES[number], label) for number, label in zip(numbers, labels, strict=True)))  # fmt: skip
            more = {}
        whole = path.read_bytes()
        splits[name.partition("-")[0]].append({"file": path.name, "images": len(numbers), "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest(), **more})  # fmt: skip
    write_set(root, {"format": "alexnet-harness prepared set", "version": 1, "form": form, "side": SIDE, "quality": 95, "classes": ["ant", "bee", "cat"], "source_dataset_id": "0", "source_form": "folders", "excluded": 1, "splits": splits})  # fmt: skip
    return root


def raw(number: int) -> bytes:
    return bytes([number]) * (SIDE * SIDE * 3)


def write_set(root: Path, described: dict[str, Any]) -> None:
    (root / "set.json").write_text(json.dumps(described))


@pytest.mark.parametrize("form", ["prepared-jpeg", "prepared-raw"])
def test_a_prepared_set_is_opened_by_what_it_says(root: Path, form: str) -> None:
    seen: list[tuple[int, int]] = []
    images = open_source(prepared(root, form), progress=lambda done, of: seen.append((done, of)))
    assert images.source_form == form
    assert images.classes == ("ant", "bee", "cat")
    assert images.excluded == 1
    assert images.train.labels == tuple({3: 0, 7: 1, 11: 2}[label] for label in LABELS)
    assert images.val is not None
    assert images.val.labels == (1, 0)
    wanted = [raw(number) for number in range(10)] if form == "prepared-raw" else PICTURES
    assert contents(images.train) == wanted
    assert contents(images.val) == wanted[:2]
    assert images.train.square == SIDE
    assert images.train.raw is images.val.raw is (form == "prepared-raw")
    assert seen == [(1, 3), (2, 3), (3, 3)]
    named = f"image 1 of {root}/train-00001.raw" if form == "prepared-raw" else f"{root}/train-00001.tar/00000007.jpg"
    assert name_of(images.train, 7) == named


@pytest.mark.parametrize("form", ["prepared-jpeg", "prepared-raw"])
def test_a_prepared_set_that_is_not_what_it_says_is_refused(root: Path, form: str, tmp_path: Path) -> None:
    prepared(root, form)
    described = json.loads((root / "set.json").read_bytes())
    write_set(root, {**described, "version": 2})
    refused(root, "is of version 2")
    write_set(root, {**described, "format": "another"})
    refused(root, "is not of a prepared set")
    write_set(root, {**described, "classes": ["ant", "bee"]})
    refused(root, "labels beyond its 2 classes")
    write_set(root, {key: value for key, value in described.items() if key != "side"})
    refused(root, "lacks what it should say .*side")
    (root / "set.json").write_text("{")
    refused(root, "is damaged")
    write_set(root, described)
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("00000001.jpg")
    refused(root, "leave them out when preparing it", exclude=exclude)
    (shard,) = root.glob("train-00001.[tr]a[rw]")
    os.truncate(shard, shard.stat().st_size - 1)
    refused(root, r"train-00001\.(tar|raw).* prepare")
    shard.unlink()
    refused(root, r"train-00001\.(tar|raw).* prepare")


def test_counts_and_labels_of_a_prepared_set_are_held_to_what_it_says(root: Path, tmp_path: Path) -> None:
    prepared(root, "prepared-jpeg")
    described = json.loads((root / "set.json").read_bytes())
    described["splits"]["train"][0]["images"] = 5
    write_set(root, described)
    refused(root, r"train-00000\.tar is damaged \(it has 6 images instead of 5\)")
    other = prepared(tmp_path / "raw", "prepared-raw")
    labels = other / "train-00000.cls"
    labels.write_bytes(labels.read_bytes()[::-1])
    refused(other, r"train-00000\.cls is damaged")


def test_an_unfinished_prepared_set_is_not_taken_for_tars(root: Path) -> None:
    prepared(root, "prepared-jpeg")
    (root / "set.json").rename(root / "unfinished.json")
    refused(root, "is not finished: run `data prepare` again")
