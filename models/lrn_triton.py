"""Triton kernels of local response normalisation; models.lrn has the formula and the meaning of the constants.

Both memory formats are seen as (outer, width, inner), width being the channels of one column: inner is 1 in channels-last
and H * W in contiguous memory. A row is one place of that view without its width: a program loads some whole rows once and
takes each channel's neighbours out of registers, so that in channels-last every access to memory can be a wide one. The
window cannot leave its column, for a row ends there.
"""

# Triton's own decorator and the kernels' arguments have no types to check.
# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# A longer row spans more than a program's warps can exchange in registers: its backward pass spills.
MAX_WIDTH = 1024

# size, alpha, beta, k, columns
Constants = tuple[int, float, float, float, int]


class Launch(NamedTuple):
    """What a kernel's launch depends on besides its tensors."""

    WIDTH: int
    BLOCK: int
    ROWS: int
    WIDE: bool
    num_warps: int


def choose_launch(numel: int, width: int) -> Launch:
    """The block of channels, the rows a program, the width of offsets and the warps for numel elements in rows of width.

    Raises ValueError where a row is too long for one program.
    """
    if width > MAX_WIDTH:
        raise ValueError(f"x has {width} channels in a column; on CUDA a column holds at most {MAX_WIDTH}")
    block = triton.next_power_of_2(width)
    # Sixteen elements a thread: two wide loads of bf16 in flight, and registers left for the neighbours.
    rows = 2048 // block
    # Room is left for the places past the end that a last program computes and masks.
    return Launch(width, block, rows, numel > 2**31 - 2**20, num_warps=4)


@triton.jit
def tile(rows, inner, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets and mask (ROWS, BLOCK) of this program's rows, and the channel (ROWS, BLOCK) of each element."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    row = (program * ROWS + tl.arange(0, ROWS))[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    offsets = (row // inner) * (inner * WIDTH) + row % inner + channel * inner
    return offsets, (row < rows) & (channel < WIDTH), tl.broadcast_to(channel, (ROWS, BLOCK))


@triton.jit
def sum_windows(values, channel, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of values (ROWS, BLOCK) over each channel's window; values are zero from WIDTH on."""
    total = values
    REACH: tl.constexpr = min(SIZE // 2, WIDTH - 1)
    for shift in tl.static_range(1, REACH + 1):
        before = tl.gather(values, tl.maximum(channel - shift, 0), 1)
        after = tl.gather(values, tl.minimum(channel + shift, BLOCK - 1), 1)
        total += tl.where(channel >= shift, before, 0.0) + tl.where(channel + shift < BLOCK, after, 0.0)
    return total


@triton.jit
def forward_kernel(
    x_ptr, y_ptr, rows, inner,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    offsets, mask, channel = tile(rows, inner, WIDTH, BLOCK, ROWS, WIDE)
    x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
    denominator = K + ALPHA * sum_windows(x * x, channel, SIZE, WIDTH, BLOCK)
    y = x * tl.exp2(-BETA * tl.log2(denominator))
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask)


@triton.jit
def backward_kernel(
    gradient_ptr, x_ptr, result_ptr, rows, inner,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    offsets, mask, channel = tile(rows, inner, WIDTH, BLOCK, ROWS, WIDE)
    x = tl.load(x_ptr + offsets, mask, other=0.0).to(tl.float32)
    gradient = tl.load(gradient_ptr + offsets, mask, other=0.0).to(tl.float32)
    denominator = K + ALPHA * sum_windows(x * x, channel, SIZE, WIDTH, BLOCK)
    scaled = gradient * tl.exp2(-BETA * tl.log2(denominator))
    crossed = sum_windows(scaled / denominator * x, channel, SIZE, WIDTH, BLOCK)
    result = scaled - 2 * ALPHA * BETA * x * crossed
    tl.store(result_ptr + offsets, result.to(result_ptr.dtype.element_ty), mask)


def forward(x: Tensor, result: Tensor, *constants: *Constants) -> None:
    """Fill result with x normalised by constants (size, alpha, beta, k, columns).

    Both are float16, bfloat16 or float32 (N, C, H, W) on one GPU, and both channels-last or both contiguous.
    """
    run(forward_kernel, (x, result), constants)


def backward(gradient: Tensor, x: Tensor, result: Tensor, *constants: *Constants) -> None:
    """Fill result with the loss's gradient by x, from its gradient by the normalised x; tensors as in `forward`."""
    run(backward_kernel, (gradient, x, result), constants)


def run(kernel: triton.JITFunction, tensors: tuple[Tensor, ...], constants: Constants) -> None:
    """Launch kernel on tensors of one shape and memory format, the last of which it fills."""
    size, alpha, beta, k, columns = constants
    x = tensors[-1]
    if x.numel() == 0:
        return
    width = x.shape[1] // columns
    rows = x.numel() // width
    launch = choose_launch(x.numel(), width)
    # Triton compiles an argument of 1 into the kernel as a constant: channels-last has no division left.
    inner = 1 if x.is_contiguous(memory_format=torch.channels_last) else x.shape[2] * x.shape[3]
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(rows, launch.ROWS),)](
            *tensors, rows, inner, SIZE=size, ALPHA=alpha, BETA=beta, K=k, **launch._asdict()
        )
