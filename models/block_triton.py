"""Triton kernels of the paper's block, max_pool2d(local_response_norm(relu(x)), 3, stride=2), on channels-last tensors.

models.lrn has the normalisation's formula, models.block the operator. A program holds one column of channels of one image
and walks down its rows: of each it loads the even places 2 q and the odd places 2 q + 1, as two tiles (BLOCK_Q, BLOCK_C).
With channels in eights every access to x is 128 bits wide, and a program loads no byte twice. What rows of pooled places
share stays in registers; what neighbours in a row share moves one place along q through shared memory; a channel's
neighbours come from registers.

A tagged value is a float32 and a number below 16 in one integer. Forward, the tag is 15 - (4 dy + dx), or 4 dy + dx if the
value is NaN: values are never negative, so their bits sort as they do, and the largest of a window's tagged values is
max_pool2d's choice, the first of equal values or the last NaN. Backward, the tag of a gradient is its winner's place.
"""

# Triton's own decorator and the kernels' arguments have no types to check, and its tuples change theirs as they grow.
# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Fewer than four places of a longer column fit a program, and every tile shares one of them with the next.
MAX_WIDTH = 512
MAX_ROW = 2**28

# size, alpha, beta, k, columns
Constants = tuple[int, float, float, float, int]


class Launch(NamedTuple):
    """What the kernels' launches depend on besides their tensors. A program covers ROWS pooled rows, 2 ROWS rows of x."""

    CHANNELS: int
    BLOCK_C: int
    BLOCK_Q: int
    GROUP: int
    ROWS: int
    num_warps: int


# With 64 registers a thread, half of a multiprocessor's threads fit. The compiler's own fused multiply-adds would keep both
# factors of a product that several sums use, which is too many; the kernels ask for those that cost no register.
OPTIONS = {"maxnreg": 64, "enable_fp_fusion": False}


def choose_launch(channels: int, columns: int, width: int, item_bytes: int) -> Launch:
    """The tile and the warps for so many channels in a column, columns, places in a row of x and bytes in an item.

    Raises ValueError where a column is too wide for one program, or a row too long for 32-bit offsets in it.
    """
    if channels * columns * width > MAX_ROW:
        raise ValueError(
            f"x has {channels * columns * width} values in a row (C * W); on CUDA the fused block takes at most {MAX_ROW}"
        )
    if channels > MAX_WIDTH:
        raise ValueError(f"x has {channels} channels in a column; on CUDA the fused block takes at most {MAX_WIDTH}")
    group = 16 // item_bytes  # channels in one wide load
    block_c = max(group, triton.next_power_of_2(channels))
    # A short row fits one tile with, backward, a place before it.
    block_q = min(2048 // block_c, triton.next_power_of_2((width - 1) // 2 + 2))
    # One wide load of a tile is a thread's share.
    num_warps = max(1, block_c * block_q // (32 * group))
    return Launch(channels, block_c, block_q, group, ROWS=3, num_warps=num_warps)


@triton.jit
def split(values, GROUP: tl.constexpr):
    """values (rows, channels) as GROUP tensors (rows, groups), the i-th of which holds each group's i-th channel."""
    ROWS: tl.constexpr = values.shape[0]
    GROUPS: tl.constexpr = values.shape[1] // GROUP
    parts = (values,)
    for _ in tl.static_range(GROUP.bit_length() - 1):
        firsts = ()
        seconds = ()
        for i in tl.static_range(len(parts)):
            first, second = tl.split(tl.reshape(parts[i], (ROWS, GROUPS, GROUP // (2 * len(parts)), 2)))
            firsts += (first,)
            seconds += (second,)
        parts = firsts + seconds
    groups = ()
    for i in tl.static_range(GROUP):
        groups += (tl.reshape(parts[i], (ROWS, GROUPS)),)
    return groups


@triton.jit
def join(parts):
    """What `split` undoes."""
    ROWS: tl.constexpr = parts[0].shape[0]
    BLOCK: tl.constexpr = parts[0].shape[1] * len(parts)
    for _ in tl.static_range(len(parts).bit_length() - 1):
        joined = ()
        for i in tl.static_range(len(parts) // 2):
            joined += (tl.join(parts[i], parts[i + len(parts) // 2]),)
        parts = joined
    return tl.reshape(parts[0], (ROWS, BLOCK))


@triton.jit
def neighbour(parts, place: tl.constexpr):
    """The channels `place` after the first of each group, zeros where there is none."""
    hop: tl.constexpr = place // len(parts)
    part = parts[place % len(parts)]
    if hop != 0:
        GROUPS: tl.constexpr = part.shape[1]
        source = tl.broadcast_to(tl.arange(0, GROUPS)[None, :] + hop, part.shape)
        part = tl.where((source >= 0) & (source < GROUPS), tl.gather(part, source & (GROUPS - 1), 1), 0.0)
    return part


@triton.jit
def sum_windows(values, SIZE: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr):
    """Sums of values (BLOCK_Q, BLOCK_C) over each channel's window; values are zero from CHANNELS on."""
    parts = split(values, GROUP)
    REACH: tl.constexpr = min(SIZE // 2, CHANNELS - 1)
    totals = ()
    for i in tl.static_range(GROUP):
        total = parts[i]
        for shift in tl.static_range(1, REACH + 1):
            total += neighbour(parts, i - shift) + neighbour(parts, i + shift)
        totals += (total,)
    return join(totals)


@triton.jit
def shifted(values, BY: tl.constexpr):
    """values (BLOCK_Q, BLOCK_C), each row the one that stands BY later, in a circle."""
    ROWS: tl.constexpr = values.shape[0]
    BLOCK: tl.constexpr = values.shape[1]
    source = ((tl.arange(0, ROWS) + BY) & (ROWS - 1))[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    # As one long vector: for a gather of rows the compiler would change the tile's layout, and back.
    long = tl.gather(tl.reshape(values, (ROWS * BLOCK,)), tl.reshape(source, (ROWS * BLOCK,)), 0)
    return tl.reshape(long, (ROWS, BLOCK))


@triton.jit
def tag(values, tags, WIDE: tl.constexpr):
    """float32 values and numbers below 16 in one integer: of 64 bits if WIDE, else of 32, and the value's last four make room."""
    bits = values.to(tl.uint32, bitcast=True)
    return bits.to(tl.uint64) << 4 | tags if WIDE else bits & 0xFFFFFFF0 | tags


@triton.jit
def untag(tagged):
    """The float32 values of tagged ones whose tags are 0."""
    bits = (tagged >> 4).to(tl.uint32) if tagged.dtype == tl.uint64 else tagged
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def inverse_powers(denominator, BETA: tl.constexpr):
    """denominator ** -BETA and 1 / denominator."""
    root = tl.rsqrt(denominator)
    # The paper's power takes a second root, any other a logarithm, which is a polynomial.
    power = root * tl.sqrt(root) if BETA == 0.75 else tl.exp2(-BETA * tl.log2(denominator))
    return power, root * root


@triton.jit
def load_keys(
    x_ptr, offsets, mask,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, NAN: tl.constexpr,
):  # fmt: skip
    """The keys of a tile of x, rectified and normalised, at place 0 of their windows."""
    x = tl.load(x_ptr + offsets, mask, other=0.0)
    a = tl.where(x <= 0, 0.0, x.to(tl.float32))
    power, _ = inverse_powers(tl.fma(sum_windows(a * a, SIZE, CHANNELS, GROUP), ALPHA, K), BETA)
    return tl.minimum(tag(a * power, 15, x.dtype == tl.float32), NAN)


@triton.jit
def this_program(COLUMNS: tl.constexpr, runs, blocks):
    """The column, the run of places, the block of rows and the image of this program."""
    program = tl.program_id(0)
    column = program % COLUMNS
    program //= COLUMNS
    run = program % runs
    program //= runs
    return column, run, program % blocks, (program // blocks).to(tl.int64)


@triton.jit
def forward_kernel(
    x_ptr, pooled_ptr, winners_ptr, height, width,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    runs, blocks = tl.cdiv(pooled_width, BLOCK_Q - 1), tl.cdiv(pooled_height, ROWS)
    column, run, block, image = this_program(COLUMNS, runs, blocks)
    i, channel = tl.arange(0, BLOCK_Q)[:, None], tl.arange(0, BLOCK_C)[None, :]
    C: tl.constexpr = COLUMNS * CHANNELS
    stride, pooled_stride = width * C, pooled_width * C
    first = run * (BLOCK_Q - 1)
    q = first + i
    # The last even place serves its left neighbour alone: it is the next run's first.
    evens = (q <= pooled_width) & (channel < CHANNELS)
    odds = (q < pooled_width) & (i < BLOCK_Q - 1) & (channel < CHANNELS)
    start = first.to(tl.int64) * C + column * CHANNELS
    x_ptr += (image * height + 2 * ROWS * block) * stride + start + first.to(tl.int64) * C
    pooled_start = (image * pooled_height + ROWS * block - 1) * pooled_stride + start
    pooled_ptr += pooled_start
    winners_ptr += pooled_start
    offsets, pooled_offsets = 2 * i * C + channel, i * C + channel
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    NAN: tl.constexpr = 0x7FC00000 << 4 if WIDE else 0x7FC00000

    even = tl.zeros((BLOCK_Q, BLOCK_C), tl.uint64 if WIDE else tl.uint32)
    odd = even
    for h in range(2 * ROWS * block, min(2 * ROWS * (block + 1), 2 * pooled_height) + 1):
        even_h = load_keys(x_ptr, offsets, evens, SIZE, ALPHA, BETA, K, CHANNELS, GROUP, NAN)
        odd_h = load_keys(x_ptr + C, offsets, odds, SIZE, ALPHA, BETA, K, CHANNELS, GROUP, NAN)
        if h % 2 == 1:
            even = tl.maximum(even, even_h ^ 4)
            odd = tl.maximum(odd, odd_h ^ 4)
        else:
            if h > 2 * ROWS * block:
                even = tl.maximum(even, even_h ^ 8)
                odd = tl.maximum(odd, odd_h ^ 8)
                best = tl.maximum(tl.maximum(even, odd ^ 1), shifted(even, 1) ^ 2)
                last = best & 15
                place = tl.where(best < NAN, 15 - last, last)
                tl.store(pooled_ptr + pooled_offsets, untag(best - last).to(pooled_ptr.dtype.element_ty), odds)
                tl.store(winners_ptr + pooled_offsets, (place - (place >> 2)).to(tl.uint8), odds)
            even = even_h
            odd = odd_h
            pooled_ptr += pooled_stride
            winners_ptr += pooled_stride
        x_ptr += stride


@triton.jit
def load_pooled(gradient_ptr, winners_ptr, offsets, mask, WIDE: tl.constexpr):
    """Gradients by the pooled values, tagged with their winners' places."""
    gradient = tl.load(gradient_ptr + offsets, mask, other=0.0)
    winner = tl.load(winners_ptr + offsets, mask, other=15)
    return tag(gradient.to(tl.float32), winner, WIDE)


@triton.jit
def won(pooled, PLACE: tl.constexpr):
    """The gradients whose window's winner stands at PLACE, in float32; zeros elsewhere."""
    here = pooled - PLACE
    return tl.where((here & 15) == 0, untag(here), 0.0)


@triton.jit
def differentiate(
    gradient, x_ptr, result_ptr, offsets, mask,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write a tile of the result from the gradient by the normalised values."""
    x = tl.load(x_ptr + offsets, mask, other=0.0)
    a = tl.where(x <= 0, 0.0, x.to(tl.float32))
    power, reciprocal = inverse_powers(tl.fma(sum_windows(a * a, SIZE, CHANNELS, GROUP), ALPHA, K), BETA)
    scaled = gradient * power
    crossed = sum_windows(scaled * a * reciprocal, SIZE, CHANNELS, GROUP)
    result = tl.where(a == 0, 0.0, tl.fma(a * crossed, -2 * ALPHA * BETA, scaled))
    tl.store(result_ptr + offsets, result.to(result_ptr.dtype.element_ty), mask)


@triton.jit
def backward_kernel(
    gradient_ptr, x_ptr, winners_ptr, result_ptr, height, width,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pooled_height, pooled_width = (height - 1) // 2, (width - 1) // 2
    pairs = tl.cdiv(height, 2)
    runs, blocks = tl.cdiv(tl.cdiv(width, 2), BLOCK_Q - 1), tl.cdiv(pairs, ROWS)
    column, run, block, image = this_program(COLUMNS, runs, blocks)
    i, channel = tl.arange(0, BLOCK_Q)[:, None], tl.arange(0, BLOCK_C)[None, :]
    C: tl.constexpr = COLUMNS * CHANNELS
    stride, pooled_stride = width * C, pooled_width * C
    # The first place serves its right neighbour alone: it is the last of the run before.
    first = run * (BLOCK_Q - 1) - 1
    q = first + i
    inside = (q >= 0) & (q < pooled_width) & (channel < CHANNELS)
    evens = (i > 0) & (2 * q < width) & (channel < CHANNELS)
    odds = (i > 0) & (2 * q + 1 < width) & (channel < CHANNELS)
    start = first.to(tl.int64) * C + column * CHANNELS
    x_start = (image * height + 2 * ROWS * block) * stride + start + first.to(tl.int64) * C
    pooled_start = (image * pooled_height + ROWS * block - 1) * pooled_stride + start
    x_ptr += x_start
    result_ptr += x_start
    gradient_ptr += pooled_start
    winners_ptr += pooled_start
    offsets, pooled_offsets = 2 * i * C + channel, i * C + channel
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32

    here = load_pooled(gradient_ptr, winners_ptr, pooled_offsets, inside & (block > 0), WIDE) - 6
    for h in range(2 * ROWS * block, min(2 * ROWS * (block + 1), height)):
        even = won(here, 0)
        odd = won(here, 1)
        last = won(here, 2)
        if h % 2 == 0:
            gradient_ptr += pooled_stride
            winners_ptr += pooled_stride
            here = load_pooled(gradient_ptr, winners_ptr, pooled_offsets, inside & (h < 2 * pooled_height), WIDE)
            even += won(here, 0)
            odd += won(here, 1)
            last += won(here, 2)
        here -= 3
        even += shifted(last, -1)
        differentiate(odd, x_ptr + C, result_ptr + C, offsets, odds, SIZE, ALPHA, BETA, K, CHANNELS, GROUP)
        differentiate(even, x_ptr, result_ptr, offsets, evens, SIZE, ALPHA, BETA, K, CHANNELS, GROUP)
        x_ptr += stride
        result_ptr += stride


def programs(direction: str, launch: Launch, columns: int, height: int, width: int) -> int:
    """How many programs one image takes."""
    pooled, pairs = ((height - 1) // 2, (width - 1) // 2), ((height + 1) // 2, (width + 1) // 2)
    rows, places = pooled if direction == "forward" else pairs
    blocks, runs = -(-rows // launch.ROWS), -(-places // (launch.BLOCK_Q - 1))
    return columns * runs * blocks


def forward(x: Tensor, pooled: Tensor, winners: Tensor, *constants: *Constants) -> None:
    """Fill pooled (N, C, P, Q) and winners, the places 0 to 8 in 3 x 3 windows that pooled came from, from x (N, C, H, W).

    x, before its ReLU, and pooled are float16, bfloat16 or float32, winners uint8; all are channels-last, on one GPU.
    """
    run("forward", x, (x, pooled, winners), constants)


def backward(gradient: Tensor, x: Tensor, winners: Tensor, result: Tensor, *constants: *Constants) -> None:
    """Fill result with the loss's gradient by x, from its gradient by pooled; tensors as in `forward`."""
    run("backward", x, (gradient, x, winners, result), constants)


def run(direction: str, x: Tensor, tensors: tuple[Tensor, ...], constants: Constants) -> None:
    """Launch one of the kernels on tensors."""
    size, alpha, beta, k, columns = constants
    if x.numel() == 0:
        return
    n, channels, height, width = x.shape
    launch = choose_launch(channels // columns, columns, width, x.element_size())
    kernel = {"forward": forward_kernel, "backward": backward_kernel}[direction]
    grid = (n * programs(direction, launch, columns, height, width),)
    constexprs = {"SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k, "COLUMNS": columns}
    with torch.cuda.device_of(x):
        kernel[grid](*tensors, height, width, **constexprs, **launch._asdict(), **OPTIONS)
