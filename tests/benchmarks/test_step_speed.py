"""Group `step`: a compiled training step of the paper's network, with our LRN and with torch's, and of torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
BATCH = 1024 if CUDA else 8
ROUNDS = 20 if CUDA else 3


def torchs_norm(x: Tensor) -> Tensor:
    """The paper's normalisation by torch: a column at a time, and alpha times the window's size, by which it divides."""
    return torch.cat([F.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in x.chunk(2, 1)], 1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: models.create("alexnet"),
    "alexnet_with_torchs_lrn": lambda: models.create("alexnet", norm=torchs_norm),
    "alexnet_torchvision": lambda: models.create("alexnet-torchvision"),
}


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("setting", [f"{DEVICE}-batch{BATCH}-{str(DTYPE).removeprefix('torch.')}-compiled"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_step(benchmark: Callable, name: str, setting: str) -> None:
    torch.manual_seed(0)
    images = (torch.randn(BATCH, 3, 224, 224) * 65).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (BATCH,)).to(DEVICE)
    network = NETWORKS[name]().to(DEVICE)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True)

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            loss = F.cross_entropy(compiled(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if CUDA:
            torch.cuda.synchronize()

    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info |= {
        "images_per_s": BATCH / benchmark.stats.stats.median,
        "device": DEVICE,
        "batch": BATCH,
        "dtype": str(DTYPE),
    }
