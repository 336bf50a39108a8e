"""What the machine does while a rank trains: samples of its GPU and its process beside the loop, and meters to read at a
window's two ends.

Nothing here ends a run: what has no sensor, or one that fails, is None.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness import environment
from harness.trial import Meters, Sample

SAMPLE_EVERY_S = 0.5
SAMPLES_MAX = 4096
FAILURES_MAX = 3
CLOSE_WITHIN_S = 1.0
POWERCAP = Path("/sys/class/powercap")
T = TypeVar("T")


class Sensor(Generic[T]):
    """A question that may have no answer here: None then, and not asked again after FAILURES_MAX failures in a row."""

    def __init__(self, ask: Callable[[], T | None]):
        self._ask, self._failures = ask, 0

    def read(self) -> T | None:
        if self._failures == FAILURES_MAX:
            return None
        try:
            answer = self._ask()
        except Exception:
            # An old driver, an old pynvml, a card that is gone, a file that may not be read: each raises its own.
            self._failures += 1
            return None
        self._failures = 0
        return answer


def unknown() -> None:
    return None


# --- whose GPU time and memory ------------------------------------------------------------------------------------


def is_ours(pid: int) -> bool:
    """Whether it is this process or one that it has started."""
    with contextlib.suppress(OSError):
        return pid == os.getpid() or parent_of(pid) == os.getpid()
    return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def listed_as_ours(listed: Collection[int], own: Collection[int]) -> set[int] | None:
    """Which of the processes that NVML lists are this rank's; None where it cannot be told.

    In a container NVML may list other numbers than those the container gives: one alone is then this rank's.
    """
    ours = set(listed) & set(own)
    return ours or (set(listed) if len(listed) <= 1 else None)


def others_utilisation(by_pid: Mapping[int, float], own: Collection[int]) -> float | None:
    """Per cent of the GPU that processes other than our own used; 0 where nobody did, None where it is unknown whose it was."""
    ours = listed_as_ours(by_pid, own)
    return None if ours is None else sum((pct for pid, pct in by_pid.items() if pid not in ours), 0.0)


def used_by_others(
    used_pct: Mapping[int, float] | None, running: Collection[int], own: Collection[int]
) -> float | None:
    """`others_utilisation`, where the processes on the GPU are known beside those that did something on it lately.

    NVML lists no idle process among the second. Where it lists none among the first either, it hides them all.
    """
    if used_pct is None or not (used_pct or running):
        return None
    return others_utilisation({**dict.fromkeys(running, 0.0), **used_pct}, own)


def own_bytes(by_pid: Mapping[int, int | None], own: Collection[int]) -> int | None:
    """GPU memory of our own processes, of those that NVML lists; None where it does not tell."""
    sizes = [by_pid[pid] for pid in listed_as_ours(by_pid, own) or ()]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


# --- the GPU ------------------------------------------------------------------------------------------------------


def handle_of(library: Any, gpu: int | str) -> Any:
    """NVML's handle of a GPU by its UUID, or by its place among those that CUDA shows; None where there is none."""
    if isinstance(gpu, str):
        return Sensor(lambda: library.nvmlDeviceGetHandleByUUID(gpu)).read()
    handles = environment.visible_handles(library)
    return handles[gpu] if gpu < len(handles) else None


def at_work(library: Any, handle: Any, since_us: int) -> list[Any]:
    """NVML's samples of the processes that did something on a GPU since then; it calls it not found if none did."""
    try:
        seen = library.nvmlDeviceGetProcessUtilization(handle, since_us)
    except library.NVMLError as error:
        if error.value not in (library.NVML_SUCCESS, library.NVML_ERROR_NOT_FOUND):
            raise
        return []
    # A driver may leave entries of the list unwritten.
    return [each for each in seen if each.smUtil <= 100]


class Gpu:
    """The sensors of one GPU: those that are a field of a Sample by its name, and those that have to be made one."""

    def __init__(self, library: Any, handle: Any):
        self._library, self._handle = library, handle
        # From now on: NVML still knows what processes used that have ended.
        self._last_seen_us = int(time.time() * 1e6)
        self._fields: dict[str, Sensor[Any]] = {
            "gpu_utilisation_pct": Sensor(lambda: float(library.nvmlDeviceGetUtilizationRates(handle).gpu)),
            "jpeg_utilisation_pct": Sensor(lambda: float(library.nvmlDeviceGetJpgUtilization(handle)[0])),
            "sm_clock_mhz": Sensor(lambda: float(library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM))),
            "power_w": Sensor(lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000),
            "temperature_c": Sensor(
                lambda: float(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU))
            ),
            "clock_event_reasons": Sensor(self._clock_event_reasons),
        }
        self._running = Sensor(self._running_bytes)
        self._used = Sensor(self._used_pct)
        self.energy_j = Sensor(lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)

    def fields(self) -> dict[str, Any]:
        """This GPU's fields of a Sample, now."""
        running, used_pct = self._running.read() or {}, self._used.read()
        own = set(filter(is_ours, {*running, *(used_pct or ())}))
        return {
            **{name: sensor.read() for name, sensor in self._fields.items()},
            "gpu_process_bytes": own_bytes(running, own),
            "other_process_utilisation_pct": used_by_others(used_pct, running, own),
        }

    def _clock_event_reasons(self) -> int:
        """NVML's bits, by the call's name of today or by the one before."""
        try:
            return int(self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        except (AttributeError, self._library.NVMLError):
            return int(self._library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))

    def _running_bytes(self) -> dict[int, int | None]:
        """Memory of every process that computes on the GPU; None for one whose memory is not told."""
        processes = self._library.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return {process.pid: process.usedGpuMemory for process in processes}

    def _used_pct(self) -> dict[int, float]:
        """What every process that did something since the last look used of the GPU."""
        seen = at_work(self._library, self._handle, self._last_seen_us)
        self._last_seen_us = max((each.timeStamp for each in seen), default=self._last_seen_us)
        return {each.pid: float(each.smUtil) for each in seen}


# --- the host -----------------------------------------------------------------------------------------------------


def host_rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def host_load() -> float:
    """Processes that ran or waited to, on average over the last minute."""
    return os.getloadavg()[0]


def disk_read_bytes() -> int:
    """Bytes that this process, and those that it has started, have had read from disks: none of them from the page cache."""
    read = 0
    for process in ("self", *environment.children_of()):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            told = Path(f"/proc/{process}/io").read_text()
            read += int(told.partition("\nread_bytes:")[2].split()[0])
    return read


def increase(before: int, now: int, full: int) -> int:
    """What a counter counted that begins again at 0 when it is full, if it did at most once."""
    return now - before if now >= before else now - before + full


class CpuEnergy:
    """Joules of all CPU packages of the machine since the first look (RAPL)."""

    def __init__(self, root: Path = POWERCAP):
        self._packages = [folder for folder in sorted(root.glob("intel-rapl:*")) if is_package(folder)]
        self._last: list[int] = []
        self._counted_uj = 0
        self._lock = threading.Lock()

    def joules(self) -> float | None:
        """None without packages; OSError where one of them may not be read. A counter is full after minutes: look often."""
        with self._lock:
            now = [int((folder / "energy_uj").read_text()) for folder in self._packages]
            for folder, before_uj, now_uj in zip(self._packages, self._last, now, strict=False):
                self._counted_uj += increase(before_uj, now_uj, int((folder / "max_energy_range_uj").read_text()))
            self._last = now
            return self._counted_uj / 1e6 if now else None


def is_package(folder: Path) -> bool:
    """Whether this is a package's counter: not one of a part of it, nor the platform's, which holds it too."""
    with contextlib.suppress(OSError):
        whole = re.fullmatch(r"intel-rapl:\d+", folder.name)
        return bool(whole) and (folder / "name").read_text().startswith("package")
    return False


# --- beside the loop ----------------------------------------------------------------------------------------------


class Telemetry:
    """Samples of a rank in a thread of its own, one every SAMPLE_EVERY_S, from `start` to `close`.

    `gpu`: UUID of the rank's GPU, or its place among those that CUDA shows; None on a CPU. `steps_done` tells the training
    steps done so far. `with_load`: for one rank a machine, which then tells what is the whole machine's, too.
    """

    def __init__(self, gpu: int | str | None, steps_done: Callable[[], int], with_load: bool):
        self._steps_done = steps_done
        self._nvml = contextlib.ExitStack()
        library = None if gpu is None else self._nvml.enter_context(environment.nvml())
        handle = None if gpu is None or library is None else handle_of(library, gpu)
        self._gpu = None if handle is None else Gpu(library, handle)
        self._host: dict[str, Sensor[Any]] = {"host_rss_bytes": Sensor(host_rss_bytes)}
        if with_load:
            self._host["host_load"] = Sensor(host_load)
        on_cpu = gpu is None and with_load
        self._cpu_energy_j: Sensor[float] = Sensor(CpuEnergy().joules if on_cpu else unknown)
        self._disk_read_bytes = Sensor(disk_read_bytes)
        self._taken: list[Sample] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def samples(self) -> tuple[Sample, ...]:
        """Those taken so far."""
        return tuple(self._taken)

    def sample(self) -> Sample:
        """The machine as it is now."""
        at_s, steps = time.perf_counter(), self._steps_done()
        told = {name: sensor.read() for name, sensor in self._host.items()}
        gpu = self._gpu.fields() if self._gpu else {}
        return Sample(at_s, steps, **told, **gpu)

    def meters(self) -> Meters:
        """The counters as they are now."""
        energy_j = self._gpu.energy_j if self._gpu else self._cpu_energy_j
        return Meters(energy_j.read(), self._disk_read_bytes.read())

    def close(self) -> None:
        """Take no more samples; those taken can still be asked for."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_WITHIN_S)
        if not self._thread.is_alive():
            # A card that is gone may hold the thread in a call for ever: the driver is left open under it then.
            with contextlib.suppress(Exception):
                self._nvml.close()

    def _watch(self) -> None:
        pause_s = SAMPLE_EVERY_S
        while not self._closed.is_set():
            self._taken.append(self.sample())
            if len(self._taken) >= SAMPLES_MAX:
                # A run of days would leave a record that nobody can open.
                self._taken, pause_s = self._taken[::2], 2 * pause_s
            # Keeps count of an energy counter that begins again.
            self._cpu_energy_j.read()
            self._closed.wait(pause_s)
