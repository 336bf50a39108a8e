"""The LRN kernels compiled as they are launched, run on a CPU against float64, and what they issue, counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from machine_code import MULTIPROCESSORS, Usage, ahead_of_time, occupancy, usage
from ptx_run import Buffer, Counts, bf16_to_f32, f32_to_bf16, run

from models import lrn_triton
from models.lrn import reference
from models.lrn_triton import Lines, Walk

PAPER = {"SIZE": 5, "ALPHA": 1e-4, "BETA": 0.75, "K": 2.0}
# The paper's layers 1 and 2: channels of one of two columns, and places of an image.
LAYERS = {1: (48, 55 * 55), 2: (128, 27 * 27)}
DIRECTIONS = ("forward", "backward")
LAYOUTS = ("channels_last", "contiguous")
ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# A result's rounding, and the float32 in between against the largest value: sums and differences cancel.
ROUNDING = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 0.0}
FLOAT32 = 2e-6


@dataclass(frozen=True)
class Kernel:
    """One kernel's compilation: what it computes, on what, for which architecture."""

    direction: str
    layout: str
    dtype: str
    width: int
    sm: int = 90
    size: int = 5
    beta: float = 0.75
    # Contiguous only: whether H * W is a multiple of 16, which Triton compiles for apart.
    aligned: bool = False
    numel: int = 10**6
    integers: str = "i32"

    @property
    def launch(self) -> Lines | Walk:
        if self.layout == "contiguous":
            return lrn_triton.choose_walk(self.numel, self.width)
        return lrn_triton.choose_lines(self.numel, self.width, self.size, ITEM_BYTES[self.dtype])

    @property
    def constants(self) -> tuple[int, float, float, float]:
        return self.size, PAPER["ALPHA"], self.beta, PAPER["K"]


@cache
def compiled(kernel: Kernel) -> Any:
    function = getattr(lrn_triton, f"{kernel.direction}_{'walk' if kernel.layout == 'contiguous' else 'lines'}")
    pointers = {name: kernel.dtype for name in function.arg_names if name.endswith("_ptr")}
    constants = PAPER | {"SIZE": kernel.size, "BETA": kernel.beta} | kernel.launch._asdict()
    aligned = ("rows", "inner") if kernel.aligned else ()
    return ahead_of_time(
        function, kernel.sm, pointers, constants, lrn_triton.NUM_WARPS, aligned=aligned, integers=kernel.integers
    )


@cache
def used(kernel: Kernel) -> Usage:
    return usage(compiled(kernel))


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values as the bits that a kernel reads."""
    if dtype == "bf16":
        return f32_to_bf16(values)
    return values.astype(np.float16).view(np.uint16) if dtype == "fp16" else values


def decode(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return bf16_to_f32(bits)
    return bits.view(np.float16).astype(np.float32) if dtype == "fp16" else bits


class Arrays:
    """A kernel's inputs on (rows / inner, width, inner), as flat arrays of bits, and its exact result."""

    def __init__(self, kernel: Kernel, rows: int, inner: int = 1) -> None:
        self.kernel = kernel
        shape = (rows // inner, kernel.width, inner, 1)
        draw = (np.random.default_rng(0).standard_normal((2, rows * kernel.width)) * 100).astype(np.float32)
        x, gradient = (encode(values, kernel.dtype) for values in draw)
        self.inputs = [x] if kernel.direction == "forward" else [gradient, x]
        exact = torch.tensor(decode(x, kernel.dtype)).double().view(shape).requires_grad_()
        result = reference(exact, *kernel.constants)
        if kernel.direction == "backward":
            slope = torch.tensor(decode(gradient, kernel.dtype)).double().view(shape)
            (result,) = torch.autograd.grad(result, exact, slope)
        self.expected = result.detach().numpy().reshape(-1)

    def empty(self) -> Buffer:
        return Buffer.empty(self.expected.size, self.inputs[0].dtype)

    def check(self, bits: np.ndarray) -> None:
        """Raise AssertionError where a result is further from the exact one than its rounding."""
        error = np.abs(decode(bits, self.kernel.dtype) - self.expected)
        allowed = ROUNDING[self.kernel.dtype] * np.abs(self.expected) + FLOAT32 * np.abs(self.expected).max()
        worst = np.nan_to_num(error / allowed, nan=np.inf).max()
        assert worst <= 1, f"{self.kernel} is {worst} tolerances off"


def execute(kernel: Kernel, rows: int, inner: int = 1) -> Counts:
    """Run all programs of kernel on rows rows and check that they write all of the result, and what."""
    arrays = Arrays(kernel, rows, inner)
    result = arrays.empty()
    integers = [rows] if kernel.layout == "channels_last" else [rows, inner]
    code = compiled(kernel)
    grid = (kernel.launch.programs(rows), 1, 1)
    counts = run(code.asm["ptx"], grid, [*map(Buffer, arrays.inputs), result, *integers], code.metadata.shared)
    assert result.written.all(), f"{kernel} left {np.count_nonzero(~result.written)} bytes unwritten"
    arrays.check(result.array)
    return counts


@dataclass(frozen=True)
class Row:
    """What one kernel issues and takes in bfloat16. A pass is x's bytes once, read or written.

    sectors_issued and sectors_distinct are 32-byte sectors over the least: a warp's access at a time, and a program at a time.
    registers (a thread) and occupancy (share of a multiprocessor's threads) are by compute capability times ten.
    """

    direction: str
    layer: int
    layout: str
    issued_passes: float
    distinct_passes: float
    sectors_issued: float
    sectors_distinct: float
    registers: dict[int, int]
    occupancy: dict[int, float]


@cache
def row(direction: str, layer: int, layout: str) -> Row:
    width, places = LAYERS[layer]
    kernel = Kernel(direction, layout, "bf16", width)
    # Contiguous, an image is the least whose rows lie as they do in a batch.
    rows, inner = (64, 1) if layout == "channels_last" else (places, places)
    counts = execute(kernel, rows, inner)
    x_bytes = rows * width * ITEM_BYTES["bf16"]
    distinct_bytes = sum(counts.distinct_bytes_a_program.values())
    usages = {sm: used(Kernel(direction, layout, "bf16", width, sm)) for sm in MULTIPROCESSORS}
    return Row(
        direction,
        layer,
        layout,
        issued_passes=sum(counts.issued_bytes.values()) / x_bytes,
        distinct_passes=distinct_bytes / x_bytes,
        sectors_issued=sum(counts.sectors.values()) * 32 / distinct_bytes,
        sectors_distinct=sum(counts.distinct_sectors_a_program.values()) * 32 / distinct_bytes,
        registers={sm: taken.registers for sm, taken in usages.items()},
        occupancy={sm: occupancy(taken, sm) for sm, taken in usages.items()},
    )


def rows() -> list[Row]:
    """The LRN kernels' rows of docs/kernels.md."""
    return [row(direction, layer, layout) for layer in LAYERS for layout in LAYOUTS for direction in DIRECTIONS]
