"""Triton kernels of local response normalisation; models.lrn has the formula and the meaning of the constants.

A row is one place of one image and one column: the channels that a window can reach.

Channels-last, a row lies in one piece. A thread takes VECTOR neighbouring channels, a group, in one access as wide as
there is, and has the neighbours that it lacks from the threads beside it. A warp, a line of LANES groups, takes as many
rows as it holds, or one tile of a row too long for it: STEP channels, and HALO more on both sides that its windows reach.

Contiguous, the rows of an image and column lie side by side. A thread walks along its rows' channels and keeps the last
few, so that neighbouring threads touch neighbouring elements.

Each element is read once, but for a tile's halo.
"""

# Triton's own decorator and the kernels' arguments have no types to check, and their tuples grow.
# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# Its compiler knows no starred items, and takes one branch of an `if` on constants, which has to be whole.
# ruff: noqa: RET505, RUF005

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.lrn import CUDA_REACH

ACCESS_BYTES = 16
NUM_WARPS = 4
LANES = tl.constexpr(32)
LINES = tl.constexpr(NUM_WARPS)

# size, alpha, beta, k, columns
Constants = tuple[int, float, float, float, int]


class Lines(NamedTuple):
    """What a channels-last launch depends on besides its tensors."""

    WIDTH: int
    VECTOR: int
    GROUPS: int
    HALO: int
    STEP: int
    WIDE: bool

    def programs(self, rows: int) -> int:
        """How many programs rows rows take."""
        pieces = rows * triton.cdiv(self.WIDTH, self.STEP)
        count: int = triton.cdiv(pieces, NUM_WARPS * (LANES.value // self.GROUPS))
        return count


class Walk(NamedTuple):
    """What a contiguous launch depends on besides its tensors."""

    WIDTH: int
    ROWS: int
    AHEAD: int
    WIDE: bool

    def programs(self, rows: int) -> int:
        """How many programs rows rows take."""
        count: int = triton.cdiv(rows, self.ROWS)
        return count


def is_wide(numel: int) -> bool:
    """Whether offsets need 64 bits; room is left for the rows past the end that a last program counts and masks."""
    return numel > 2**31 - 2**20


def choose_lines(numel: int, width: int, size: int, item_bytes: int) -> Lines:
    """The launch on numel elements in channels-last rows of width, for windows of size and elements of item_bytes."""
    vector, halo = ACCESS_BYTES // item_bytes, 0
    groups = triton.cdiv(width, vector)
    if groups > LANES.value:
        # The gradient at a tile's edge takes a window of products, each of which takes a window of squares.
        groups, halo = LANES.value, triton.cdiv(2 * (size // 2), vector) * vector
    step = groups * vector - 2 * halo
    assert step > 0, f"models.lrn.check lets windows reach {CUDA_REACH} channels"
    return Lines(width, vector, groups, halo, step, is_wide(numel))


def choose_walk(numel: int, width: int) -> Walk:
    """The launch on numel elements in contiguous rows of width."""
    # Two rows a thread and four channels ahead are as many bytes in flight as one wide access.
    return Walk(width, ROWS=2 * 32 * NUM_WARPS, AHEAD=4, WIDE=is_wide(numel))


@triton.jit
def split(values, COUNT: tl.constexpr):
    """The COUNT last columns of values (.., COUNT), a power of two, as a tuple."""
    if COUNT == 1:
        return (tl.reshape(values, values.shape[:-1]),)
    else:
        halves = tl.reshape(values, values.shape[:-1] + [2, COUNT // 2])
        first, second = tl.split(tl.permute(halves, (0, 1, 3, 2)))
        return split(first, COUNT // 2) + split(second, COUNT // 2)


@triton.jit
def join(columns, COUNT: tl.constexpr):
    """What `split` undoes: COUNT columns (LINES, LANES) as one tensor (LINES, LANES, COUNT)."""
    if COUNT == 1:
        return tl.expand_dims(columns[0], 2)
    else:
        first, second = join(columns[: COUNT // 2], COUNT // 2), join(columns[COUNT // 2 :], COUNT // 2)
        halves = tl.permute(tl.join(first, second), (0, 1, 3, 2))
        return tl.reshape(halves, columns[0].shape + [COUNT])


@triton.jit
def inverse_power(denominator, BETA: tl.constexpr):
    """denominator ** -BETA and 1 / denominator."""
    if BETA == 0.75:
        # Two instructions, where a logarithm takes a polynomial and a division an iteration.
        root = tl.rsqrt(denominator)
        return root * tl.sqrt(root), root * root
    else:
        return tl.exp2(-BETA * tl.log2(denominator)), 1 / denominator


@triton.jit
def line(
    rows, WIDTH: tl.constexpr, VECTOR: tl.constexpr, GROUPS: tl.constexpr, HALO: tl.constexpr, STEP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """This program's offsets and masks of what exists and of what it writes (LINES, LANES, VECTOR), and groups' places."""
    TILES: tl.constexpr = (WIDTH + STEP - 1) // STEP
    PIECES: tl.constexpr = LANES // GROUPS
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    lane = tl.arange(0, LANES)
    piece = (program * LINES + tl.arange(0, LINES))[:, None] * PIECES + (lane // GROUPS)[None, :]
    row = piece // TILES
    group = tl.broadcast_to((lane % GROUPS)[None, :], (LINES, LANES))
    start = (piece % TILES).to(tl.int32) * STEP - HALO + group * VECTOR
    channel = start[:, :, None] + tl.arange(0, VECTOR)[None, None, :]
    present = ((lane < PIECES * GROUPS)[None, :] & (row < rows))[:, :, None] & (channel < WIDTH)
    offsets = row[:, :, None] * WIDTH + channel
    if TILES == 1:
        return offsets, present, present, group
    else:
        inside = (group * VECTOR >= HALO) & (group * VECTOR < HALO + STEP)
        present = present & (channel >= 0)
        return offsets, present, present & inside[:, :, None], group


@triton.jit
def total(values, COUNT: tl.constexpr):
    """The sum of COUNT tensors."""
    result = values[0]
    for i in tl.static_range(1, COUNT):
        result += values[i]
    return result


@triton.jit
def squares(values, COUNT: tl.constexpr):
    """The squares of COUNT tensors."""
    result = ()
    for i in tl.static_range(COUNT):
        result += (values[i] * values[i],)
    return result


@triton.jit
def sum_lines(columns, group, REACH: tl.constexpr, VECTOR: tl.constexpr, GROUPS: tl.constexpr):
    """Sums over the window of each channel; columns[i] (LINES, LANES) is channel i of each group, zero where there is none."""
    lane = tl.broadcast_to(tl.arange(0, LANES)[None, :], group.shape)
    around = columns
    for i in tl.static_range(REACH):
        away = i // VECTOR + 1
        before = tl.gather(columns[VECTOR - 1 - i % VECTOR], tl.maximum(lane - away, 0), 1)
        after = tl.gather(columns[i % VECTOR], tl.minimum(lane + away, LANES - 1), 1)
        around = (tl.where(group >= away, before, 0.0),) + around + (tl.where(group + away < GROUPS, after, 0.0),)
    sums = ()
    for i in tl.static_range(VECTOR):
        sums += (total(around[i : i + 2 * REACH + 1], 2 * REACH + 1),)
    return sums


@triton.jit
def forward_lines(
    x_ptr, y_ptr, rows,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr, GROUPS: tl.constexpr, HALO: tl.constexpr, STEP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    REACH: tl.constexpr = min(SIZE // 2, WIDTH - 1)
    offsets, present, mine, group = line(rows, WIDTH, VECTOR, GROUPS, HALO, STEP, WIDE)
    x = split(tl.load(x_ptr + offsets, present, other=0.0).to(tl.float32), VECTOR)
    sums = sum_lines(squares(x, VECTOR), group, REACH, VECTOR, GROUPS)
    y = ()
    for i in tl.static_range(VECTOR):
        power, _ = inverse_power(K + ALPHA * sums[i], BETA)
        y += (x[i] * power,)
    tl.store(y_ptr + offsets, join(y, VECTOR).to(y_ptr.dtype.element_ty), mine)


@triton.jit
def backward_lines(
    gradient_ptr, x_ptr, result_ptr, rows,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, VECTOR: tl.constexpr, GROUPS: tl.constexpr, HALO: tl.constexpr, STEP: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    REACH: tl.constexpr = min(SIZE // 2, WIDTH - 1)
    offsets, present, mine, group = line(rows, WIDTH, VECTOR, GROUPS, HALO, STEP, WIDE)
    x = split(tl.load(x_ptr + offsets, present, other=0.0).to(tl.float32), VECTOR)
    gradient = split(tl.load(gradient_ptr + offsets, present, other=0.0).to(tl.float32), VECTOR)
    sums = sum_lines(squares(x, VECTOR), group, REACH, VECTOR, GROUPS)
    scaled, products = (), ()
    for i in tl.static_range(VECTOR):
        power, inverse = inverse_power(K + ALPHA * sums[i], BETA)
        scaled += (gradient[i] * power,)
        products += (scaled[i] * inverse * x[i],)
    crossed = sum_lines(products, group, REACH, VECTOR, GROUPS)
    result = ()
    for i in tl.static_range(VECTOR):
        result += (scaled[i] - 2 * ALPHA * BETA * x[i] * crossed[i],)
    tl.store(result_ptr + offsets, join(result, VECTOR).to(result_ptr.dtype.element_ty), mine)


@triton.jit
def first_channel(rows, inner, WIDTH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets (ROWS,) of this program's rows' first channels, which rows exist, and the distance between channels."""
    program = tl.program_id(0)
    if WIDE:
        program, inner = program.to(tl.int64), inner.to(tl.int64)
    row = program * ROWS + tl.arange(0, ROWS)
    return (row // inner) * (inner * WIDTH) + row % inner, row < rows, inner


@triton.jit
def ahead(ptr, start, mask, inner, WIDTH: tl.constexpr, AHEAD: tl.constexpr):
    """AHEAD channels of the rows at ptr from channel start on, zero where there is none: loads that do not wait."""
    values = ()
    for i in tl.static_range(AHEAD):
        exists = mask & (start + i >= 0) & (start + i < WIDTH)
        values += (tl.load(ptr + (start + i) * inner, exists, other=0.0).to(tl.float32),)
    return values


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr):
    """COUNT tensors (ROWS,) of zeros."""
    values = ()
    for _ in tl.static_range(COUNT):
        values += (tl.zeros((ROWS,), tl.float32),)
    return values


@triton.jit
def forward_walk(
    x_ptr, y_ptr, rows, inner,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    REACH: tl.constexpr = min(SIZE // 2, WIDTH - 1)
    WINDOW: tl.constexpr = 2 * REACH + 1
    offsets, mask, inner = first_channel(rows, inner, WIDTH, ROWS, WIDE)
    x = zeros(WINDOW, ROWS)
    for start in tl.range(0, WIDTH + REACH, AHEAD):
        fresh = ahead(x_ptr + offsets, start, mask, inner, WIDTH, AHEAD)
        for i in tl.static_range(AHEAD):
            # x holds the window of this channel, whose last is fresh[i].
            channel = start + i - REACH
            x = x[1:] + (fresh[i],)
            power, _ = inverse_power(K + ALPHA * total(squares(x, WINDOW), WINDOW), BETA)
            y = (x[REACH] * power).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + offsets + channel * inner, y, mask & (channel >= 0) & (channel < WIDTH))


@triton.jit
def backward_walk(
    gradient_ptr, x_ptr, result_ptr, rows, inner,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    REACH: tl.constexpr = min(SIZE // 2, WIDTH - 1)
    WINDOW: tl.constexpr = 2 * REACH + 1
    offsets, mask, inner = first_channel(rows, inner, WIDTH, ROWS, WIDE)
    x, products, scaled = zeros(WINDOW, ROWS), zeros(WINDOW, ROWS), zeros(REACH + 1, ROWS)
    for start in tl.range(0, WIDTH + 2 * REACH, AHEAD):
        fresh = ahead(x_ptr + offsets, start, mask, inner, WIDTH, AHEAD)
        gradient = ahead(gradient_ptr + offsets, start - REACH, mask, inner, WIDTH, AHEAD)
        for i in tl.static_range(AHEAD):
            # x ends REACH channels after the last of products and scaled, and they end REACH after this channel.
            channel = start + i - 2 * REACH
            x = x[1:] + (fresh[i],)
            power, inverse = inverse_power(K + ALPHA * total(squares(x, WINDOW), WINDOW), BETA)
            scaled = scaled[1:] + (gradient[i] * power,)
            products = products[1:] + (scaled[REACH] * inverse * x[REACH],)
            result = scaled[0] - 2 * ALPHA * BETA * x[0] * total(products, WINDOW)
            result = result.to(result_ptr.dtype.element_ty)
            tl.store(result_ptr + offsets + channel * inner, result, mask & (channel >= 0) & (channel < WIDTH))


def forward(x: Tensor, result: Tensor, *constants: *Constants) -> None:
    """Fill result with x normalised by constants (size, alpha, beta, k, columns).

    Both are float16, bfloat16 or float32 (N, C, H, W) on one GPU, and both channels-last or both contiguous.
    """
    run(forward_lines, forward_walk, (x, result), constants)


def backward(gradient: Tensor, x: Tensor, result: Tensor, *constants: *Constants) -> None:
    """Fill result with the loss's gradient by x, from its gradient by the normalised x; tensors as in `forward`."""
    run(backward_lines, backward_walk, (gradient, x, result), constants)


def run(lines: triton.JITFunction, walk: triton.JITFunction, tensors: tuple[Tensor, ...], constants: Constants) -> None:
    """Launch the kernel of the tensors' memory format on tensors of one shape, the last of which it fills."""
    size, alpha, beta, k, columns = constants
    x = tensors[-1]
    if x.numel() == 0:
        return
    width = x.shape[1] // columns
    rows = x.numel() // width
    # As constants: a plain float argument may reach the kernel as float64.
    constexprs = {"SIZE": size, "ALPHA": alpha, "BETA": beta, "K": k}
    with torch.cuda.device_of(x):
        if x.is_contiguous(memory_format=torch.channels_last):
            launch: Lines | Walk = choose_lines(x.numel(), width, size, x.element_size())
            arguments, kernel = (*tensors, rows), lines
        else:
            launch = choose_walk(x.numel(), width)
            arguments, kernel = (*tensors, rows, x.shape[2] * x.shape[3]), walk
        kernel[(launch.programs(rows),)](*arguments, **constexprs, **launch._asdict(), num_warps=NUM_WARPS)
