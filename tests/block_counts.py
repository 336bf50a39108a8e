"""The fused block's kernels compiled as they are launched, run on a CPU against float64, and what they issue, counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from lrn_counts import FLOAT32, ITEM_BYTES, PAPER, ROUNDING, decode, encode
from machine_code import MULTIPROCESSORS, Usage, ahead_of_time, occupancy, usage
from ptx_run import Buffer, Counts, run
from torch import Tensor
from torch.nn import functional as F

from models import block_triton
from models.block_triton import Launch
from models.lrn import reference

# The paper's layers 1 and 2: channels of one of two columns, and an image's height and width.
LAYERS = {1: (48, 55), 2: (128, 27)}
COLUMNS = 2
DIRECTIONS = ("forward", "backward")
BATCH = 128


@dataclass(frozen=True)
class Kernel:
    """One kernel's compilation, and the height and width of the one image that it runs on."""

    direction: str
    dtype: str
    channels: int
    height: int
    width: int
    sm: int = 90
    size: int = 5
    beta: float = 0.75

    @property
    def launch(self) -> Launch:
        return block_triton.choose_launch(self.channels, COLUMNS, self.width, ITEM_BYTES[self.dtype])

    @property
    def programs(self) -> int:
        """For one image."""
        return block_triton.programs(self.direction, self.launch, COLUMNS, self.height, self.width)


@cache
def compiled(kernel: Kernel) -> Any:
    function = getattr(block_triton, f"{kernel.direction}_kernel")
    pointers = {name: kernel.dtype for name in function.arg_names if name.endswith("_ptr")} | {"winners_ptr": "u8"}
    launch = kernel.launch._asdict()
    num_warps = launch.pop("num_warps")
    constants = PAPER | {"SIZE": kernel.size, "BETA": kernel.beta, "COLUMNS": COLUMNS} | launch
    return ahead_of_time(function, kernel.sm, pointers, constants, num_warps, options=block_triton.OPTIONS)


@cache
def used(kernel: Kernel) -> Usage:
    return usage(compiled(kernel))


def flat(maps: Tensor) -> np.ndarray:
    """Maps (N, C, H, W) in the order of channels-last memory."""
    return maps.detach().permute(0, 2, 3, 1).reshape(-1).numpy()


class Arrays:
    """One image for a kernel, as flat channels-last arrays of bits, and its exact results."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        shape = (1, kernel.channels * COLUMNS, kernel.height, kernel.width)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator) * 100
        # A third of the image has places whose channels are all alike, few values: windows with equal activations.
        alike = (torch.randint(-1, 3, (1, 1, *shape[2:]), generator=generator) * 32.0).expand(shape)
        x[:, :, : kernel.height // 3] = alike[:, :, : kernel.height // 3]
        self.x, exact = self.bits(x)
        exact.requires_grad_()
        normal = reference(F.relu(exact), kernel.size, PAPER["ALPHA"], kernel.beta, PAPER["K"], COLUMNS)
        pooled, indices = F.max_pool2d(normal, 3, 2, return_indices=True)
        rows, places = torch.arange(pooled.shape[2])[:, None], torch.arange(pooled.shape[3])
        won = (indices // kernel.width - 2 * rows) * 3 + indices % kernel.width - 2 * places
        self.pooled, self.winners = flat(pooled), flat(won).astype(np.uint8)
        self.gradient, gradient = self.bits(torch.randn(pooled.shape, generator=generator))
        self.slope = flat(torch.autograd.grad(pooled, exact, gradient)[0])

    def bits(self, values: Tensor) -> tuple[np.ndarray, Tensor]:
        """Values as a kernel reads them, and what it reads in float64 (N, C, H, W)."""
        bits = encode(np.ascontiguousarray(flat(values)), self.kernel.dtype)
        n, channels, height, width = values.shape
        read = torch.tensor(decode(bits, self.kernel.dtype)).double()
        return bits, read.view(n, height, width, channels).permute(0, 3, 1, 2)

    def buffers(self) -> list[Buffer]:
        """The kernel's arguments."""
        if self.kernel.direction == "forward":
            pooled = Buffer.empty(self.pooled.size, self.x.dtype)
            return [Buffer(self.x), pooled, Buffer.empty(self.winners.size, np.uint8)]
        slope = Buffer.empty(self.slope.size, self.x.dtype)
        return [Buffer(self.gradient), Buffer(self.x), Buffer(self.winners), slope]

    def check(self, buffers: list[Buffer]) -> None:
        """Raise AssertionError where something written is further from the exact result than its rounding."""
        result, exact = (buffers[1], self.pooled) if self.kernel.direction == "forward" else (buffers[3], self.slope)
        written = result.written.reshape(exact.size, -1).all(1)
        if self.kernel.direction == "forward":
            wrong = buffers[2].array[written] != self.winners[written]
            assert not wrong.any(), f"{self.kernel}: {np.count_nonzero(wrong)} winners are not max_pool2d's"
        error = np.abs(decode(result.array, self.kernel.dtype) - exact)
        allowed = ROUNDING[self.kernel.dtype] * np.abs(exact) + FLOAT32 * np.abs(exact).max()
        worst = np.nan_to_num(error / allowed, nan=np.inf)[written].max()
        assert worst <= 1, f"{self.kernel} is {worst} tolerances off"


def execute(kernel: Kernel, programs: Iterable[int] | None = None) -> Counts:
    """Run all programs (then all of the result must be written), or some, of kernel on an image; check what they write."""
    arrays = Arrays(kernel)
    buffers, code = arrays.buffers(), compiled(kernel)
    chosen = None if programs is None else [(program, 0, 0) for program in programs]
    arguments = [*buffers, kernel.height, kernel.width]
    counts = run(code.asm["ptx"], (kernel.programs, 1, 1), arguments, code.metadata.shared, chosen)
    results = buffers[1:] if kernel.direction == "forward" else buffers[3:]
    if programs is None:
        for result in results:
            assert result.written.all(), f"{kernel} left {np.count_nonzero(~result.written)} bytes unwritten"
        again = counts.issued_bytes["st.global"] - sum(result.bytes.size for result in results)
        assert again == 0, f"{kernel} wrote {again} bytes twice: its programs race"
    arrays.check(buffers)
    return counts


@dataclass(frozen=True)
class Row:
    """What one kernel issues and takes in bfloat16, on a layer of the paper. A pass is x's bytes once, read or written.

    Distinct passes count a byte once a program; sectors are 32-byte sectors a warp's access, over the least; least and
    unfused are the passes that cannot be avoided and those of separate operations; registers (a thread) and
    occupancy (share of a multiprocessor's threads) are by compute capability times ten.
    """

    direction: str
    layer: int
    programs: int
    passes: float
    read_passes: float
    written_passes: float
    distinct_read_passes: float
    distinct_passes: float
    sectors: float
    least: float
    unfused: float
    registers: dict[int, int]
    occupancy: dict[int, float]


@cache
def row(direction: str, layer: int) -> Row:
    channels, side = LAYERS[layer]
    kernel = Kernel(direction, "bf16", channels, side, side)
    counts = execute(kernel)
    values = channels * COLUMNS * side * side
    x_bytes = values * ITEM_BYTES["bf16"]
    share = ((side - 1) // 2) ** 2 / side**2  # pooled values over x's
    pooled = share * (1 + 1 / ITEM_BYTES["bf16"])  # with a byte for the winner's place
    # ReLU reads and writes x; so does normalisation; the pool reads x and writes its values and, for torch, 64-bit indices.
    # Backward, the pool reads those and writes x, normalisation reads its input and that and writes x, and so does ReLU.
    indices = share * (1 + 8 / ITEM_BYTES["bf16"])
    unfused = {"forward": 2 + 2 + 1 + indices, "backward": indices + 1 + 3 + 3}
    usages = {sm: used(Kernel(direction, "bf16", channels, side, side, sm)) for sm in MULTIPROCESSORS}
    distinct = counts.distinct_bytes_a_program
    return Row(
        direction,
        layer,
        programs=BATCH * kernel.programs,
        passes=sum(counts.issued_bytes.values()) / x_bytes,
        read_passes=counts.issued_bytes["ld.global"] / x_bytes,
        written_passes=counts.issued_bytes["st.global"] / x_bytes,
        distinct_read_passes=distinct["ld.global"] / x_bytes,
        distinct_passes=sum(distinct.values()) / x_bytes,
        sectors=sum(counts.sectors.values()) * 32 / sum(counts.issued_bytes.values()),
        least={"forward": 1 + pooled, "backward": 2 + pooled}[direction],
        unfused=unfused[direction],
        registers={sm: taken.registers for sm, taken in usages.items()},
        occupancy={sm: occupancy(taken, sm) for sm, taken in usages.items()},
    )


def rows() -> list[Row]:
    """The fused block's rows of docs/kernels.md."""
    return [row(direction, layer) for layer in LAYERS for direction in DIRECTIONS]
