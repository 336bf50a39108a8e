"""A checkpoint's folder: whole or not there, told from a damaged one, the newest, the best, and what is forgotten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoint
from harness.checkpoint import CheckpointError, begin, best_of, forget_old, open_checkpoint, read, remedy, seal
from harness.config import RunConfig

WEIGHTS = {"conv1.weight": torch.arange(12.0).reshape(3, 4), "conv1.bias": torch.tensor([0.5, -0.0, torch.inf])}
# The digests of the files below, by sha256sum.
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def about(step: int, error: float | None = None, **changes: Any) -> dict[str, Any]:
    config = RunConfig(cpus=2, model="cifar-18pct", data="/somewhere/pictures")
    return {
        "run_id": "run-1", "step": step, "total_steps": 300, "images_seen": 4 * step, "epochs_done": step / 100,
        "asked": config.columns(), "classes": ["cat", "dog"], "dataset": {"dataset_id": "0123"},
        "val_images": 10, "val_top1_error_pct": error, "val_top5_error_pct": error, **changes,
    }  # fmt: skip


def saved(run: Path, step: int, error: float | None = None, **changes: Any) -> Path:
    """A sealed checkpoint of three files."""
    folder = begin(run, step)
    save_file(WEIGHTS, folder / checkpoint.WEIGHTS)
    (folder / "__0_0.distcp").write_bytes(b"abc")
    (folder / ".metadata").write_bytes(bytes(range(256)))
    return seal(folder, about(step, error, **changes)).folder


# --- writing ------------------------------------------------------------------------------------------------------


def test_a_sealed_checkpoint_says_what_it_is_of_and_names_every_file_with_its_sha256(tmp_path: Path) -> None:
    folder = saved(tmp_path, 120)
    assert folder == tmp_path / "checkpoints" / "step-000000120"
    found = read(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"].keys() == {"weights.safetensors", "__0_0.distcp", ".metadata"}
    assert manifest["files"]["__0_0.distcp"] == SHA256_OF_ABC
    assert {name: manifest[name] for name in about(120)} == about(120)
    assert (found.step, found.classes, found.at_its_end) == (120, ("cat", "dog"), False)
    assert found.damage() == ""
    assert RunConfig.of(found.asked) == RunConfig(cpus=2, model="cifar-18pct", data="pictures")


def test_the_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    weights = read(saved(tmp_path, 120)).weights()
    assert weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert torch.equal(weights[name].view(torch.int32), value.view(torch.int32))


def test_what_is_not_sealed_is_no_checkpoint_and_goes_with_the_next(tmp_path: Path) -> None:
    unfinished = begin(tmp_path, 7)
    (unfinished / "__0_0.distcp").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"unfinished-000000007 has no manifest\.json"):
        open_checkpoint(unfinished)
    assert os.listdir(saved(tmp_path, 8).parent) == ["step-000000008"]


def test_the_same_step_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 7, 60.0), saved(tmp_path, 7, 40.0)
    assert first == second
    assert read(first).manifest["val_top1_error_pct"] == 40.0
    assert os.listdir(first.parent) == [first.name]


def test_a_run_is_at_its_end_when_it_has_no_more_steps_to_take(tmp_path: Path) -> None:
    assert read(saved(tmp_path, 300)).at_its_end
    assert not read(saved(tmp_path, 299)).at_its_end
    assert not read(saved(tmp_path, 298, total_steps=None)).at_its_end


# --- the newest, the best, and the old ----------------------------------------------------------------------------


def test_the_newest_is_the_one_of_the_most_steps_by_run_by_folder_and_by_itself(tmp_path: Path) -> None:
    newest, older = saved(tmp_path, 1000), saved(tmp_path, 90)
    for place in (tmp_path, tmp_path / "checkpoints", newest, str(newest)):
        assert open_checkpoint(place).folder == newest
    assert open_checkpoint(older).step == 90


def test_the_best_has_the_lowest_error_and_is_the_earliest_of_equals(tmp_path: Path) -> None:
    folders = [saved(tmp_path, step, error) for step, error in ((1, 50.0), (2, 40.0), (3, None), (4, 40.0), (5, 45.0))]
    assert best_of(folders) == folders[1]
    assert best_of(folders[2:3]) is None
    (folders[1] / "manifest.json").write_text("{}")
    assert best_of(folders) == folders[3]


@pytest.mark.parametrize(
    ("keep", "errors", "stay"),
    [
        (2, [None] * 5, [4, 5]),
        (2, [50, 30, 40, 41, 42], [2, 4, 5]),
        (1, [50, 40, 30, 20, 10], [5]),
        (1, [10, 20, 10, 10, 30], [1, 5]),
        (9, [50, 40, None, 45, None], [1, 2, 3, 4, 5]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path: Path, keep: int, errors: list[float | None], stay: list[int]) -> None:
    for step, error in enumerate(errors, start=1):
        saved(tmp_path, step, error)
    forget_old(tmp_path, keep)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-{step:09}" for step in stay]


# --- damage -------------------------------------------------------------------------------------------------------


def spoil(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "__0_0.distcp", ".metadata"])
@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (spoil, "does not hold the bytes that were saved"),
        (lambda folder, name: os.truncate(folder / name, 1), "does not hold the bytes that were saved"),
        (lambda folder, name: (folder / name).unlink(), "is missing"),
    ],
    ids=["a flipped bit", "truncated", "missing"],
)
def test_damage_is_named(tmp_path: Path, name: str, harm: Callable[[Path, str], None], found: str) -> None:
    good, bad = saved(tmp_path, 60), saved(tmp_path, 120)
    harm(bad, name)
    assert read(bad).damage() == f"{name} {found}"
    with pytest.raises(CheckpointError) as error:
        read(bad).refuse_damage()
    assert str(error.value) == f"the checkpoint {bad} is damaged ({name} {found}): use {good}"


def test_only_the_weights_are_looked_at_where_only_they_are_wanted(tmp_path: Path) -> None:
    folder = saved(tmp_path, 120)
    spoil(folder, ".metadata")
    assert read(folder).weights().keys() == WEIGHTS.keys()
    spoil(folder, "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors does not hold the bytes that were saved"):
        read(folder).weights()


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    folder = saved(tmp_path, 120)
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    for place in range(len(whole)):
        for content in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:place]):
            manifest.write_bytes(content)
            with pytest.raises(CheckpointError, match=r"manifest\.json"):
                read(folder)
    manifest.write_bytes(whole)
    assert read(folder).step == 120


def test_a_manifest_of_a_later_harness_is_refused_as_that(tmp_path: Path) -> None:
    folder = saved(tmp_path, 120, format=2)
    with pytest.raises(CheckpointError, match="has format 2 and this harness knows 1: update the harness"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", "not JSON", '{"manifest_sha256": "0", "format": 1}'])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "checkpoints" / "step-000000120"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=r"manifest\.json .*: there is no other good one beside it: restore its files"
    ):
        open_checkpoint(folder)


def test_the_newest_good_one_is_offered_past_others_that_are_damaged_too(tmp_path: Path) -> None:
    oldest, good, spoilt, no_manifest, newest = (saved(tmp_path, step) for step in (10, 20, 30, 40, 50))
    spoil(spoilt, "__0_0.distcp")
    (no_manifest / "manifest.json").unlink()
    assert remedy(newest) == f"use {good}"
    assert remedy(good) == f"use {newest}"
    for folder in (good, newest):
        shutil.rmtree(folder)
    assert remedy(spoilt) == f"use {oldest}"
    shutil.rmtree(oldest)
    assert remedy(spoilt).startswith("there is no other good one beside it")
