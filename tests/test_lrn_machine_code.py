"""What the compiler makes of the LRN kernels: compiled ahead of time, read, and run on the CPU. No GPU is needed."""

from __future__ import annotations

import numpy as np
import pytest
from lrn_counts import DIRECTIONS, ITEM_BYTES, LAYERS, LAYOUTS, Arrays, Kernel, compiled, execute, row, used
from machine_code import MULTIPROCESSORS, Usage, instructions, memory_instructions, occupancy
from ptx_run import Buffer, Counts, run

ARCHITECTURES = pytest.mark.parametrize("sm", MULTIPROCESSORS)
DTYPES = pytest.mark.parametrize("dtype", ITEM_BYTES)
EITHER_DIRECTION = pytest.mark.parametrize("direction", DIRECTIONS)
EITHER_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
WIDTH = LAYERS[1][0]


def assert_nothing_spills(kernel: Kernel) -> None:
    taken = used(kernel)
    assert (taken.stack_bytes, taken.local_bytes) == (0, 0), f"{kernel} spills: {taken}"


def assert_half_the_threads_fit(kernel: Kernel) -> None:
    share = occupancy(used(kernel), kernel.sm)
    assert share >= 0.5, f"{kernel} fills {share:.0%} of a multiprocessor's threads: {used(kernel)}"


def assert_each_byte_moves_once(kernel: Kernel, counts: Counts, rows: int) -> None:
    tensor_bytes = rows * kernel.width * ITEM_BYTES[kernel.dtype]
    read = tensor_bytes * (1 if kernel.direction == "forward" else 2)
    assert counts.issued_bytes == {"ld.global": read, "st.global": tensor_bytes}, kernel
    assert sum(counts.distinct_bytes_a_program.values()) == read + tensor_bytes, kernel


def assert_least_sectors(kernel: Kernel, counts: Counts) -> None:
    least = sum(counts.issued_bytes.values()) / 32
    assert sum(counts.sectors.values()) == least, f"{kernel}: {dict(counts.sectors)} sectors, the least is {least}"


@ARCHITECTURES
@DTYPES
@EITHER_DIRECTION
def test_channels_last_is_right_and_moves_each_byte_once_128_bits_at_a_time(
    direction: str, dtype: str, sm: int
) -> None:
    kernel, rows = Kernel(direction, "channels_last", dtype, WIDTH, sm), 42  # no kernel's programs divide it
    counts = execute(kernel, rows)
    assert set(counts.widths) == {"ld.global.128", "st.global.128"}, kernel
    assert_each_byte_moves_once(kernel, counts, rows)
    assert_least_sectors(kernel, counts)
    moves = {(kind, bits) for kind, bits in memory_instructions(compiled(kernel)) if kind.endswith("G")}
    assert moves == {("LDG", 128), ("STG", 128)}, kernel
    assert_nothing_spills(kernel)
    assert_half_the_threads_fit(kernel)


@ARCHITECTURES
@DTYPES
@EITHER_DIRECTION
def test_contiguous_is_right_and_moves_each_byte_once(direction: str, dtype: str, sm: int) -> None:
    kernel, inner = Kernel(direction, "contiguous", dtype, WIDTH, sm), 7
    counts = execute(kernel, 42 * inner, inner)
    assert_each_byte_moves_once(kernel, counts, 42 * inner)
    assert_nothing_spills(kernel)
    assert_half_the_threads_fit(kernel)


@EITHER_DIRECTION
def test_contiguous_is_coalesced_where_the_places_of_an_image_are_aligned(direction: str) -> None:
    kernel, inner = Kernel(direction, "contiguous", "bf16", WIDTH, aligned=True), 48
    counts = execute(kernel, 4 * inner, inner)
    assert set(counts.widths) == {"ld.global.32", "st.global.32"}, kernel  # a warp's are 128 bytes side by side
    assert_least_sectors(kernel, counts)
    assert_half_the_threads_fit(kernel)


@EITHER_LAYOUT
@EITHER_DIRECTION
@pytest.mark.parametrize(("size", "beta"), [(3, 0.5), (9, 0.75)])
def test_other_constants_are_right(size: int, beta: float, direction: str, layout: str) -> None:
    kernel, inner = Kernel(direction, layout, "fp32", 6, size=size, beta=beta), 1 if layout == "channels_last" else 5
    execute(kernel, 35, inner)


@EITHER_DIRECTION
@pytest.mark.parametrize("width", [3, 10])
def test_rows_that_are_no_multiple_of_an_access_are_right(direction: str, width: int) -> None:
    kernel = Kernel(direction, "channels_last", "bf16", width)
    assert_each_byte_moves_once(kernel, execute(kernel, 150), 150)


@pytest.mark.parametrize(("dtype", "whole", "cut", "halo"), [("bf16", 256, 304, 8), ("fp32", 128, 152, 4)])
@EITHER_DIRECTION
def test_a_row_too_long_for_a_warp_is_right_and_read_again_only_at_its_cut(
    direction: str, dtype: str, whole: int, cut: int, halo: int
) -> None:
    kernel = Kernel(direction, "channels_last", dtype, whole)
    assert_each_byte_moves_once(kernel, execute(kernel, 5), 5)
    kernel = Kernel(direction, "channels_last", dtype, cut)
    counts, tensors = execute(kernel, 5), 1 if direction == "forward" else 2
    assert counts.issued_bytes["ld.global"] == tensors * 5 * (cut + 2 * halo) * ITEM_BYTES[dtype]
    assert counts.issued_bytes["st.global"] == 5 * cut * ITEM_BYTES[dtype]
    assert set(counts.widths) == {"ld.global.128", "st.global.128"}, kernel
    assert_nothing_spills(kernel)
    assert_half_the_threads_fit(kernel)


@pytest.mark.parametrize(("direction", "most"), [("forward", 20), ("backward", 33)])
def test_an_element_takes_few_instructions(direction: str, most: int) -> None:
    for layer, (width, _) in LAYERS.items():
        kernel = Kernel(direction, "channels_last", "bf16", width)
        elements_a_warp = kernel.launch.VECTOR * kernel.launch.GROUPS * (32 // kernel.launch.GROUPS)
        found = len(instructions(compiled(kernel))) * 32 / elements_a_warp
        assert found <= most, f"layer {layer} {direction}: {found:.1f} instructions an element"


@EITHER_LAYOUT
@EITHER_DIRECTION
@pytest.mark.parametrize("layer", LAYERS)
def test_the_tabled_counts_are_the_least(layer: int, direction: str, layout: str) -> None:
    found = row(direction, layer, layout)
    passes = 2 if found.direction == "forward" else 3
    assert (found.issued_passes, found.distinct_passes) == (passes, passes), found
    assert found.sectors_distinct <= 1.1, found
    # 55 * 55 and 27 * 27 are odd: a warp's 64 bytes of a contiguous image begin at any even address.
    assert found.sectors_issued <= (1 if found.layout == "channels_last" else 1.5), found
    assert min(found.occupancy.values()) >= 0.5, found


@EITHER_DIRECTION
def test_channels_last_offsets_past_two_to_the_31_reach_their_place(direction: str) -> None:
    kernel = Kernel(direction, "channels_last", "bf16", WIDTH, numel=2**33)
    a_program = 20  # four warps of five rows
    arrays = Arrays(kernel, a_program)
    program = 2**32 // (a_program * WIDTH) + 1
    start = program * a_program * WIDTH * 2
    buffers = [Buffer(bits, start + (i << 40)) for i, bits in enumerate(arrays.inputs, 1)]
    result = Buffer.empty(arrays.expected.size, np.uint16, start)
    starts = [i << 40 for i in range(1, len(buffers) + 1)]
    arguments = [*starts, 0, (program + 1) * a_program, 0, 0, *buffers, result]
    code = compiled(kernel)
    run(code.asm["ptx"], (program + 1, 1, 1), arguments, code.metadata.shared, programs=[(program, 0, 0)])
    assert result.written.all()
    arrays.check(result.array)


@pytest.mark.parametrize(("inner", "integers"), [(2**29 + 64, "i32"), (2**33, "i64")])
@EITHER_DIRECTION
def test_contiguous_channels_that_lie_past_two_to_the_31_elements_apart_are_found(
    direction: str, inner: int, integers: str
) -> None:
    kernel = Kernel(direction, "contiguous", "bf16", 6, numel=2**36, integers=integers)
    a_program = kernel.launch.ROWS
    arrays = Arrays(kernel, a_program, a_program)
    # The second image's first program that lies in it whole.
    program = inner // a_program + 1
    place, spread = program * a_program - inner, (6, a_program)

    def channels(bits: np.ndarray, start: int) -> list[Buffer]:
        """A buffer for each channel of this program's places, of the tensor that begins at start."""
        return [
            Buffer(values, start + 2 * (inner * (6 + channel) + place))
            for channel, values in enumerate(bits.reshape(spread))
        ]

    starts = [i << 44 for i in range(1, len(arrays.inputs) + 2)]
    inputs = [channels(bits, start) for bits, start in zip(arrays.inputs, starts, strict=False)]
    results = channels(arrays.empty().array, starts[-1])
    hidden = [0, 0]
    arguments = [*starts, 2 * inner, inner, *hidden, *(buffer for tensor in inputs for buffer in tensor), *results]
    code = compiled(kernel)
    run(code.asm["ptx"], (program + 1, 1, 1), arguments, code.metadata.shared, programs=[(program, 0, 0)])
    assert all(buffer.written.all() for buffer in results)
    arrays.check(np.concatenate([buffer.array for buffer in results]))


def test_occupancy_is_what_registers_threads_and_shared_memory_leave() -> None:
    def block(threads: int = 128, registers: int = 32, shared_bytes: int = 0) -> Usage:
        return Usage(threads, registers, shared_bytes, stack_bytes=0, local_bytes=0)

    assert occupancy(block(), 90) == 1.0
    assert occupancy(block(registers=64), 90) == 0.5
    assert occupancy(block(registers=65), 90) == 7 * 128 / 2048  # 72 a thread: 28 warps
    assert occupancy(block(registers=64), 120) == 8 * 128 / 1536
    assert occupancy(block(threads=32), 90) == 32 * 32 / 2048  # as many blocks as it knows
    assert occupancy(block(shared_bytes=56 * 1024), 90) == 4 * 128 / 2048
    assert occupancy(block(shared_bytes=57 * 1024), 90) == 3 * 128 / 2048
