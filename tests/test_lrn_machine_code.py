"""What the compiler makes of the LRN kernels: compiled ahead of time, read, and run on the CPU. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
from ptx_run import Buffer, Counts, bf16_to_f32, f32_to_bf16, run
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models import lrn_triton
from models.lrn import reference

KERNELS = {"forward": lrn_triton.forward_kernel, "backward": lrn_triton.backward_kernel}
CONSTANTS = {"SIZE": 5, "ALPHA": 1e-4, "BETA": 0.75, "K": 2.0}
COLUMNS = 2
ARCHITECTURES = pytest.mark.parametrize("sm", [80, 90, 100, 120])
DTYPES = pytest.mark.parametrize("dtype", ["bf16", "fp32"])
CHANNELS = pytest.mark.parametrize("channels", [96, 256])
DIRECTIONS = pytest.mark.parametrize("direction", KERNELS)


@cache
def compiled(direction: str, sm: int, dtype: str, channels: int, inner: int = 1, wide: bool = False) -> Any:
    """The kernel as it is launched on 16-byte aligned tensors; an inner of 1 (channels-last) is compiled in."""
    kernel, width = KERNELS[direction], channels // COLUMNS
    launch = lrn_triton.choose_launch(2**31 if wide else 10**6, width)._asdict()
    num_warps = launch.pop("num_warps")
    constants = CONSTANTS | launch | ({"inner": 1} if inner == 1 else {})
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    signature = {name: "constexpr" if name in constants else "i32" for name in kernel.arg_names}
    signature |= dict.fromkeys(pointers, f"*{dtype}")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options={"num_warps": num_warps})


def tool(name: str, *arguments: str) -> str:
    """The output of one of the CUDA tools that the Triton wheel carries."""
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@ARCHITECTURES
@DTYPES
@CHANNELS
@DIRECTIONS
def test_nothing_spills_and_channels_last_moves_128_bits_at_a_time(
    direction: str, channels: int, dtype: str, sm: int, tmp_path: Path
) -> None:
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled(direction, sm, dtype, channels).asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", tool("cuobjdump", "-res-usage", str(cubin)))
    assert usage is not None
    registers, stack, local = map(int, usage.groups())
    assert (stack, local) == (0, 0)
    assert registers <= 128  # 128 threads of them: sixteen warps, four blocks, on a multiprocessor
    instructions = re.findall(r"\b(?:LD|ST)[GL][A-Z]*\b[\w.]*", tool("nvdisasm", str(cubin)))
    assert {instruction[:3] for instruction in instructions} == {"LDG", "STG"}
    assert all(".128" in instruction for instruction in instructions), instructions


class Arrays:
    """Inputs and exact results of one kernel on `rows` rows of a column, as flat arrays, and their encoding."""

    def __init__(self, direction: str, dtype: str, rows: int, width: int, inner: int = 1) -> None:
        self.encode = f32_to_bf16 if dtype == "bf16" else np.asarray
        self.decode = bf16_to_f32 if dtype == "bf16" else np.asarray
        self.tolerance = 2**-8 if dtype == "bf16" else 2e-6
        self.item_bytes = 2 if dtype == "bf16" else 4
        draw = np.random.default_rng(0).standard_normal((2, rows * width)) * 100
        gradient, x = (self.encode(values.astype(np.float32)) for values in draw)
        self.inputs = [x] if direction == "forward" else [gradient, x]
        shape = (rows // inner, width, inner, 1)
        exact = torch.tensor(self.decode(x)).double().view(shape).requires_grad_()
        result = reference(exact)
        if direction == "backward":
            (result,) = torch.autograd.grad(result, exact, torch.tensor(self.decode(gradient)).double().view(shape))
        self.expected = result.detach().numpy().reshape(-1)

    def empty(self) -> Buffer:
        return Buffer.empty(self.expected.size, np.uint16 if self.item_bytes == 2 else np.float32)

    def check(self, result: Buffer) -> None:
        assert result.written.all()
        error = np.abs(self.decode(result.array) - self.expected).max()
        assert error <= self.tolerance * np.abs(self.expected).max()


def execute(kernel: Any, arrays: Arrays, rows: int, launched_rows: int, *extra: int) -> Counts:
    """Run all programs of kernel on arrays and check their result."""
    result = arrays.empty()
    arguments = [*map(Buffer, arrays.inputs), result, rows, *extra]
    counts = run(kernel.asm["ptx"], (-(-rows // launched_rows), 1, 1), arguments, kernel.metadata.shared)
    arrays.check(result)
    return counts


@pytest.mark.parametrize(("sm", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp32"), (100, "bf16"), (120, "bf16")])
@CHANNELS
@DIRECTIONS
def test_the_machine_code_computes_the_formula_and_reads_every_byte_once(
    direction: str, channels: int, dtype: str, sm: int
) -> None:
    width, rows = channels // COLUMNS, 42  # neither kernel's programs divide it
    arrays = Arrays(direction, dtype, rows, width)
    kernel = compiled(direction, sm, dtype, channels)
    counts = execute(kernel, arrays, rows, lrn_triton.choose_launch(10**6, width).ROWS)
    tensor_bytes = rows * width * arrays.item_bytes
    assert counts.issued_bytes == {"ld.global": len(arrays.inputs) * tensor_bytes, "st.global": tensor_bytes}
    assert set(counts.widths) == {"ld.global.128", "st.global.128"}
    assert counts.sectors["ld.global"] == len(arrays.inputs) * tensor_bytes // 32


@DIRECTIONS
def test_the_machine_code_is_right_in_contiguous_memory_too(direction: str) -> None:
    inner, rows, width = 7, 42, 48
    kernel = compiled(direction, 90, "bf16", 96, inner)
    launched = lrn_triton.choose_launch(10**6, width).ROWS
    execute(kernel, Arrays(direction, "bf16", rows, width, inner), rows, launched, inner)


@DIRECTIONS
def test_offsets_past_two_to_the_31_elements_reach_their_place(direction: str) -> None:
    width, launched = 48, lrn_triton.choose_launch(2**31, 48).ROWS
    arrays = Arrays(direction, "bf16", launched, width)
    kernel = compiled(direction, 90, "bf16", 96, wide=True)
    result = arrays.empty()
    buffers = [*map(Buffer, arrays.inputs), result]
    program = 2**32 // (launched * width) + 1
    # ptx_run puts its buffers at multiples of 2^36: tensors that begin so far before them reach them with this program.
    starts = [((i + 1) << 36) - program * launched * width * 2 for i in range(len(buffers))]
    rows = (program + 1) * launched
    hidden = [0, 0]
    arguments = [*starts, rows, *hidden, *buffers]
    run(kernel.asm["ptx"], (program + 1, 1, 1), arguments, kernel.metadata.shared, programs=[(program, 0, 0)])
    arrays.check(result)
