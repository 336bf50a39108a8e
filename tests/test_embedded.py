"""The embedded set: the same bytes on every machine, there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipelines
from pipelines import DataError
from pipelines.dataset import embedded, synthesis

PINNED = {  # number -> first half of the sha256 of its file
    0: "46215b9e8a302abab900fa487963e7d1",
    2: "8f2dd6818cf223d64fc4a8a41de6ebc5",
    5: "f3b411ed733c8eff54f0ae4ff661688e",
    2559: "8f60aef91a9c7a43cd1d571435475b12",
}


@pytest.mark.parametrize("number", PINNED)
def test_a_picture_has_its_pinned_bytes(number: int) -> None:
    file = synthesis.picture(number, embedded.label_of(number))
    assert hashlib.sha256(file).hexdigest()[:32] == PINNED[number]


def test_the_hash_gives_its_pinned_numbers_and_counts_on() -> None:
    draws = synthesis.Draws(7)
    together = draws.words(4)
    again = synthesis.Draws(7)
    assert [int(again.words(1)[0]) for _ in range(4)] == together.tolist()
    assert together.tolist() == [666465830, 3579481153, 1341151400, 1317763835]
    assert together.dtype == np.uint32


def test_draws_below_a_bound_are_even() -> None:
    draws = synthesis.Draws(1)
    counts = Counter(draws.below(10) for _ in range(5000))
    assert set(counts) == set(range(10))
    assert max(counts.values()) - min(counts.values()) < 150


def test_pictures_are_stored_as_imagenets_are() -> None:
    formats = [synthesis._format(synthesis.Draws(number)) for number in range(2560)]
    pixels = sorted(how.width * how.height for how in formats)
    assert pixels[len(pixels) // 2] == 500 * 375
    share_444 = sum(how.subsampling == synthesis.CHROMA_444 for how in formats) / len(formats)
    assert 0.74 < share_444 < 0.82
    assert 0.01 < sum(how.grey for how in formats) / len(formats) < 0.06


def test_classes_differ_in_mean_colour_by_more_than_pictures_of_a_class_do() -> None:
    def colour(number: int) -> np.ndarray:
        with Image.open(io.BytesIO(synthesis.picture(number, embedded.label_of(number)))) as image:
            return np.asarray(image.convert("YCbCr").resize((32, 24)), float).mean((0, 1))[1:]

    coloured = [number for number in range(50) if not synthesis._format(synthesis.Draws(number)).grey]
    found = {label: [colour(number) for number in coloured if number % 10 == label] for label in range(10)}
    centres = {label: np.mean(colours, axis=0) for label, colours in found.items()}
    for label, colours in found.items():
        for each in colours:
            assert min(centres, key=lambda other: np.linalg.norm(each - centres[other])) == label


def test_every_class_has_its_share_of_both_parts() -> None:
    paths = [embedded.EMBEDDED_V1.path(number) for number in range(2560)]
    assert len(set(paths)) == 2560
    shares = Counter(path.parts[:2] for path in paths)
    assert {count for (part, _), count in shares.items() if part == "train"} == {204, 205}
    assert {count for (part, _), count in shares.items() if part == "val"} == {51, 52}


SMALL = embedded.Edition(
    name="embedded-small",
    train=30,
    val=10,
    content_digest="731d705e08dd8d0eed2a4dbcac15e92d059b1de619828cfc98a38015f788f884",
    listing_digest="cd17afd216f7431e",
)
MAKE_SMALL = f"""
from pipelines import DataError
from pipelines.dataset import embedded
edition = embedded.Edition{(SMALL.name, SMALL.train, SMALL.val, SMALL.content_digest, SMALL.listing_digest)!r}
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(pipelines.__file__).parents[1]
    command = [sys.executable, "-c", MAKE_SMALL + code, *arguments]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def test_a_set_is_made_once_and_then_found(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    images = embedded.open_embedded_set(tmp_path, lambda done, of: told.append((done, of)), SMALL)
    assert told == [(done, 40) for done in range(1, 41)]
    assert images.dataset_id == "embedded-small"
    assert images.classes == synthesis.CLASSES
    assert len(images.train) == 30
    assert images.val is not None
    assert len(images.val) == 10
    embedded.make_embedded_set(tmp_path, lambda done, of: pytest.fail("made again"), SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embedded-small", "embedded-small.lock"]


@pytest.mark.parametrize("harm", ["file lost", "file cut short", "class lost"])
def test_a_damaged_set_is_made_again(tmp_path: Path, harm: str) -> None:
    folder = embedded.make_embedded_set(tmp_path, edition=SMALL)
    file = folder / SMALL.path(3)
    if harm == "file lost":
        file.unlink()
    elif harm == "file cut short":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        shutil.rmtree(file.parent)
    assert not embedded.is_complete(folder, SMALL)
    assert embedded.is_complete(embedded.make_embedded_set(tmp_path, edition=SMALL), SMALL)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.discarded"))


def test_a_killed_maker_leaves_no_set_and_the_next_one_makes_it_whole(tmp_path: Path) -> None:
    code = """
import os, signal, sys
embedded.make_embedded_set(sys.argv[1], lambda done, of: done < 20 or os.kill(os.getpid(), signal.SIGKILL), edition)
"""
    with python(code, str(tmp_path)) as maker:
        assert maker.wait(30) == -9
    assert not (tmp_path / SMALL.name).exists()
    assert (tmp_path / "embedded-small.partial").exists()
    assert embedded.is_complete(embedded.make_embedded_set(tmp_path, edition=SMALL), SMALL)
    assert not (tmp_path / "embedded-small.partial").exists()


def test_two_processes_that_make_it_at_once_make_it_once(tmp_path: Path) -> None:
    code = """
import sys
made = []
path = embedded.make_embedded_set(sys.argv[1], lambda done, of: made.append(done), edition)
print(len(made), embedded.is_complete(path, edition))
"""
    makers = [python(code, str(tmp_path)) for _ in range(2)]
    told = sorted(maker.communicate(timeout=60)[0].strip() for maker in makers)
    assert told == ["0 True", "40 True"]


def test_an_interrupted_maker_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.make_embedded_set(tmp_path, interrupt, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["embedded-small.lock"]


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    with pytest.raises(DataError, match=r"cannot be written to .*occupied.*HARNESS_CACHE"):
        embedded.make_embedded_set(occupied, edition=SMALL)


def test_a_disk_that_fills_up_is_told_and_left_clean(tmp_path: Path) -> None:
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try: embedded.make_embedded_set(sys.argv[1], None, edition)
except DataError as error: print(error)
"""
    with python(code, str(tmp_path)) as maker:
        told = maker.communicate(timeout=30)[0]
    assert "cannot be written" in told
    assert "free some space" in told
    assert [path.name for path in tmp_path.iterdir()] == ["embedded-small.lock"]


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    other = replace(SMALL, content_digest="0" * 64)
    with pytest.raises(DataError, match="differs from embedded-small"):
        embedded.make_embedded_set(tmp_path, edition=other)
    assert [path.name for path in tmp_path.iterdir()] == ["embedded-small.lock"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    assert embedded.default_cache_root() == tmp_path / "alexnet-harness"
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "elsewhere"))
    assert embedded.default_cache_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.default_cache_root() == Path.home() / ".cache" / "alexnet-harness"
