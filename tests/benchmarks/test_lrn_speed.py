"""Groups `lrn` and `block`: ours against torch's own, on the activations after conv1 and conv2, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.block import relu_lrn_maxpool
from models.lrn import local_response_norm

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPE = torch.bfloat16 if CUDA else torch.float32
BATCH = 128 if CUDA else 16
BLOCKS = 10 if CUDA else 3
SHAPES = {"conv1": (96, 55), "conv2": (256, 27)}
SETTING = f"{DEVICE}-batch{BATCH}-{str(DTYPE).removeprefix('torch.')}"


def ours(x: Tensor) -> Tensor:
    return local_response_norm(x, columns=2)


def torchs(x: Tensor) -> Tensor:
    """The same by torch: a column at a time, and alpha times the window's size, by which torch divides."""
    return torch.cat([F.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in x.chunk(2, 1)], 1)


def fused(x: Tensor) -> Tensor:
    return relu_lrn_maxpool(x, columns=2)


def plain(x: Tensor) -> Tensor:
    return F.max_pool2d(ours(F.relu(x)), 3, 2)


def torchs_block(x: Tensor) -> Tensor:
    return F.max_pool2d(torchs(F.relu(x)), 3, 2)


def compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.compile(function, fullgraph=True)


def passes(function: Callable[[Tensor], Tensor], layer: str, backward: bool) -> Callable[[], None]:
    """One forward pass over the layer's activations, and if asked the backward pass, waited for."""
    channels, places = SHAPES[layer]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, channels, places, places, generator=generator) * 50
    x = x.to(DEVICE, DTYPE, memory_format=torch.channels_last).requires_grad_(backward)
    gradient = torch.randn_like(function(x.detach()))

    def once() -> None:
        result = function(x)
        if backward:
            torch.autograd.grad(result, x, gradient)
        if CUDA:
            torch.cuda.synchronize()

    return once


# A CPU spends most of its time here on compiling: a case for each question is enough there.
LRN = [
    (peer, layer, direction)
    for peer in ("eager", "compiled")
    for layer, direction in (
        [(layer, direction) for layer in SHAPES for direction in ("forward", "forward_backward")]
        if CUDA
        else [("conv2", "forward_backward")]
    )
]


@pytest.mark.benchmark(group="lrn")
@pytest.mark.parametrize("setting", [SETTING])
@pytest.mark.parametrize(("peer", "layer", "direction"), LRN)
def test_compiled_lrn_against_torchs(against: Callable, peer: str, layer: str, direction: str, setting: str) -> None:
    torch.compiler.reset()
    backward = direction == "forward_backward"
    theirs = compiled(torchs) if peer == "compiled" else torchs
    against(passes(compiled(ours), layer, backward), passes(theirs, layer, backward), BLOCKS, images=BATCH)


@pytest.mark.benchmark(group="block")
@pytest.mark.parametrize("setting", [SETTING])
@pytest.mark.parametrize("peer", ["plain", "torchs_lrn"] if CUDA else ["plain"])
@pytest.mark.parametrize("layer", SHAPES)
def test_fused_block_against_compiled(against: Callable, layer: str, peer: str, setting: str) -> None:
    torch.compiler.reset()
    theirs = compiled(plain if peer == "plain" else torchs_block)
    against(passes(fused, layer, True), passes(theirs, layer, True), BLOCKS, images=BATCH)
