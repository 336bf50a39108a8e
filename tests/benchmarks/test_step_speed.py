"""Group `step`: the paper network's compiled training step against its peers, and against what the machine multiplies."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import models
from harness.resolve import cpu_multiplies_bf16
from models.alexnet import multiply_adds

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# A CPU without bf16 instructions multiplies bf16 matrices far slower than fp32 ones.
BF16 = CUDA or cpu_multiplies_bf16()
DTYPE = torch.bfloat16 if BF16 else torch.float32
BATCH = 1024 if CUDA else 128 if BF16 else 32
BLOCKS = 5 if CUDA else 2
MATRIX = 8192 if CUDA else 4096
SETTING = f"{DEVICE}-batch{BATCH}-{str(DTYPE).removeprefix('torch.')}"


def torchs_norm(x: Tensor) -> Tensor:
    """The paper's normalisation by torch: a column at a time, and alpha times the window's size, by which it divides."""
    return torch.cat([F.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in x.chunk(2, 1)], 1)


NETWORKS: dict[str, dict[str, Any]] = {
    "ours": {"name": "alexnet", "block": "fused"},
    "plain": {"name": "alexnet", "block": "plain"},
    "torchvision": {"name": "alexnet-torchvision"},
    "torchs_lrn": {"name": "alexnet", "block": "plain", "norm": torchs_norm},
    "eager_fp32_torchs_lrn": {"name": "alexnet", "block": "plain", "norm": torchs_norm},
}


@cache
def training_step(network_name: str) -> Callable[[], None]:
    """One step of a network of NETWORKS on resident images, waited for; compiled in DTYPE unless it is called eager."""
    eager = network_name.startswith("eager_fp32")
    torch.manual_seed(0)
    images = (torch.randn(BATCH, 3, 224, 224) * 65).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (BATCH,)).to(DEVICE)
    network = models.create(**NETWORKS[network_name]).to(DEVICE)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)
    function = network if eager else torch.compile(network, fullgraph=True)

    def step() -> None:
        with torch.autocast(DEVICE, DTYPE, enabled=BF16 and not eager):
            loss = F.cross_entropy(function(images).float(), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if CUDA:
            torch.cuda.synchronize()

    return step


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("setting", [SETTING])
@pytest.mark.parametrize("peer", ["plain", "torchvision", "eager_fp32_torchs_lrn", *(["torchs_lrn"] if CUDA else [])])
def test_training_step_against(against: Callable, peer: str, setting: str) -> None:
    against(training_step("ours"), training_step(peer), BLOCKS, images=BATCH)


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("setting", [f"{SETTING}-{MATRIX}cubed"])
def test_training_step_against_the_matrix_product(against: Callable, remember: Callable, setting: str) -> None:
    """`pct_of_peer_rate`: the step's multiply-adds a second as a share of a square matrix product's in the same dtype."""
    a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE).to(DTYPE) for _ in range(2))

    def product() -> None:
        a @ b
        if CUDA:
            torch.cuda.synchronize()

    work = multiply_adds(models.create("alexnet")).training * BATCH / MATRIX**3
    against(training_step("ours"), product, BLOCKS, images=BATCH, work=work)
    remember("where ours' time goes", shares(training_step("ours")))


def shares(step: Callable[[], None]) -> str:
    """The heaviest operators of a step, as shares of all operators' own time on the device."""
    activity = torch.profiler.ProfilerActivity.CUDA if CUDA else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        step()
    times = {
        event.key: event.self_device_time_total if CUDA else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    heaviest = sorted(times.items(), key=lambda item: -item[1])[:7]
    return ", ".join(f"{name[:40]} {100 * us / sum(times.values()):.0f} %" for name, us in heaviest)
