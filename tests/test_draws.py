"""Order and random numbers are functions of the seed and of the images drawn before, and have the distributions they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines import Request
from pipelines.augment import COLOUR_NOISE_BASIS
from pipelines.draws import draws
from pipelines.order import Order, normals, uniforms, words
from pipelines.sources.imageset import Split

SPLIT = Split(("a.jpg",), (0,), 1)


def request(augment: str = "paper", **arguments: Any) -> Request:
    return Request(split=SPLIT, images_per_batch=4, augment=augment, **arguments)


def test_words_are_the_published_splitmix64_sequence() -> None:
    # SplitMix64 of seed 0 begins so; counter c is its (c + 1)-th number less the key's part.
    assert [hex(word) for word in words(0, np.arange(1, 4))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_an_epoch_is_a_permutation_and_shards_are_its_equal_parts() -> None:
    for epoch in range(3):
        parts = [Order(23, seed=1, shard=shard, num_shards=4).places(5 * epoch, 5) for shard in range(4)]
        assert len(set(np.concatenate(parts).tolist())) == 20


def test_any_stretch_of_the_order_may_be_asked_for_at_any_time() -> None:
    order = Order(7, seed=3)
    whole = order.places(0, 70)
    assert order.places(31, 20).tolist() == whole[31:51].tolist()
    assert Order(7, seed=3).places(31, 20).tolist() == whole[31:51].tolist()
    assert Order(7, seed=4).places(0, 70).tolist() != whole.tolist()


def test_orders_are_evenly_spread() -> None:
    first = [int(Order(10, seed=seed).places(0, 1)[0]) for seed in range(2000)]
    assert stats.chisquare(np.bincount(first, minlength=10)).pvalue > 0.001


def test_numbers_are_even_and_normal_and_streams_are_apart() -> None:
    counters = np.arange(20_000)
    even = uniforms(5, counters, 3)
    assert stats.kstest(even.ravel(), "uniform").pvalue > 0.001
    assert stats.kstest(normals(5, counters, 3).ravel(), "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(np.column_stack([even, uniforms(6, counters, 3)]).T) - np.eye(6)).max() < 0.03


def test_numbers_of_an_image_do_not_depend_on_the_batch_it_comes_in() -> None:
    whole = draws(request(), 0, 50)
    part = draws(request(), 17, 9)
    for all_numbers, numbers in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_numbers[17:26], numbers)


@pytest.mark.parametrize("other", [{"seed": 2}, {"shard": 1, "num_shards": 1}])
def test_another_seed_draws_other_numbers(other: dict[str, Any]) -> None:
    if "shard" in other:
        two = Split(("a", "b"), (0, 0), 1)
        first, second = (
            draws(Request(split=two, images_per_batch=4, augment="paper", shard=shard, num_shards=2), 0, 50)
            for shard in (0, 1)
        )
    else:
        first, second = draws(request(), 0, 50), draws(request(**other), 0, 50)
    for one, another in zip(first, second, strict=True):
        assert not np.array_equal(one, another)


def test_crops_are_evenly_the_33_by_33_and_half_are_flipped() -> None:
    drawn = draws(request(), 0, 33 * 33 * 8)
    counts = np.zeros((33, 33))
    np.add.at(counts, tuple(drawn.offset.astype(int).T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.001
    assert stats.binomtest(int(drawn.mirror.sum()), len(drawn.mirror)).pvalue > 0.001


def test_noise_has_the_covariance_of_its_basis() -> None:
    noise = draws(request(), 0, 20_000).noise
    basis = 0.1 * np.array(COLOUR_NOISE_BASIS)
    np.testing.assert_allclose(np.cov(noise.T), basis @ basis.T, rtol=0.05, atol=1.0)


def test_jitter_reaches_from_1_less_to_1_more_and_the_hue_in_degrees() -> None:
    drawn = draws(request("rrc+jitter", jitter=(0.4, 0.2, 0.0, 0.1)), 0, 5000).jitter
    for column, (low, high) in zip(drawn.T, ((0.6, 1.4), (0.8, 1.2), (1.0, 1.0), (-36, 36)), strict=True):
        assert low - 1e-5 <= column.min() <= column.max() <= high + 1e-5
        assert column.max() - column.min() >= 0.99 * (high - low)


def test_code2012_cuts_and_flips_32_images_in_a_row_alike_and_colours_each_by_itself() -> None:
    drawn = draws(request("code2012"), 0, 320)
    for numbers in (drawn.mirror[:, None], drawn.offset):
        groups = numbers.reshape(10, 32, -1)
        assert (groups == groups[:, :1]).all()
    assert len(np.unique(drawn.offset.reshape(10, 32, 2)[:, 0], axis=0)) > 5
    assert len(np.unique(drawn.noise, axis=0)) == 320


def test_colour_noise_ends_after_so_many_images_of_the_shard_and_changes_no_other_number() -> None:
    whole, ended = (draws(request(noise_images=images), 4, 6) for images in (None, 7))
    assert (ended.noise[:3] == whole.noise[:3]).all()
    assert (ended.noise[3:] == 0).all()
    assert (whole.noise[3:] != 0).all()
    assert (ended.offset == whole.offset).all()
    assert (ended.mirror == whole.mirror).all()
