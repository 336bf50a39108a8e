"""WebDataset tars: where DALI's own reader finds the images, ours does; damage is named with the tar and the key."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from nvidia.dali import Pipeline, fn
from shard_files import (
    PICTURES,
    SAMPLES,
    by_dali,
    contents,
    pairs,
    refused,
    write_tar,
)

from pipelines.sources import name_of, open_source

pytestmark = pytest.mark.usefixtures("cache")


def test_dalis_own_reader_reads_the_same_from_a_tar(root: Path) -> None:
    path = write_tar(root / "a.tar", pairs(SAMPLES))
    pipeline = Pipeline(batch_size=len(SAMPLES), num_threads=1, device_id=None)
    with pipeline:
        outputs = fn.readers.webdataset(paths=str(path), ext=["jpg", "cls"], missing_component_behavior="error")
    found, labels = by_dali(tuple(outputs), pipeline)
    images = open_source(root)
    assert [each.tobytes() for each in found] == contents(images.train)
    assert [int(each.tobytes()) for each in labels] == [int(images.classes[label]) for label in images.train.labels]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_dialect_of_tar_are_read(root: Path, form: int) -> None:
    deep = "/".join(["a" * 30] * (7 if form == tarfile.USTAR_FORMAT else 20))
    odd = "é" if form == tarfile.PAX_FORMAT else "e"
    samples = [(f"{deep}/{key}{odd}", image, label) for key, image, label in SAMPLES]
    write_tar(root / "a.tar", pairs(samples), form)
    images = open_source(root)
    assert contents(images.train) == PICTURES
    assert name_of(images.train, 3) == f"{root}/a.tar/{deep}/0003{odd}.jpg"


def test_other_components_folders_and_files_without_a_key_are_no_samples(root: Path) -> None:
    path = root / "a.tar"
    root.mkdir()
    write_tar(path, [("README", b"x"), ("__meta__.json", b"{}"), ("._0001.jpg", b"x"), ("d/0001.JPEG", PICTURES[0]), ("d/0001.json", b"{}"), ("d/0001.seg.png", b"x"), ("d/0001.cls", b" 1\n"), ("d/0002.webp", PICTURES[1]), ("d/0002.CLS", b"2")])  # fmt: skip
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("d/e.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    images = open_source(root)
    assert contents(images.train) == PICTURES[:2]
    assert images.classes == ("1", "2")


TAR = [("0.jpg", PICTURES[0]), ("0.cls", b"0"), ("1.jpg", PICTURES[1]), ("1.cls", b"1")]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (TAR[:3], r"a\.tar has no \.cls label for the key 1:"),
        (TAR[:2] + TAR[3:], r"a\.tar has no image \(.*\) for the key 1:"),
        ([*TAR, ("1.png", b"x")], r"a\.tar has two images of the key 1:"),
        ([*TAR, ("1.cls", b"4")], r"a\.tar has two labels of the key 1:"),
        ([*TAR[:3], ("1.cls", b"cat")], r"a\.tar has a \.cls of the key 1 that is no whole number"),
        ([*TAR[:3], ("1.cls", b"")], r"a\.tar has a \.cls of the key 1 that is no whole number"),
        ([*TAR[:3], ("1.cls", b"1" * 600)], r"a\.tar has a \.cls of the key 1 that is no whole number"),
        ([*TAR, ("2.txt", b"a cat")], r"a\.tar has no image \(.*\) for the key 2:"),
        (TAR[:2], "has one class only"),
        ([("README", b"x")], r"a\.tar holds no images"),
    ],
)
def test_a_sample_that_is_none_is_named(root: Path, members: list[tuple[str, bytes]], sentence: str) -> None:
    write_tar(root / "a.tar", members)
    refused(root, sentence)


@pytest.mark.parametrize("cut", [300, 700, 1024, 4000])
def test_a_truncated_tar_is_named(root: Path, cut: int) -> None:
    path = write_tar(root / "a.tar", TAR)
    os.truncate(path, cut)
    refused(root, r"a\.tar ends at byte \d+ .*it is truncated")


def test_a_tar_cut_between_members_is_no_whole_one(root: Path) -> None:
    path = write_tar(root / "a.tar", TAR)
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmember("1.jpg").offset)
    refused(root, r"a\.tar ends .* without the end mark of a tar: it is truncated")


def test_a_damaged_compressed_or_joined_tar_is_named(root: Path) -> None:
    path = write_tar(root / "a.tar", TAR)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"1.jpg", b"1.jpX"))
    refused(root, r"a\.tar is damaged at byte [1-9]")
    path.write_bytes(b"\x1f\x8b" + whole)
    refused(root, r"a\.tar is damaged at byte 0, .*compressed")
    path.write_bytes(whole + whole)
    refused(root, r"a\.tar goes on behind its end mark")
    path.write_bytes(b"")
    refused(root, r"a\.tar ends at byte 0")


def header(size: bytes, kind: bytes) -> bytes:
    """A tar's header of 512 bytes whose sum is right whatever it says."""
    block = bytearray(512)
    block[:5], block[124:136], block[156:157], block[148:156] = b"a.jpg", size.ljust(12, b"\0"), kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("kind", "size", "record"),
    [
        (b"x", b"00000000020", b"0 path=qqq\n"),
        (b"x", b"00000000020", b"xx path=q\n"),
        (b"x", b"00000000020", b"11 size=zz\n"),
        (b"x", b"00000000020", b"99 path=q.jpg\n"),
        (b"0", b"-0000001000", b""),
    ],
)
def test_headers_that_lead_nowhere_end_in_a_sentence(root: Path, kind: bytes, size: bytes, record: bytes) -> None:
    root.mkdir()
    (root / "a.tar").write_bytes(header(size, kind) + record.ljust(512, b"\0") + bytes(1024))
    refused(root, r"damaged|truncated")
