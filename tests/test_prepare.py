"""`data prepare`: squares as the paper cuts them, the same bytes however it was run, and nothing lost when it is killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from filelock import FileLock
from nvidia.dali import fn, pipeline_def
from PIL import Image

from pipelines import DataError
from pipelines.augment import centre_square
from pipelines.dataset.prepare import prepare
from pipelines.order import Order
from pipelines.sources import ImageSet, open_source
from pipelines.sources.prepared_set import verify

ROOT = Path(__file__).parents[1]
FORMS = ["prepared-jpeg", "prepared-raw"]
SIDE = 32
CLASSES = ("ant", "bee", "cat")


def photo(number: int) -> bytes:
    """A picture of its own colours and shape, wide or high, some of an odd size."""
    draw = np.random.default_rng(number)
    size = (48 + number % 5, 40) if number % 2 else (41, 60 + number % 7)
    file = io.BytesIO()
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def written(root: Path, count: int = 20, val: int = 7) -> Path:
    for number in range(count + val):
        path = root / ("train" if number < count else "val") / CLASSES[number % 3] / f"{number:03}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training and 7 validation images of three classes."""
    return written(tmp_path_factory.mktemp("photos"))


def make(images: ImageSet, out: Path, form: str = "prepared-raw", **options: Any) -> Path:
    return prepare(images, out, form=form, **{"side": SIDE, "images_per_shard": 6, "workers": 1, **options})


@pytest.fixture(scope="module", params=FORMS)
def prepared(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(open_source(folder), tmp_path_factory.mktemp("prepared") / "set", request.param)


@pytest.fixture(scope="module")
def pristine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of JPEGs, to be copied."""
    return make(open_source(folder), tmp_path_factory.mktemp("pristine") / "set", "prepared-jpeg")


def square_by_pillow(path: str) -> Image.Image:
    with Image.open(path) as picture:
        box = centre_square(*picture.size, SIDE)
        return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def shards(folder: Path, part: str) -> list[dict[str, Any]]:
    return json.loads((folder / "set.json").read_bytes())["splits"][part]


def pixels_and_labels(folder: Path, part: str) -> Iterator[tuple[np.ndarray, int]]:
    """Of each image of a prepared set, in its order, by the standard library and numpy."""
    for entry in shards(folder, part):
        shard = folder / entry["file"]
        if shard.suffix == ".raw":
            images = np.fromfile(shard, np.uint8).reshape(-1, SIDE, SIDE, 3)
            yield from zip(images, np.fromfile(shard.with_suffix(".cls"), "<u2").tolist(), strict=True)
        else:
            with tarfile.open(shard) as tar:
                members = [tar.extractfile(member).read() for member in tar]
            for jpeg, label in zip(members[::2], members[1::2], strict=True):
                yield np.asarray(Image.open(io.BytesIO(jpeg))), int(label)


def test_every_image_is_there_as_its_middle_square_with_its_label(folder: Path, prepared: Path) -> None:
    images = open_source(folder)
    for part, split in (("train", images.train), ("val", images.val)):
        order = Order(len(split), 0).places(0, len(split)).tolist() if part == "train" else list(range(len(split)))
        found = list(pixels_and_labels(prepared, part))
        assert [label for _, label in found] == [split.labels[place] for place in order]
        for (pixels, _), place in zip(found, order, strict=True):
            wanted = square_by_pillow(split.files[place])
            if list(prepared.glob("*.tar")):
                file = io.BytesIO()
                wanted.save(file, "JPEG", quality=95)
                wanted = Image.open(file)
            np.testing.assert_array_equal(pixels, np.asarray(wanted))


def test_a_shard_is_a_mixture_of_classes(prepared: Path) -> None:
    labels = [label for _, label in pixels_and_labels(prepared, "train")]
    assert len(set(labels[:6])) == 3


def test_the_description_says_what_the_set_is_and_was_made_of(folder: Path, prepared: Path) -> None:
    images, told = open_source(folder), json.loads((prepared / "set.json").read_bytes())
    assert told["format"] == "alexnet-harness prepared set"
    assert (told["version"], told["side"], told["excluded"]) == (1, SIDE, 0)
    assert (told["source_dataset_id"], told["source_form"]) == (images.dataset_id, "folders")
    assert told["classes"] == list(CLASSES)
    assert [entry["images"] for entry in told["splits"]["train"]] == [6, 6, 6, 2]
    assert [entry["images"] for entry in told["splits"]["val"]] == [6, 1]
    listed = [entry["file"] for entries in told["splits"].values() for entry in entries]
    labels = [Path(name).with_suffix(".cls").name for name in listed if name.endswith(".raw")]
    assert set(contents(prepared)) == {"set.json", *listed, *labels}
    verify(prepared)


def test_a_set_prepared_can_be_opened_and_is_not_prepared_twice(prepared: Path, tmp_path: Path) -> None:
    images = open_source(prepared)
    assert (len(images.train), len(images.val or ()), images.train.square) == (20, 7, SIDE)
    assert list(images.train.labels) == [label for _, label in pixels_and_labels(prepared, "train")]
    with pytest.raises(DataError, match="prepared already: give the original photographs"):
        make(images, tmp_path / "again")


def test_dali_reads_the_tars(pristine: Path) -> None:
    @pipeline_def(batch_size=20, num_threads=1, device_id=None)
    def graph() -> Any:
        paths = [str(pristine / entry["file"]) for entry in shards(pristine, "train")]
        jpeg, label = fn.readers.webdataset(paths=paths, ext=["jpg", "cls"], missing_component_behavior="error")
        return fn.decoders.image(jpeg), label

    images, labels = graph().run()
    found = list(pixels_and_labels(pristine, "train"))
    for place, (pixels, label) in enumerate(found):
        assert int(bytes(np.asarray(labels.at(place)))) == label
        assert np.abs(images.at(place).astype(int) - pixels).mean() < 3


def test_the_bytes_do_not_depend_on_the_number_of_workers(folder: Path, prepared: Path, tmp_path: Path) -> None:
    form = json.loads((prepared / "set.json").read_bytes())["form"]
    assert contents(make(open_source(folder), tmp_path / "set", form, workers=2)) == contents(prepared)


def test_images_inside_other_files_give_the_same_set(folder: Path, pristine: Path, tmp_path: Path) -> None:
    images = open_source(folder)
    joined = b"".join(Path(path).read_bytes() for path in images.train.files)
    (tmp_path / "joined").write_bytes(joined)
    sizes = np.array([Path(path).stat().st_size for path in images.train.files])
    spans = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
    inside = replace(images.train, files=(str(tmp_path / "joined"),) * len(sizes), spans=spans)
    assert contents(make(replace(images, train=inside), tmp_path / "set", "prepared-jpeg")) == contents(pristine)


def test_progress_counts_up_to_all_images(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    make(open_source(folder), tmp_path / "set", progress=lambda done, of: told.append((done, of)))
    assert told[0] == (0, 27)
    assert told[-1] == (27, 27)
    assert told == sorted(told)


def test_a_set_that_is_whole_is_left_as_it_is(prepared: Path, folder: Path) -> None:
    def changed_ns() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in prepared.iterdir() if not path.name.startswith(".")}

    before = changed_ns()
    make(open_source(folder), prepared, json.loads((prepared / "set.json").read_bytes())["form"])
    assert changed_ns() == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"side": 16}, "another side 32, and 16 was asked"),
        ({"quality": 90}, "another quality 95, and 90 was asked"),
        ({"images_per_shard": 7}, "another images per shard 6, and 7 was asked"),
        ({"form": "prepared-raw"}, "another form prepared-jpeg, and prepared-raw was asked"),
    ],
)
@pytest.mark.parametrize("state", ["set.json", "unfinished.json"])
def test_a_folder_with_another_set_in_it_is_refused(
    folder: Path, pristine: Path, tmp_path: Path, options: dict[str, Any], told: str, state: str
) -> None:
    out = Path(shutil.copytree(pristine, tmp_path / "set"))
    (out / "set.json").rename(out / state)
    before = contents(out)
    with pytest.raises(DataError, match=told) as error:
        make(open_source(folder), out, **{"form": "prepared-jpeg", **options})
    assert "\n" not in str(error.value)
    assert contents(out) == before


def test_another_source_is_refused_and_so_is_a_folder_of_other_things(pristine: Path, tmp_path: Path) -> None:
    other = open_source(written(tmp_path / "other", 21))
    with pytest.raises(DataError, match="another source dataset id"):
        make(other, pristine, "prepared-jpeg")
    with pytest.raises(DataError, match=r"holds other things \(train, val\): give an empty folder"):
        make(other, tmp_path / "other")
    assert not (tmp_path / "other/.prepare.lock").exists()


def test_a_second_process_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with (
        FileLock(tmp_path / "set/.prepare.lock"),
        pytest.raises(DataError, match="prepared by another process: wait for it"),
    ):
        make(open_source(folder), tmp_path / "set")


@pytest.mark.parametrize("form", FORMS)
def test_too_little_space_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"27 images as prepared-\w+ take about .* 0\.0 MiB free: free some space"):
        make(open_source(folder), tmp_path / "set", form)
    assert contents(tmp_path / "set") == {}


def test_wrong_arguments_are_told(folder: Path, tmp_path: Path) -> None:
    images = open_source(folder)
    many = replace(images, train=replace(images.train, num_classes=65_537))
    with pytest.raises(DataError, match="65,537 classes do not fit the labels of prepared-raw"):
        make(many, tmp_path / "set")
    remote = replace(images, train=replace(images.train, files=("s3://bucket/1.jpg",) * 20))
    with pytest.raises(DataError, match="is not on a disk"):
        make(remote, tmp_path / "set")
    with pytest.raises(DataError, match="unknown form 'zip'"):
        make(images, tmp_path / "set", "zip")
    with pytest.raises(DataError, match="side 0"):
        make(images, tmp_path / "set", side=0)
    assert not (tmp_path / "set").exists()


def bomb() -> bytes:
    """A small PNG whose header says 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + file.getvalue()[24:29]
    return file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + file.getvalue()[33:]


BAD = {
    "train/ant/000.JPEG": (photo(0)[:-200], "truncated"),
    "train/bee/004.JPEG": (b"", "the file is empty"),
    "val/cat/020.JPEG": (b"<html>not found</html>", "it is none of JPEG, PNG, BMP, WEBP"),
    "train/ant/003.JPEG": (bomb(), "it has more than 100,000,000 pixels"),
}


@pytest.mark.parametrize("form", FORMS)
def test_bad_images_are_listed_and_all_other_shards_are_kept(tmp_path: Path, form: str) -> None:
    root, out = written(tmp_path / "photos"), tmp_path / "set"
    for name, (file, _) in BAD.items():
        (root / name).write_bytes(file)
    whole = open_source(root)
    with pytest.raises(DataError, match=r"4 of 27 images cannot be decoded .* --exclude .*bad\.txt") as told:
        make(whole, out, form, root=root, workers=2)
    assert "\n" not in str(told.value)
    for name, (_, reason) in sorted(BAD.items())[:3]:
        assert f"{name}: " in str(told.value)
        assert reason in str(told.value)
    assert (out / "bad.txt").read_text().splitlines() == sorted(BAD)
    assert not (out / "set.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob(f"*{'.tar' if form == 'prepared-jpeg' else '.raw'}")}
    assert 0 < len(kept) < 6

    without = open_source(root, exclude=out / "bad.txt")
    make(without, out, form, root=root, whole=whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(pixels_and_labels(out, "train"))) == 17
    assert len(list(pixels_and_labels(out, "val"))) == 6
    assert json.loads((out / "set.json").read_bytes())["excluded"] == 4
    verify(out)
    with pytest.raises(DataError, match="another list of images left out"):
        make(whole, out, form)


def test_a_changed_byte_and_a_missing_shard_are_named(prepared: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "set"))
    first, second = (out / entry["file"] for entry in shards(out, "train")[:2])
    whole = second.read_bytes()
    second.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    with pytest.raises(DataError, match=f"{second.name} is damaged"):
        verify(out)
    first.unlink()
    with pytest.raises(DataError, match=f"{first.name} is damaged .it is missing"):
        verify(out)


PROGRAM = """
import sys
from pathlib import Path
from pipelines import DataError
from pipelines.dataset.prepare import prepare
from pipelines.sources import ImageSet, Split
import json
names, labels, out, form = json.loads(sys.argv[1])
images = ImageSet(Split(tuple(names[:54]), tuple(labels[:54]), 3), Split(tuple(names[54:]), tuple(labels[54:]), 3), ("a", "b", "c"), "stuck")
try:
    prepare(images, Path(out), form=form, side=32, images_per_shard=6, workers=2, progress=lambda done, of: print(done, flush=True))
except DataError as error:
    print(error)
except KeyboardInterrupt:
    print("interrupted")
"""


@dataclass
class Stuck:
    """A preparation in a process of its own, all done but for one shard whose last image never comes."""

    images: ImageSet
    out: Path
    form: str
    process: subprocess.Popen[str]
    children: list[psutil.Process]
    last: Path

    def remaining(self) -> Path:
        (partial,) = self.out.glob("val-00000*.partial")
        return partial

    def end(self) -> str:
        """What it printed, once it and all its children are gone."""
        told, errors = self.process.communicate(timeout=20)
        assert errors == ""
        gone, alive = psutil.wait_procs(self.children, timeout=20)
        assert len(gone) > 2
        assert not alive
        return told.strip()


def opened_by_a_reader(pipe: Path, process: subprocess.Popen[str]) -> int:
    """The writing end of a named pipe, once a worker reads it."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
                pytest.fail("the preparation ended before its last image")


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Callable[[str], Stuck]]:
    started = []

    def start(form: str) -> Stuck:
        root = written(tmp_path / "photos", 54, 6)
        images = open_source(root)
        names, labels = [*images.train.files, *images.val.files], [*images.train.labels, *images.val.labels]
        last = Path(names[-1])
        last.unlink()
        os.mkfifo(last)
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([names, labels, str(tmp_path / "set"), form])],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line == "54\n":
                break
        started.append(opened_by_a_reader(last, process))
        children = psutil.Process(process.pid).children(recursive=True)
        return Stuck(replace(images, dataset_id="stuck"), tmp_path / "set", form, process, children, last)

    yield start
    for each in started:
        if isinstance(each, int):
            os.close(each)
        else:
            each.kill()
            each.communicate()


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_preparation_leaves_no_worker_and_goes_on_where_it_was(
    stuck: Callable[[str], Stuck], tmp_path: Path, form: str
) -> None:
    killed = stuck(form)
    assert killed.remaining().exists()
    with pytest.raises(DataError, match="not finished: run `data prepare` again"):
        open_source(killed.out)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.end()
    killed.last.unlink()
    killed.last.write_bytes(photo(59))
    finished = {path: path.stat().st_mtime_ns for path in killed.out.glob("train-*") if path.suffix != ".json"}
    assert len(finished) == (9 if form == "prepared-jpeg" else 18)
    images = replace(killed.images, classes=("a", "b", "c"))
    told: list[int] = []
    make(images, killed.out, form, progress=lambda done, _of: told.append(done))
    assert told[0] == 54
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(killed.out) == contents(make(images, tmp_path / "uninterrupted", form))


@pytest.mark.parametrize(("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "")])
def test_ctrl_c_and_sigterm_end_all_workers_without_a_word_of_theirs(
    stuck: Callable[[str], Stuck], number: int, told: str
) -> None:
    interrupted = stuck("prepared-raw")
    os.killpg(interrupted.process.pid, number)
    assert interrupted.end() == told
    assert not (interrupted.out / "set.json").exists()


def test_a_worker_that_is_killed_is_told_with_its_shard(stuck: Callable[[str], Stuck]) -> None:
    orphaned = stuck("prepared-raw")
    os.kill(int(orphaned.remaining().name.split(".")[-2]), signal.SIGKILL)
    assert "the worker that wrote val-00000.raw ended in the middle (killed by signal 9)" in orphaned.end()
    assert not list(orphaned.out.glob("*.partial"))


@pytest.mark.parametrize(
    "breaking", [lambda set_: set_["splits"]["train"][0].pop("bytes"), lambda set_: set_.update(splits=[])]
)
def test_a_set_json_that_lacks_something_is_told_in_a_sentence(
    folder: Path, pristine: Path, tmp_path: Path, breaking: Callable[[dict[str, Any]], object]
) -> None:
    out = Path(shutil.copytree(pristine, tmp_path / "set"))
    described = json.loads((out / "set.json").read_text())
    breaking(described)
    (out / "set.json").write_text(json.dumps(described))
    for use in (lambda: make(open_source(folder), out, "prepared-jpeg"), lambda: open_source(out), lambda: verify(out)):
        with pytest.raises(DataError, match="lacks what it should say") as told:
            use()
        assert "\n" not in str(told.value)


def test_what_a_kill_left_of_the_first_write_is_no_stranger(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "unfinished.json.99.partial").touch()
    assert (make(open_source(folder), out) / "set.json").exists()
    assert not list(out.glob("*.partial"))
