"""What a run is made of in the middle of training: out into a checkpoint, and in again, on every rank."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from harness import checkpoint
from harness.agree import Ranks, everyones
from harness.checkpoint import Checkpoint
from harness.config import AskedWrongly, RunConfig
from harness.metrics.learning import errors_pct
from harness.seen import Seen
from harness.trial import Evaluation, Window, from_json
from harness.workload import Built, Rank, whole_shapes
from models.shares import whole_of
from pipelines import State

# --- in -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """A rank's share of a checkpoint, read before anything is built."""

    checkpoint: Checkpoint
    told: dict[str, Any]

    @classmethod
    def read(cls, saved: Checkpoint, rank: int) -> Saved:
        """CheckpointError where a file of the checkpoint is not what was saved."""
        saved.refuse_damage()
        return cls(saved, json.loads((saved.folder / rank_file(rank)).read_text(encoding="utf-8")))

    @property
    def input_state(self) -> State | None:
        return State(**self.told["input"]) if self.told["input"] else None

    def into(self, built: Built, seen: Seen, rank: Rank) -> None:
        """Put the run's numbers where the next step looks for them; the ranks do so together."""
        recording = seen.recording
        recording.index_counts = np.zeros(self.told["images_known"], np.int64)
        tensors = tensors_of(built, seen, rank)
        read_tensors(self.checkpoint.folder, tensors)
        torch.set_rng_state(tensors[f"rank{rank.index}/generator"])
        if rank.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"rank{rank.index}/cuda_generator"], rank.device)
        built.rates.restore(self.told["rates"])
        recall(seen, self.told)


def recall(seen: Seen, told: dict[str, Any]) -> None:
    """What a rank had seen, as if it had seen it itself; how often each image came is a tensor, and there already."""
    recording = seen.recording
    recording.losses, recording.correct = list(map(float, told["losses"])), list(told["correct"])
    recording.steps, recording.indices_sum = len(recording.losses), told["indices_sum"]
    recording.label_counts = np.array(told["label_counts"], np.int64)
    seen.windows = [from_json(Window, each) for each in told["windows"]]
    seen.evaluations = [from_json(Evaluation, each) for each in told["evaluations"]]
    seen.job_evaluations = [from_json(Evaluation, each) for each in told["job_evaluations"]]
    seen.warmup_steps, seen.total_steps = told["warmup_steps"], told["total_steps"]


def tensors_of(built: Built, seen: Seen, rank: Rank) -> dict[str, Tensor]:
    """Every tensor that the next step depends on, by a name that tells ranks of other parts apart; made where missing."""
    part = built.scheme.parts.rank if built.scheme.parts else 0
    tensors: dict[str, Tensor] = {}
    for name, parameter in built.network.named_parameters():
        momentum = built.optimiser.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        tensors[f"part{part}/{name}"], tensors[f"part{part}/momentum/{name}"] = parameter.detach(), momentum
    tensors[f"rank{rank.index}/generator"] = torch.get_rng_state()
    if rank.device.type == "cuda":
        tensors[f"rank{rank.index}/cuda_generator"] = torch.cuda.get_rng_state(rank.device)
    tensors[f"rank{rank.index}/index_counts"] = torch.from_numpy(seen.recording.index_counts)
    return tensors


ABOUT = ("run_id", "asked", "dataset")  # of a launch, what its checkpoints say of it


# --- out ----------------------------------------------------------------------------------------------------------


@dataclass
class Keeper:
    """What saves a run: the folder of the run, how many checkpoints stay, and what their manifests say of the run."""

    folder: Path
    config: RunConfig
    about: dict[str, Any]  # run_id, asked, classes, dataset

    @classmethod
    def of(cls, folder: Path, config: RunConfig, told: dict[str, Any], classes: tuple[str, ...]) -> Keeper:
        """Of a launch's folder and what it was told (harness.folders.Launch)."""
        return cls(folder, config, {**{name: told[name] for name in ABOUT}, "classes": list(classes)})

    def save(self, built: Built, seen: Seen, rank: Rank, ranks: Ranks, input_state: State | None) -> None:
        """A checkpoint of this step, by all ranks together; AskedWrongly on all where one of them could not write.

        What was saved before stays until the new one is whole.
        """
        seen.recording.fold()
        step = seen.recording.steps
        folder = checkpoint.unfinished(self.folder, step)

        def write() -> None:
            write_tensors(folder, tensors_of(built, seen, rank))
            text = json.dumps(told_of(seen, built.rates.in_groups, input_state))
            (folder / rank_file(rank.index)).write_text(text, encoding="utf-8")

        first = rank.index == 0
        for work in (
            lambda: checkpoint.begin(self.folder, step) if first else None,
            write,
            lambda: self.seal(folder, seen) if first else None,
        ):
            if wrong := trouble_of(work, ranks):
                if first:
                    shutil.rmtree(folder, ignore_errors=True)
                before = bool(checkpoint.whole_ones(folder.parent)) or self.config.resume is not None
                to_do = "go on with --resume, for what was saved before is whole" if before else "begin again"
                raise AskedWrongly(
                    f"step {step} could not be saved in {folder.parent} ({wrong}): make room there and {to_do}"
                )

    def seal(self, folder: Path, seen: Seen) -> None:
        """Rank 0's part: the whole network's weights as one file, the manifest, and the end of what is too old."""
        from safetensors.torch import save_file

        whole = whole_shapes(self.config, len(self.about["classes"]))
        weights = whole_of(read_parts(folder), whole)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / checkpoint.WEIGHTS)
        checkpoint.seal(folder, {**self.about, **progress(seen, self.config, self.about["dataset"]["train_images"])})
        checkpoint.forget_old(self.folder, self.config.keep)


def trouble_of(work: Callable[[], object], ranks: Ranks) -> str:
    """Do this rank's part of what all do together: the words of the first rank that could not, on every rank, or ""."""
    word = ""
    try:
        work()
    except (OSError, RuntimeError, SafetensorError) as error:
        word = (str(error).strip() or type(error).__name__).splitlines()[0]
    return next((each for each in (everyones(word) if ranks.count > 1 else [word]) if each), "")


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """By all ranks together; what several of them hold is written once. RuntimeError where one of them could not."""
    try:
        save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise RuntimeError(first_failure(error)) from None


def read_tensors(folder: Path, tensors: dict[str, Tensor], *, alone: bool = False) -> None:
    """Into these tensors, by name: by all ranks together, or by this process `alone`. RuntimeError where one of them could not."""
    try:
        with warnings.catch_warnings():
            # Of a reader that is alone on purpose.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, checkpoint_id=folder, no_dist=alone)
    except CheckpointException as error:
        raise RuntimeError(first_failure(error)) from None


def first_failure(error: CheckpointException) -> str:
    """What the first rank that failed says; torch's own text is every rank's traceback."""
    failures = [failure for failure, _ in error.failures.values()]
    return str(failures[0] if failures else error)


def read_parts(folder: Path) -> list[dict[str, Tensor]]:
    """The parameters of every part of the network that ranks have just written, by this process alone."""
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in known.items()
        if isinstance(item, TensorStorageMetadata) and name.startswith("part") and "/momentum/" not in name
    }
    read_tensors(folder, tensors, alone=True)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition("/")
        parts.setdefault(part, {})[parameter] = tensor
    return [parts[f"part{number}"] for number in range(len(parts))]


def told_of(seen: Seen, rates: list[float], input_state: State | None) -> dict[str, Any]:
    """What `Saved` reads again of a rank, as JSON."""
    recording = seen.recording
    return {
        "rates": rates,
        "input": asdict(input_state) if input_state else None,
        "losses": recording.losses,
        "correct": recording.correct,
        "label_counts": recording.label_counts.tolist(),
        "images_known": len(recording.index_counts),
        "indices_sum": recording.indices_sum,
        "windows": [asdict(window) for window in seen.windows],
        "evaluations": [asdict(evaluation) for evaluation in seen.evaluations],
        "warmup_steps": seen.warmup_steps,
        "job_evaluations": [asdict(evaluation) for evaluation in seen.job_evaluations],
        "total_steps": seen.total_steps,
    }


def progress(seen: Seen, config: RunConfig, train_images: int) -> dict[str, Any]:
    """How far the run has come, as a manifest has it."""
    step = seen.recording.steps
    newest = next((each for each in seen.job_evaluations if each.step == step), None)
    top1, top5 = errors_pct(newest) if newest else (None, None)
    return {
        "step": step,
        "total_steps": seen.total_steps,
        "images_seen": step * config.images_per_step,
        "epochs_done": step * config.images_per_step / train_images,
        "val_images": newest.images if newest else None,
        "val_top1_error_pct": top1,
        "val_top5_error_pct": top5,
    }


def rank_file(rank: int) -> str:
    return f"rank-{rank}.json"
