"""A checkpoint as it lies on the disk: a folder whose manifest names the sha256 of every file, and what must match.

    <run folder>/checkpoints/step-000001200/
        manifest.json          what it is a checkpoint of; sealed by its own sha256
        weights.safetensors    the whole network's parameters by name, whoever held parts of them
        .metadata, *.distcp    parameters, momentum and generators as torch.distributed.checkpoint wrote them
        rank-<index>.json      where each rank's input stood, and what it had seen

A folder is written under another name and gets its own when it is whole: what is called `step-` was whole once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import CHECKPOINTS, AskedWrongly

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
PREFIX = "step-"
UNFINISHED = "unfinished-"
SEAL = "manifest_sha256"


class CheckpointError(AskedWrongly):
    """A checkpoint that cannot be used: which, what is wrong with it, and what to use."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest is whole. `manifest` holds, beside `files` (name -> sha256):

    run_id, step, total_steps (where the run ends; None: not known yet), images_seen, epochs_done; asked (a RunConfig's
    columns), classes (names in the labels' order), dataset (the row's cells about it); val_images, val_top1_error_pct, val_top5_error_pct (None without an evaluation at this step).
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def at_its_end(self) -> bool:
        """Whether its run had no more steps to take."""
        return bool(self.step == self.manifest["total_steps"])

    @property
    def asked(self) -> dict[str, Any]:
        return dict(self.manifest["asked"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    def damage(self, names: tuple[str, ...] = ()) -> str:
        """What is wrong with its files (all of them, or those called `names`), in words; "" where each is what was written."""
        files = self.manifest["files"]
        for name in names or sorted(files):
            path = self.folder / name
            if name not in files or not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != files[name]:
                return f"{name} does not hold the bytes that were saved"
        return ""

    def weights(self) -> dict[str, Tensor]:
        """The whole network's parameters by name, on the CPU; CheckpointError where their file is not what was saved."""
        from safetensors.torch import load_file

        self.refuse_damage((WEIGHTS,))
        return load_file(self.folder / WEIGHTS)

    def refuse_damage(self, names: tuple[str, ...] = ()) -> None:
        """CheckpointError, which offers the newest good one beside it, where a file is not what was saved."""
        if wrong := self.damage(names):
            raise CheckpointError(f"the checkpoint {self.folder} is damaged ({wrong}): {remedy(self.folder)}")


def open_checkpoint(place: Path | str) -> Checkpoint:
    """The checkpoint at `place`: its own folder, or of a run's folder or its checkpoints the newest.

    CheckpointError where there is none, or where its manifest is not what was written.
    """
    place = Path(place)
    found = whole_ones(place / CHECKPOINTS) or whole_ones(place)
    if found:
        return read(found[-1])
    if (place / MANIFEST).is_file() or place.name.startswith((PREFIX, UNFINISHED)):
        return read(place)
    raise CheckpointError(
        f"{place} holds no checkpoint: give the folder of a run that kept some (--checkpoint-every), or one of its {CHECKPOINTS}"
    )


def read(folder: Path) -> Checkpoint:
    """The checkpoint in this folder, by its manifest; its other files are not read yet."""
    found = looked_at(folder)
    if isinstance(found, Checkpoint):
        return found
    wrong, to_do = found
    raise CheckpointError(f"the checkpoint {folder} {wrong}: {to_do or remedy(folder)}")


def looked_at(folder: Path) -> Checkpoint | tuple[str, str]:
    """The checkpoint in this folder, or what is wrong with its manifest and what to do ("": use another), in words."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sealed = manifest.pop(SEAL) == digest_of(manifest)
        version = manifest["format"]
    except FileNotFoundError:
        return f"has no {MANIFEST}", ""
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"has a {MANIFEST} that is none of this harness", ""
    if not sealed:
        return f"is damaged ({MANIFEST} does not hold what was saved)", ""
    if version != FORMAT:
        return f"has format {version} and this harness knows {FORMAT}", "update the harness"
    return Checkpoint(folder, manifest)


def whole_ones(folder: Path) -> list[Path]:
    """The checkpoints in a folder of them, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def remedy(folder: Path) -> str:
    """What to do about a checkpoint that cannot be used: the newest good one beside it."""
    for other in reversed(whole_ones(folder.parent)):
        found = looked_at(other)
        if other != folder and isinstance(found, Checkpoint) and not found.damage():
            return f"use {other}"
    return "there is no other good one beside it: restore its files from where it was saved"


# --- writing ------------------------------------------------------------------------------------------------------


def begin(run_folder: Path, step: int) -> Path:
    """An empty folder for the files of a checkpoint that is to be sealed; what an earlier attempt left is gone."""
    root = run_folder / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    forget_unfinished(run_folder)
    folder = unfinished(run_folder, step)
    folder.mkdir()
    return folder


def unfinished(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written until it is whole."""
    return run_folder / CHECKPOINTS / f"{UNFINISHED}{step:09}"


def forget_unfinished(run_folder: Path) -> None:
    """Remove what was being written when its ranks died."""
    for left_over in (run_folder / CHECKPOINTS).glob(f"{UNFINISHED}*"):
        shutil.rmtree(left_over, ignore_errors=True)


def seal(folder: Path, about: dict[str, Any]) -> Checkpoint:
    """Make the files in a folder of `begin` a checkpoint: all there, on the disk, under its own name.

    `about` is the manifest without `format` and `files`, with the `step` of its name.
    """
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    manifest = {"format": FORMAT, **about, "files": {path.name: sha256_of(path) for path in files}}
    text = json.dumps({**manifest, SEAL: digest_of(manifest)}, indent=1)
    # Without a newline at its end, which it could lose unseen.
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in (*files, folder / MANIFEST, folder):
        flush(path)
    whole = folder.parent / f"{PREFIX}{about['step']:09}"
    if whole.exists():
        # The same step of the same run, saved again after a resume: the new one is as good, and whole.
        shutil.rmtree(whole)
    folder.rename(whole)
    flush(whole.parent)
    return Checkpoint(whole, json.loads(json.dumps(manifest)))


def forget_old(run_folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the one with the lowest validation error."""
    found = whole_ones(run_folder / CHECKPOINTS)
    best = best_of(found)
    for path in found[:-keep]:
        if path != best:
            shutil.rmtree(path)


def best_of(folders: list[Path]) -> Path | None:
    """The checkpoint with the lowest top-1 validation error, the earliest of equals; None where none was evaluated."""
    found = [each for each in map(looked_at, folders) if isinstance(each, Checkpoint)]
    evaluated = [each for each in found if each.manifest.get("val_top1_error_pct") is not None]
    return min(evaluated, key=lambda each: float(each.manifest["val_top1_error_pct"])).folder if evaluated else None


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
