"""The checks of `doctor --certify`: our code on one device against float64, a copy, or itself in another form.

Each is a function of the device, and of the function that it checks, which returns what it measured beside a bound that
was derived and not tuned.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from harness import environment, resolve, seeded, workload
from harness.box.ranks import begin, in_ranks
from harness.config import RunConfig
from harness.metrics.validity import SEEDED_STEP_MOST
from harness.recipes import settings
from harness.schemes import scheme_of
from harness.seeded import Build, largest, least
from models import lrn
from pipelines.sources.imageset import Split

Operation = Callable[[Tensor], Tensor]

COLUMNS = 2
# What layers 1 and 2 hand to their normalisation (section 3.5): channels, places a side.
LAYERS = ((96, 55), (256, 27))

# Half a unit in the last place of float32, and of what a kernel may add in float32: ten roundings of a window's sum, a
# power of a few units in the last place on a GPU, and the products around them.
UNIT = 2.0**-24
WORK = 32 * UNIT
CLASSES = 10
STEP_BOUND = SEEDED_STEP_MOST["fp32"]
# A kernel at the memory's limit is as fast as a copy; launching, tails and the arithmetic may take this much away.
COPY_SHARE = 0.7
# Bytes a kernel need move, in passes over x of two-byte numbers: reads and writes of whole activations, and for the block
# a pooled output (27 * 27 of 55 * 55 places) with a byte for its winner. MOST is what the block may issue, halos read again.
POOLED = (27 / 55) ** 2
LEAST_PASSES = {"LRN": (2.0, 3.0), "block": (1 + 1.5 * POOLED, 2 + 1.5 * POOLED)}
MOST_PASSES = {"LRN": (2.0, 3.0), "block": (1.8 + 1.5 * POOLED, 2.9)}
COPY_PASSES = 2

# JPEG decoders may differ by a level in each of Y, Cb and Cr and by one more in the enlarged chroma; blue is
# Y + 1.772 Cb. Rounding to whole levels adds one, resizing another. Such differences cancel, a shift of all pixels by
# one level (another colour matrix, another place) does not.
DECODE_LEVELS = 1 + 1.772 * 2 + 1 + 1
MEAN_LEVELS = 1.0
RESIZE_LEVELS = 1.0
IMAGES_DECODED = 64

RANKS = 2
RANKS_TIMEOUT_S = 60.0


class NotRun(Exception):
    """This machine cannot run the check: why, in a few words."""


@dataclass(frozen=True)
class Measured:
    """The worst value that a check saw, its unit, and the bound: at most, or at least; None is for the record only."""

    worst: float
    unit: str
    bound: float | None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.bound is None:
            return "measured"
        holds = self.worst >= self.bound if self.at_least else self.worst <= self.bound
        return "ok" if holds else "off"


# --- numerics -----------------------------------------------------------------------------------------------------


def lrn_numerics(device: torch.device, dtype: torch.dtype, operation: Operation, images: int = 2) -> Measured:
    """LRN and its gradient against float64, for both layers and both memory formats."""
    exact = partial(lrn.reference, columns=COLUMNS)
    excesses = []
    for (channels, side), layout in product(LAYERS, (torch.channels_last, torch.contiguous_format)):
        shape = (images, channels, side, side)
        x, gradient = (draw(shape, dtype, seed).contiguous(memory_format=layout) for seed in (0, 1))
        wide, weight = x.double(), gradient.double()
        expected, slope = with_gradient(exact, wide, weight)
        found, found_slope = with_gradient(operation, x.to(device), gradient.to(device))
        excesses.append(excess(found, expected, expected.abs()))
        excesses.append(excess(found_slope, slope, terms(exact, wide, weight)))
    return Measured(largest(excesses), "of the rounding allowed", 1)


def block_numerics(device: torch.device, dtype: torch.dtype, operation: Operation, images: int = 2) -> Measured:
    """The fused block and its gradient against float64, for both layers."""
    exact = partial(lrn.reference, columns=COLUMNS)
    excesses = []
    for channels, side in LAYERS:
        x = draw((images, channels, side, side), dtype, 0).contiguous(memory_format=torch.channels_last)
        wide = F.relu(x.double())
        normalised = exact(wide)
        expected = F.max_pool2d(normalised, 3, 2)
        gradient = draw(expected.shape, dtype, 1) * has_a_clear_winner(normalised)
        _, to_winners = with_gradient(lambda y: F.max_pool2d(y, 3, 2), normalised, gradient.double())
        _, sizes = with_gradient(lambda y: F.max_pool2d(y, 3, 2), normalised, gradient.double().abs())
        _, slope = with_gradient(exact, wide, to_winners)
        found, found_slope = with_gradient(operation, x.to(device), gradient.to(device))
        excesses.append(excess(found, expected, expected))
        excesses.append(excess(found_slope, slope * (x > 0), terms(exact, wide, sizes)))
    return Measured(largest(excesses), "of the rounding allowed", 1)


def draw(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Activations of the size that raw pixels give, where the normalisation's sum weighs as much as its constant."""
    values = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (100 * values).to(dtype)


def with_gradient(operation: Operation, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(operation(x), its gradient towards x for this one towards its result)."""
    x = x.detach().requires_grad_()
    result = operation(x)
    (slope,) = torch.autograd.grad(result, x, gradient)
    return result.detach(), slope


def has_a_clear_winner(y: Tensor) -> Tensor:
    """1 for each 3/2 window of y (N, C, H, W) whose largest value leads by more than float32 arithmetic may blur, else 0."""
    n, channels, height, width = y.shape
    windows = F.unfold(y.reshape(n * channels, 1, height, width), 3, stride=2)
    first, second = windows.topk(2, dim=1).values.unbind(1)
    shape = (n, channels, (height - 3) // 2 + 1, (width - 3) // 2 + 1)
    leads: Tensor = first - second > 2 * WORK * first
    return leads.view(shape)


def terms(exact: Operation, x: Tensor, gradient: Tensor) -> Tensor:
    """Bound of the magnitudes of the two terms whose difference is the LRN's gradient, elementwise.

    dL/dx = s - t; for |x| and |g| it would be |s| - |t|, and |s| is at most |g| k^-beta.
    """
    _, difference = with_gradient(exact, x.abs(), gradient.abs())
    return 2 * gradient.abs() * float(2.0**-0.75) - difference


def excess(found: Tensor, expected: Tensor, magnitude: Tensor) -> float:
    """Largest error as a share of what is allowed: half a unit of found's dtype, and WORK of the terms' magnitude."""
    limits = torch.finfo(found.dtype)
    allowed = limits.eps / 2 * expected.abs() + WORK * magnitude + limits.smallest_normal * limits.eps
    return float(((found.cpu().double() - expected).abs() / allowed).max())


# --- bandwidth ----------------------------------------------------------------------------------------------------


def bandwidth(
    device: torch.device, operation: Operation, backward: bool, passes: float, bound: float | None, images: int
) -> Measured:
    """Least bytes over seconds, as a share of a copy's in the same run; the slower layer's.

    `passes` is the least bytes in passes over x of a forward, or of a backward without its forward.
    """
    shares = []
    for channels, side in LAYERS:
        x = torch.randn((images, channels, side, side), device=device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        target = torch.empty_like(x)
        copy_s = seconds_of(partial(target.copy_, x), device)
        y = operation(x.requires_grad_())
        differentiate = partial(torch.autograd.grad, y, x, torch.ones_like(y), retain_graph=True)
        kernel_s = seconds_of(differentiate if backward else partial(operation, x.detach()), device)
        shares.append(passes / COPY_PASSES * copy_s / kernel_s)
    return Measured(least(shares), "of a copy's GB/s", bound, at_least=True)


def seconds_of(call: Callable[[], Any], device: torch.device, calls: int = 10, blocks: int = 5) -> float:
    """Seconds of one call: the median of blocks of calls, after one to warm up, on the clock that does the work."""
    call()
    times_s: list[float] = []
    for _ in range(blocks):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            stop.record()
            stop.synchronize()
            times_s.append(start.elapsed_time(stop) / 1000 / calls)
        else:
            start_s = time.perf_counter()
            for _ in range(calls):
                call()
            times_s.append((time.perf_counter() - start_s) / calls)
    return statistics.median(times_s)


# --- the input ----------------------------------------------------------------------------------------------------


def pixels(config: RunConfig, split: Split, device: torch.device) -> Tensor:
    """The first images of a split as this configuration decodes them without augmentation, on the host."""
    rank = workload.Rank(0, 1, device)
    batches = workload.create_batches(config, split, rank=rank, scheme=scheme_of(config, 0), training=False)
    try:
        images: Tensor = next(batches).images
        return images.clone().cpu()
    finally:
        batches.close()


def apart_in(
    found: Callable[[], Tensor], expected: Callable[[], Tensor], summary: Callable[[Tensor], Tensor], bound: float
) -> Measured:
    """How many levels two decodings of the same pictures are apart, in the mean or at worst."""
    return Measured(float(summary((found() - expected()).abs())), "levels", bound)


# --- the step -----------------------------------------------------------------------------------------------------


def step_config(device: torch.device, ranks: int = 1, **changes: Any) -> RunConfig:
    """The smoke recipe in float32 on so many ranks of this kind."""
    kind = "gpus" if device.type == "cuda" else "cpus"
    asked = RunConfig(**settings("smoke", {"precision": "fp32", kind: ranks, **changes}))
    compiler = environment.cpp_compiler().found is not None
    return resolve.resolve(asked, environment.cpu_cores_usable(), environment.visible_gpus(), compiler=compiler)


def compiled_step(device: torch.device, build: Build = workload.build_network) -> Measured:
    """Gradients of the compiled step against eager ones."""
    workload.exact_fp32()
    config = step_config(device, compile="on")
    found = seeded.distance(config, CLASSES, workload.Rank(0, 1, device), scheme_of(config, 0), build)
    return Measured(found, "of the norm", STEP_BOUND)


def two_ranks(
    device: torch.device,
    build: Build = workload.build_network,
    timeout_s: float = RANKS_TIMEOUT_S,
    parallel: str = "data",
) -> Measured:
    """Gradients of a step that two ranks share, against those of one process on all images."""
    if device.type == "cuda" and torch.cuda.device_count() < RANKS:
        raise NotRun(f"needs {RANKS} GPUs")
    with tempfile.TemporaryDirectory() as folder:
        in_ranks(rank_main, (device.type, build, timeout_s, folder, parallel), RANKS, timeout_s)
        worst = largest(float(Path(folder, f"rank-{index}").read_text()) for index in range(RANKS))
    return Measured(worst, "of the norm", STEP_BOUND)


def rank_main(index: int, kind: str, build: Build, timeout_s: float, folder: str, parallel: str) -> None:
    """Be one rank; leave in `folder` how far its gradients are from those of all images in one process."""
    device = begin(index, RANKS, "nccl" if kind == "cuda" else "gloo", folder, timeout_s)
    workload.exact_fp32()
    config = step_config(device, ranks=RANKS, compile="off", parallel=parallel)
    rank = workload.Rank(index, RANKS, device)
    found = seeded.distance(config, CLASSES, rank, scheme_of(config, index), build)
    Path(folder, f"rank-{index}").write_text(str(found))
    dist.destroy_process_group()
