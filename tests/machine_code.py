"""Compile a Triton kernel ahead of time, without a GPU, and read what its machine code takes and issues."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor holds: CUDA's programming guide, "technical specifications per compute capability"."""

    threads: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    # Registers are handed out to a warp in this unit, and shared memory to a block with this much for the system.
    registers_unit: int = 256
    shared_bytes_reserved: int = 1024


MULTIPROCESSORS = {
    80: Multiprocessor(threads=2048, blocks=32, shared_bytes=164 * 1024),
    90: Multiprocessor(threads=2048, blocks=32, shared_bytes=228 * 1024),
    100: Multiprocessor(threads=2048, blocks=32, shared_bytes=228 * 1024),
    120: Multiprocessor(threads=1536, blocks=24, shared_bytes=100 * 1024),
}


@dataclass(frozen=True)
class Usage:
    """What a block of a kernel takes: registers a thread, bytes a block (shared) and a thread (stack, local)."""

    threads: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int


def ahead_of_time(
    kernel: Any,
    sm: int,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int | None = None,
    aligned: tuple[str, ...] = (),
    integers: str = "i32",
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The @triton.jit kernel compiled for compute capability sm / 10, as for a launch on 16-byte aligned tensors.

    pointers gives each pointer argument's dtype ("bf16", "i8", ...) and constants the value of each constexpr; the other
    arguments are integers, those in `aligned` multiples of 16. (A launch makes an integer of 1 a constant.) options are
    the launch's others ("maxnreg", ...).
    """
    signature = dict.fromkeys(kernel.arg_names, integers) | dict.fromkeys(constants, "constexpr")
    signature |= {name: f"*{dtype}" for name, dtype in pointers.items()}
    divisible = [kernel.arg_names.index(name) for name in (*pointers, *aligned)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    stages = {} if num_stages is None else {"num_stages": num_stages}
    taken = {"num_warps": num_warps} | stages | dict(options or {})
    return triton.compile(source, target=GPUTarget("cuda", sm, WARP), options=taken)


def tool(name: str, compiled: Any, *flags: str) -> str:
    """What one of the CUDA tools that the Triton wheel carries prints of the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        command = [getattr(triton.knobs.nvidia, name).path, *flags, str(cubin)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(compiled: Any) -> Usage:
    """What the kernel's blocks take."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", tool("cuobjdump", compiled, "-res-usage"))
    assert found is not None
    registers, stack_bytes, local_bytes = map(int, found.groups())
    metadata = compiled.metadata
    return Usage(metadata.num_warps * WARP, registers, metadata.shared, stack_bytes, local_bytes)


def occupancy(used: Usage, sm: int) -> float:
    """The share of a multiprocessor's threads that blocks taking this much can fill, by registers and shared memory."""
    limit = MULTIPROCESSORS[sm]
    warps = used.threads // WARP
    registers_a_warp = math.ceil(used.registers * WARP / limit.registers_unit) * limit.registers_unit
    # A block's warps stand in four quarters, each with its own registers.
    warps_by_registers = limit.registers // 4 // registers_a_warp * 4
    blocks = min(
        warps_by_registers // warps,
        limit.shared_bytes // (used.shared_bytes + limit.shared_bytes_reserved),
        limit.threads // used.threads,
        limit.blocks,
    )
    return blocks * used.threads / limit.threads


def instructions(compiled: Any) -> list[str]:
    """The machine code's instructions in order, with their modifiers: "LDG.E.128", "FADD", ..., without its padding."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", tool("nvdisasm", compiled, "-c"))
    return [instruction for instruction in found if instruction != "NOP"]


def memory_instructions(compiled: Any) -> Counter[tuple[str, int]]:
    """How many instructions touch memory, by kind (LDG, STG, ATOMG, LDS, STS, LDL, STL, ...) and width in bits."""
    counts: Counter[tuple[str, int]] = Counter()
    for instruction in instructions(compiled):
        kind, *modifiers = instruction.split(".")
        if re.fullmatch(r"(LD|ST|ATOM|RED)[GSL]?|LDGSTS|LDSM|STSM", kind):
            # LDSM and STSM move a number of matrices, each 32 bits a lane.
            matrices = re.search(r"\.MT?88(?:\.(\d))?", instruction)
            widths = [int(part.lstrip("US")) for part in modifiers if re.fullmatch(r"[US]?\d+", part)]
            counts[kind, 32 * int(matrices[1] or 1) if matrices else (widths or [32])[-1]] += 1
    return counts
