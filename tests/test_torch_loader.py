"""The peer gives what DALI gives: the same contract, the same pictures, so that a comparison compares loaders."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipelines
from pipelines import AUGMENTS, Batch, DataError, Request
from pipelines.augment import CHANNEL_MEANS, COLOUR_NOISE_BASIS
from pipelines.sources import Split
from pipelines.torch_loader import Images, Visits

MEANS = torch.tensor(CHANNEL_MEANS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Twelve JPEGs with structure."""
    folder, draw, files = tmp_path_factory.mktemp("pictures"), np.random.default_rng(2), []
    for number in range(12):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        path = folder / f"{number:03}.JPEG"
        coarse.resize((120 + 8 * number, 100), Image.Resampling.BICUBIC).save(path, quality=95, subsampling=0)
        files.append(str(path))
    return Split(tuple(files), tuple(number % 3 for number in range(12)), 3)


def request(split: Split, **arguments: Any) -> Request:
    return Request(**{"split": split, "images_per_batch": 4, "image_size": 32, "threads": 1, "seed": 1, **arguments})


def take(name: str, split: Split, count: int, **arguments: Any) -> list[Batch]:
    asked = {"split": split, "images_per_batch": 4, "image_size": 32, "threads": 1, "seed": 1, **arguments}
    with closing(pipelines.create(name, **asked)) as batches:
        return list(itertools.islice(batches, count))


def test_batches_from_worker_processes_keep_the_contract(pictures: Split) -> None:
    batches = take("torch", pictures, 3, threads=2)
    for batch in batches:
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.labels.tolist() == [pictures.labels[place] for place in batch.indices.tolist()]
    assert sorted(place for batch in batches for place in batch.indices.tolist()) == list(range(12))


def test_evaluation_shows_what_dali_shows(pictures: Split) -> None:
    peer = take("torch", pictures, 99, training=False, images_per_batch=5, image_size=224)
    ours = take("dali", pictures, 99, training=False, images_per_batch=5, image_size=224)
    assert len(peer) == len(ours) == 3
    for theirs, batch in zip(peer, ours, strict=True):
        assert torch.equal(theirs.indices, batch.indices)
        assert torch.equal(theirs.labels, batch.labels)
        shown = batch.indices >= 0
        # torchvision rounds the longer side to whole pixels: the two may lie half a pixel apart.
        assert (theirs.images[shown] - batch.images[shown]).abs().mean() < 3


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_comes_once_an_epoch_over_all_ranks_and_epochs_differ(pictures: Split, ranks: int) -> None:
    share = 12 // ranks
    epochs = []
    for epoch in range(3):
        drawn = []
        for shard in range(ranks):
            order = Visits(request(pictures, images_per_batch=1, shard=shard, num_shards=ranks))
            stream = [batch[0][0] for batch in itertools.islice(order, 3 * share)]
            drawn.append(stream[epoch * share : (epoch + 1) * share])
        assert sorted(itertools.chain(*drawn)) == list(range(12))
        epochs.append(str(drawn))
    assert len(set(epochs)) == 3


def test_evaluation_covers_every_image_once_over_three_ranks(pictures: Split) -> None:
    seen = []
    for shard in range(3):
        for batch in Visits(request(pictures, training=False, images_per_batch=3, shard=shard, num_shards=3)):
            assert len(batch) == 3
            seen += [place for place, _ in batch if place >= 0]
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("augment", AUGMENTS)
def test_augmentation_follows_from_seed_shard_and_visit_and_not_from_the_worker(pictures: Split, augment: str) -> None:
    def image(drawn: int = 5, **arguments: Any) -> torch.Tensor:
        return Images(request(pictures, augment=augment, **arguments))[3, drawn][0]

    assert torch.equal(image(), image())
    for other in (image(drawn=6), image(seed=2), image(shard=1, num_shards=2)):
        assert torch.equal(image(), other) == (augment == "none")


def test_sixteen_bits_are_eight_as_dali_makes_them(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)).save(path)
    split = Split((str(path),), (0,), 1)
    ours, peer = (
        take(name, split, 1, training=False, images_per_batch=1, image_size=56, resized_side=64)[0].images
        for name in ("dali", "torch")
    )
    assert (ours - peer).abs().max() <= 1


@pytest.mark.parametrize("arguments", [{"augment": "rrc"}, {"training": False}])
def test_the_mean_is_subtracted_and_nothing_divided(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path = tmp_path / "flat.png"
    Image.new("RGB", (60, 50), (200, 100, 50)).save(path)
    split = Split((str(path),), (0,), 1)
    image, _ = Images(request(split, **arguments))[0, 0]
    torch.testing.assert_close(image, (torch.tensor([200.0, 100, 50]) - MEANS).expand(32, 32, 3), rtol=0, atol=1e-5)


def test_the_papers_noise_has_imagenets_covariance(tmp_path: Path) -> None:
    path = tmp_path / "flat.png"
    Image.new("RGB", (10, 9), (128, 128, 128)).save(path)
    images = Images(request(Split((str(path),), (0,), 1), augment="paper", image_size=8))
    noise = torch.stack([images[0, drawn][0][0, 0] for drawn in range(1500)]) - (128 - MEANS)
    basis = torch.tensor(COLOUR_NOISE_BASIS)
    torch.testing.assert_close(torch.cov(noise.T), 0.01 * basis @ basis.T, rtol=0.15, atol=5.0)


def test_a_file_that_cannot_be_decoded_is_named_in_one_sentence(pictures: Split, tmp_path: Path) -> None:
    bad = tmp_path / "bad.JPEG"
    bad.write_bytes(Path(pictures.files[0]).read_bytes()[:700])
    split = Split((*pictures.files[:3], str(bad)), (0, 1, 2, 0), 3)
    with pytest.raises(DataError, match=r"bad\.JPEG cannot be decoded") as told:
        take("torch", split, 1)
    assert "\n" not in str(told.value)


def test_without_torchvision_the_line_that_installs_it_is_told() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import pipelines\n"
        "from pipelines.sources import Split\n"
        "try: pipelines.create('torch', split=Split(('a',), (0,), 1), images_per_batch=1)\n"
        "except ImportError as error: print(error)"
    )
    root = Path(pipelines.__file__).parents[1]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "torchvision, which is not installed" in told.stdout
    assert 'pip install -e ".[peer]"' in told.stdout
