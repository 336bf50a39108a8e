"""Timed probes of the machine itself: what its GPUs or its CPU, their links, its decoders and its disk do at their best.

A run asks `matrix_product` and `copy` for what its own device can do; `doctor --box` asks everything else, GPU by GPU.
Every function takes about the seconds that it is given, after its data have been made.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import environment
from harness.box import disk as probe_disk
from harness.box import ranks as probe_ranks
from harness.box.laps import Lane, one_lap_s, timed
from harness.forecast.counts import PARAMETERS
from harness.metrics.numbers import GIB, MIB, rate
from harness.trial import Peak
from harness.workload import exact_fp32
from pipelines.dataset.embedded import label_of
from pipelines.dataset.synthesis import picture

P = ParamSpec("P")
Files = list[NDArray[np.uint8]]

CPU = torch.device("cpu")

# A side twice as long is eight times the work, tried three times.
WORK_OF_THE_NEXT = 2 * 8
TRY_S, TRIES_MAX = 0.1, 100
SIDES = (256, 512, 1024, 2048, 4096, 8192)
# Far more than any cache holds, or the caches are what is measured.
COPY_BYTES = {"cpu": 256 * MIB, "cuda": GIB}
LINK_BYTES = 256 * MIB
IMAGES = 64
DISK_FILE, DISK_FREE = GIB, 2 * GIB
IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Rate:
    """What each of these devices does, in the order of `devices`; `detail` says what was done."""

    name: str
    unit: str
    devices: tuple[str, ...]
    values: tuple[float, ...]
    detail: str = ""


class NotRun(Exception):
    """This machine cannot be asked: why, in a few words."""


class Failed(NotRun):
    """It was asked and did not do it: what it said."""


def reported(probe: Callable[P, list[Rate]]) -> Callable[P, list[Rate]]:
    """The probe, whose errors a sick machine may cause are `Failed`, in a line."""

    @functools.wraps(probe)
    def call(*arguments: P.args, **named: P.kwargs) -> list[Rate]:
        try:
            return probe(*arguments, **named)
        except ImportError as error:
            raise NotRun(f"needs {error.name}, which is not installed") from error
        except (RuntimeError, OSError) as error:
            raise Failed(textwrap.shorten(str(error) or type(error).__name__, 160)) from error

    return call


# --- what a device does -------------------------------------------------------------------------------------------


def spare_bytes(device: torch.device) -> int:
    """Memory of the device that this process could still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = [(environment.ram_gib() or 1) * GIB]
    with contextlib.suppress(OSError):
        kib = re.findall(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        limits += [int(each) * 1024 for each in kib]
    return min(limits)


def random_numbers(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers: what the bits are changes a GPU's power. The run's own random numbers are left where they were."""
    return torch.randn(*shape, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))


def random_buffer(device: torch.device, size_bytes: int) -> Tensor:
    """At most so many bytes of normal numbers, or a quarter of the memory that is left."""
    block = random_numbers(device, MIB)
    return block.repeat(max(1, min(size_bytes, spare_bytes(device) // 4) // block.nbytes))


def product(device: torch.device, dtype: torch.dtype, side: int) -> Lane:
    one, other = random_numbers(device, 2, side, side, dtype=dtype)
    return Lane(device, functools.partial(torch.mm, one, other, out=torch.empty_like(one)))


def product_side(device: torch.device, dtype: torch.dtype, seconds: float) -> int:
    """Side of the matrices whose product runs at the highest rate, of those that the memory and the time allow.

    A small product is slowed by starting it, and on a CPU by whatever else runs.
    """
    fitting = [side for side in SIDES if 3 * side**2 * dtype.itemsize <= spare_bytes(device) // 2] or [SIDES[0]]
    seen: list[tuple[float, int]] = []
    for side in fitting:
        lane = [product(device, dtype, side)]
        one_lap_s(lane)
        lap_s = quickest_s(lane)
        seen.append((side**3 / lap_s, side))
        if WORK_OF_THE_NEXT * lap_s > seconds:
            break
    return max(seen)[1]


def quickest_s(lanes: Sequence[Lane]) -> float:
    """Seconds of the quickest of a few laps: where threads must be woken, most laps of a small product are waiting."""
    laps_s = [one_lap_s(lanes), one_lap_s(lanes)]
    while sum(laps_s) < TRY_S and len(laps_s) < TRIES_MAX:
        laps_s.append(one_lap_s(lanes))
    return min(laps_s)


def matrix_product(device: torch.device, dtype: torch.dtype, seconds: float) -> Peak:
    """Floating-point operations of a product of two square matrices, on the device as its caller has set it up."""
    side = product_side(device, dtype, seconds)
    (lap_s,) = timed([product(device, dtype, side)], seconds)
    return Peak(2.0 * side**3, lap_s)


def copy(device: torch.device, seconds: float, size_bytes: int | None = None) -> Peak:
    """Bytes read and written by a copy of so much memory, by default far more than a cache holds."""
    source = random_buffer(device, size_bytes or COPY_BYTES[device.type])
    (lap_s,) = timed([Lane(device, functools.partial(torch.empty_like(source).copy_, source))], seconds)
    return Peak(2.0 * source.nbytes, lap_s)


# --- the box ------------------------------------------------------------------------------------------------------


def devices() -> list[torch.device]:
    """Every GPU, or the CPU where there is none."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [CPU]


def name_of(device: torch.device) -> str:
    return f"GPU {device.index}" if device.type == "cuda" else "CPU"


def in_giga(name: str, asked: Sequence[torch.device], peaks: Sequence[Peak], detail: str) -> Rate:
    """GB/s of each device."""
    values = tuple(rate(peak.work, peak.lap_s) / 1e9 for peak in peaks)
    return Rate(name, "GB/s", tuple(map(name_of, asked)), values, detail)


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """torch on every core that this process may use; it does not look at a control group's quota."""
    before = torch.get_num_threads()
    torch.set_num_threads(environment.cpu_cores_usable())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@reported
def matrix_products(seconds_each: float) -> list[Rate]:
    """TFLOP/s of every GPU in turn in bf16 and in fp32 without TF32, or of the CPU in fp32."""
    asked = devices()
    exact_fp32()
    precisions = {"bf16": torch.bfloat16, "fp32": torch.float32} if asked != [CPU] else {"fp32": torch.float32}
    names = tuple(map(name_of, asked))
    found = []
    with all_cores():
        for precision, dtype in precisions.items():
            peaks = [matrix_product(device, dtype, seconds_each) for device in asked]
            values = tuple(rate(peak.work, peak.lap_s) / 1e12 for peak in peaks)
            sides = "/".join(sorted({f"{round((peak.work / 2) ** (1 / 3))}" for peak in peaks}))
            found.append(Rate(f"matrix product {precision}", "TFLOP/s", names, values, f"side {sides}, random numbers"))
    return found


@reported
def copies(seconds_each: float, size_bytes: int | None = None) -> list[Rate]:
    """GB/s that every GPU in turn, or the CPU, reads and writes while it copies its own memory."""
    asked = devices()
    with all_cores():
        peaks = [copy(device, seconds_each, size_bytes) for device in asked]
    size_mib = min(peak.work for peak in peaks) / 2 / MIB
    return [in_giga("copy", asked, peaks, f"{size_mib:.0f} MiB, read plus written")]


@reported
def host_to_device(seconds: float) -> list[Rate]:
    """GB/s that each GPU receives from pinned memory, all of them at once."""
    asked = devices()
    if asked == [CPU]:
        return []
    sources = [random_buffer(CPU, LINK_BYTES).pin_memory() for _ in asked]
    lanes = [
        Lane(device, functools.partial(torch.empty_like(source, device=device).copy_, source, non_blocking=True))
        for device, source in zip(asked, sources, strict=True)
    ]
    peaks = [Peak(source.nbytes, lap_s) for source, lap_s in zip(sources, timed(lanes, seconds), strict=True)]
    return [in_giga("host to device", asked, peaks, "pinned memory, all GPUs at once")]


@reported
def peer_to_peer(seconds_each: float) -> list[Rate]:
    """GB/s from GPU to GPU for each ordered pair, one pair at a time."""
    pairs = list(itertools.permutations(devices(), 2))
    if not pairs:
        return []
    values, staged = [], []
    for giver, taker in pairs:
        source = random_buffer(giver, LINK_BYTES)
        work = functools.partial(torch.empty_like(source, device=taker).copy_, source, non_blocking=True)
        (lap_s,) = timed([Lane(giver, work)], seconds_each)
        values.append(rate(source.nbytes, lap_s) / 1e9)
        if not torch.cuda.can_device_access_peer(giver, taker):
            staged.append(f"{giver.index}->{taker.index}")
    names = tuple(f"GPU {giver.index} -> GPU {taker.index}" for giver, taker in pairs)
    detail = f"no peer access, through the host: {', '.join(staged)}" if staged else "peer access"
    return [Rate("peer to peer", "GB/s", names, tuple(values), detail)]


@reported
def all_reduce(seconds: float, numbers: int = PARAMETERS, patience_s: float = probe_ranks.PATIENCE_S) -> list[Rate]:
    """GB/s that a ring's links carry in an all-reduce of float32 numbers: NCCL on all GPUs, or two gloo ranks on the CPU."""
    asked = devices()
    ranks = len(asked) if asked != [CPU] else 2
    if ranks < 2:
        return []
    backend, device = ("nccl", f"{ranks} GPUs") if asked != [CPU] else ("gloo", "CPU")
    lap_s = probe_ranks.all_reduce_laps(backend, ranks, numbers, seconds, patience_s)
    size_bytes = numbers * torch.float32.itemsize
    value = rate(probe_ranks.bus_bytes(ranks, size_bytes), lap_s) / 1e9
    detail = f"{backend}, {ranks} ranks, {size_bytes / 1e6:.0f} MB; bus GB/s: 2 (N - 1) / N of the bytes a second"
    return [Rate("all-reduce", "GB/s", (device,), (value,), detail)]


@reported
def jpeg_decodes(seconds_each: float) -> list[Rate]:
    """Images/s that DALI decodes whole: on each GPU in turn (its decoders and all CPU cores), or on the CPU."""
    files = [np.frombuffer(picture(number, label_of(number)), np.uint8) for number in range(IMAGES)]
    asked, cores = devices(), environment.cpu_cores_usable()
    values = [rate(IMAGES, decode_laps(device, files, cores, seconds_each)) for device in asked]
    detail = f"DALI, the built-in set's pictures whole, {'cpu' if asked == [CPU] else 'mixed'}, CPU threads: {cores}"
    return [Rate("JPEG decode", "images/s", tuple(map(name_of, asked)), tuple(values), detail)]


def decode_laps(device: torch.device, files: Files, threads: int, seconds: float) -> tuple[float, ...]:
    """Seconds of batches of these JPEGs, decoded while others are being decoded."""
    pipeline = decoder("mixed" if device.type == "cuda" else "cpu", files, threads, device.index)
    try:
        # `run` returns once its batch is there: the host's clock is the one that tells.
        (lap_s,) = timed([Lane(CPU, pipeline.run)], seconds)
    finally:
        pipeline._shutdown()
    return lap_s


def decoder(kind: str, files: Files, threads: int, device_id: int | None) -> Any:
    """DALI's pipeline that decodes these JPEGs over and over; `device_id=None` constructs either kind without a GPU."""
    from nvidia.dali import Pipeline, fn

    pipeline = Pipeline(len(files), threads, device_id, exec_dynamic=True, prefetch_queue_depth=2)
    with pipeline:
        pipeline.set_outputs(fn.decoders.image(fn.external_source(lambda: files, batch=True), device=kind))
    return pipeline


@reported
def disk_read(folder: Path, seconds: float, size_bytes: int = DISK_FILE) -> list[Rate]:
    """GB/s of reading a file in order, past the page cache; it keeps no name, so that nothing is left of it."""
    if not os.access(folder, os.W_OK):
        raise NotRun(f"{folder} cannot be written")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < DISK_FREE:
        raise NotRun(f"{folder} has {free_bytes / GIB:.1f} GiB free, and it takes {DISK_FREE / GIB:.0f}")
    if (kind := environment.filesystem_of(folder)) in IN_MEMORY:
        raise NotRun(f"{folder} lies in memory ({kind})")
    with probe_disk.scratch_file(folder, size_bytes, seconds) as file:
        (lap_s,) = timed([Lane(CPU, file.read_block)], seconds)
        value = rate(probe_disk.BLOCK_BYTES, lap_s) / 1e9
        return [Rate("disk read", "GB/s", (str(folder),), (value,), f"{file.size_bytes // MIB} MiB, {file.way}")]
