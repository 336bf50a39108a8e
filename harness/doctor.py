"""What this machine has and lacks for a run, and the lines that mend it, without importing torch.

Each `judge_` function is handed what was found, decides, and touches nothing; `examine` looks and hands out.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from harness import environment
from harness.environment import Driver, Gpu, Need

PROJECT = "alexnet-harness"
OK, NOTE, MISSING, WRONG = "ok", "note", "missing", "wrong"
COLOURS = {OK: "\033[32m", NOTE: "\033[33m", MISSING: "\033[1;31m", WRONG: "\033[1;31m"}
MARK_WIDTH, NAME_WIDTH, WIDEST = 9, 16, 120
# Of the project's extras, what a run may ask for; the others are for its developers.
SHOWN_EXTRAS = ("", "peer")

# A CUDA of one major version runs on every driver that serves this major version or a newer one (NVIDIA's "minor
# version compatibility"); the first driver that serves it.
FIRST_DRIVER = {12: "525", 13: "580"}
OLDEST_CUDA = min(FIRST_DRIVER)  # that torch and DALI of our floors are built for
# The oldest compute capability that torch's builds of this CUDA hold code for, or that Triton compiles for.
LEAST_CAPABILITY = {12: (7, 0), 13: (7, 5)}
# Older cards have no bfloat16 arithmetic, and Triton promises nothing for them.
BF16_CAPABILITY = (8, 0)
# The first g++ that knows -std=c++20, which Inductor writes.
LEAST_GCC = 10
SMALL_SHM_GIB = 1.0
SMALL_DISK_GIB = 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the table: a mark, what was looked at, what was found, what to do, and the command that does it."""

    mark: str
    name: str
    found: str
    todo: str = ""
    command: str = ""


@dataclass(frozen=True)
class Requirement:
    """One of the project's requirements: `wanted` is as in >=2.10,<3; `extra` names its optional group, or is empty."""

    name: str
    wanted: str
    extra: str = ""


def requirements(lines: Iterable[str]) -> list[Requirement]:
    """The lines of a distribution's metadata, without those that only point at another extra."""
    pattern = r"([\w.-]+)\s*([<>=!~\d.,\s]*)(?:;\s*(.*))?"
    found = [match.groups(default="") for line in lines if (match := re.fullmatch(pattern, line))]
    extra = r"extra\s*==\s*['\"](\w+)['\"]"
    return [
        Requirement(name, wanted.replace(" ", ""), named.group(1) if (named := re.search(extra, marker)) else "")
        for name, wanted, marker in found
    ]


def numbers(version: str) -> tuple[int, ...]:
    """2.14.1+cu130 as (2, 14, 1), and 2.14.0 as (2, 14): the same version may be written either way."""
    found = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in found.group().split(".")] if found else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is at or above every >= and below every <."""
    floors, ceilings = re.findall(r">=([\d.]+)", wanted), re.findall(r"<([\d.]+)", wanted)
    here = numbers(version)
    return all(here >= numbers(floor) for floor in floors) and all(here < numbers(ceiling) for ceiling in ceilings)


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def major(version: str) -> int:
    return numbers(version)[0]


# --- judging ------------------------------------------------------------------------------------------------------


def judge_system(system: str, python: str, wanted_python: str) -> list[Finding]:
    findings = [Finding(OK, "system", system)]
    if not system.startswith("Linux"):
        findings = [Finding(MISSING, "system", system, "training needs Linux; compare, verify and table work here")]
    if satisfies(python, wanted_python):
        return [*findings, Finding(OK, "Python", python)]
    return [*findings, Finding(MISSING, "Python", python, f"make an environment with a Python {wanted_python}")]


def judge_packages(wanted: Iterable[Requirement], installed: dict[str, str | None]) -> list[Finding]:
    """The requirements against name -> version of what is installed: a line for all, and one for each that is not met."""
    unmet, required, met = [], 0, 0
    for each in wanted:
        version, line = installed.get(each.name), f"python -m pip install '{each.name}{each.wanted}'"
        well = version is not None and satisfies(version, each.wanted)
        required, met = required + (not each.extra), met + (well and not each.extra)
        if version is not None and not well:
            unmet.append(Finding(MISSING, each.name, f"{version}, and {each.wanted} is needed", command=line))
        elif version is None and each.extra:
            todo = "only --model alexnet-torchvision and --pipeline torch need it"
            unmet.append(Finding(NOTE, each.name, "not installed", todo, line))
        elif version is None:
            unmet.append(Finding(MISSING, each.name, "not installed", command=line))
    return [Finding(OK, "packages", f"{met} of {required} required are here and new enough"), *unmet]


def judge_driver(driver: Driver | None, why_none: str, cards: int) -> list[Finding]:
    """The driver against the cards on the bus, and how many of its GPUs CUDA will not show."""
    name = "NVIDIA driver"
    if driver is None and cards:
        found = f"does not answer ({why_none}), and the bus has {cards} NVIDIA card{'s' * (cards > 1)}"
        todo = "runs here train on the CPU; for the GPU install the driver, reboot after an update of it, or start the container with --gpus all"
        return [Finding(NOTE, name, found, todo)]
    if driver is None:
        return [Finding(NOTE, name, f"none ({why_none}): runs here train on the CPU")]
    findings = [Finding(OK, name, f"{driver.version}, serves CUDA {dotted(driver.cuda)}")]
    if hidden := driver.gpus - len(driver.visible):
        found = f"{hidden} of {driver.gpus} hidden by CUDA_VISIBLE_DEVICES"
        findings.append(Finding(NOTE, "GPUs", found, "runs here use the others, or the CPU where there are none"))
    return findings


def judge_gpu(number: int, gpu: Gpu) -> Finding:
    """One GPU against what Triton compiles for, whichever torch is installed."""
    name, found = f"GPU {number}", f"{gpu.name}, {gpu.memory_gib:g} GiB"
    if gpu.capability is None:
        return Finding(NOTE, name, f"{found}, compute capability unknown")
    found += f", compute capability {dotted(gpu.capability)}"
    if gpu.capability < min(LEAST_CAPABILITY.values()):
        return Finding(MISSING, name, found, "too old for Triton: hide it by CUDA_VISIBLE_DEVICES, or use --cpus 1")
    if gpu.capability < BF16_CAPABILITY:
        todo = f"our kernels are proven for {dotted(BF16_CAPABILITY)} and newer, and older cards have no bfloat16 arithmetic: use --precision fp32"
        return Finding(NOTE, name, found, todo)
    return Finding(OK, name, found)


def judge_torch(version: str | None, cuda: str | None, driver: Driver | None, line: str) -> list[Finding]:
    """The installed torch's CUDA against the driver and its GPUs; `line` installs a build that fits."""
    if version is None:
        return []  # judge_packages has said it
    found = f"{version}, built {f'for CUDA {cuda}' if cuda else 'without CUDA'}"
    if driver is None or not driver.visible:
        return [Finding(OK, "torch", found)]
    if cuda is None:
        return [Finding(MISSING, "torch", found, "it cannot use the GPUs: install one that can", line)]
    if driver.cuda[0] < major(cuda):
        todo = update(driver, cuda) + (", or install a torch that fits" if line else "")
        return [Finding(MISSING, "torch", found, todo, line)]
    least = LEAST_CAPABILITY.get(major(cuda), (0, 0))
    if any(gpu.capability < least for gpu in driver.visible if gpu.capability):
        todo = f"it has no code for GPUs below compute capability {dotted(least)}: install a torch that has"
        return [Finding(MISSING, "torch", found, todo, line)]
    return [Finding(OK, "torch", found)]


def judge_dali(cuda: str | None, version: str | None, driver: Driver | None, wanted: str) -> list[Finding]:
    """The installed DALI's CUDA against the driver's; `wanted` is its floor."""
    if cuda is None:
        return []  # judge_packages has said it
    found = f"{version}, built for CUDA {cuda}"
    if driver is None or not driver.visible or driver.cuda[0] >= major(cuda):
        return [Finding(OK, "DALI", found)]
    if driver.cuda[0] < OLDEST_CUDA:
        return [Finding(MISSING, "DALI", found, update(driver, cuda))]
    ours, theirs = (f"nvidia-dali-cuda{each}0" for each in (major(cuda), driver.cuda[0]))
    line = f"python -m pip uninstall -y {ours} && python -m pip install '{theirs}{wanted}'"
    return [Finding(MISSING, "DALI", found, f"{update(driver, cuda)}, or install a DALI that fits", line)]


def update(driver: Driver, cuda: str) -> str:
    """What to do about a driver that does not serve this CUDA."""
    first = FIRST_DRIVER.get(major(cuda), "a newer one")
    return f"the driver serves CUDA {dotted(driver.cuda)}: update it to {first} or newer"


def fitting_torch(driver: Driver | None, wanted: str, with_torchvision: bool) -> str:
    """The line that installs a torch which this driver and its GPUs can run; empty where there is none."""
    if driver is not None and driver.cuda[0] < OLDEST_CUDA:
        return ""
    capabilities = [gpu.capability for gpu in driver.visible if gpu.capability] if driver else []
    old_card = bool(capabilities) and min(capabilities) < LEAST_CAPABILITY[13]
    packages = f"'torch{wanted}'{' torchvision' if with_torchvision else ''}"
    line = f"python -m pip install --force-reinstall {packages}"
    if driver is None or (driver.cuda[0] >= 13 and not old_card):
        return line
    return f"{line} --index-url https://download.pytorch.org/whl/{'cu126' if old_card else 'cu128'}"


def judge_compiling(needs: Iterable[Need], told: dict[str, str]) -> list[Finding]:
    """What compiling takes; `told` has what each compiler's path answers to --version."""
    findings = []
    for need in needs:
        answer = told.get(need.found or "", "")
        version = re.findall(r"\d+\.\d+\.\d+", answer)[-1:]
        if need.found is None:
            todo, line = f"torch.compile and our own kernels need {need.name}", f"apt-get install {need.package}"
            findings.append(Finding(MISSING, need.label, "not found", todo, line))
        elif need.package == "g++" and "clang" not in answer and version and major(version[0]) < LEAST_GCC:
            todo = f"torch.compile needs g++ {LEAST_GCC} or newer"
            line = f"apt-get install g++-{LEAST_GCC} && export CXX=g++-{LEAST_GCC}"
            findings.append(Finding(MISSING, need.label, f"{need.found} {version[0]}", todo, line))
        else:
            findings.append(Finding(OK, need.label, " ".join([need.found, *version])))
    return findings


def judge_cores(usable: int, seen: int, quota: float | None) -> Finding:
    found = f"{usable} of {seen} usable" if usable < seen else str(usable)
    if usable == seen:
        return Finding(OK, "CPU cores", found)
    why = f"the control group allows {quota:g}" if quota and quota < seen else "this process's affinity allows no more"
    return Finding(NOTE, "CPU cores", found, f"{why}: decoding threads are counted from the usable ones")


def judge_ram(usable_gib: int | None, machine_gib: int | None) -> Finding:
    if usable_gib is None:
        return Finding(NOTE, "RAM", "unknown")
    if machine_gib is not None and usable_gib < machine_gib:
        return Finding(NOTE, "RAM", f"{usable_gib} of {machine_gib} GiB", "the control group allows no more")
    return Finding(OK, "RAM", f"{usable_gib} GiB")


def judge_shm(size_gib: float | None) -> list[Finding]:
    """A line only where /dev/shm is small: Docker gives 64 MiB."""
    if size_gib is None or size_gib >= SMALL_SHM_GIB:
        return []
    todo = "NCCL and --pipeline torch share memory there: start the container with --shm-size=8g or --ipc=host"
    return [Finding(NOTE, "/dev/shm", f"{1024 * size_gib:.0f} MiB", todo)]


def judge_folder(name: str, path: Path, writeable: bool, free_gib: float, elsewhere: str) -> Finding:
    found = f"{path}, {free_gib:.3g} GiB free"
    if not writeable:
        return Finding(MISSING, name, f"{path} cannot be written", elsewhere)
    if free_gib < SMALL_DISK_GIB:
        return Finding(NOTE, name, found, f"little space: {elsewhere}")
    return Finding(OK, name, found)


# --- looking ------------------------------------------------------------------------------------------------------


def examine() -> list[Finding]:
    """Every finding about this machine, in the order of the table."""
    driver = environment.driver()
    needs = environment.compiling_needs(on_gpu=bool(driver and driver.visible))
    shm_gib = shutil.disk_usage("/dev/shm").total / environment.GIB if Path("/dev/shm").is_dir() else None
    return [
        *examine_packages(),
        *examine_gpus(driver),
        *judge_compiling(needs, {need.found: answer(need.found) for need in needs if need.found}),
        judge_cores(environment.cpu_cores_usable(), os.cpu_count() or 1, environment.cpu_quota()),
        judge_ram(environment.ram_gib(), environment.machine_ram_gib()),
        *judge_shm(shm_gib),
        *examine_folders(),
    ]


def examine_packages() -> list[Finding]:
    system, python = f"{platform.system()} {platform.release()}", platform.python_version()
    try:
        wanted = metadata.metadata(PROJECT)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        line = f"python -m pip install -e {Path(__file__).parents[1]}"
        found = f"{PROJECT} is not installed, which says what else is required"
        return [*judge_system(system, python, ""), Finding(MISSING, "packages", found, command=line)]
    project = [each for each in required() if each.extra in SHOWN_EXTRAS]
    installed = {each.name: environment.version_of(each.name) for each in project}
    # DALI is one distribution for each CUDA, and any of them will do.
    installed |= {name: environment.dali()[1] for name in installed if name.startswith(environment.DALI)}
    return [*judge_system(system, python, wanted), *judge_packages(project, installed)]


def examine_gpus(driver: Driver | None) -> list[Finding]:
    why_none = environment.why_no_driver() or "it does not say which CUDA it serves"
    wanted = {"DALI" if each.name.startswith(environment.DALI) else each.name: each.wanted for each in required()}
    torch_cuda, torchvision = environment.torch_cuda(), environment.version_of("torchvision")
    line = fitting_torch(driver, wanted.get("torch", ""), torchvision is not None)
    return [
        *judge_driver(driver, why_none, environment.nvidia_cards_on_bus()),
        *(judge_gpu(number, gpu) for number, gpu in enumerate(driver.visible if driver else ())),
        *judge_torch(environment.version_of("torch"), torch_cuda, driver, line),
        *judge_dali(*environment.dali(), driver, wanted.get("DALI", "")),
    ]


def required() -> list[Requirement]:
    """What the installed project requires, by its own metadata; nothing where it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return requirements(metadata.requires(PROJECT) or [])
    return []


def answer(compiler: str) -> str:
    """The first line that a compiler answers to --version; empty for what is no program."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=5)
        return done.stdout.splitlines()[0]
    return ""


def examine_folders() -> list[Finding]:
    places = [("results", Path("results").absolute(), "run from a folder of your own, or give --table")]
    # Where the set's own requirements are missing, another line has said so.
    with contextlib.suppress(ImportError):
        from pipelines.sources.imageset import default_cache_root

        places.append(("cache", default_cache_root().absolute(), "name another folder in HARNESS_CACHE"))
    findings = []
    for name, path, elsewhere in places:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        free_gib = shutil.disk_usage(there).free / environment.GIB
        writeable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        findings.append(judge_folder(name, path, writeable, free_gib, elsewhere))
    return findings


# --- telling ------------------------------------------------------------------------------------------------------


def coloured(text: str, mark: str) -> str:
    """The text in the mark's colour, on a terminal that shows colours."""
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"{COLOURS[mark]}{text}\033[0m"


def line_width() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns)


def table(findings: Iterable[Finding], width: int) -> str:
    """A line for each finding, and below it what to do; commands and paths are never broken."""
    indent = " " * (MARK_WIDTH + NAME_WIDTH)
    lines: list[str] = []
    for each in findings:
        wrap = partial(
            textwrap.wrap, width=max(20, width - len(indent)), break_on_hyphens=False, break_long_words=False
        )
        found, *more = [*wrap(each.found), *wrap(each.todo), *([each.command] if each.command else [])]
        lines.append(f"{coloured(each.mark.ljust(MARK_WIDTH), each.mark)}{each.name:<{NAME_WIDTH}}{found}")
        lines += [indent + line for line in more]
    return "\n".join(lines)


def last_line(findings: Sequence[Finding], gpus: int, cores: int) -> str:
    missing = [each.name for each in findings if each.mark == MISSING]
    if missing:
        return f"Mend first, or a run will stumble: {', '.join(missing)}."
    where = f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"the CPU, {cores} core{'s' * (cores > 1)}"
    flag = f" --gpus {gpus}" if gpus else ""
    return f"Nothing is missing. python -m harness run{flag} trains on {where}."


def main() -> int:
    """Print the table; exit status 1 where something is missing that `run` would stumble on."""
    findings = examine()
    print(table(findings, line_width()))
    print("\n" + last_line(findings, environment.visible_gpus(), environment.cpu_cores_usable()))
    return int(any(each.mark == MISSING for each in findings))
