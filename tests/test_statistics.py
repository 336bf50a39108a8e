"""A set's mean image and colour covariance: exact on hand-made pictures, the same bits however they were summed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import DataError
from pipelines.dataset import statistics
from pipelines.dataset.statistics import Statistics, Sums, colour_basis, load, mean_crop, measure, save
from pipelines.sources.imageset import Split

SIDE = 16


def split_of(folder: Path, pictures: list[np.ndarray], suffix: str = "png") -> Split:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.{suffix}" for number in range(len(pictures))]
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    return Split(tuple(map(str, paths)), (0,) * len(paths), 1)


def flat(*colour: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def noise(count: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def summed(images: np.ndarray) -> Statistics:
    sums = Sums(images.shape[1])
    sums.add(images)
    return sums.statistics()


def test_two_flat_pictures_have_the_mean_and_covariance_of_two_points(tmp_path: Path) -> None:
    measured = measure(split_of(tmp_path, [flat(10, 20, 30), flat(50, 20, 90)]), side=SIDE, dataset_id="a set")
    assert measured.count == 2
    assert measured.dataset_id == "a set"
    assert measured.mean_image.tolist() == np.full((SIDE, SIDE, 3), (30.0, 20.0, 60.0)).tolist()
    assert measured.channel_means.tolist() == [30, 20, 60]
    assert measured.covariance.tolist() == [[400, 0, 600], [0, 0, 0], [600, 0, 900]]
    np.testing.assert_allclose(measured.eigenvalue_roots, [0, 0, math.sqrt(1300)], atol=1e-6)
    np.testing.assert_allclose(measured.eigenvectors[:, 2], np.array([2, 0, 3]) / math.sqrt(13), atol=1e-12)


def test_pictures_of_the_asked_size_are_summed_pixel_by_pixel(tmp_path: Path) -> None:
    images = noise(5)
    measured = measure(split_of(tmp_path, list(images)), side=SIDE)
    assert np.array_equal(measured.pixel_sums, images.sum(axis=0, dtype=np.int64))
    pixels = images.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(measured.product_sums, pixels.T @ pixels)
    np.testing.assert_allclose(measured.covariance, np.cov(pixels.T, bias=True), rtol=1e-12)


def test_other_pictures_are_cut_to_their_centre_square(tmp_path: Path) -> None:
    wide = np.zeros((SIDE, 3 * SIDE, 3), np.uint8)
    wide[:, SIDE : 2 * SIDE] = 200
    measured = measure(split_of(tmp_path, [wide]), side=SIDE)
    assert (measured.mean_image == 200).all()


def test_raw_pixels_give_what_their_pictures_give(tmp_path: Path) -> None:
    images = noise(5)
    raw = tmp_path / "train-00000.raw"
    raw.write_bytes(images.tobytes())
    size = images[0].nbytes
    spans = np.array([[number * size, size] for number in range(5)])
    split = Split((str(raw),) * 5, (0,) * 5, 1, spans, square=SIDE, raw=True)
    assert measure(split, side=SIDE).statistics_id == summed(images).statistics_id


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Pictures larger than the side, so that they must be resized."""
    return split_of(tmp_path_factory.mktemp("photos"), list(noise(10, 3 * SIDE)), "jpg")


@pytest.mark.parametrize(("threads", "images_per_batch"), [(1, 1), (1, 7), (3, 7), (3, 64)])
def test_the_same_bits_come_out_whatever_the_threads_and_the_batches(
    photos: Split, threads: int, images_per_batch: int
) -> None:
    plain = measure(photos, side=SIDE)
    assert (
        measure(photos, side=SIDE, threads=threads, images_per_batch=images_per_batch).statistics_id
        == plain.statistics_id
    )


def test_the_order_of_the_images_does_not_matter_and_their_pixels_do(photos: Split) -> None:
    backwards = Split(photos.files[::-1], photos.labels, 1)
    fewer = Split(photos.files[:-1], photos.labels[:-1], 1)
    assert measure(backwards, side=SIDE).statistics_id == measure(photos, side=SIDE).statistics_id
    assert measure(fewer, side=SIDE).statistics_id != measure(photos, side=SIDE).statistics_id


def test_progress_is_told_up_to_the_last_image(photos: Split) -> None:
    told: list[tuple[int, int]] = []
    measure(photos, side=SIDE, images_per_batch=4, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_no_images_and_bad_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images to measure"):
        measure(Split((), (), 1), side=SIDE)
    split = split_of(tmp_path, [flat(1, 2, 3)] * 3)
    Path(split.files[1]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"001\.png cannot be decoded"):
        measure(split, side=SIDE)


def test_sums_of_a_set_twice_as_large_as_any_do_not_overflow() -> None:
    white = Sums(256)
    white.add(np.full((2, 256, 256, 3), 255, np.uint8))
    images = 3_000_000
    large = Statistics(256, images, white.pixel_sums * (images // 2), white.product_sums * (images // 2))
    assert large.product_sums.tolist() == [[images * 256 * 256 * 255 * 255] * 3] * 3
    assert large.pixel_sums.max() == images * 255
    assert large.channel_means.tolist() == [255] * 3
    assert large.covariance.tolist() == [[0] * 3] * 3


def test_a_small_spread_about_a_large_mean_keeps_its_digits() -> None:
    images = np.full((1, 256, 256, 3), 255, np.uint8)
    images[0, 0, 0] = 254
    n = 256 * 256
    np.testing.assert_allclose(summed(images).covariance, np.full((3, 3), 1 / n - 1 / n**2), rtol=1e-15)


def test_the_largest_component_of_an_eigenvector_is_positive_and_the_roots_ascend() -> None:
    measured = summed(noise(3) // np.array([1, 2, 4], np.uint8))
    vectors, roots = measured.eigenvectors, measured.eigenvalue_roots
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()
    assert sorted(roots) == roots.tolist()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)


def test_the_colour_basis_is_a_root_of_the_covariance() -> None:
    measured = summed(noise(3))
    basis = colour_basis(measured)
    np.testing.assert_allclose(basis @ basis.T, measured.covariance, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), measured.eigenvalue_roots)


def test_the_mean_crop_is_the_middle_of_the_mean_image() -> None:
    measured = summed(noise(2))
    crop = mean_crop(measured, 10)
    assert crop.dtype == np.float32
    assert np.array_equal(crop, measured.mean_image[3:13, 3:13].astype(np.float32))
    assert mean_crop(measured, SIDE).shape == (SIDE, SIDE, 3)
    with pytest.raises(DataError, match="mean image of 17 pixels"):
        mean_crop(measured, 17)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(replace(summed(noise(2)), dataset_id="0123abcd"), tmp_path)


def test_what_was_saved_is_loaded_again_and_named_by_its_digest(saved: Path, tmp_path: Path) -> None:
    loaded, made = load(saved), summed(noise(2))
    assert saved.name == f"statistics-{made.statistics_id}.npz"
    assert loaded.statistics_id == made.statistics_id
    assert np.array_equal(loaded.pixel_sums, made.pixel_sums)
    assert np.array_equal(loaded.product_sums, made.product_sums)
    assert (loaded.side, loaded.count, loaded.dataset_id) == (SIDE, 2, "0123abcd")
    assert save(made, tmp_path) == saved
    assert list(tmp_path.iterdir()) == [saved]


def test_the_digest_is_of_the_sums_alone_and_stays_what_it_was() -> None:
    sums = np.arange(12).reshape(2, 2, 3)
    assert Statistics(2, 1, sums, np.eye(3, dtype=np.int64), "any").statistics_id == "7cb2e18e30b6"


def rewritten(path: Path, **changes: Any) -> Path:
    with np.load(path) as archive:
        contents = {**archive, **changes}
    np.savez(path, **{name: value for name, value in contents.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pixel_sums": summed(noise(2, seed=1)).pixel_sums}, "it was changed"),
        ({"count": 3}, "it was changed"),
        ({"version": 2, "pixel_sums": None}, "version 2 and this program knows 1"),
        ({"pixel_sums": None}, "is damaged"),
        ({"product_sums": np.zeros((3, 2), np.int64)}, "is damaged"),
        ({"pixel_sums": np.zeros((SIDE, SIDE, 3))}, "is damaged"),
        ({"count": 0}, "is damaged"),
    ],
    ids=str,
)
def test_a_file_of_other_contents_is_refused(saved: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as told:
        load(rewritten(saved, **changes))
    assert "\n" not in str(told.value)


def test_a_changed_byte_is_refused_wherever_it_lies(saved: Path) -> None:
    whole = saved.read_bytes()
    before = load(saved)
    for place in range(0, len(whole), 97):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            after = load(saved)
        except DataError:
            continue
        # A zip has bytes that mean nothing, such as its dates.
        assert after.statistics_id == before.statistics_id
        assert after.dataset_id == before.dataset_id


@pytest.mark.parametrize("contents", [b"", b"text", b"PK\x03\x04 and no more"], ids=["empty", "text", "half a zip"])
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "statistics-0.npz"
    with pytest.raises(DataError, match="does not exist"):
        load(path)
    path.write_bytes(contents)
    with pytest.raises(DataError, match="is damaged"):
        load(path)


def test_a_pickle_is_never_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "statistics-0.npz"
    np.savez(path, **{name: np.array([{}]) for name in statistics.CONTENTS})
    with pytest.raises(DataError, match="is damaged"):
        load(path)
