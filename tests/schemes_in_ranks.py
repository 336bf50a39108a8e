"""The processes of test_schemes.py: the network in one process, and one rank of a scheme, over gloo, held against that.

    python tests/schemes_in_ranks.py one RANKS FOLDER MODE...            MODE: float64, float32 or compiled (float32)
    torchrun ... tests/schemes_in_ranks.py SCHEME RANKS FOLDER MODE...

The first leaves in FOLDER what it computed on the images of RANKS ranks, the ranks how far they are from it: outputs, loss,
gradients, and weights after ten steps.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import models
from harness.config import RunConfig
from harness.schemes import Scheme, scheme_of
from harness.workload import training_step
from models import shares
from pipelines import Batch

CLASSES, IMAGES_A_RANK, STEPS, LEARNING_RATE = 10, 2, 10, 1e-4
TORCHS_DROPOUT = F.dropout


class EqualDropout:
    """In place of torch's: keeps a unit or not by its place in the whole job's batch and layer, the same in every scheme."""

    def __init__(self, first_row: int = 0, place: int = 0):
        self.first_row, self.place, self.calls = first_row, place, 0

    def __call__(self, x: Tensor, share: float, training: bool) -> Tensor:
        if not training:
            return x
        self.calls += 1
        rows = torch.arange(len(x)) + self.first_row
        units = torch.arange(x.shape[1]) + self.place * x.shape[1]
        hashed = (rows[:, None] * 7919 + units * 104729 + self.calls * 1299709) % 1000003 * 48271 % 65521
        return x * (hashed % 2) / (1 - share)


@dataclass
class Side:
    """A network in training, as `run` trains it, with the rows of the job's batch that it sees."""

    network: nn.Module
    wrapped: nn.Module
    rows: slice
    dropout: Callable[..., Tensor]
    loss_divisor: int

    def __post_init__(self) -> None:
        rates = models.parameter_groups(self.network, LEARNING_RATE, 0.0005)
        self.optimiser = torch.optim.SGD(rates, momentum=0.9, fused=True)
        self.gradients, self.update = training_step(self.wrapped, self.optimiser, RunConfig(), self.loss_divisor)

    def run(self, images_per_step: int, dtype: torch.dtype, steps: int) -> dict[str, Any]:
        """Logits, loss and gradients of a first step that is not taken, and the weights after so many that are."""
        stream = batches(images_per_step, dtype)
        found = self.first(*next(stream))
        for _ in range(steps):
            self.step(*next(stream))
        return found | {"weights": {name: value.detach() for name, value in self.network.state_dict().items()}}

    def first(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        F.dropout = self.dropout
        logits = self.wrapped(images[self.rows])
        loss = F.cross_entropy(logits, labels[self.rows][: len(logits)])
        (loss / self.loss_divisor).backward()
        found = {name: parameter.grad.clone() for name, parameter in self.network.named_parameters()}
        self.optimiser.zero_grad()
        return {"logits": logits.detach(), "loss": float(loss.detach()), "gradients": found}

    def step(self, images: Tensor, labels: Tensor) -> None:
        F.dropout = self.dropout
        self.gradients(Batch(images[self.rows], labels[self.rows], labels[self.rows]))
        self.update()


def batches(images: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of the whole job, the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    while True:
        pixels = 60 * torch.randn(images, 3, 224, 224, generator=generator, dtype=torch.float64)
        yield (
            pixels.to(dtype, memory_format=torch.channels_last),
            torch.randint(0, CLASSES, (images,), generator=generator),
        )


def apart(found: dict[str, Tensor], whole: dict[str, Tensor], place: int) -> float:
    """The largest distance of a parameter (or its gradient) of ours from its part of the whole's, as a share of that one's norm."""
    expected = shares.part_of(whole, found, place)
    return max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())


def apart_together(found: dict[str, Tensor], whole: dict[str, Tensor], place: int) -> float:
    """The same of all parameters as one vector."""
    expected = shares.part_of(whole, found, place)
    moved, norm = (torch.cat([value.flatten() for value in values]).norm() for values in ([found[n] - v for n, v in expected.items()], expected.values()))  # fmt: skip
    return float(moved / norm)


def dtype_of(mode: str) -> torch.dtype:
    return torch.float64 if mode == "float64" else torch.float32


def create(mode: str, config: RunConfig, scheme: Scheme | None = None) -> nn.Module:
    """The network, or a rank's part of it, from the same weights."""
    # A graph would be compiled anew for each of our dropout's choices.
    asked = {"num_classes": CLASSES, "init": "code2012", "dropout": 0.0 if mode == "compiled" else 0.5}
    torch.manual_seed(1)
    if scheme is None or scheme.parts is None:
        network = models.create("alexnet", **asked)
    else:
        network = models.create_part("alexnet", config.parallel, scheme.parts, **asked)
    return network.to(dtype_of(mode))


def steps_of(mode: str) -> int:
    return 1 if mode == "compiled" else STEPS


def one_process(config: RunConfig, folder: Path, mode: str) -> None:
    network = create(mode, config)
    dropout = TORCHS_DROPOUT if mode == "compiled" else EqualDropout()
    side = Side(network, network, slice(0, config.images_per_step), dropout, 1)
    torch.save(
        side.run(config.images_per_step, dtype_of(mode), steps_of(mode)), folder / f"one-{config.ranks}-{mode}.pt"
    )


def one_rank(config: RunConfig, scheme: Scheme, folder: Path, mode: str) -> dict[str, float | None]:
    place = scheme.parts.rank if scheme.parts is not None else 0
    network = create(mode, config, scheme)
    if mode == "compiled":
        network.compile(fullgraph=True)
    first_row = scheme.shard * config.images_per_batch
    rows = slice(first_row, first_row + config.images_per_batch)
    equal = EqualDropout(0 if config.parallel == "hybrid" else first_row, place)
    dropout = TORCHS_DROPOUT if mode == "compiled" else equal
    wrapped = scheme.wrapped(network, config, torch.device("cpu"))
    side = Side(network, wrapped, rows, dropout, scheme.loss_divisor)
    found = side.run(config.images_per_step, dtype_of(mode), steps_of(mode))
    one = torch.load(folder / f"one-{config.ranks}-{mode}.pt", mmap=True)
    logits, expected = found["logits"], one["logits"][rows]
    holds_logits = scheme.column == 0
    return {
        "outputs": float((logits - expected).norm() / expected.norm()) if holds_logits else None,
        "loss": found["loss"] if holds_logits else None,
        "one_loss": one["loss"],
        "gradients": apart(found["gradients"], one["gradients"], place),
        "trained": apart(found["weights"], one["weights"], place),
        "trained_together": apart_together(found["weights"], one["weights"], place),
    }


def main(parallel: str, ranks: str, folder: str, *modes: str) -> None:
    scheme_name = "data" if parallel == "one" else parallel
    config = RunConfig(cpus=int(ranks), parallel=scheme_name, images_per_gpu=IMAGES_A_RANK, bucket_mib=25)
    if parallel == "one":
        for mode in modes:
            one_process(config, Path(folder), mode)
        return
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    scheme = scheme_of(config, dist.get_rank())
    found = {mode: one_rank(config, scheme, Path(folder), mode) for mode in modes}
    Path(folder, f"{parallel}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
