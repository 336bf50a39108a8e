"""The machine and its software, as cells of a row, without importing torch or DALI. Unknown is None."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

GIB = 2**30
DALI = "nvidia-dali-cuda"  # and the CUDA that it is for, as in nvidia-dali-cuda120


def version_of(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def installed_like(prefix: str) -> tuple[str, str] | None:
    """(suffix, version) of the installed distribution whose name begins so, as nvidia-cudnn-cu13 does."""
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith(prefix):
            return name.removeprefix(prefix), distribution.version
    return None


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built for, read from its version file."""
    with contextlib.suppress(metadata.PackageNotFoundError, OSError):
        text = Path(str(metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
        found = re.search(r"^cuda\b.*?=\s*['\"]([\d.]+)['\"]", text, re.M)
        return found.group(1) if found else None
    return None


def dali() -> tuple[str | None, str | None]:
    """(the CUDA that the installed DALI was built for, its version): each CUDA has a distribution of its own."""
    suffix, version = installed_like(DALI) or ("", None)
    return (f"{suffix[:-1]}.{suffix[-1]}" if suffix else None), version


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, `+` where its code was changed since; None outside one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changed = git("status", "--porcelain", "--", "harness", "pipelines", "models")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    return None


def software() -> dict[str, Any]:
    (dali_cuda, dali_version), (cudnn, nccl) = dali(), map(installed_like, ("nvidia-cudnn-cu", "nvidia-nccl-cu"))
    return {
        "torch": version_of("torch"),
        "torch_cuda": torch_cuda(),
        "dali": dali_version,
        "dali_cuda": dali_cuda,
        "triton": version_of("triton"),
        "cudnn": cudnn[1] if cudnn else None,
        "nccl": nccl[1] if nccl else None,
        "python": platform.python_version(),
        "harness": version_of("alexnet-harness"),
        "git_commit": git_commit(),
    }


# --- the host -----------------------------------------------------------------------------------------------------


def children_of(process: int | str = "self") -> list[int]:
    """The processes that a process has started and that have not been waited for; none where /proc does not tell."""
    found: list[int] = []
    for listing in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, listing.read_text().split())
    return found


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the control groups of this process allow, in either version: the least of them and their parents."""
    quotas = []
    for folder in control_groups(root):
        with contextlib.suppress(OSError, ValueError):
            limit, period = (folder / "cpu.max").read_text().split()
            quotas.append(float(limit) / float(period))  # "max", for no limit, is no number
        with contextlib.suppress(OSError, ValueError):
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas += [float(limit) / float(period)] if float(limit) > 0 else []
    return min(quotas, default=None)


def control_groups(root: Path) -> list[Path]:
    """Folders of this process's control groups that may limit its CPU, their parents included."""
    mounts, found = root / "sys/fs/cgroup", []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            own = Path(path.lstrip("/"))
            found += [mounts / controllers / part for part in (own, *own.parents) if ".." not in part.parts]
    return found


def cpu_cores_usable() -> int:
    """Cores this process may run on: its affinity, within the control group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def cpu_name() -> str | None:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return found.group(1).strip() if found else platform.processor() or None
    return platform.processor() or None


def cpu_flags() -> set[str]:
    """Instruction-set flags of the CPU, as the kernel names them; empty where unknown."""
    with contextlib.suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        return set(found.group(1).split()) if found else set()
    return set()


def machine_ram_gib() -> int | None:
    """Memory of the machine, whole GiB: kernels take a different few MiB at each start."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)
    return None


def ram_gib() -> int | None:
    """Memory this process may use, whole GiB: the machine's, within the control group's limit."""
    total = machine_ram_gib()
    with contextlib.suppress(OSError, ValueError):
        limit = round(int(Path("/sys/fs/cgroup/memory.max").read_text()) / GIB)
        return limit if total is None else min(total, limit)
    return total


def container() -> str | None:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container")  # noqa: SIM112 - systemd-nspawn and LXC spell it so


def numa_nodes() -> int | None:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or None


def filesystem_of(folder: str | Path) -> str | None:
    """Type of the file system a folder lies on (ext4, nfs4, overlay), or s3."""
    if str(folder).startswith("s3:"):
        return "s3"
    best, kind = "", None
    with contextlib.suppress(OSError):
        path = str(Path(folder).resolve())
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, this_kind, *_ = line.split()
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, this_kind
    return kind


def host() -> dict[str, Any]:
    return {
        "cpu_name": cpu_name(),
        "cpu_cores_usable": cpu_cores_usable(),
        "ram_gib": ram_gib(),
        "os": f"{platform.system()} {platform.release()}",
        "container": container(),
        "numa_nodes": numa_nodes(),
    }


@dataclass(frozen=True)
class Need:
    """Something that compiling takes: its path or None, its name in a table and in a sentence, apt-get's package."""

    found: str | None
    label: str
    name: str
    package: str


def cpp_compiler() -> Need:
    """What Inductor and the CPU's fused block are compiled by."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    return Need(shutil.which(compiler), "C++ compiler", f"the C++ compiler {compiler}", "g++")


def compiling_needs(on_gpu: bool = False) -> list[Need]:
    """What Inductor needs on this machine, and Triton too on a GPU."""
    needs = [cpp_compiler()]
    if on_gpu:
        names = (os.environ["CC"].split()[0],) if os.environ.get("CC") else ("gcc", "clang", "cc")
        found = next(filter(None, map(shutil.which, names)), None)
        needs.append(Need(found, "C compiler", f"a C compiler ({', '.join(names)})", "gcc"))
    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing = f"Python's headers (no Python.h in {header.parent})"
    found = str(header) if header.is_file() else None
    return [*needs, Need(found, "Python.h", missing, f"python{sysconfig.get_python_version()}-dev")]


def what_compiling_lacks(on_gpu: bool = False) -> str | None:
    """One sentence with the line that brings what Inductor (and Triton, on a GPU) needs here; None if nothing is missing."""
    lacks = [need for need in compiling_needs(on_gpu) if need.found is None]
    if not lacks:
        return None
    names, packages = " and ".join(need.name for need in lacks), " ".join(need.package for need in lacks)
    line = f"torch.compile needs {names}: `apt-get install {packages}`"
    return line if on_gpu else f"{line}, or add --compile off"


# --- the GPUs -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nvml() -> Iterator[Any]:
    """pynvml, initialised; None where there is no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def why_no_driver() -> str | None:
    """NVML's own words where it cannot be asked; None where it can."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        return str(error)
    pynvml.nvmlShutdown()
    return None


def nvidia_cards_on_bus() -> int:
    """Display controllers and accelerators of NVIDIA's on the PCI bus, with a driver or without."""
    cards = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            nvidia = (device / "vendor").read_text().strip() == "0x10de"
            cards += nvidia and (device / "class").read_text().startswith("0x03")
    return cards


def visible(uuids: Sequence[str], selection: str | None) -> list[int]:
    """Which of the GPUs with these UUIDs CUDA_VISIBLE_DEVICES leaves, in its order: it ends at the first bad entry.

    An entry is a number, or the beginning of a UUID that begins no other.
    """
    if selection is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in filter(None, (part.strip() for part in selection.split(","))):
        if entry.isdigit():
            named = [int(entry)] if int(entry) < len(uuids) else []
        else:
            named = [gpu for gpu, uuid in enumerate(uuids) if uuid.startswith(entry)]
        if len(named) != 1:
            break
        chosen += named
    return chosen


def visible_handles(library: Any) -> list[Any]:
    """NVML's handles of the GPUs that CUDA will show; none where the driver does not answer."""
    with contextlib.suppress(library.NVMLError):
        handles = [library.nvmlDeviceGetHandleByIndex(gpu) for gpu in range(library.nvmlDeviceGetCount())]
        uuids = [library.nvmlDeviceGetUUID(handle) for handle in handles]
        return [handles[gpu] for gpu in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    return []


def visible_gpus() -> int:
    with nvml() as library:
        return len(visible_handles(library)) if library else 0


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    capability: tuple[int, int] | None  # CUDA's compute capability: (9, 0) is Hopper


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its version, the newest CUDA it serves, the GPUs it has and those of them that CUDA will show."""

    version: str
    cuda: tuple[int, int]
    gpus: int
    visible: tuple[Gpu, ...]


def driver() -> Driver | None:
    """The driver of this machine; None where there is none or it does not answer."""
    with nvml() as library:
        if library is None:
            return None

        def gpu(handle: Any) -> Gpu:
            capability = None
            with contextlib.suppress(library.NVMLError):
                capability = library.nvmlDeviceGetCudaComputeCapability(handle)
            memory_gib = round(library.nvmlDeviceGetMemoryInfo(handle).total / GIB, 1)
            return Gpu(library.nvmlDeviceGetName(handle), memory_gib, capability)

        with contextlib.suppress(library.NVMLError):
            served = library.nvmlSystemGetCudaDriverVersion()
            return Driver(
                version=library.nvmlSystemGetDriverVersion(),
                cuda=(served // 1000, served % 1000 // 10),
                gpus=library.nvmlDeviceGetCount(),
                visible=tuple(map(gpu, visible_handles(library))),
            )
    return None


def gpu_columns(gpus: int) -> dict[str, Any]:
    """The first `gpus` visible GPUs: what they share once, what they do not joined by `+`; empty where NVML does not say."""
    with nvml() as library:
        if not gpus or library is None:
            return {}
        handles = visible_handles(library)[:gpus]

        def each(ask: Callable[[Any], Any]) -> list[Any]:
            answers = []
            for handle in handles:
                with contextlib.suppress(library.NVMLError):
                    answers.append(ask(handle))
            return answers

        def same(answers: list[Any]) -> Any:
            return "+".join(map(str, answers)) if len(set(answers)) > 1 else (answers[0] if answers else None)

        def pcie(handle: Any) -> str:
            generation = library.nvmlDeviceGetMaxPcieLinkGeneration(handle)
            return f"{generation}x{library.nvmlDeviceGetMaxPcieLinkWidth(handle)}"

        return {
            "gpu_name": same(each(library.nvmlDeviceGetName)),
            "gpu_memory_gib": same(each(lambda h: round(library.nvmlDeviceGetMemoryInfo(h).total / GIB, 1))),
            "gpu_uuids": " ".join(each(library.nvmlDeviceGetUUID)),
            "gpu_power_limit_w": same(each(lambda h: library.nvmlDeviceGetPowerManagementLimit(h) / 1000)),
            "gpu_power_limit_default_w": same(
                each(lambda h: library.nvmlDeviceGetPowerManagementDefaultLimit(h) / 1000)
            ),
            "gpu_max_sm_clock_mhz": same(each(lambda h: library.nvmlDeviceGetMaxClockInfo(h, library.NVML_CLOCK_SM))),
            "pcie_gen_width": same(each(pcie)),
            "driver_version": same(each(lambda _: library.nvmlSystemGetDriverVersion())),
        }


def machine(gpus: int, data_folder: str | Path) -> dict[str, Any]:
    """Every machine and software column of a row."""
    return {**host(), **software(), **gpu_columns(gpus), "data_filesystem": filesystem_of(data_folder)}
