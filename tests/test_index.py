"""The index of a set of shards is kept, and only believed where it is whole and of these very shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from shard_files import (
    SAMPLES,
    pairs,
    tars,
    write_tar,
)

from pipelines.sources import ImageSet, index, open_source

pytestmark = pytest.mark.usefixtures("cache")


def same(one: ImageSet, other: ImageSet) -> bool:
    assert one.train.spans is not None
    assert other.train.spans is not None
    return one == other and np.array_equal(one.train.spans, other.train.spans)


def test_an_index_is_kept_and_read_again(root: Path, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    images = open_source(tars(root), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    (kept,) = cache.iterdir()
    assert kept.name.startswith(images.dataset_id)
    assert same(open_source(root, progress=lambda *_: pytest.fail("the shards were read again")), images)


@pytest.mark.parametrize("harm", ["cut", "flipped", "text", "pickle", "shorter"])
def test_a_damaged_index_is_made_anew(root: Path, cache: Path, harm: str) -> None:
    images = open_source(tars(root))
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    if harm == "cut":
        kept.write_bytes(whole[: len(whole) // 2])
    elif harm == "flipped":
        place = whole.index(images.train.spans.tobytes()[:64])  # type: ignore[union-attr]
        kept.write_bytes(whole[:place] + b"\x7f" + whole[place + 1 :])
    elif harm == "text":
        kept.write_bytes(b"no index")
    else:
        with np.load(kept) as arrays:
            parts = dict(arrays)
        parts["labels"] = parts["labels"][:-1] if harm == "shorter" else np.array([None])
        with kept.open("wb") as file:
            np.savez(file, **parts)
    assert same(open_source(root), images)
    assert same(open_source(root, progress=lambda *_: pytest.fail("the mended index was not kept")), images)


def test_a_changed_shard_of_the_same_size_is_read_again(root: Path) -> None:
    tars(root)
    open_source(root)
    write_tar(root / "train-001.tar", pairs((key, image, 7) for key, image, _ in SAMPLES[6:]))
    os.utime(root / "train-001.tar", ns=(1, 1))
    images = open_source(root)
    assert [images.classes[label] for label in images.train.labels[6:]] == ["7"] * 4


def test_an_index_of_another_version_is_not_read(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_source(tars(root))
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    open_source(root)
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(root: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the cache should be")
    assert len(open_source(tars(root)).train) == 10
