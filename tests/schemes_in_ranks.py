"""One rank of test_schemes.py, over gloo: a scheme held against the network in one process, which every rank computes too.

    torchrun ... tests/schemes_in_ranks.py SCHEME OUT MODE...    MODE: float64, float32 or compiled (float32)

Leaves in OUT-<rank>.json, by mode, how far this rank's part is from one process: outputs, loss, gradients, trained weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
        self.update = training_step(self.wrapped, self.optimiser, RunConfig(), self.loss_divisor)

    def gradients(self, images: Tensor, labels: Tensor) -> tuple[Tensor, float, dict[str, Tensor]]:
        """Logits, loss, and the gradients by name, of one step that is not taken."""
        F.dropout = self.dropout
        logits = self.wrapped(images[self.rows])
        loss = F.cross_entropy(logits, labels[self.rows][: len(logits)])
        (loss / self.loss_divisor).backward()
        found = {name: parameter.grad.clone() for name, parameter in self.network.named_parameters()}
        self.optimiser.zero_grad()
        return logits.detach(), float(loss.detach()), found

    def step(self, images: Tensor, labels: Tensor) -> None:
        F.dropout = self.dropout
        self.update(Batch(images[self.rows], labels[self.rows], labels[self.rows]))

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}


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


def compare(config: RunConfig, scheme: Scheme, mode: str) -> dict[str, float | None]:
    dtype = torch.float64 if mode == "float64" else torch.float32
    # A graph would be compiled anew for each of our dropout's choices.
    asked = {"num_classes": CLASSES, "init": "code2012", "dropout": 0.0 if mode == "compiled" else 0.5}
    place = scheme.parts.rank if scheme.parts is not None else 0
    torch.manual_seed(1)
    whole = models.create("alexnet", **asked).to(dtype)
    torch.manual_seed(1)
    if scheme.parts is None:
        part = models.create("alexnet", **asked).to(dtype)
    else:
        part = models.create_part("alexnet", config.parallel, scheme.parts, **asked).to(dtype)
    if mode == "compiled":
        part.compile(fullgraph=True)
    first_row = scheme.shard * config.images_per_batch
    rows = slice(first_row, first_row + config.images_per_batch)
    wrapped = scheme.wrapped(part, config, torch.device("cpu"))
    dropouts = EqualDropout(0 if config.parallel == "hybrid" else first_row, place), EqualDropout()
    if mode == "compiled":
        dropouts = TORCHS_DROPOUT, TORCHS_DROPOUT
    ours = Side(part, wrapped, rows, dropouts[0], scheme.loss_divisor)
    one = Side(whole, whole, slice(0, config.images_per_step), dropouts[1], 1)

    stream = batches(config.images_per_step, dtype)
    images, labels = next(stream)
    logits, loss, gradients = ours.gradients(images, labels)
    one_logits, one_loss, one_gradients = one.gradients(images, labels)
    expected = one_logits[rows]
    for _ in range(STEPS if mode != "compiled" else 1):
        images, labels = next(stream)
        ours.step(images, labels)
        one.step(images, labels)
    return {
        "outputs": float((logits - expected).norm() / expected.norm()) if scheme.column == 0 else None,
        "loss": loss if scheme.column == 0 else None,
        "one_loss": one_loss,
        "gradients": apart(gradients, one_gradients, place),
        "trained": apart(ours.weights(), one.weights(), place),
        "trained_together": apart_together(ours.weights(), one.weights(), place),
    }


def main(parallel: str, out: str, *modes: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    config = RunConfig(cpus=dist.get_world_size(), parallel=parallel, images_per_gpu=IMAGES_A_RANK, bucket_mib=25)
    scheme = scheme_of(config, dist.get_rank())
    found = {mode: compare(config, scheme, mode) for mode in modes}
    Path(f"{out}-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
