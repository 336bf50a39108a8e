"""What a graph shows of a picture: views, mean images, colours, and images that lie in parts of files."""

from __future__ import annotations

import io
import itertools
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import backend
from PIL import Image

import pipelines
from pipelines import AUGMENTS, RANDOM_RESIZED, Batch, DataError, Request
from pipelines.augment import CHANNEL_MEANS
from pipelines.dali import graph
from pipelines.draws import draws
from pipelines.feed import Feed
from pipelines.sources.imageset import Split

SIDE, CUT = 40, 32
MEANS = np.array(CHANNEL_MEANS, np.float32)


def squares(count: int, side: int = SIDE) -> np.ndarray:
    """(count, side, side, 3) uint8, no two pixels alike in a way that hides a shift."""
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def packed(path: Path, images: list[bytes], **options: Any) -> Split:
    """A split of images that lie one after the other in one file, after a few bytes that belong to none."""
    path.write_bytes(b"head" + b"".join(images))
    sizes = np.array([len(image) for image in images])
    spans = np.column_stack([4 + np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes]).astype(np.int64)
    labels = tuple(number % 3 for number in range(len(images)))
    return Split((str(path),) * len(images), labels, 3, spans, **options)


def take(split: Split, count: int = 99, pipeline: str = "dali", **arguments: Any) -> list[Batch]:
    asked = {"images_per_batch": 4, "image_size": CUT, "resized_side": SIDE, "seed": 1, "threads": 2, **arguments}
    with closing(pipelines.create(pipeline, split=split, **asked)) as batches:
        return list(itertools.islice(batches, count))


def pixels(batch: Batch) -> np.ndarray:
    """(N, S, S, 3)."""
    return batch.images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def square_files(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Six whole PNG files of SIDE x SIDE: resizing them is no change, so every pixel is known."""
    folder = tmp_path_factory.mktemp("squares")
    files = [folder / f"{number}.png" for number in range(6)]
    for path, image in zip(files, squares(6), strict=True):
        path.write_bytes(png(image))
    return Split(tuple(map(str, files)), (0, 1, 2, 0, 1, 2), 3)


def as_form(form: str, folder: Path, square_files: Split) -> Split:
    """The same six pictures in another form."""
    images = squares(6)
    return {
        "files": lambda: square_files,
        "packed": lambda: packed(folder / "shard.tar", [png(image) for image in images]),
        "square": lambda: packed(folder / "shard.tar", [png(image) for image in images], square=SIDE),
        "raw": lambda: packed(folder / "shard.raw", [image.tobytes() for image in images], square=SIDE, raw=True),
    }[form]()


FORMS = ("files", "packed", "square", "raw")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pipeline", ["dali", "torch"])
def test_every_form_shows_the_same_pixels_unaugmented(
    form: str, pipeline: str, tmp_path: Path, square_files: Split
) -> None:
    split = as_form(form, tmp_path, square_files)
    batches = take(split, training=False, pipeline=pipeline, threads=1)
    shown = np.concatenate([pixels(batch) for batch in batches])[:6]
    middle = squares(6)[:, 4:36, 4:36].astype(np.float32) - MEANS
    np.testing.assert_allclose(shown, middle, atol=1e-4)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("augment", ["paper", "code2012"])
def test_training_crops_flips_and_colours_are_those_drawn(
    form: str, augment: str, tmp_path: Path, square_files: Split
) -> None:
    split = as_form(form, tmp_path, square_files)
    asked = {"split": split, "images_per_batch": 4, "image_size": CUT, "resized_side": SIDE, "seed": 1}
    request = Request(augment=augment, **asked)
    drawn, order = draws(request, 0, 12), Feed(request).order.places(0, 12)
    shown = np.concatenate([pixels(batch) for batch in take(split, 3, augment=augment)])
    divisor = 1.1 if augment == "code2012" else 1
    for image, place, mirror, offset, noise in zip(shown, order, drawn.mirror, drawn.offset.astype(int), drawn.noise, strict=True):  # fmt: skip
        crop = squares(6)[place][offset[0] : offset[0] + CUT, offset[1] : offset[1] + CUT]
        wanted = ((crop[:, ::-1] if mirror else crop) - MEANS + noise) / divisor
        np.testing.assert_allclose(image, wanted, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize(("shard", "ranks"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_every_rank_shows_the_very_images_whose_indices_it_gives(
    form: str, augment: str, shard: int, ranks: int, tmp_path: Path
) -> None:
    greys = np.stack([np.full((SIDE, SIDE, 3), 10 * place, np.uint8) for place in range(20)])
    folder = tmp_path / "greys"
    folder.mkdir()
    for place, image in enumerate(greys):
        (folder / f"{place:02}.png").write_bytes(png(image))
    whole = Split(tuple(map(str, sorted(folder.iterdir()))), tuple(place % 3 for place in range(20)), 3)
    split = {
        "files": lambda: whole,
        "packed": lambda: packed(tmp_path / "shard.tar", [png(image) for image in greys]),
        "square": lambda: packed(tmp_path / "shard.tar", [png(image) for image in greys], square=SIDE),
        "raw": lambda: packed(tmp_path / "shard.raw", [image.tobytes() for image in greys], square=SIDE, raw=True),
    }[form]()
    if split.square and augment in RANDOM_RESIZED:
        return
    still = {"jitter": (0.0, 0.0, 0.0, 0.0), "colour_basis": ((0.0,) * 3,) * 3, "channel_means": (0.0,) * 3}
    for batch in take(split, 8, augment=augment, shard=shard, num_shards=ranks, **still):
        shown = pixels(batch).mean((1, 2, 3)) * (1.1 if augment == "code2012" else 1)
        np.testing.assert_allclose(shown, 10 * batch.indices.numpy(), atol=0.51)
        assert batch.labels.tolist() == [split.labels[place] for place in batch.indices.tolist()]


def test_a_mean_image_is_taken_from_every_crop_as_it_is_shown(square_files: Split) -> None:
    mean = np.random.default_rng(1).uniform(90, 150, (CUT, CUT, 3)).astype(np.float32)
    (batch,) = take(square_files, 1, training=False, mean_image=mean)
    np.testing.assert_allclose(pixels(batch), squares(6)[:4, 4:36, 4:36] - mean, atol=1e-3)
    request = Request(
        split=square_files, images_per_batch=4, image_size=CUT, resized_side=SIDE, augment="code2012", seed=1
    )
    drawn, order = draws(request, 0, 4), Feed(request).order.places(0, 4)
    (batch,) = take(square_files, 1, augment="code2012", mean_image=mean)
    for image, place, mirror, offset, noise in zip(pixels(batch), order, drawn.mirror, drawn.offset.astype(int), drawn.noise, strict=True):  # fmt: skip
        crop = squares(6)[place][offset[0] : offset[0] + CUT, offset[1] : offset[1] + CUT]
        np.testing.assert_allclose(image, ((crop[:, ::-1] if mirror else crop) - mean + noise) / 1.1, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_ten_views_are_corners_and_middle_and_their_mirror_images(
    form: str, tmp_path: Path, square_files: Split
) -> None:
    first, _ = take(as_form(form, tmp_path, square_files), training=False, views=10)
    assert first.images.shape == (40, 3, CUT, CUT)
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.labels.shape == first.indices.shape == (4,)
    room = SIDE - CUT
    for image, views in zip(squares(6), pixels(first).reshape(4, 10, CUT, CUT, 3), strict=False):
        for number, (y, x) in enumerate([(0, 0), (0, room), (room, 0), (room, room), (room // 2, room // 2)]):
            crop = image[y : y + CUT, x : x + CUT] - MEANS
            np.testing.assert_allclose(views[number], crop, atol=1e-4)
            np.testing.assert_allclose(views[5 + number], crop[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [SIDE, SIDE - 3])
def test_raw_pixels_are_given_without_any_mean(form: str, cut: int, tmp_path: Path, square_files: Split) -> None:
    split = as_form(form, tmp_path, square_files)
    shown = np.concatenate([pixels(batch) for batch in take(split, training=False, image_size=cut, dtype="uint8")])
    assert shown.dtype == np.uint8
    first = (SIDE - cut) // 2
    np.testing.assert_array_equal(shown[:6], squares(6)[:, first : first + cut, first : first + cut])


@pytest.mark.parametrize("form", FORMS)
def test_the_middle_is_the_same_in_every_form_where_the_room_is_odd(
    form: str, tmp_path: Path, square_files: Split
) -> None:
    split = as_form(form, tmp_path, square_files)
    shown = np.concatenate([pixels(batch) for batch in take(split, training=False, image_size=SIDE - 3)])
    np.testing.assert_allclose(shown[:6], squares(6)[:, 1:38, 1:38] - MEANS, atol=1e-4)
    (views, *_) = take(split, training=False, image_size=SIDE - 3, views=10)
    np.testing.assert_allclose(pixels(views)[4::10], squares(6)[:4, 1:38, 1:38] - MEANS, atol=1e-4)


def test_squares_of_another_size_are_resized_as_any_picture(tmp_path: Path) -> None:
    images = [np.full((50, 50, 3), 10 * number, np.uint8) for number in range(4)]
    for split in (
        packed(tmp_path / "a", [png(image) for image in images], square=50),
        packed(tmp_path / "b", [image.tobytes() for image in images], square=50, raw=True),
    ):
        (batch,) = take(split, training=False)
        np.testing.assert_allclose(pixels(batch) + MEANS, np.stack([image[:CUT, :CUT] for image in images]), atol=1e-3)


@pytest.mark.parametrize("augment", ["rrc", "rrc+jitter"])
def test_random_resized_crops_of_prepared_squares_are_refused_with_the_reason(tmp_path: Path, augment: str) -> None:
    split = packed(tmp_path / "a", [png(image) for image in squares(4)], square=SIDE)
    with pytest.raises(DataError, match=r"prepared as 40x40 squares.*--augment paper") as told:
        take(split, augment=augment)
    assert "\n" not in str(told.value)


def test_a_shard_that_shrank_is_named(tmp_path: Path) -> None:
    split = packed(tmp_path / "shard.raw", [image.tobytes() for image in squares(6)], square=SIDE, raw=True)
    (tmp_path / "shard.raw").write_bytes(b"short")
    with pytest.raises(DataError, match=r"shard\.raw is shorter than it was"):
        take(split, 3, augment="paper")


@pytest.mark.parametrize(
    "arguments", [{"views": 10}, {"dtype": "uint8"}, {"views": 3, "training": False}, {"resized_side": 20}]
)
def test_what_no_pipeline_can_show_is_refused(square_files: Split, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ask for|choose from|resize to more"):
        take(square_files, 1, **arguments)


GPU_ASKED = {
    "paper": {"augment": "paper"},
    "paper, mean image": {"augment": "paper", "mean_image": np.zeros((CUT, CUT, 3), np.float32)},
    "code2012, half": {"augment": "code2012", "mean_image": np.zeros((CUT, CUT, 3), np.float32), "dtype": "float16"},
    "ten views": {"training": False, "views": 10},
    "ten views, mean image": {"training": False, "views": 10, "mean_image": np.zeros((CUT, CUT, 3), np.float32)},
    "raw pixels": {"training": False, "dtype": "uint8"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", GPU_ASKED)
@pytest.mark.parametrize("decode", ["cpu", "mixed"])
def test_every_form_has_a_gpu_graph_whose_last_operators_are_the_gpus(
    form: str, asked: str, decode: str, tmp_path: Path, square_files: Split
) -> None:
    split = as_form(form, tmp_path, square_files)
    sizes = {"images_per_batch": 4, "image_size": CUT, "resized_side": SIDE}
    request = Request(split=split, device="cuda:0", decode=decode, **sizes, **GPU_ASKED[asked])
    pipeline = graph(request, None, 2)
    assert len(pipeline.serialize()) > 500
    registered = {
        "cpu": backend.RegisteredCPUOps(),
        "gpu": backend.RegisteredGPUOps(),
        "mixed": backend.RegisteredMixedOps(),
    }
    specs = "\n".join(str(op.spec) for op in pipeline._ops)
    used = re.findall(r"OpSpec for (\w+):.*?device: (\w+)", specs, re.DOTALL)
    assert all(name in registered[device] for name, device in used)
    decoders = [device for name, device in used if name.startswith("decoders")]
    assert decoders == ([] if form == "raw" else [decode])
    assert {device for name, device in used if name == "CropMirrorNormalize"} <= {"gpu"}


@pytest.mark.gpus(1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", GPU_ASKED)
@pytest.mark.parametrize("decode", ["cpu", "mixed"])
def test_a_gpu_shows_what_a_cpu_shows(form: str, asked: str, decode: str, tmp_path: Path, square_files: Split) -> None:
    split = as_form(form, tmp_path, square_files)
    (on_cpu,) = take(split, 1, **GPU_ASKED[asked])
    (on_gpu,) = take(split, 1, device="cuda:0", decode=decode, **GPU_ASKED[asked])
    assert torch.equal(on_gpu.indices.cpu(), on_cpu.indices)
    assert on_gpu.images.dtype == on_cpu.images.dtype
    torch.testing.assert_close(on_gpu.images.cpu().float(), on_cpu.images.float(), rtol=0, atol=0.2)
