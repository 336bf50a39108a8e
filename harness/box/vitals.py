"""A machine's vital signs, without timing anything: what NVML and the host say of its GPUs, cores and memory. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from harness import environment, telemetry

P2P_READ = 0  # pynvml's own constant of this name is a tuple, which NVML is not to be handed
RECENT_S = 5  # of processes' utilisation


@dataclass(frozen=True)
class Process:
    pid: int
    memory_bytes: int | None = None
    utilisation_pct: float = 0.0


@dataclass(frozen=True)
class Card:
    """One GPU as NVML and sysfs tell of it; None is what they do not tell. `near` are the cores of its NUMA node."""

    number: int
    name: str = ""
    bus_id: str = ""
    memory_bytes: int | None = None
    link_width: int | None = None
    link_width_max: int | None = None
    link_generation: int | None = None
    link_generation_max: int | None = None
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    ecc_since_start: int | None = None
    ecc_ever: int | None = None
    repair_pending: bool = False
    repair_failed: bool = False
    mig: bool = False
    persistence: bool | None = None
    utilisation_pct: float | None = None
    others: tuple[Process, ...] = ()
    node: int | None = None
    near: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Pair:
    """Two GPUs: NVML's status of reading each other's memory, and the nearest thing on the bus that they share."""

    numbers: tuple[int, int]
    status: int | None = None
    ancestor: int | None = None


@dataclass(frozen=True)
class Host:
    """Where this process runs: the cores it may use, those seen, NUMA nodes, the control group's quota, /dev/shm, processes
    at work (the last minute's load), and the kernel's log."""

    allowed: frozenset[int]
    seen: int
    nodes: int
    quota: float | None
    shm_gib: float | None
    load: float
    kernel_log: str | None


@dataclass(frozen=True)
class Moment:
    """One GPU at one moment of the timed checks."""

    number: int
    utilisation_pct: float
    link_generation: int | None = None
    reasons: int | None = None


# --- the host -----------------------------------------------------------------------------------------------------


def look_at_host(root: Path = Path("/")) -> Host:
    """This process's host; `root` is where /proc, /sys and /dev are looked for."""
    shm = root / "dev/shm"
    return Host(
        allowed=frozenset(os.sched_getaffinity(0)),
        seen=os.cpu_count() or 1,
        nodes=len(list((root / "sys/devices/system/node").glob("node[0-9]*"))),
        quota=environment.cpu_quota(root),
        shm_gib=shutil.disk_usage(shm).total / environment.GIB if shm.is_dir() else None,
        load=os.getloadavg()[0],
        kernel_log=kernel_log(root / "dev/kmsg"),
    )


def kernel_log(device: Path, command: str = "dmesg") -> str | None:
    """What the kernel still remembers; None where this process may not read it."""
    with contextlib.suppress(OSError):
        return read_all(os.open(device, os.O_RDONLY | os.O_NONBLOCK))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run([command], capture_output=True, timeout=5, check=True).stdout.decode(errors="replace")
    return None


def read_all(descriptor: int) -> str:
    """Every record that is there now: reading the kernel's log to its end would wait for more."""
    parts: list[bytes] = []
    with contextlib.closing(os.fdopen(descriptor, "rb", buffering=0)) as file:
        while True:
            try:
                part = file.read(8192)
            except BrokenPipeError:
                continue  # newer records have overwritten the next one
            if not part:
                return b"".join(parts).decode(errors="replace")
            parts.append(part)


# --- the GPUs -----------------------------------------------------------------------------------------------------


def look_at_cards(library: Any, root: Path = Path("/")) -> list[Card]:
    """Every GPU that CUDA shows, by NVML's answers and sysfs."""
    return [
        look_at_card(library, handle, number, root)
        for number, handle in enumerate(environment.visible_handles(library))
    ]


def look_at_card(library: Any, handle: Any, number: int, root: Path) -> Card:
    def ask(function: str, *words: Any) -> Any:
        return answer(library, function, handle, *words)

    def watts(function: str) -> float | None:
        milliwatts = ask(function)
        return None if milliwatts is None else milliwatts / 1000

    bus_id = sysfs_bus_id(ask("nvmlDeviceGetPciInfo"))
    node, near = numa_node(root / "sys/bus/pci/devices" / bus_id) if bus_id else (None, frozenset[int]())
    memory, remapped = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetRemappedRows") or (0, 0, 0, 0)
    persistence = ask("nvmlDeviceGetPersistenceMode")
    uncorrected = library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    return Card(
        number=number,
        name=ask("nvmlDeviceGetName") or "",
        bus_id=bus_id,
        memory_bytes=memory.total if memory else None,
        link_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        link_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        link_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        link_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        power_limit_w=watts("nvmlDeviceGetPowerManagementLimit"),
        power_limit_default_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        ecc_since_start=ask("nvmlDeviceGetTotalEccErrors", uncorrected, library.NVML_VOLATILE_ECC),
        ecc_ever=ask("nvmlDeviceGetTotalEccErrors", uncorrected, library.NVML_AGGREGATE_ECC),
        repair_pending=bool(remapped[2] or ask("nvmlDeviceGetRetiredPagesPendingStatus")),
        repair_failed=bool(remapped[3]),
        mig=bool((ask("nvmlDeviceGetMigMode") or [0])[0]),
        persistence=None if persistence is None else bool(persistence),
        utilisation_pct=getattr(ask("nvmlDeviceGetUtilizationRates"), "gpu", None),
        others=other_processes(library, handle),
        node=node,
        near=near,
    )


def answer(library: Any, function: str, *words: Any) -> Any:
    """NVML's answer; None where this pynvml, driver or card has none."""
    try:
        return getattr(library, function)(*words)
    except (AttributeError, library.NVMLError):
        return None


def sysfs_bus_id(info: Any) -> str:
    """NVML's 00000000:17:00.0 as the kernel writes it, 0000:17:00.0; empty for unknown."""
    if info is None:
        return ""
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def numa_node(device: Path) -> tuple[int | None, frozenset[int]]:
    """(node of a device on the bus, the node's cores); (None, none) where the kernel does not know, or there is one node."""
    with contextlib.suppress(OSError, ValueError):
        node = int((device / "numa_node").read_text())
        return (node, cores_of((device / "local_cpulist").read_text())) if node >= 0 else (None, frozenset())
    return None, frozenset()


def cores_of(text: str) -> frozenset[int]:
    """The kernel's 0-2,8 as numbers."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return frozenset(core for first, _, last in ranges for core in range(int(first), int(last or first) + 1))


def other_processes(library: Any, handle: Any) -> tuple[Process, ...]:
    """Processes on a GPU that are not this one, with what they use of it; none where the driver does not tell."""
    since_us = int((time.time() - RECENT_S) * 1e6)
    listed = [
        process
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        for process in answer(library, function, handle) or []
    ]
    at_work: dict[int, float] = {}
    with contextlib.suppress(AttributeError, library.NVMLError):
        for sample in telemetry.at_work(library, handle, since_us):
            at_work[sample.pid] = max(sample.smUtil, at_work.get(sample.pid, 0.0))
    memory = {process.pid: process.usedGpuMemory for process in listed}
    pids = sorted({*memory, *at_work} - {os.getpid()})
    return tuple(Process(pid, memory.get(pid), at_work.get(pid, 0.0)) for pid in pids)


class Watch:
    """Looks at every GPU while something else keeps them busy, whenever it is told to."""

    def __init__(self, library: Any):
        handles = environment.visible_handles(library) if library else []
        self._library, self._gpus = library, [(handle, telemetry.Gpu(library, handle)) for handle in handles]
        self.moments: list[Moment] = []

    def look(self) -> None:
        for number, (handle, gpu) in enumerate(self._gpus):
            told = gpu.fields()
            link = answer(self._library, "nvmlDeviceGetCurrPcieLinkGeneration", handle)
            if told["gpu_utilisation_pct"] is not None:
                self.moments.append(Moment(number, told["gpu_utilisation_pct"], link, told["clock_event_reasons"]))


def look_at_pairs(library: Any, cards: Sequence[Card]) -> list[Pair]:
    handles = environment.visible_handles(library) if len(cards) > 1 else []
    return [
        Pair(
            (one, other),
            answer(library, "nvmlDeviceGetP2PStatus", handles[one], handles[other], P2P_READ),
            answer(library, "nvmlDeviceGetTopologyCommonAncestor", handles[one], handles[other]),
        )
        for one, other in combinations(range(len(handles)), 2)
    ]
