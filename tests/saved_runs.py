"""Runs that save themselves, in this process: from the beginning, from a checkpoint, and up to a signal; and all that they leave."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from planted import SMALL, Fault, as_in_a_rank, each_batch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from harness import folders, resolve, train
from harness.checkpoint import WEIGHTS, Checkpoint, open_checkpoint, read, whole_ones
from harness.config import CHECKPOINTS, RunConfig
from harness.flags import configs_of
from harness.images import open_images
from harness.progress import Teller
from harness.rank import attempt, rank_trial
from harness.resume import located, refuse_another_run
from harness.state import Keeper, Saved, read_tensors
from harness.workload import Built, Rank, build
from pipelines import Batch

# Eight epochs of six steps, saved in the middle of each and evaluated after every one.
LONG: dict[str, Any] = {
    "steps": None, "epochs": 8.0, "checkpoint_every": 12, "evaluate_every": 24, "keep": 100, "learning_rate": 0.0003,
}  # fmt: skip
# What depends on when a run had settled, and on the clock.
OF_THE_CLOCK = ("windows", "indices_sum", "images_known", "warmup_steps")


@dataclass
class Kept:
    """What a run of one rank left, and the images that it was given, step by step."""

    folder: Path
    row: dict[str, str]
    status: int
    order: list[list[int]] = field(default_factory=list)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [read(each) for each in whole_ones(self.folder / CHECKPOINTS)]

    def at(self, step: int) -> Path:
        """The checkpoint of this step."""
        (found,) = [each.folder for each in self.checkpoints if each.step == step]
        return found

    @property
    def newest(self) -> Checkpoint:
        return open_checkpoint(self.folder)


@contextlib.contextmanager
def process_group_of_one() -> Iterator[None]:
    """What ranks save themselves with, here of this process alone."""
    # It tells of each tensor that it saves, which pytest would keep.
    logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def kept(pictures: Path, folder: Path, *faults: Fault, resume: Path | None = None, **asked: Any) -> Kept:
    """A run of one rank from the beginning, or from a checkpoint where nothing else needs be asked, to its end.

    The parts alone are not measured. A process group of one must be there.
    """
    asked["data"] = str(pictures)
    if resume is None:
        config = RunConfig(**{**SMALL, **LONG, **asked})
    else:
        (config,) = configs_of(Namespace(resume=str(resume), **asked))
    config = located(resolve.resolve(config, 1, 0, fusible=False))
    images, table = open_images(config), folder / "table.csv"
    if config.resume:
        refuse_another_run(config, images, folders.dataset_cells(images))
    launch = folders.Launch.begin(config, images, table, "group", 2, 1)
    rank, seen, order = Rank(0, 1, torch.device("cpu")), train.Seen(), []
    keeper = Keeper.of(launch.folder, config, launch.told, images.classes) if config.checkpoint_every else None
    saved = Saved.read(open_checkpoint(config.resume), 0) if config.resume else None

    def noted(batch: Batch) -> Batch:
        order.append(batch.indices.tolist())
        return batch

    def built(*parts: Any) -> Built:
        whole = build(*parts)
        for fault in (each_batch(noted), *faults):
            whole = fault(whole)
        return whole

    with as_in_a_rank() as patch:
        patch.setattr(train, "build", built)
        signals = train.Signals()

        def work() -> None:
            train.run(config, images, rank, seen, Teller(None), signals, limits=False, keeper=keeper, saved=saved)

        ended, failure, status = attempt(work, signals)
        seen.close_window()
    trial = None if failure else asdict(rank_trial(config, launch.classes, rank, seen, ended))
    folders.write_rank(launch.folder, 0, failure, trial)
    return Kept(launch.folder, launch.finish(table, launch.record()), status, order)


# --- what a run has left ------------------------------------------------------------------------------------------


def state(saved: Checkpoint) -> dict[str, str]:
    """All that a checkpoint says of its run, but for the clock's part: by name, as text or as a digest of bytes."""
    about = {
        name: value for name, value in saved.manifest.items() if name not in ("files", "run_id", "asked", "dataset")
    }
    found = {name: json.dumps(value) for name, value in about.items()}
    found["weights"] = saved.manifest["files"][WEIGHTS]
    for path in sorted(saved.folder.glob("rank-*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        found |= {f"{path.stem} {name}": json.dumps(told[name]) for name in told if name not in OF_THE_CLOCK}
    return found | {
        name: digest(tensor) for name, tensor in tensors(saved.folder).items() if "index_counts" not in name
    }


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, read by this process alone."""
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    found = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in known.items()
        if isinstance(item, TensorStorageMetadata)
    }
    read_tensors(folder, found, alone=True)
    return found


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def curve(folder: Path) -> list[dict[str, str]]:
    """epochs.csv but for the clock's columns."""
    with (folder / "epochs.csv").open(newline="") as file:
        return [
            {name: line[name] for name in line if name not in ("seconds", "joules")} for line in csv.DictReader(file)
        ]


def differences(one: Path, other: Path) -> list[str]:
    """The names of what two runs' folders do not have in common: the newest checkpoint's state, and the curve."""
    mine, theirs = state(open_checkpoint(one)), state(open_checkpoint(other))
    assert {"weights", "step", "rank-0 losses", "rank-0 correct", "rank-0 rates", "rank0/generator"} <= mine.keys()
    found = [name for name in sorted({*mine, *theirs}) if mine.get(name) != theirs.get(name)]
    return found + ["epochs.csv"] * (curve(one) != curve(other))


def unfinished(folders_of_runs: Iterable[Path]) -> list[Path]:
    """What is left of checkpoints that were not finished."""
    return [path for folder in folders_of_runs for path in folder.glob("checkpoints/unfinished-*")]
