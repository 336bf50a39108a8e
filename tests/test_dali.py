"""DALI's batches: every image counted once, augmentation as the paper says, pixels minus a mean, bad files named."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import backend
from PIL import Image

import pipelines
from pipelines import AUGMENTS, Batch, DataError, Request
from pipelines.augment import CHANNEL_MEANS, COLOUR_NOISE_BASIS, centre_square
from pipelines.dali import graph
from pipelines.sources import Split

MEANS = torch.tensor(CHANNEL_MEANS)[:, None, None]
SIDE = 32  # small images test the same graph faster


def jpeg(width: int = 48, height: int = 40, colour: tuple[int, int, int] = (90, 140, 200), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "JPEG", quality=95, subsampling=0, **options)
    return file.getvalue()


def split_of(folder: Path, files: list[bytes], num_classes: int = 3) -> Split:
    """A split of these files: numbered, classes in turn."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.JPEG" for number in range(len(files))]
    for path, contents in zip(paths, files, strict=True):
        path.write_bytes(contents)
    return Split(tuple(map(str, paths)), tuple(number % num_classes for number in range(len(files))), num_classes)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Twelve flat images, each of its own colour."""
    return split_of(tmp_path_factory.mktemp("numbered"), [jpeg(colour=(20 * n, 255 - 20 * n, 128)) for n in range(12)])


def dali(split: Split, **arguments: Any) -> pipelines.Batches:
    defaults = {"images_per_batch": 4, "image_size": SIDE, "augment": "rrc", "seed": 1, "threads": 2}
    return pipelines.create("dali", split=split, **{**defaults, **arguments})


def take(split: Split, count: int, **arguments: Any) -> list[Batch]:
    with closing(dali(split, **arguments)) as batches:
        return list(itertools.islice(batches, count))


def indices(split: Split, count: int, **arguments: Any) -> list[int]:
    return [place for batch in take(split, count, **arguments) for place in batch.indices.tolist()]


def test_a_batch_is_what_the_contract_says(numbered: Split) -> None:
    (batch,) = take(numbered, 1)
    assert batch.images.shape == (4, 3, SIDE, SIDE)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == batch.indices.shape == (4,)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.labels.tolist() == [numbered.labels[place] for place in batch.indices.tolist()]


def test_half_precision_is_given_where_asked(numbered: Split) -> None:
    (half,) = take(numbered, 1, dtype="float16")
    (full,) = take(numbered, 1)
    assert half.images.dtype == torch.float16
    torch.testing.assert_close(half.images.float(), full.images, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_comes_exactly_once_an_epoch_and_ranks_never_overlap(numbered: Split, ranks: int) -> None:
    epochs, share = 4, 12 // ranks
    streams = [
        indices(numbered, epochs * share // 2, images_per_batch=2, shard=shard, num_shards=ranks)
        for shard in range(ranks)
    ]
    seen = [[stream[epoch * share : (epoch + 1) * share] for stream in streams] for epoch in range(epochs)]
    for epoch in seen:
        assert sorted(place for stream in epoch for place in stream) == list(range(12))
    assert len({str(epoch) for epoch in seen}) == epochs


def test_ranks_whose_number_does_not_divide_the_set_get_equal_shards_without_overlap(numbered: Split) -> None:
    streams = [indices(numbered, 4, images_per_batch=2, shard=shard, num_shards=5) for shard in range(5)]
    left_out = set()
    for epoch in range(4):
        drawn = {place for stream in streams for place in stream[2 * epoch : 2 * epoch + 2]}
        assert len(drawn) == 10
        left_out |= set(range(12)) - drawn
    assert len(left_out) > 2


def test_a_small_set_wraps_round_to_fill_a_large_batch(numbered: Split) -> None:
    for batch in take(numbered, 3, images_per_batch=30):
        assert len(batch.indices) == 30
        assert set(Counter(batch.indices.tolist()).values()) == {2, 3}


def test_the_order_follows_from_the_seed(numbered: Split) -> None:
    assert indices(numbered, 9, seed=5) == indices(numbered, 9, seed=5)
    assert indices(numbered, 9, seed=5) != indices(numbered, 9, seed=6)
    assert indices(numbered, 9, seed=5)[12:] != indices(numbered, 9, seed=6)[12:]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_stream_is_the_same_whatever_the_threads_and_the_queue(photos: Split, augment: str) -> None:
    one = take(photos, 5, augment=augment, threads=1, prefetch=1)
    three = take(photos, 5, augment=augment, threads=3, prefetch=3)
    for first, second in zip(one, three, strict=True):
        assert torch.equal(first.indices, second.indices)
        assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_stream_saved_in_the_middle_of_an_epoch_goes_on_with_the_same_bits(
    photos: Split, augment: str, shard: int
) -> None:
    arguments: dict[str, Any] = {"augment": augment, "images_per_batch": 3, "shard": shard, "num_shards": 2}
    with closing(dali(photos, prefetch=3, **arguments)) as batches:
        list(itertools.islice(batches, 2))
        first = batches.state()
        list(itertools.islice(batches, 2))
        second = batches.state()
        wanted = list(itertools.islice(batches, 3))
    with closing(dali(photos, threads=1, prefetch=1, resume=first, **arguments)) as batches:
        list(itertools.islice(batches, 2))
        assert batches.state() == second
    for batch, want in zip(take(photos, 3, resume=second, **arguments), wanted, strict=True):
        assert torch.equal(batch.indices, want.indices)
        assert torch.equal(batch.labels, want.labels)
        assert torch.equal(batch.images, want.images)


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"images_per_batch": 5}, {"num_shards": 2}, {"augment": "paper"}, {"image_size": 40}, {"split": 11}],
)
def test_a_saved_state_of_anything_else_is_refused(numbered: Split, other: dict[str, Any]) -> None:
    with closing(dali(numbered)) as batches:
        next(batches)
        state = batches.state()
    split = numbered
    if "split" in other:
        split, other = Split(numbered.files[:11], numbered.labels[:11], 3), {}
    with pytest.raises(DataError, match="belongs to other images"):
        dali(split, resume=state, **other)


def test_augmentation_differs_between_seeds_and_between_shards(photos: Split) -> None:
    one_file = Split(photos.files[:1] * 8, (0,) * 8, 1)
    streams = [
        take(one_file, 1, seed=seed, shard=shard, num_shards=2)[0].images for seed, shard in ((1, 0), (2, 0), (1, 1))
    ]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(streams, 2))


def test_batches_held_on_to_stay_what_they_were(photos: Split) -> None:
    with closing(dali(photos, prefetch=1)) as batches:
        held = next(batches)
        copy = held.images.clone()
        for _ in range(8):
            next(batches)
        assert torch.equal(held.images, copy)


@pytest.mark.parametrize(("count", "ranks", "size"), [(12, 1, 4), (12, 1, 5), (12, 2, 4), (7, 3, 2), (2, 3, 4)])
def test_evaluation_gives_every_image_once_over_all_shards(numbered: Split, count: int, ranks: int, size: int) -> None:
    split = Split(numbered.files[:count], numbered.labels[:count], 3)
    seen = []
    for shard in range(ranks):
        arguments = {"training": False, "images_per_batch": size, "shard": shard, "num_shards": ranks, "prefetch": 3}
        batches = take(split, 99, **arguments)
        own = [place for batch in batches for place in batch.indices.tolist()]
        valid = [place for place in own if place >= 0]
        assert valid == sorted(valid)
        assert len(batches) == -(-len(valid) // size)
        assert own == valid + [-1] * (len(own) - len(valid))
        for batch in batches:
            assert batch.images.shape[0] == size
            assert batch.labels.tolist() == [split.labels[p] if p >= 0 else 0 for p in batch.indices.tolist()]
        seen += valid
    assert sorted(seen) == list(range(count))


def test_a_closed_pipeline_ends_and_may_be_closed_again(numbered: Split) -> None:
    batches = dali(numbered)
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


@pytest.mark.parametrize("arguments", [{"augment": "rrc"}, {"training": False}])
def test_the_mean_is_subtracted_and_nothing_divided(tmp_path: Path, arguments: dict[str, Any]) -> None:
    contents = jpeg(colour=(200, 100, 50))
    pixel = torch.tensor(Image.open(io.BytesIO(contents)).getpixel((3, 3)), dtype=torch.float32)
    (batch,) = take(split_of(tmp_path, [contents] * 4), 1, **arguments)
    expected = (pixel[:, None, None] - MEANS).expand(batch.images.shape)
    torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-5)


def test_the_papers_noise_is_one_colour_an_image_with_imagenets_covariance(tmp_path: Path) -> None:
    contents = jpeg(colour=(128, 128, 128))
    pixel = torch.tensor(Image.open(io.BytesIO(contents)).getpixel((3, 3)), dtype=torch.float32)
    split = split_of(tmp_path, [contents] * 4)
    (batch,) = take(split, 1, augment="paper", images_per_batch=4000, image_size=8)
    noise = batch.images - (pixel[:, None, None] - MEANS)
    assert torch.allclose(noise, noise[:, :, :1, :1], atol=1e-4)
    basis = torch.tensor(COLOUR_NOISE_BASIS)
    expected = 0.01 * basis @ basis.T
    torch.testing.assert_close(torch.cov(noise[:, :, 0, 0].T), expected, rtol=0.1, atol=4.0)


@pytest.fixture(scope="module")
def dotted(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """300 x 256 black, one red dot at (70, 100) of the centre 256 x 256: a PNG, so that each pixel is exact."""
    image = Image.new("RGB", (300, 256))
    image.putpixel((22 + 70, 100), (255, 0, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return split_of(tmp_path_factory.mktemp("dotted"), [file.getvalue()])


def test_the_papers_crops_are_the_33_by_33_of_the_centre_256_and_their_mirror_images(dotted: Split) -> None:
    offsets, mirrored, total = set(), 0, 600
    for batch in take(dotted, total // 100, augment="paper", images_per_batch=100, image_size=224):
        red = batch.images[:, 0]
        assert torch.allclose(red.amax((1, 2)) - red.amin((1, 2)), torch.tensor(255.0), atol=1e-3)
        for place in red.flatten(1).argmax(1).tolist():
            y, x = divmod(place, 224)
            mirrored += x > 112
            offsets.add((70 - (223 - x if x > 112 else x), 100 - y))
    assert {x for x, _ in offsets} == {y for _, y in offsets} == set(range(33))
    assert len(offsets) > 400
    assert 240 < mirrored < 360


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """128 x 128 whose red is 2 x and whose green is 2 y."""
    y, x = 2 * np.mgrid[0:128, 0:128].astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], axis=-1)).save(file, "PNG")
    return split_of(tmp_path_factory.mktemp("ramp"), [file.getvalue()])


def test_random_resized_crops_have_the_areas_and_aspects_of_their_definition(ramp: Split) -> None:
    count = 2000
    (batch,) = take(ramp, 1, images_per_batch=count)
    inner = torch.arange(4, 28, dtype=torch.float32)
    inner -= inner.mean()
    scale = SIDE / 2 / inner.square().sum()
    width = (batch.images[:, 0, SIDE // 2, 4:28] @ inner * scale).abs().numpy()
    height = (batch.images[:, 1, 4:28, SIDE // 2] @ inner * scale).numpy()
    wanted_width, wanted_height = crops_by_definition(count, 128)
    for got, wanted in (
        (width * height / 128**2, wanted_width * wanted_height / 128**2),
        (np.log(width / height), np.log(wanted_width / wanted_height)),
    ):
        deciles = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(got, deciles), np.quantile(wanted, deciles), atol=0.05)
    assert 0.07 < (width * height).min() / 128**2 < 0.1


def crops_by_definition(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights: area evenly in 8 to 100 %, aspect evenly on a log scale in 3/4 to 4/3, kept where they fit."""
    draw = np.random.default_rng(0)
    area = draw.uniform(0.08, 1, 3 * count) * side**2
    aspect = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3), 3 * count))
    width, height = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = np.flatnonzero((width <= side) & (height <= side))[:count]
    return width[fits], height[fits]


def test_colour_jitter_changes_colours_and_rrc_alone_does_not(tmp_path: Path) -> None:
    split = split_of(tmp_path, [jpeg(colour=(180, 120, 60))] * 4)
    plain, jittered = (
        take(split, 1, augment=augment, images_per_batch=50)[0].images[:, :, 0, 0] for augment in ("rrc", "rrc+jitter")
    )
    assert plain.std(0).max() == 0
    assert jittered.std(0).min() > 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Eight pictures with structure at several scales, of several shapes and samplings."""
    draw = np.random.default_rng(1)
    files = []
    for number, (width, height) in enumerate(
        [(500, 375), (375, 500), (333, 500), (260, 256), (200, 150), (640, 300)] + [(99, 99)] * 2
    ):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            (width, height), Image.BICUBIC
        )
        grain = draw.integers(-20, 21, (height, width, 3))
        pixels = (np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=2 * (number % 2))
        files.append(file.getvalue())
    return split_of(tmp_path_factory.mktemp("photos"), files)


def test_evaluation_shows_the_middle_of_the_resized_picture_as_pillow_does(photos: Split) -> None:
    (batch,) = take(photos, 1, training=False, images_per_batch=8, image_size=224)
    for image, path in zip(batch.images + MEANS, photos.files, strict=True):
        wanted = torch.from_numpy(np.array(middle_by_pillow(path))).permute(2, 0, 1).float()
        difference = (image - wanted).abs()
        assert difference.mean() < 0.5, path
        assert difference.max() < 8, path


def middle_by_pillow(path: str) -> Image.Image:
    with Image.open(path) as picture:
        left, top, right, bottom = centre_square(*picture.size, 256)
        edge = 16 * (right - left) / 256
        return picture.resize((224, 224), Image.BILINEAR, box=(left + edge, top + edge, right - edge, bottom - edge))


@pytest.mark.parametrize("arguments", [{"training": False}, {"augment": "rrc"}, {"augment": "paper"}])
def test_a_rotation_in_the_exif_data_is_not_applied(tmp_path: Path, arguments: dict[str, Any]) -> None:
    image = Image.new("RGB", (80, 60), (250, 0, 0))
    image.paste((0, 0, 250), (0, 30, 80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    for batch in take(split_of(tmp_path, [file.getvalue()] * 4), 3, **arguments):
        # Rows differ where the halves lie one above the other; columns would, had the picture been turned.
        assert batch.images.std(3).max() < 12


def test_grey_cmyk_progressive_png_and_bmp_decode_whatever_their_name(tmp_path: Path) -> None:
    colour = Image.new("RGB", (60, 50), (40, 90, 160))
    made = [(colour.convert("L"), "JPEG", {}), (colour.convert("CMYK"), "JPEG", {}), (colour, "JPEG", {"progressive": True}), (colour, "PNG", {}), (colour, "BMP", {}), (colour, "WEBP", {"lossless": True})]  # fmt: skip
    files = []
    for image, kind, options in made:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    split = split_of(tmp_path, files)
    (batch,) = take(split, 1, training=False, images_per_batch=len(files))
    for image, path in zip(batch.images + MEANS, split.files, strict=True):
        with Image.open(path) as picture:
            wanted = torch.tensor(picture.convert("RGB").getpixel((30, 25)), dtype=torch.float32)
        assert (image - wanted[:, None, None]).abs().max() < 6, path


def png_without_its_end() -> bytes:
    """Pillow decodes it and DALI does not."""
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (90, 140, 200)).save(file, "PNG")
    return file.getvalue()[:-12]


BAD = {
    "png_without_its_end": png_without_its_end(),
    "truncated": jpeg(200, 200)[:900],
    "text": b"this is no picture, though its name says so",
    "empty": b"",
    "gif": b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    "arguments", [{"augment": "rrc"}, {"augment": "paper", "num_shards": 2, "shard": 1}, {"training": False}]
)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, kind: str, arguments: dict[str, Any]) -> None:
    split = split_of(tmp_path, [jpeg()] * 9 + [BAD[kind]] + [jpeg()] * 2)
    with closing(dali(split, images_per_batch=2, **arguments)) as batches:
        # The other shard may have the bad image in the first epoch.
        with pytest.raises(DataError, match=r"009\.JPEG cannot be decoded") as told:
            list(itertools.islice(batches, 99))
        assert "\n" not in str(told.value)
        assert list(batches) == []


def test_the_bad_image_is_named_and_not_a_picture_of_several_that_decodes(tmp_path: Path) -> None:
    several = io.BytesIO()
    Image.new("RGB", (40, 40)).save(several, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 40))])
    split = split_of(tmp_path, [several.getvalue()] * 5 + [BAD["text"]])
    with closing(dali(split, images_per_batch=6)) as batches, pytest.raises(DataError, match=r"005\.JPEG cannot be"):
        next(batches)


@pytest.mark.parametrize("spoiled", [{"operators": "%%%"}, {"pipeline": "torch"}, {"request_id": "0"}])
def test_a_spoiled_state_is_told_in_a_sentence(numbered: Split, spoiled: dict[str, str]) -> None:
    with closing(dali(numbered)) as batches:
        next(batches)
        state = batches.state()
    with pytest.raises(DataError, match="the saved state of the input"):
        dali(numbered, resume=replace(state, **spoiled))


def test_a_file_that_vanished_is_named(numbered: Split, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.JPEG")
    split = Split((*numbered.files[:3], gone), (0, 1, 2, 0), 3)
    with closing(dali(split)) as batches, pytest.raises(DataError, match=r"gone\.JPEG"):
        next(batches)


GPU_VARIANTS = [
    {"training": training, "augment": augment, "decode": decode, "dtype": dtype, "hw_decoder_load": load}
    for training, augment in [(False, "rrc"), *((True, augment) for augment in AUGMENTS)]
    for decode, load in (("cpu", None), ("mixed", None), ("mixed", 0.5))
    for dtype in ("float32", "float16")
]


@pytest.mark.parametrize("variant", GPU_VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_gpu_graph_constructs_and_serialises_with_operators_that_exist(
    numbered: Split, variant: dict[str, Any]
) -> None:
    request = Request(split=numbered, images_per_batch=4, device="cuda:0", **variant)
    pipeline = graph(request, None, 2)
    assert len(pipeline.serialize()) > 500
    registered = {
        "cpu": backend.RegisteredCPUOps(),
        "gpu": backend.RegisteredGPUOps(),
        "mixed": backend.RegisteredMixedOps(),
    }
    used = re.findall(r"OpSpec for (\w+):.*?device: (\w+)", "\n".join(str(op.spec) for op in pipeline._ops), re.DOTALL)
    for name, device in used:
        assert name in registered[device]
    devices = dict(used)
    decoder = devices.get("decoders__ImageRandomCrop") or devices.get("decoders__ImageSlice")
    assert decoder == request.decode
    assert devices["Resize"] == devices["CropMirrorNormalize"] == "gpu"


@pytest.mark.gpus(1)
@pytest.mark.parametrize("variant", GPU_VARIANTS[::2], ids=lambda variant: "-".join(map(str, variant.values())))
def test_a_gpu_gives_the_same_order_and_nearly_the_same_pixels_as_a_cpu(photos: Split, variant: dict[str, Any]) -> None:
    (on_cpu,) = take(photos, 1, **{**variant, "decode": "cpu", "hw_decoder_load": None})
    (on_gpu,) = take(photos, 1, device="cuda:0", **variant)
    assert on_gpu.images.device == on_gpu.labels.device == on_gpu.indices.device == torch.device("cuda:0")
    assert on_gpu.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(on_gpu.indices.cpu(), on_cpu.indices)
    assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
    assert (on_gpu.images.cpu().float() - on_cpu.images.float()).abs().mean() < 3
