"""The resident batch: random pixels that cost no input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pipelines
from pipelines.augment import CHANNEL_MEANS
from pipelines.sources import Split


def synthetic(**arguments: Any) -> pipelines.Batches:
    defaults = {"split": Split(tuple("abcd"), (0, 1, 2, 3), 7), "images_per_batch": 6, "image_size": 16}
    return pipelines.create("synthetic", **{**defaults, **arguments})


def test_the_same_batch_is_given_for_ever() -> None:
    batches = synthetic()
    first = next(batches)
    assert next(batches).images.data_ptr() == first.images.data_ptr()
    batches.close()
    assert list(batches) == []


def test_images_are_whole_pixel_values_minus_the_mean_in_channels_last() -> None:
    images = next(synthetic()).images
    assert images.shape == (6, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    pixels = images + torch.tensor(CHANNEL_MEANS)[:, None, None]
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    assert pixels.min() > -0.5
    assert 250 < pixels.max() < 255.5


def test_labels_are_classes_of_the_set_and_indices_differ_between_shards() -> None:
    first, second = (next(synthetic(shard=shard, num_shards=2)) for shard in (0, 1))
    assert first.labels.dtype == first.indices.dtype == torch.int64
    assert set(first.labels.tolist()) <= set(range(7))
    assert first.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.indices.tolist() == [6, 7, 8, 9, 10, 11]
    assert not torch.equal(first.images, second.images)


def test_pixels_follow_from_the_seed() -> None:
    assert torch.equal(next(synthetic(seed=3)).images, next(synthetic(seed=3)).images)
    assert not torch.equal(next(synthetic(seed=3)).images, next(synthetic(seed=4)).images)


def test_half_precision_is_given_where_asked() -> None:
    assert next(synthetic(dtype="float16")).images.dtype == torch.float16


def test_evaluation_on_pictures_that_do_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="has no images to evaluate"):
        synthetic(training=False)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"augment": "blur"}, "unknown augment 'blur': choose from rrc, rrc\\+jitter, paper"),
        ({"device": "tpu"}, "unknown device 'tpu': choose from cpu, cuda"),
        ({"dtype": "int8"}, "unknown dtype 'int8': choose from float32, float16"),
        ({"decode": "gpu"}, "unknown decode 'gpu': choose from cpu, mixed"),
        ({"decode": "mixed"}, "decode mixed needs a GPU"),
        ({"images_per_batch": 0}, "images_per_batch 0 is too small"),
        ({"shard": 2, "num_shards": 2}, "shard 2 of 2 does not exist"),
        ({"num_shards": 5}, "4 training images cannot feed 5 ranks"),
    ],
)
def test_what_no_pipeline_can_do_is_refused_with_the_right_values(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        synthetic(**wrong)


def test_an_unknown_pipeline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown pipeline 'tape': choose from dali, torch, synthetic"):
        pipelines.create("tape")
