"""Group `lrn`: ours against F.local_response_norm, eager and compiled, on the activations after conv1 and conv2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.lrn import local_response_norm

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
BATCH = 128 if CUDA else 16
ROUNDS = 20 if CUDA else 5
# A CPU spends most of this group on compiling: one layer is enough there.
SHAPES = {"conv1": (96, 55), "conv2": (256, 27)} if CUDA else {"conv2": (256, 27)}


def ours(x: Tensor) -> Tensor:
    return local_response_norm(x, columns=2)


def torchs(x: Tensor) -> Tensor:
    """The same by torch: a column at a time, and alpha times the window's size, by which torch divides."""
    return torch.cat([F.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in x.chunk(2, 1)], 1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ours": ours,
    "ours_compiled": ours,
    "torch_eager": torchs,
    "torch_compiled": torchs,
}


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


@pytest.mark.benchmark(group="lrn")
@pytest.mark.parametrize("setting", [f"{DEVICE}-batch{BATCH}-{str(DTYPE).removeprefix('torch.')}"])
@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lrn(benchmark: Callable, name: str, layer: str, passes: str, setting: str) -> None:
    channels, places = SHAPES[layer]
    shape = (BATCH, channels, places, places)
    generator = torch.Generator().manual_seed(0)
    x, gradient = (
        (torch.randn(shape, generator=generator) * 50).to(DEVICE, DTYPE, memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_(passes == "forward_backward")
    torch.compiler.reset()
    function = torch.compile(FUNCTIONS[name], fullgraph=True) if name.endswith("compiled") else FUNCTIONS[name]

    def once() -> None:
        result = function(x)
        if passes == "forward_backward":
            torch.autograd.grad(result, x, gradient)
        synchronise()

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info |= {
        "images_per_s": BATCH / benchmark.stats.stats.median,
        "device": DEVICE,
        "batch": BATCH,
        "dtype": str(DTYPE),
    }
