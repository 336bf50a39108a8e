"""What the compiler makes of the fused block's kernels: compiled ahead of time, read, and run on the CPU. No GPU is needed."""

from __future__ import annotations

import kernel_tables
import numpy as np
import pytest
from block_counts import BATCH, COLUMNS, DIRECTIONS, LAYERS, Arrays, Kernel, compiled, execute, row, used
from machine_code import MULTIPROCESSORS, memory_instructions, occupancy
from ptx_run import Buffer, run

ARCHITECTURES = pytest.mark.parametrize("sm", MULTIPROCESSORS)
EITHER_DIRECTION = pytest.mark.parametrize("direction", DIRECTIONS)
EITHER_LAYER = pytest.mark.parametrize("layer", LAYERS)
# Beside x, its pool and their gradients, all 128 bits at a time, there are the winners' places: eight bytes a thread.
ACCESSES = {
    "forward": {("LDG", 128), ("STG", 128), ("STG", 64)},
    "backward": {("LDG", 128), ("LDG", 64), ("STG", 128)},
}


def assert_nothing_spills_and_half_the_threads_fit(kernel: Kernel) -> None:
    taken = used(kernel)
    assert (taken.stack_bytes, taken.local_bytes) == (0, 0), f"{kernel} spills: {taken}"
    share = occupancy(taken, kernel.sm)
    assert share >= 0.5, f"{kernel} fills {share:.0%} of a multiprocessor's threads: {taken}"


@ARCHITECTURES
@EITHER_LAYER
@EITHER_DIRECTION
def test_it_is_right_on_every_architecture_and_moves_128_bits_at_a_time(direction: str, layer: int, sm: int) -> None:
    channels, side = LAYERS[layer]
    # Even sides have a last row and column that are in no window; 8 rows take two programs.
    kernel = Kernel(direction, "bf16", channels, height=8, width=side - 1, sm=sm)
    execute(kernel)
    moves = {(kind, bits) for kind, bits in memory_instructions(compiled(kernel)) if kind.endswith("G")}
    assert moves == ACCESSES[direction], kernel
    assert_nothing_spills_and_half_the_threads_fit(kernel)


@pytest.mark.parametrize("sm", [sm for sm in MULTIPROCESSORS if sm != 90])  # `row` runs the whole image for sm_90
@EITHER_LAYER
@EITHER_DIRECTION
def test_the_last_programs_of_a_layers_image_are_right(direction: str, layer: int, sm: int) -> None:
    channels, side = LAYERS[layer]
    kernel = Kernel(direction, "bf16", channels, side, side, sm)
    execute(kernel, programs=[kernel.programs - 1])


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@EITHER_DIRECTION
def test_other_dtypes_are_right_too(direction: str, dtype: str) -> None:
    kernel = Kernel(direction, dtype, channels=48, height=9, width=55)
    execute(kernel)
    assert_nothing_spills_and_half_the_threads_fit(kernel)


@EITHER_DIRECTION
def test_a_row_of_several_tiles_is_right(direction: str) -> None:
    kernel = Kernel(direction, "bf16", channels=128, height=5, width=71)
    assert kernel.programs == 3 * COLUMNS
    execute(kernel)


@EITHER_DIRECTION
@pytest.mark.parametrize(("dtype", "channels", "size", "beta"), [("fp32", 6, 9, 0.5), ("bf16", 3, 21, 0.75)])
def test_other_constants_and_unaligned_channels_are_right(
    dtype: str, channels: int, size: int, beta: float, direction: str
) -> None:
    execute(Kernel(direction, dtype, channels, height=5, width=9, size=size, beta=beta))


@EITHER_DIRECTION
def test_an_image_past_two_to_the_31_elements_is_reached(direction: str) -> None:
    channels, side = LAYERS[2]
    kernel = Kernel(direction, "bf16", channels, height=6, width=side)
    arrays, image = Arrays(kernel), 2**32 // (COLUMNS * channels * 6 * side) + 1
    buffers, code = arrays.buffers(), compiled(kernel)
    # ptx_run puts its buffers at multiples of 2^36: tensors that begin so far before them reach them with this image.
    starts = [((i + 1) << 36) - image * buffer.bytes.size for i, buffer in enumerate(buffers)]
    hidden = [0, 0]
    programs = [(image * kernel.programs + i, 0, 0) for i in range(kernel.programs)]
    grid = ((image + 1) * kernel.programs, 1, 1)
    run(code.asm["ptx"], grid, [*starts, 6, side, *hidden, *buffers], code.metadata.shared, programs)
    for result in buffers[1:] if direction == "forward" else buffers[3:]:
        assert result.written.all()
    arrays.check(buffers)


@pytest.mark.parametrize(("bits", "wins"), [([0x7F80, 0x7FC0, 0x4000], 1), ([0x7FC0, 0x4000, 0xFFC0], 2)])
def test_of_nans_the_last_wins_and_over_infinity(bits: list[int], wins: int) -> None:
    # Each place has its bits in one channel of one row of the image, far from the others' windows of channels.
    kernel = Kernel("forward", "bf16", channels=48, height=3, width=55)
    buffers, code = Arrays(kernel).buffers(), compiled(kernel)
    x = buffers[0].array.reshape(3, 55, 96)
    x[:] = 0
    x[0, :3, 10] = bits
    run(code.asm["ptx"], (kernel.programs, 1, 1), [*buffers, 3, 55], code.metadata.shared)
    pooled, winners = (buffer.array.reshape(27, 96) for buffer in buffers[1:])
    assert winners[0, 10] == wins
    assert pooled[0, 10] & 0x7FFF > 0x7F80
    assert not winners[0, 13:].any()
    assert not pooled[0, 13:].any()


@EITHER_LAYER
@EITHER_DIRECTION
def test_the_paper_s_layers_stay_near_the_least_traffic(direction: str, layer: int) -> None:
    counts = row(direction, layer)
    issued = counts.read_passes if direction == "forward" else counts.passes
    distinct = counts.distinct_read_passes if direction == "forward" else counts.distinct_passes
    most_issued, most_distinct = {"forward": (1.8, 1.3), "backward": (2.9, 2.5)}[direction]
    name = f"layer {layer} {direction}"
    assert issued <= most_issued, f"{name} issues {issued:.3f} passes over x; at most {most_issued}"
    assert distinct <= most_distinct, (
        f"{name}: {distinct:.3f} distinct passes over x a program; at most {most_distinct}"
    )
    assert counts.sectors <= 1.1, f"{name} takes {counts.sectors:.3f} times the least sectors; at most 1.1"
    assert counts.programs >= 1056, f"{name} has {counts.programs} programs at batch {BATCH}; at least 1,056"
    again = counts.passes - counts.distinct_passes
    assert again == pytest.approx(0, abs=1e-9), (
        f"{name}: programs issue {again:.3f} passes over x that they have issued before"
    )


def test_a_missing_winner_would_be_seen() -> None:
    arrays = Arrays(Kernel("forward", "bf16", channels=48, height=3, width=55))
    buffers = [Buffer(arrays.x), Buffer(arrays.x[: arrays.pooled.size]), Buffer(arrays.winners ^ np.uint8(1))]
    for buffer in buffers[1:]:
        buffer.written[:] = True
    with pytest.raises(AssertionError, match="winners are not max_pool2d's"):
        arrays.check(buffers)


def test_the_page_of_kernels_holds_what_is_counted() -> None:
    page = kernel_tables.PAGE.read_text()
    assert kernel_tables.filled(page) == page, "python tests/kernel_tables.py --write brings docs/kernels.md up to date"
