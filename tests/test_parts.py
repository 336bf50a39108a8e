"""The input ended early: the same images in the same order, no more done to them than the part says, and all of that."""

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
from nvidia.dali import Pipeline, backend, fn
from PIL import Image

import pipelines
from pipelines import AUGMENTS, PARTS, RANDOM_RESIZED, DataError, Request
from pipelines.augment import CHANNEL_MEANS
from pipelines.dali import graph
from pipelines.draws import draws
from pipelines.feed import Feed
from pipelines.sources.imageset import Split

ASKED: dict[str, Any] = {"images_per_batch": 4, "image_size": 32, "resized_side": 40, "seed": 1, "threads": 2}
FORMS = ("files", "packed")


def encoded(number: int, kind: str = "JPEG") -> bytes:
    """A picture of its own size and colour, with grain in it."""
    picture = Image.effect_noise((90 + 7 * number, 80 - 3 * number), 60).convert("RGB")
    file = io.BytesIO()
    Image.blend(picture, Image.new("RGB", picture.size, (20 * number, 128, 250 - 20 * number)), 0.5).save(file, kind)
    return file.getvalue()


def split_of(folder: Path, form: str, images: list[bytes], **options: Any) -> Split:
    """These images as whole files, or one after the other in one file."""
    folder.mkdir(exist_ok=True)
    labels = (0,) * len(images)
    if form == "files":
        paths = [folder / f"{number:02}.JPEG" for number in range(len(images))]
        for path, contents in zip(paths, images, strict=True):
            path.write_bytes(contents)
        return Split(tuple(map(str, paths)), labels, 1)
    (folder / "shard").write_bytes(b"".join(images))
    sizes = np.array([len(image) for image in images], np.int64)
    spans = np.column_stack([np.cumsum(sizes) - sizes, sizes])
    return Split((str(folder / "shard"),) * len(images), labels, 1, spans, **options)


@pytest.fixture(scope="module", params=FORMS)
def split(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Ten pictures of ten sizes."""
    return split_of(tmp_path_factory.mktemp("set"), request.param, [encoded(number) for number in range(10)])


@pytest.fixture
def raw(tmp_path: Path) -> Split:
    """Six squares as pixels."""
    squares = np.random.default_rng(7).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    return split_of(tmp_path, "packed", [square.tobytes() for square in squares], square=40, raw=True)


def part(split: Split, of: str, **arguments: Any) -> pipelines.Part:
    made = pipelines.part("dali", of, split=split, **{**ASKED, **arguments})
    assert made is not None
    return made


def outputs(split: Split, of: str, batches: int, **arguments: Any) -> list[np.ndarray]:
    """What nobody looks at in a run: the images that come out of a part's graph, one after the other."""
    pipeline = graph(Request(split=split, **{**ASKED, **arguments}), None, 2, of)
    pipeline.build()
    shown = [
        np.array(images.at(place)) for images, *_ in (pipeline.run() for _ in range(batches)) for place in range(4)
    ]
    pipeline._shutdown()
    return shown


@pytest.mark.parametrize("of", PARTS)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_part_takes_the_images_of_the_whole_input_in_its_order(split: Split, of: str, augment: str) -> None:
    ours = {"augment": augment, "shard": 1, "num_shards": 2}
    with closing(pipelines.create("dali", split=split, **ASKED, **ours)) as whole:
        wanted = [batch.indices.tolist() for batch in itertools.islice(whole, 4)]
    with closing(part(split, of, **ours)) as batches:
        taken = [(count, batches.indices.tolist()) for count in itertools.islice(batches, 4)]
    assert taken == [(4, indices) for indices in wanted]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_storage_ends_with_the_very_bytes_that_lie_there_and_decodes_nothing(split: Split, augment: str) -> None:
    feed = Feed(Request(split=split, augment=augment, **ASKED))
    shown = outputs(split, "storage", 3, augment=augment)
    assert len({len(image) for image in shown}) == 10
    for image, place in zip(shown, feed.order.places(0, 12).tolist(), strict=True):
        contents = Path(split.files[place]).read_bytes() if split.spans is None else feed.image(place).tobytes()
        assert image.tobytes() == contents


@pytest.mark.parametrize("augment", RANDOM_RESIZED)
def test_the_random_part_that_is_decoded_is_the_one_that_the_whole_input_resizes(split: Split, augment: str) -> None:
    still = {"augment": augment, "jitter": (0.0, 0.0, 0.0, 0.0)}
    with closing(pipelines.create("dali", split=split, **ASKED, **still)) as whole:
        batches = list(itertools.islice(whole, 3))
    mirrors = draws(Request(split=split, **ASKED, **still), 0, 12).mirror
    wanted = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy() + np.array(CHANNEL_MEANS)
    decoded = outputs(split, "decode", 3, **still)
    assert len({image.shape for image in decoded}) > 6
    for image, mirror, shown in zip(resized(decoded), mirrors, wanted, strict=True):
        np.testing.assert_allclose(image[:, ::-1] if mirror else image, shown, atol=1e-3)


def resized(images: list[np.ndarray]) -> list[np.ndarray]:
    pipeline = Pipeline(len(images), 1, None, exec_dynamic=True)
    with pipeline:
        source = fn.external_source([images], batch=True, layout="HWC")
        pipeline.set_outputs(fn.resize(source, size=[32, 32]))
    (made,) = pipeline.run()
    pipeline._shutdown()
    return [np.array(made.at(place), np.float32) for place in range(len(images))]


@pytest.mark.parametrize("augment", ["paper", "code2012"])
def test_of_a_picture_to_be_resized_the_crops_window_is_decoded_with_the_filters_reach_about_it(
    tmp_path: Path, augment: str
) -> None:
    # Each pixel of it says where it lies. Twice the size of its square: 64 pixels are cut from 80 by 80 in the middle.
    y, x = np.mgrid[0:80, 0:100].astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], axis=-1)).save(file, "PNG")
    split = split_of(tmp_path, "files", [file.getvalue()] * 4)
    offsets = draws(Request(split=split, augment=augment, **ASKED), 0, 8).offset.astype(int)
    for image, (down, right) in zip(outputs(split, "decode", 2, augment=augment), offsets, strict=True):
        top, left = 2 * down, 10 + 2 * right
        assert image[0, 0].tolist() == [left - 3, max(0, top - 3), 0]
        assert image[-1, -1].tolist() == [left + 63 + 3, min(79, top + 63 + 3), 0]


def test_of_a_prepared_square_the_crop_alone_is_decoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    files = [io.BytesIO() for _ in pixels]
    for file, square in zip(files, pixels, strict=True):
        Image.fromarray(square).save(file, "PNG")
    split = split_of(tmp_path, "packed", [file.getvalue() for file in files], square=40)
    request = Request(split=split, augment="paper", **ASKED)
    places, offsets = Feed(request).order.places(0, 8), draws(request, 0, 8).offset.astype(int)
    shown = outputs(split, "decode", 2, augment="paper")
    for image, place, (down, right) in zip(shown, places, offsets, strict=True):
        np.testing.assert_array_equal(image, pixels[place][down : down + 32, right : right + 32])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("augment", ["rrc", "paper"])
def test_decoding_meets_a_broken_image_and_names_it_and_storage_does_not(
    tmp_path: Path, form: str, augment: str
) -> None:
    images = [encoded(number) for number in range(8)]
    images[5] = images[5][: len(images[5]) // 3]
    broken = split_of(tmp_path, form, images)
    told = []
    for make in (
        lambda: part(broken, "decode", augment=augment),
        lambda: pipelines.create("dali", split=broken, augment=augment, **ASKED),
    ):
        with closing(make()) as batches, pytest.raises(DataError, match="cannot be decoded") as error:
            list(itertools.islice(batches, 9))
        told.append(str(error.value))
        assert list(batches) == []
    assert told[0] == told[1]
    assert ("05.JPEG" if form == "files" else "shard") in told[0]
    with closing(part(broken, "storage", augment=augment)) as batches:
        assert list(itertools.islice(batches, 9)) == [4] * 9


@pytest.mark.parametrize("of", PARTS)
def test_a_file_that_vanished_is_named(tmp_path: Path, of: str) -> None:
    split = split_of(tmp_path, "files", [encoded(number) for number in range(4)])
    (tmp_path / "02.JPEG").unlink()
    with closing(part(split, of)) as batches, pytest.raises(DataError, match=r"02\.JPEG"):
        next(batches)


@pytest.mark.parametrize("of", PARTS)
def test_a_closed_part_ends_frees_its_pipeline_and_may_be_closed_again(split: Split, of: str) -> None:
    before = threads_of_dali()
    batches = part(split, of)
    assert next(batches) == 4
    assert threads_of_dali() > before
    batches.close()
    batches.close()
    assert threads_of_dali() == before
    assert list(batches) == []


def threads_of_dali() -> int:
    return sum("DALI" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))


def test_raw_pixels_are_read_from_storage_and_there_is_nothing_to_decode(raw: Split) -> None:
    with closing(part(raw, "storage", augment="paper")) as batches:
        assert list(itertools.islice(batches, 3)) == [4] * 3
    places = Feed(Request(split=raw, augment="paper", **ASKED)).order.places(0, 8)
    stored = np.frombuffer(Path(raw.files[0]).read_bytes(), np.uint8).reshape(6, 40, 40, 3)
    np.testing.assert_array_equal(outputs(raw, "storage", 2, augment="paper"), stored[places])
    assert pipelines.part("dali", "decode", split=raw, augment="paper", **ASKED) is None


@pytest.mark.parametrize("name", ["torch", "synthetic"])
@pytest.mark.parametrize("of", PARTS)
def test_pipelines_whose_stages_are_not_ours_have_no_parts(split: Split, name: str, of: str) -> None:
    assert pipelines.part(name, of, split=split, **ASKED) is None


def test_what_is_no_part_of_a_training_input_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="unknown part 'resize': choose from storage, decode"):
        part(split, "resize")
    with pytest.raises(ValueError, match="unknown pipeline 'dalli'"):
        pipelines.part("dalli", "storage", split=split, **ASKED)
    with pytest.raises(ValueError, match="leave training and resume out"):
        part(split, "storage", training=False)
    with closing(pipelines.create("dali", split=split, **ASKED)) as whole:
        next(whole)
        state = whole.state()
    with pytest.raises(ValueError, match="leave training and resume out"):
        part(split, "storage", resume=state)


GPU = {"cpu": backend.RegisteredCPUOps, "gpu": backend.RegisteredGPUOps, "mixed": backend.RegisteredMixedOps}


@pytest.mark.parametrize("of", PARTS)
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize(("decode", "load"), [("cpu", None), ("mixed", None), ("mixed", 0.5)])
def test_every_part_has_a_gpu_graph_which_is_the_whole_ones_up_to_its_decoder(
    split: Split, of: str, augment: str, decode: str, load: float | None
) -> None:
    request = Request(split=split, device="cuda:0", decode=decode, hw_decoder_load=load, augment=augment, **ASKED)
    made = graph(request, None, 2, of)
    assert len(made.serialize()) > 500
    operators, whole = operators_of(made), operators_of(graph(request, None, 2))
    assert all(name in GPU[device]() for name, device, _ in operators)
    names = [name for name, _, _ in operators]
    if of == "storage":
        # Without the copy nobody would look at what is mapped.
        assert set(names) - {"io__file__Read"} == {"ExternalSource", "Copy"}
        return
    (place,) = (place for place, name in enumerate(names) if name.startswith("decoders"))
    assert operators[place][1] == decode
    assert operators[: place + 1] == whole[: place + 1]
    assert set(names[place + 1 :]) == {"ExternalSource"}


def operators_of(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    """Name, device and whole description of each operator, in the graph's order."""
    pipeline.serialize()
    specs = [re.sub(r"_origin_stack_.*", "", str(operator.spec)) for operator in pipeline._ops]
    return [(*re.search(r"OpSpec for (\w+):.*?device: (\w+)", spec, re.DOTALL).groups(), spec) for spec in specs]


@pytest.mark.gpus(1)
@pytest.mark.parametrize("of", PARTS)
@pytest.mark.parametrize("decode", ["cpu", "mixed"])
def test_a_part_on_a_gpu_takes_the_same_images_and_its_stream_waits_for_them(
    split: Split, of: str, decode: str
) -> None:
    with closing(part(split, of)) as batches:
        wanted = [batches.indices.tolist() for _ in itertools.islice(batches, 4)]
    with closing(part(split, of, device="cuda:0", decode=decode)) as batches:
        for indices in wanted:
            assert next(batches) == 4
            torch.cuda.current_stream("cuda:0").synchronize()
            assert batches.indices.tolist() == indices
