"""Run compiled PTX on a CPU: what the machine code computes, where it reads and writes, and how wide.

A Triton kernel's interpreter checks the source; this checks what the compiler made of it. Every lane of a block is a numpy lane;
lanes that diverge are run lowest address first. Each global access is checked against the buffers given (out of bounds and misaligned raise,
naming the instruction and the lane), shared memory likewise, with a check that no warp reads what another wrote since the last barrier.
Counted: bytes issued, distinct bytes and 32-byte sectors a program, 32-byte sectors a warp, by instruction.

    from ptx_run import Buffer, run
    x, y = Buffer(array_of_bf16_bits), Buffer.empty(n, np.uint16)
    counts = run(compiled.asm["ptx"], grid=(rows // 8, 1, 1), arguments=[x, y, rows], shared_bytes=compiled.metadata.shared)
    y.array      # what was written; y.written says which bytes were

Triton adds two hidden pointers (profile and global scratch) at the end of the parameters: missing arguments are passed as null.
Not modelled: tensor cores (mma, wgmma), bulk copies, atomics other than add, time. Unknown instructions raise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

WARP = 32


class PtxFault(Exception):
    """An access outside a buffer, a misaligned one, a race, or an instruction that this program does not know."""


class Buffer:
    """Global memory of a kernel at address `base`: `array` (any dtype, 1-D), and which of its bytes were read and written."""

    def __init__(self, array: np.ndarray, base: int | None = None):
        self.array = np.ascontiguousarray(array).reshape(-1).copy()
        self.bytes = self.array.view(np.uint8)
        self.read = np.zeros(self.bytes.size, bool)
        self.written = np.zeros(self.bytes.size, bool)
        self.base = base

    @classmethod
    def empty(cls, size: int, dtype, base: int | None = None) -> Buffer:
        poison = cls(np.zeros(size, dtype), base)
        poison.bytes[:] = 0xCB
        return poison


@dataclass
class Counts:
    """Bytes and sectors by kind ('ld.global', 'st.global', ...), and executed instructions."""

    issued_bytes: dict = field(default_factory=lambda: defaultdict(int))
    sectors: dict = field(default_factory=lambda: defaultdict(int))
    widths: dict = field(default_factory=lambda: defaultdict(int))
    distinct_bytes_a_program: dict = field(default_factory=lambda: defaultdict(int))
    distinct_sectors_a_program: dict = field(default_factory=lambda: defaultdict(int))
    instructions: int = 0
    programs: int = 0


TOKEN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


@dataclass
class Instruction:
    guard: str | None
    negated: bool
    op: list[str]
    operands: list[str]
    text: str


def parse(ptx: str) -> tuple[list[str], list[Instruction], dict[str, int], int]:
    """The entry's parameters with types, its instructions, its labels, and its threads a block."""
    text = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
    head = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*?)\{", text, re.S)
    if not head:
        raise PtxFault("no .entry in this PTX")
    parameters = [line.split() for line in head.group(1).split(",") if line.strip()]
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head.group(2))
    body, labels, instructions = text[head.end() :], {}, []
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        while line:
            label = re.match(r"(\$?[\w$]+):\s*", line)
            if label and "::" not in label.group(0):
                labels[label.group(1)] = len(instructions)
                line = line[label.end() :]
                continue
            break
        if not line or line.startswith(".") or line in "{}":
            if line.startswith(".section"):
                break
            continue
        for statement in line.split(";"):
            statement = statement.strip().strip("{}") if statement.strip() in ("{", "}") else statement.strip()
            if not statement or statement.startswith("."):
                continue
            match = re.match(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", statement, re.S)
            if not match:
                raise PtxFault(f"cannot read: {statement}")
            negated, guard, op, rest = match.groups()
            operands = [token.strip() for token in TOKEN.findall(rest)]
            instructions.append(
                Instruction(guard, bool(negated), op.replace("::", ".").split("."), operands, statement)
            )
    return (
        [[part for part in parameter if part.startswith(".")][1] + " " + parameter[-1] for parameter in parameters],
        instructions,
        labels,
        int(threads.group(1)) if threads else 0,
    )


TYPES = {
    "b8": np.uint8,
    "u8": np.uint8,
    "s8": np.int8,
    "b16": np.uint16,
    "u16": np.uint16,
    "s16": np.int16,
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
    "f16": np.float16,
}
FLOATS = {"f16", "f32", "f64", "bf16", "f16x2", "bf16x2"}


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


PACKED = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32),
    "max": lambda a, b: np.fmax(a, b),
    "min": lambda a, b: np.fmin(a, b),
    "neg": lambda a: -a,
    "abs": lambda a: np.abs(a),
}


class Block:
    def __init__(self, program, grid, block_index, threads, values, buffers, shared_bytes, counts):
        self.parameters, self.instructions, self.labels = program
        self.threads, self.buffers, self.counts = threads, buffers, counts
        self.lane = np.arange(threads)
        self.special = {
            "%tid.x": self.lane.astype(np.uint32),
            "%laneid": (self.lane % WARP).astype(np.uint32),
            **{f"%ctaid.{axis}": np.full(threads, block_index[i], np.uint32) for i, axis in enumerate("xyz")},
            **{f"%nctaid.{axis}": np.full(threads, grid[i], np.uint32) for i, axis in enumerate("xyz")},
            "%ntid.x": np.full(threads, threads, np.uint32),
            "%tid.y": np.zeros(threads, np.uint32),
            "%tid.z": np.zeros(threads, np.uint32),
            "%ntid.y": np.ones(threads, np.uint32),
            "%ntid.z": np.ones(threads, np.uint32),
        }
        self.values = values
        self.registers: dict[str, np.ndarray] = {}
        self.shared = np.full(shared_bytes + 64, 0xCB, np.uint8)
        self.shared_limit = shared_bytes
        self.shared_writer = np.full(shared_bytes + 64, -1, np.int64)
        self.shared_reader = np.full(shared_bytes + 64, -1, np.int64)
        self.touched = defaultdict(set)

    # -- operands
    def bits(self, name: str, width: int) -> np.ndarray:
        kind = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}[width]
        if name in self.special:
            return self.special[name].astype(kind)
        if name.startswith("%"):
            if name not in self.registers:
                return np.zeros(self.threads, kind)
            raw = self.registers[name]
            return raw.astype(kind) if raw.dtype != kind else raw
        if name.startswith("0f"):
            return np.full(self.threads, np.uint32(int(name[2:], 16))).astype(kind)
        if name.startswith("0d"):
            return np.full(self.threads, np.uint64(int(name[2:], 16)))
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", name):
            return np.full(self.threads, int(name.rstrip("U"), 0) & ((1 << width) - 1), dtype=np.uint64).astype(kind)
        if re.fullmatch(r"[\w$]+", name):  # a symbol: shared memory starts at 0
            return np.zeros(self.threads, kind)
        raise PtxFault(f"operand {name}")

    def get(self, name: str, kind: str) -> np.ndarray:
        if kind == "pred" and not name.startswith("%"):
            return np.full(self.threads, int(name) != 0)
        if kind == "pred":
            return self.registers.get(name, np.zeros(self.threads, bool))
        if kind == "bf16":
            return bf16_to_f32(self.bits(name, 16))
        dtype = np.dtype(TYPES[kind])
        return self.bits(name, dtype.itemsize * 8).view(dtype)

    def put(self, name: str, value: np.ndarray, mask: np.ndarray) -> None:
        if name == "_":
            return
        if value.dtype == bool:
            old = self.registers.get(name, np.zeros(self.threads, bool))
        else:
            value = np.ascontiguousarray(value).view(
                {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[value.dtype.itemsize]
            )
            old = self.registers.get(name, np.zeros(self.threads, value.dtype))
            if old.dtype != value.dtype:
                old = old.astype(value.dtype)
        self.registers[name] = np.where(mask, value, old)

    # -- memory
    def address(self, operand: str, space: str) -> np.ndarray:
        inner = operand.strip("[] ")
        base, _, offset = inner.partition("+")
        base = base.strip()
        width = 64 if space == "global" else 32
        return self.bits(base, width).astype(np.int64) + int(offset.strip() or "0", 0)

    def count(self, key: str, address: np.ndarray, size: int, mask: np.ndarray) -> None:
        active = np.flatnonzero(mask)
        self.counts.issued_bytes[key] += size * active.size
        self.counts.widths[f"{key}.{size * 8}"] += active.size
        for warp in np.unique(active // WARP):
            lanes = active[active // WARP == warp]
            first, last = address[lanes] // 32, (address[lanes] + size - 1) // 32
            self.counts.sectors[key] += np.unique(np.concatenate([first, last])).size
        self.touched[key].update((address[active][:, None] + np.arange(size)).ravel().tolist() if size else [])

    def region(self, address, size, mask, instruction):
        """The buffer that all active lanes hit, and the byte offsets in it; lanes may hit different buffers, so this yields groups."""
        left = mask.copy()
        for buffer in self.buffers:
            inside = left & (address >= buffer.base) & (address + size <= buffer.base + buffer.bytes.size)
            if inside.any():
                yield buffer, inside, address - buffer.base
                left &= ~inside
        if left.any():
            lane = int(np.flatnonzero(left)[0])
            raise PtxFault(f"out of bounds: lane {lane} at {int(address[lane]):#x} ({size} bytes): {instruction.text}")

    def aligned(self, address, size, mask, instruction):
        if (address[mask] % size).any():
            raise PtxFault(f"misaligned {size}-byte access: {instruction.text}")

    def load(self, instruction, mask, space, kind, vector, destinations, operand):
        size = np.dtype(TYPES[kind]).itemsize
        address = self.address(operand, space)
        self.aligned(address, size * vector, mask, instruction)
        out = [np.zeros(self.threads, TYPES[kind]) for _ in range(vector)]
        if space == "shared":
            self.shared_check(address, size * vector, mask, instruction, write=False)
            for i in range(vector):
                where = (address + i * size)[mask][:, None] + np.arange(size)
                out[i][mask] = np.ascontiguousarray(self.shared[where]).view(TYPES[kind])[:, 0]
        else:
            self.count("ld.global", address, size * vector, mask)
            for buffer, lanes, offset in self.region(address, size * vector, mask, instruction):
                for i in range(vector):
                    where = (offset + i * size)[lanes][:, None] + np.arange(size)
                    out[i][lanes] = np.ascontiguousarray(buffer.bytes[where]).view(TYPES[kind])[:, 0]
                    buffer.read[where] = True
        for name, value in zip(destinations, out, strict=True):
            self.put(name, value, mask)

    def store(self, instruction, mask, space, kind, vector, operand, sources):
        size = np.dtype(TYPES[kind]).itemsize
        address = self.address(operand, space)
        self.aligned(address, size * vector, mask, instruction)
        values = [np.ascontiguousarray(self.get(name, kind)) for name in sources]
        if space == "shared":
            self.shared_check(address, size * vector, mask, instruction, write=True)
            for i in range(vector):
                where = (address + i * size)[mask][:, None] + np.arange(size)
                self.shared[where] = values[i][mask][:, None].view(np.uint8)
            return
        self.count("st.global", address, size * vector, mask)
        for buffer, lanes, offset in self.region(address, size * vector, mask, instruction):
            for i in range(vector):
                where = (offset + i * size)[lanes][:, None] + np.arange(size)
                buffer.bytes[where] = values[i][lanes][:, None].view(np.uint8)
                buffer.written[where] = True

    def shared_check(self, address, size, mask, instruction, write):
        active = np.flatnonzero(mask)
        low, high = address[active].min(), address[active].max() + size
        if low < 0 or high > self.shared_limit:
            raise PtxFault(f"shared memory out of bounds ({low}..{high} of {self.shared_limit}): {instruction.text}")
        where = (address[active][:, None] + np.arange(size)).ravel()
        warps = np.repeat(active // WARP, size)
        foreign = (self.shared_writer[where] >= 0) & (self.shared_writer[where] != warps)
        if write:
            foreign |= (self.shared_reader[where] >= 0) & (self.shared_reader[where] != warps)
            self.shared_writer[where] = warps
        else:
            self.shared_reader[where] = warps
        if foreign.any():
            raise PtxFault(f"race: another warp touched this shared memory since the last barrier: {instruction.text}")

    # -- execution
    def run(self, limit: int = 2_000_000) -> None:
        pc = np.zeros(self.threads, np.int64)
        end = len(self.instructions)
        for _ in range(limit):
            here = int(pc.min())
            if here >= end:
                break
            mask = pc == here
            instruction = self.instructions[here]
            if instruction.guard:
                predicate = self.registers.get(instruction.guard, np.zeros(self.threads, bool))
                active = mask & (~predicate if instruction.negated else predicate)
            else:
                active = mask
            self.counts.instructions += 1
            pc[mask] = here + 1
            name = instruction.op[0]
            if name == "bra":
                pc[active] = self.labels[instruction.operands[-1]]
            elif name in ("ret", "exit"):
                pc[active] = end
            elif name in ("bar", "barrier"):
                if not mask[pc < end].all() and (pc[~mask] < here).any():
                    raise PtxFault(f"barrier with lanes still behind it: {instruction.text}")
                self.shared_writer[:] = -1
                self.shared_reader[:] = -1
            elif active.any():
                with np.errstate(all="ignore"):
                    self.execute(instruction, active)
        else:
            raise PtxFault("too many instructions: an endless loop?")
        for key, addresses in self.touched.items():
            self.counts.distinct_bytes_a_program[key] += len(addresses)
            self.counts.distinct_sectors_a_program[key] += len({address // 32 for address in addresses})

    def execute(self, instruction: Instruction, mask: np.ndarray) -> None:
        op, args, put = instruction.op, instruction.operands, self.put
        name, kind = op[0], op[-1]
        if name in ("ld", "st"):
            if "param" in op and name == "st":
                return None  # arguments of a device assertion, which `call` reports
            return self.memory(instruction, mask)
        if name == "mov":
            return self.move(op, args, mask)
        if name == "shfl":
            return self.shuffle(op, args, mask)
        if name == "redux":
            return self.reduce_warp(op, args, mask)
        if name in ("atom", "red"):
            return self.atomic(instruction, mask)
        if name in ("ldmatrix", "stmatrix"):
            return self.matrix(instruction, mask)
        if name == "cp":
            return self.copy_async(instruction, mask)
        if name == "cvt":
            return self.convert(op, args, mask)
        if name == "setp":
            return self.compare(op, args, mask)
        if name == "selp":
            chosen = self.get(args[3], "pred")
            return put(args[0], np.where(chosen, self.get(args[1], kind), self.get(args[2], kind)), mask)
        if name in ("trap", "call"):
            raise PtxFault(f"device assertion: {instruction.text}")
        if name == "createpolicy":
            return put(args[0], np.zeros(self.threads, np.uint64), mask)
        if name in ("cvta", "prefetch", "fence", "membar", "griddepcontrol", "setmaxnreg", "pragma", "discard"):
            return put(args[0], self.get(args[1], "u64"), mask) if name == "cvta" else None
        if name in ("and", "or", "xor", "not"):
            return self.logic(name, kind, args, mask)
        if name == "lop3":
            a, b, c = (self.get(arg, "b32") for arg in args[1:4])
            table = int(args[4], 0)
            out = np.zeros_like(a)
            for i in range(8):
                if table >> i & 1:
                    out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
            return put(args[0], out, mask)
        if name in ("shl", "shr"):
            value, amount = self.get(args[1], kind), self.get(args[2], "u32").astype(np.int64)
            width = value.dtype.itemsize * 8
            clipped = np.minimum(amount, width - 1).astype(value.dtype)
            out = np.left_shift(value, clipped) if name == "shl" else np.right_shift(value, clipped)
            over = amount >= width
            if over.any() and (name == "shl" or not kind.startswith("s")):
                out = np.where(over, np.zeros_like(out), out)
            return put(args[0], out, mask)
        if name in ("bfe", "bfi", "prmt", "brev", "popc", "clz"):
            return self.bitfield(name, kind, args, mask)
        return self.arithmetic(instruction, mask)

    def memory(self, instruction, mask):
        op, args = instruction.op, instruction.operands
        kind = op[-1]
        kind = {"f32": "b32", "f16": "b16", "bf16": "b16", "f64": "b64"}.get(kind, kind)
        vector = next((int(part[1:]) for part in op if re.fullmatch(r"v\d", part)), 1)
        if "param" in op:
            name = args[1].strip("[] ").split("+")[0]
            return self.put(
                args[0],
                np.full(self.threads, self.values[name], np.uint64)
                .astype({"b": np.uint64, "u": np.uint64, "s": np.uint64, "f": np.uint64}[kind[0]])
                .astype(TYPES["b" + kind[1:]]),
                mask,
            )
        space = "shared" if "shared" in op else "global"
        if "local" in op:
            raise PtxFault(f"local memory (a spill): {instruction.text}")

        def names(token):
            return [part.strip() for part in token.strip("{} ").split(",")]

        if op[0] == "ld":
            return self.load(instruction, mask, space, kind, vector, names(args[0]), args[1])
        return self.store(instruction, mask, space, kind, vector, args[0], names(args[1]))

    def move(self, op, args, mask):
        kind = op[-1]
        if args[0].startswith("{"):  # unpack
            parts = [part.strip() for part in args[0].strip("{} ").split(",")]
            total = int(kind[1:])
            width = total // len(parts)
            value = self.bits(args[1], total).astype(np.uint64)
            for i, part in enumerate(parts):
                piece = (value >> np.uint64(i * width)) & np.uint64((1 << width) - 1)
                self.put(part, piece.astype(TYPES[f"b{width}"]), mask)
        elif args[1].startswith("{"):  # pack
            parts = [part.strip() for part in args[1].strip("{} ").split(",")]
            total = int(kind[1:])
            width = total // len(parts)
            value = np.zeros(self.threads, np.uint64)
            for i, part in enumerate(parts):
                value |= self.bits(part, width).astype(np.uint64) << np.uint64(i * width)
            self.put(args[0], value.astype(TYPES[f"b{total}"]), mask)
        elif kind == "pred":
            self.put(args[0], self.get(args[1], "pred"), mask)
        else:
            self.put(
                args[0],
                self.bits(args[1], int(re.sub(r"\D", "", kind.replace("bf16x2", "32").replace("f16x2", "32")) or 32)),
                mask,
            )

    def shuffle(self, op, args, mask):
        destination = args[0].split("|")
        value, operand = self.get(args[1], "b32"), self.get(args[2], "u32").astype(np.int64)
        lane = self.lane % WARP
        source = {"idx": operand % WARP, "up": lane - operand, "down": lane + operand, "bfly": lane ^ operand}[op[2]]
        inside = (source >= 0) & (source < WARP)
        source = np.where(inside, source, lane) + self.lane - lane
        if not mask[source[mask]].all():
            raise PtxFault("shfl reads a lane that is not active")
        self.put(destination[0].strip(), value[source], mask)
        if len(destination) > 1:
            self.put(destination[1].strip(), inside, mask)

    def reduce_warp(self, op, args, mask):
        value = self.get(args[1], op[-1])
        out = value.copy()
        reduce = {
            "add": np.add,
            "min": np.fmin,
            "max": np.fmax,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[op[2]].reduce
        for start in range(0, self.threads, WARP):
            lanes = np.flatnonzero(mask[start : start + WARP]) + start
            if lanes.size:
                out[lanes] = reduce(value[lanes])
        self.put(args[0], out, mask)

    def atomic(self, instruction, mask):
        op, args = instruction.op, instruction.operands
        kind = op[-1]
        where = next(arg for arg in args if arg.startswith("["))
        source = args[args.index(where) + 1]
        if "add" not in op or "shared" in op or kind not in ("f32", "u32", "s32", "u64", "f64"):
            raise PtxFault(f"not known: {instruction.text}")
        address, size, value = self.address(where, "global"), np.dtype(TYPES[kind]).itemsize, self.get(source, kind)
        self.aligned(address, size, mask, instruction)
        self.count("atom.global", address, size, mask)
        old = np.zeros(self.threads, TYPES[kind])
        for buffer, lanes, offset in self.region(address, size, mask, instruction):
            for lane in np.flatnonzero(lanes):
                cell = buffer.bytes[offset[lane] : offset[lane] + size].view(TYPES[kind])
                old[lane] = cell[0]
                cell[0] += value[lane]
                buffer.written[offset[lane] : offset[lane] + size] = True
        if args[0] != where:
            self.put(args[0], old, mask)

    def matrix(self, instruction, mask):
        """8x8 matrices of 16 bits between shared memory and a warp: lane 8 i + r holds the address of row r of matrix i."""
        op, args = instruction.op, instruction.operands
        if "m8n8" not in op or op[-1] != "b16":
            raise PtxFault(f"not known: {instruction.text}")
        if not mask.reshape(-1, WARP).all(1)[mask.reshape(-1, WARP).any(1)].all():
            raise PtxFault(f"needs whole warps: {instruction.text}")
        loads = op[0] == "ldmatrix"
        names = [part.strip() for part in args[0 if loads else 1].strip("{} ").split(",")]
        address = self.address(args[1 if loads else 0], "shared")
        lane = self.lane % WARP
        addressing = mask & (lane < 8 * len(names))
        self.aligned(address, 16, addressing, instruction)
        self.shared_check(address, 16, addressing, instruction, write=not loads)
        first = self.lane - lane
        for i, name in enumerate(names):
            # A lane holds two neighbours of a row, or of a column where the matrix is transposed on the way.
            rows = [2 * (lane % 4), 2 * (lane % 4) + 1] if "trans" in op else [lane // 4, lane // 4]
            places = [lane // 4, lane // 4] if "trans" in op else [2 * (lane % 4), 2 * (lane % 4) + 1]
            where = [address[first + 8 * i + row] + 2 * place for row, place in zip(rows, places, strict=True)]
            if loads:
                where = [np.where(mask, at, 0) for at in where]
                halves = [
                    self.shared[at].astype(np.uint32) | self.shared[at + 1].astype(np.uint32) << 8 for at in where
                ]
                self.put(name, halves[0] | halves[1] << 16, mask)
                continue
            value = self.bits(name, 32)
            for half, at in enumerate(where):
                self.shared[at[mask]] = (value >> (16 * half) & 0xFF).astype(np.uint8)[mask]
                self.shared[at[mask] + 1] = (value >> (16 * half + 8) & 0xFF).astype(np.uint8)[mask]

    def copy_async(self, instruction, mask):
        """cp.async from global to shared memory, done at once: a missing wait is not seen."""
        op, args = instruction.op, instruction.operands
        if "bulk" in op:
            raise PtxFault(f"not known: {instruction.text}")
        if "commit_group" in op or "wait_group" in op or "wait_all" in op:
            return
        size = int(args[2], 0)
        to, source = self.address(args[0], "shared"), self.address(args[1], "global")
        taken = (
            self.get(args[3], "u32").astype(np.int64)
            if len(args) > 3 and not args[3].startswith("p")
            else np.full(self.threads, size)
        )
        data = np.zeros((self.threads, size), np.uint8)
        reading = mask & (taken > 0)
        if reading.any():
            self.aligned(source, size, reading, instruction)
            self.count("ld.global", source, size, reading)
            for buffer, lanes, offset in self.region(source, size, reading, instruction):
                where = offset[lanes][:, None] + np.arange(size)
                data[lanes] = buffer.bytes[where]
                buffer.read[where] = True
        self.shared_check(to, size, mask, instruction, write=True)
        self.shared[to[mask][:, None] + np.arange(size)] = data[mask]

    def convert(self, op, args, mask):
        target, source = op[-2], op[-1]
        if target in ("bf16x2", "f16x2"):
            high, low = self.get(args[1], "f32"), self.get(args[2], "f32")
            to = f32_to_bf16 if target == "bf16x2" else lambda v: v.astype(np.float16).view(np.uint16)
            return self.put(args[0], (to(high).astype(np.uint32) << 16) | to(low).astype(np.uint32), mask)
        value = self.get(args[1], source)
        if target == "bf16":
            return self.put(args[0], f32_to_bf16(value), mask)
        if source in FLOATS and target not in FLOATS:
            rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[
                next(part for part in op if part in ("rzi", "rni", "rmi", "rpi"))
            ]
            info = np.iinfo(TYPES[target])
            value = np.clip(np.nan_to_num(rounding(value.astype(np.float64))), info.min, info.max)
        return self.put(args[0], value.astype(TYPES[target]), mask)

    def compare(self, op, args, mask):
        kind, relation = op[-1], op[1]
        if kind in ("bf16x2", "f16x2"):  # a predicate for each half
            for name, shift in zip(args[0].split("|"), (0, 16), strict=True):
                for i, arg in enumerate(args[1:3]):
                    self.registers[f"%half{i}"] = (self.bits(arg, 32) >> np.uint32(shift)).astype(np.uint16)
                self.compare([*op[:-1], kind.removesuffix("x2")], [name.strip(), "%half0", "%half1"], mask)
            return
        a, b = self.get(args[1], kind), self.get(args[2], kind)
        unordered = np.isnan(a) | np.isnan(b) if kind in FLOATS else np.zeros(self.threads, bool)
        base = relation.removesuffix("u") if kind in FLOATS and relation not in ("num", "nan") else relation
        table = {
            "eq": a == b,
            "ne": a != b,
            "lt": a < b,
            "le": a <= b,
            "gt": a > b,
            "ge": a >= b,
            "lo": a < b,
            "ls": a <= b,
            "hi": a > b,
            "hs": a >= b,
            "num": ~unordered,
            "nan": unordered,
        }
        out = table[base]
        if kind in FLOATS and relation in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            out = out | unordered
        elif kind in FLOATS and relation == "ne":
            out = out & ~unordered
        if len(args) > 3:
            other = self.get(args[3].lstrip("!"), "pred")
            other = ~other if args[3].startswith("!") else other
            out = {"and": out & other, "or": out | other, "xor": out ^ other}[op[2]]
        self.put(args[0], out, mask)

    def logic(self, name, kind, args, mask):
        def operand(token):
            if kind == "pred" and token.startswith("!"):
                return ~self.get(token[1:], "pred")
            return self.get(token, kind)

        if name == "not":
            return self.put(args[0], ~operand(args[1]), mask)
        a, b = operand(args[1]), operand(args[2])
        return self.put(args[0], {"and": a & b, "or": a | b, "xor": a ^ b}[name], mask)

    def bitfield(self, name, kind, args, mask):
        if name == "bfe":
            value, at, length = (
                self.get(args[1], kind).astype(np.int64),
                self.get(args[2], "u32").astype(np.int64),
                self.get(args[3], "u32").astype(np.int64),
            )
            out = (value.astype(np.uint64) >> at.astype(np.uint64)) & (
                (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
            )
            if kind.startswith("s"):
                sign = (out >> (length - 1).astype(np.uint64)) & np.uint64(1)
                out = np.where(sign.astype(bool), out | (~np.uint64(0) << length.astype(np.uint64)), out)
            return self.put(args[0], out.astype(TYPES["b" + kind[1:]]), mask)
        if name == "bfi":
            field_, base, at, length = (
                self.get(args[1], kind).astype(np.uint64),
                self.get(args[2], kind).astype(np.uint64),
                self.get(args[3], "u32").astype(np.uint64),
                self.get(args[4], "u32").astype(np.uint64),
            )
            window = ((np.uint64(1) << length) - np.uint64(1)) << at
            return self.put(args[0], ((base & ~window) | ((field_ << at) & window)).astype(TYPES["b" + kind[1:]]), mask)
        if name == "prmt":
            pool = self.get(args[1], "b32").astype(np.uint64) | self.get(args[2], "b32").astype(np.uint64) << np.uint64(
                32
            )
            selector, out = self.get(args[3], "u32").astype(np.uint64), np.zeros(self.threads, np.uint64)
            for i in range(4):
                code = (selector >> np.uint64(4 * i)) & np.uint64(15)
                byte = (pool >> ((code & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
                byte = np.where(
                    code & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte
                )
                out |= byte << np.uint64(8 * i)
            return self.put(args[0], out.astype(np.uint32), mask)
        raise PtxFault(f"not known: {name}")

    def arithmetic(self, instruction, mask):
        op, args = instruction.op, instruction.operands
        name, kind = op[0], op[-1]
        if kind in ("bf16x2", "f16x2", "f32x2", "s16x2", "u16x2"):
            return self.packed(instruction, mask)
        if kind in ("bf16", "f16") and op[-2] == "f32":  # mixed: narrow factors, float32 sum (Blackwell)
            narrow = [self.get(arg, kind).astype(np.float64) for arg in args[1:-1]]
            wide = self.get(args[-1], "f32").astype(np.float64)
            product = narrow[0] * narrow[1] if name == "fma" else narrow[0]
            return self.put(args[0], (product - wide if name == "sub" else product + wide).astype(np.float32), mask)
        a = self.get(args[1], kind)
        unary = {
            "neg": lambda: -a,
            "abs": lambda: np.abs(a),
            "sqrt": lambda: np.sqrt(a),
            "rsqrt": lambda: (1 / np.sqrt(a.astype(np.float64))).astype(a.dtype),
            "rcp": lambda: (1 / a.astype(np.float64)).astype(a.dtype),
            "ex2": lambda: np.exp2(a.astype(np.float64)).astype(a.dtype),
            "lg2": lambda: np.log2(a.astype(np.float64)).astype(a.dtype),
            "sin": lambda: np.sin(a),
            "cos": lambda: np.cos(a),
            "tanh": lambda: np.tanh(a),
        }
        if name in unary:
            out = unary[name]()
            return self.put(args[0], f32_to_bf16(out) if kind == "bf16" else out, mask)
        b = self.get(args[2], kind)
        if name in ("mul", "mad") and ("wide" in op or "hi" in op):
            wide = {"s": np.int64, "u": np.uint64}[kind[0]]
            product = a.astype(wide) * b.astype(wide)
            if "hi" in op:
                product = (product >> wide(np.dtype(TYPES[kind]).itemsize * 8)).astype(TYPES[kind])
            elif kind[1:] == "16":
                product = product.astype(TYPES[kind[0] + "32"])
            if name == "mad":
                product = product + self.get(args[3], kind[0] + str(product.dtype.itemsize * 8))
            return self.put(args[0], product, mask)
        if name in ("div", "rem") and kind not in FLOATS:
            safe = np.where(b == 0, 1, b)
            quotient = (
                (np.sign(a) * np.sign(safe) * (np.abs(a.astype(np.int64)) // np.abs(safe.astype(np.int64)))).astype(
                    a.dtype
                )
                if kind.startswith("s")
                else a // safe
            )
            return self.put(args[0], quotient if name == "div" else (a - quotient * safe).astype(a.dtype), mask)
        binary = {
            "add": lambda: a + b,
            "sub": lambda: a - b,
            "mul": lambda: a * b,
            "div": lambda: a / b,
            "min": lambda: np.fmin(a, b) if kind in FLOATS else np.minimum(a, b),
            "max": lambda: np.fmax(a, b) if kind in FLOATS else np.maximum(a, b),
            "fma": lambda: (
                a.astype(np.float64) * b.astype(np.float64) + self.get(args[3], kind).astype(np.float64)
            ).astype(a.dtype),
            "mad": lambda: a * b + self.get(args[3], kind),
            "copysign": lambda: np.copysign(b, a),
        }
        if name not in binary:
            raise PtxFault(f"not known: {instruction.text}")
        out = binary[name]()
        if ("NaN" in op) and name in ("min", "max"):
            out = np.minimum(a, b) if name == "min" else np.maximum(a, b)
        return self.put(args[0], f32_to_bf16(out) if kind == "bf16" else out, mask)

    def packed(self, instruction, mask):
        """Two values in one register: bf16x2 and f16x2 in 32 bits, f32x2 in 64 (Blackwell)."""
        name, kind, args = instruction.op[0], instruction.op[-1], instruction.operands
        half, unpack, pack = {
            "bf16x2": (16, bf16_to_f32, f32_to_bf16),
            "f16x2": (
                16,
                lambda bits: bits.view(np.float16).astype(np.float32),
                lambda value: value.astype(np.float16).view(np.uint16),
            ),
            "f32x2": (
                32,
                lambda bits: bits.view(np.float32),
                lambda value: np.ascontiguousarray(value, np.float32).view(np.uint32),
            ),
            "s16x2": (
                16,
                lambda bits: bits.view(np.int16),
                lambda value: np.ascontiguousarray(value, np.int16).view(np.uint16),
            ),
            "u16x2": (16, lambda bits: bits, lambda value: value),
        }[kind]
        word, piece = TYPES[f"b{2 * half}"], TYPES[f"b{half}"]
        out = np.zeros(self.threads, np.uint64)
        for shift in (0, half):
            parts = [
                unpack(
                    np.ascontiguousarray((self.bits(arg, 2 * half).astype(np.uint64) >> np.uint64(shift)).astype(piece))
                )
                for arg in args[1:]
            ]
            result = PACKED[name](*parts)
            out |= pack(result).astype(np.uint64) << np.uint64(shift)
        self.put(args[0], out.astype(word), mask)


def run(ptx: str, grid: tuple[int, int, int], arguments: list, shared_bytes: int = 0, programs=None) -> Counts:
    """Run every block of `grid` (or the block indices in `programs`); Buffers are changed in place.

    A Buffer without a base is given one; arguments past the kernel's own are Buffers that it reaches by other pointers.
    """
    parameters, instructions, labels, threads = parse(ptx)
    buffers = [argument for argument in arguments if isinstance(argument, Buffer)]
    for i, buffer in enumerate(buffers):
        buffer.base = (i + 1) << 36 if buffer.base is None else buffer.base
    values = {}
    for i, parameter in enumerate(parameters):
        kind, name = parameter.split()
        argument = arguments[i] if i < len(arguments) else 0
        if isinstance(argument, Buffer):
            values[name] = argument.base
        elif kind == ".f32":
            values[name] = int(np.float32(argument).view(np.uint32))
        else:
            values[name] = int(argument) & 0xFFFFFFFFFFFFFFFF
    counts = Counts()
    everyone = (
        programs
        if programs is not None
        else ((x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0]))
    )
    for index in everyone:
        Block((parameters, instructions, labels), grid, index, threads, values, buffers, shared_bytes, counts).run()
        counts.programs += 1
    return counts
