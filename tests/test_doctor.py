"""What a machine has and lacks: judged on literals, and told by the command on this machine and on a stand-in's GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import stand_in

from harness import doctor
from harness.doctor import MISSING, NOTE, OK, Finding, Requirement
from harness.environment import Driver, Gpu, Need

ROOT = Path(__file__).parents[1]
HOPPER, TURING, VOLTA, PASCAL = (Gpu("a card", 24, capability) for capability in ((9, 0), (7, 5), (7, 0), (6, 1)))
LINE = "the line that installs a torch"


def driver(cuda: tuple[int, int] = (13, 0), *gpus: Gpu, hidden: int = 0) -> Driver:
    return Driver("555.42", cuda, len(gpus or (HOPPER,)) + hidden, gpus or (HOPPER,))


def marks(findings: list[Finding]) -> list[str]:
    return [each.mark for each in findings]


# --- judgements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "well"),
    [
        ("2.14.1+cu130", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("2.10.0", ">=2.10", True),
        ("2.10", ">=2.10.0", True),
        ("3.14.0", "<3.14,>=3.11", False),
        ("3.13.7", "<3.14,>=3.11", True),
        ("3.10.12", "<3.14,>=3.11", False),
        ("12.560.30", ">=12.560", True),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, well: bool) -> None:
    assert doctor.satisfies(version, wanted) == well


def test_the_floors_are_the_projects_own_metadata_and_none_is_overlooked() -> None:
    lines = metadata.requires("alexnet-harness")
    assert lines is not None
    read = doctor.requirements(lines)
    others = [line for line in lines if not any(re.match(rf"{re.escape(each.name)}\b(?!\[)", line) for each in read)]
    assert [re.sub(r"\[.*", "", line) for line in others] == ["alexnet-harness"] * len(others)
    assert all(re.fullmatch(r"((>=|<)[\d.]+,?)+", each.wanted) for each in read)
    assert {"torch", "nvidia-dali-cuda120", "rich"} <= {each.name for each in read if not each.extra}
    assert {each.name for each in read if each.extra == "peer"} == {"torchvision"}


def test_markers_and_extras_are_read_from_requirements() -> None:
    lines = [
        "dali>=2.2; sys_platform == 'linux'",
        'torchvision>=0.25; extra == "peer"',
        'us[peer]; extra == "dev"',
        "rich",
    ]
    assert doctor.requirements(lines) == [
        Requirement("dali", ">=2.2"),
        Requirement("torchvision", ">=0.25", "peer"),
        Requirement("rich", ""),
    ]


def test_a_package_below_its_floor_is_missing_and_its_line_has_the_floor() -> None:
    wanted = [
        Requirement("torch", ">=2.10"),
        Requirement("rich", ">=13.7"),
        Requirement("torchvision", ">=0.25", "peer"),
    ]
    summary, old, absent, extra = doctor.judge_packages(wanted, {"torch": "2.9.1"})
    assert summary.found.startswith("0 of 2")
    assert (old.mark, old.found) == (MISSING, "2.9.1, and >=2.10 is needed")
    assert old.command == "python -m pip install 'torch>=2.10'"
    assert (absent.mark, absent.name, absent.found) == (MISSING, "rich", "not installed")
    assert (extra.mark, extra.name) == (NOTE, "torchvision")


def test_another_system_or_python_is_said() -> None:
    assert marks(doctor.judge_system("Linux 6.1", "3.12.1", "<3.14,>=3.11")) == [OK, OK]
    system, python = doctor.judge_system("Darwin 24", "3.10.1", "<3.14,>=3.11")
    assert (system.mark, python.mark) == (MISSING, MISSING)
    assert "Linux" in system.todo
    assert "<3.14,>=3.11" in python.todo


def test_a_driver_too_old_for_torchs_cuda_names_the_first_that_is_not() -> None:
    (finding,) = doctor.judge_torch("2.14.1", "13.0", driver((12, 4)), LINE)
    assert (finding.mark, finding.command) == (MISSING, LINE)
    assert "serves CUDA 12.4: update it to 580 or newer" in finding.todo


@pytest.mark.parametrize(
    ("cuda", "machine", "mark"),
    [
        ("12.8", driver((12, 0)), OK),  # one major version: NVIDIA's minor version compatibility
        ("12.8", driver((13, 0)), OK),
        ("13.0", driver((13, 2)), OK),
        ("13.0", driver((12, 9)), MISSING),
        ("13.0", driver((13, 0), HOPPER, VOLTA), MISSING),
        ("12.6", driver((13, 0), VOLTA), OK),
        (None, driver((13, 0)), MISSING),
        (None, None, OK),
        ("13.0", None, OK),
    ],
)
def test_torchs_cuda_is_judged_against_the_driver_and_its_gpus(
    cuda: str | None, machine: Driver | None, mark: str
) -> None:
    assert marks(doctor.judge_torch("2.14.1", cuda, machine, LINE)) == [mark]


def test_a_driver_that_no_usable_torch_or_dali_runs_on_is_to_be_updated() -> None:
    (torch,) = doctor.judge_torch(
        "2.14.1", "13.0", driver((11, 8)), doctor.fitting_torch(driver((11, 8)), ">=2.10", False)
    )
    (dali,) = doctor.judge_dali("12.0", "2.4.0", driver((11, 8)), ">=2.2")
    assert (torch.command, dali.command) == ("", "")
    assert "update it to 580 or newer" in torch.todo
    assert "install" not in torch.todo
    assert "update it to 525 or newer" in dali.todo


def test_hidden_gpus_ask_nothing_of_torch_or_dali() -> None:
    hidden = Driver("555.42", (12, 4), 2, ())
    assert marks(doctor.judge_torch("2.14.1", "13.0", hidden, LINE)) == [OK]
    assert marks(doctor.judge_dali("13.0", "2.4.0", hidden, ">=2.2")) == [OK]
    assert "2 of 2 hidden by CUDA_VISIBLE_DEVICES" in doctor.judge_driver(hidden, "", 2)[1].found


@pytest.mark.parametrize(
    ("machine", "index"),
    [
        (driver((13, 0)), None),
        (None, None),
        (driver((12, 4)), "cu128"),
        (driver((12, 4), VOLTA), "cu126"),
        (driver((13, 0), VOLTA), "cu126"),
    ],
)
def test_the_torch_that_fits_comes_from_the_index_of_its_cuda(machine: Driver | None, index: str | None) -> None:
    line = doctor.fitting_torch(machine, ">=2.10", with_torchvision=True)
    assert line.startswith("python -m pip install --force-reinstall 'torch>=2.10' torchvision")
    assert line.partition("--index-url ")[2] == (f"https://download.pytorch.org/whl/{index}" if index else "")


@pytest.mark.parametrize(("gpu", "mark"), [(HOPPER, OK), (TURING, NOTE), (VOLTA, NOTE), (PASCAL, MISSING)])
def test_a_card_too_old_for_triton_is_missing_and_one_without_bfloat16_is_noted(gpu: Gpu, mark: str) -> None:
    assert doctor.judge_gpu(0, gpu).mark == mark


def test_dali_for_a_cuda_that_the_driver_does_not_serve_is_swapped_not_added() -> None:
    (finding,) = doctor.judge_dali("13.0", "2.4.0", driver((12, 8)), ">=2.2")
    assert finding.mark == MISSING
    assert finding.command == (
        "python -m pip uninstall -y nvidia-dali-cuda130 && python -m pip install 'nvidia-dali-cuda120>=2.2'"
    )
    assert marks(doctor.judge_dali("12.0", "2.4.0", driver((13, 0)), ">=2.2")) == [OK]


def test_a_card_whose_driver_does_not_answer_is_noted_with_nvmls_words() -> None:
    (finding,) = doctor.judge_driver(None, "Driver/library version mismatch", 2)
    assert finding.mark == NOTE
    assert "Driver/library version mismatch" in finding.found
    assert "2 NVIDIA cards" in finding.found
    assert "reboot" in finding.todo


def compiler(found: str | None) -> Need:
    return Need(found, "C++ compiler", "the C++ compiler g++", "g++")


def test_a_missing_compiler_and_missing_headers_come_with_apt_gets_lines() -> None:
    headers = Need(None, "Python.h", "Python's headers (no Python.h in /usr)", "python3.12-dev")
    first, second = doctor.judge_compiling([compiler(None), headers], {})
    assert (first.mark, first.command) == (MISSING, "apt-get install g++")
    assert (second.mark, second.command) == (MISSING, "apt-get install python3.12-dev")
    assert "no Python.h in /usr" in second.todo


@pytest.mark.parametrize(
    ("answer", "mark", "version"),
    [
        ("g++ (Debian 12.2.0-14) 12.2.0", OK, "12.2.0"),
        ("g++ (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0", MISSING, "9.4.0"),
        ("Debian clang version 9.0.1", OK, "9.0.1"),
        ("", OK, ""),
    ],
)
def test_a_gpp_without_cpp20_is_missing(answer: str, mark: str, version: str) -> None:
    (finding,) = doctor.judge_compiling([compiler("/usr/bin/g++")], {"/usr/bin/g++": answer})
    assert finding.mark == mark
    assert finding.found == f"/usr/bin/g++ {version}".strip()


def test_fewer_cores_than_the_machine_has_are_noted_with_the_reason() -> None:
    assert doctor.judge_cores(8, 8, None) == Finding(OK, "CPU cores", "8")
    assert doctor.judge_cores(2, 64, 2.5).found == "2 of 64 usable"
    assert "control group allows 2.5" in doctor.judge_cores(2, 64, 2.5).todo
    assert "affinity" in doctor.judge_cores(2, 64, None).todo


def test_memory_shared_memory_and_disk_are_noted_where_they_are_small() -> None:
    assert doctor.judge_ram(8, 64).found == "8 of 64 GiB"
    assert doctor.judge_ram(64, 64).mark == OK
    (shm,) = doctor.judge_shm(0.0625)
    assert (shm.mark, shm.found) == (NOTE, "64 MiB")
    assert doctor.judge_shm(32.0) == doctor.judge_shm(None) == []
    assert doctor.judge_folder("results", Path("results"), True, 0.2, "elsewhere").mark == NOTE
    assert doctor.judge_folder("results", Path("results"), False, 9, "elsewhere").mark == MISSING


def test_the_table_breaks_sentences_at_its_width_and_never_a_command() -> None:
    command = "python -m pip install " + "x" * 90
    text = doctor.table([Finding(MISSING, "torch", "found " * 20, "to do " * 20, command)], 80)
    assert "\033" not in text
    assert command in [line.strip() for line in text.splitlines()]
    assert all(len(line) <= 80 for line in text.splitlines() if command not in line)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver library that knows two GPUs."""
    return stand_in.build(tmp_path_factory.mktemp("driver"))


def told(folder: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Exit status and output of doctor, run in that folder."""
    command = [sys.executable, "-m", "harness", "doctor", *words]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CUDA_VISIBLE_DEVICES", "COLUMNS", "CXX", "CC")
    }
    variables = {**kept, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_missing_where_the_tests_run(tmp_path: Path) -> None:
    status, text = told(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert status == 0, text
    assert text.splitlines()[-1].startswith("Nothing is missing. python -m harness run trains on the CPU")
    for name in (
        "system",
        "Python",
        "packages",
        "torch",
        "DALI",
        "C++ compiler",
        "Python.h",
        "CPU cores",
        "RAM",
        "results",
        "cache",
    ):
        assert re.search(rf"^(ok|note) +{re.escape(name)} ", text, re.M), name
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_the_drivers_gpus_are_told(two_gpus: Path, tmp_path: Path) -> None:
    status, text = told(tmp_path, LD_LIBRARY_PATH=str(two_gpus))
    assert status == 0, text
    assert "580.42, serves CUDA 13.0" in text
    assert "GPU 1           Stand-in 9000, 24 GiB, compute capability 9.0" in text
    assert "run --gpus 2 trains on 2 GPUs" in text


def test_an_old_driver_under_old_cards_gives_a_line_that_installs_a_torch_for_both(
    two_gpus: Path, tmp_path: Path
) -> None:
    status, text = told(tmp_path, LD_LIBRARY_PATH=str(two_gpus), STAND_IN_CUDA="12020", STAND_IN_CAPABILITY="70")
    assert status == 1
    assert "the driver serves CUDA 12.2" in " ".join(text.split())
    assert "--index-url https://download.pytorch.org/whl/cu126" in text
    assert "a run will stumble: torch." in text


def test_what_cannot_be_written_and_what_is_not_there_end_in_1(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    status, text = told(tmp_path, CXX="no-such-compiler", CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert "a run will stumble: C++ compiler, results." in text
    assert "apt-get install g++" in text


def test_pictures_without_certify_are_refused(tmp_path: Path) -> None:
    assert told(tmp_path, "--data", ".")[0] == 2
