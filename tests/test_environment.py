"""The machine's columns: from the real pynvml over a stand-in driver library, and from this host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in

from harness import environment

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 that knows two GPUs."""
    return stand_in.build(tmp_path_factory.mktemp("driver"))


def told(driver: Path, expression: str, **variables: str) -> object:
    """What an expression of environment is worth in a process that finds that driver."""
    program = f"import dataclasses, json; from harness import environment; print(json.dumps({expression}))"
    variables = {**os.environ, "LD_LIBRARY_PATH": str(driver), **variables}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_gpus_columns_come_from_the_driver(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert told(driver, "environment.gpu_columns(2)") == {
        "gpu_name": "Stand-in 9000",
        "gpu_memory_gib": 24.0,
        "gpu_uuids": "GPU-0 GPU-1",
        "gpu_power_limit_w": "350.0+300.0",
        "gpu_power_limit_default_w": None,
        "gpu_max_sm_clock_mhz": 1980,
        "pcie_gen_width": "4x16",
        "driver_version": "580.42",
    }


def test_the_driver_tells_the_cuda_it_serves_and_the_gpus_that_cuda_shows(driver: Path) -> None:
    served = told(driver, "dataclasses.asdict(environment.driver())", CUDA_VISIBLE_DEVICES="1", STAND_IN_CUDA="12040")
    card = {"name": "Stand-in 9000", "memory_gib": 24.0, "capability": [9, 0]}
    assert served == {"version": "580.42", "cuda": [12, 4], "gpus": 2, "visible": [card]}
    assert told(driver, "environment.why_no_driver()") is None


def test_one_gpu_is_told_of_itself_alone(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    columns = told(driver, "environment.gpu_columns(1)")
    assert isinstance(columns, dict)
    assert (columns["gpu_uuids"], columns["gpu_power_limit_w"]) == ("GPU-0", 350.0)


def test_cuda_visible_devices_chooses_the_gpu(driver: Path) -> None:
    assert told(driver, "environment.gpu_columns(1)['gpu_uuids']", CUDA_VISIBLE_DEVICES="1") == "GPU-1"
    assert told(driver, "environment.gpu_columns(1)['gpu_uuids']", CUDA_VISIBLE_DEVICES="GPU-1") == "GPU-1"


def test_asking_for_more_gpus_than_the_driver_has_says_how_many_there_are(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    variables = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness", "run", "--gpus", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--gpus 3 was asked and 2 GPUs were found: ask for --gpus 2, or try --cpus 3" in done.stderr


FOUR = ("GPU-a1", "GPU-a2", "GPU-b3", "MIG-c4")


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        ("1, 3", [1, 3]),
        ("0,9,1", [0]),
        ("-1", []),
        ("GPU-b,1", [2, 1]),
        ("GPU-a,1", []),
        ("GPU-zz", []),
        ("0,MIG-c4", [0, 3]),
    ],
)
def test_visible_gpus_follow_cudas_rule(selection: str | None, expected: list[int]) -> None:
    assert environment.visible(FOUR, selection) == expected


def test_without_a_driver_there_are_no_gpus_and_no_columns(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    assert told(tmp_path, "[environment.visible_gpus(), environment.gpu_columns(1)]") == [0, {}]
    assert told(tmp_path, "environment.driver()") is None
    assert told(tmp_path, "environment.why_no_driver()") == "NVML Shared Library Not Found"


def test_the_host_is_told_without_torch() -> None:
    columns = environment.machine(0, ROOT)
    assert columns["cpu_cores_usable"] >= 1
    assert columns["ram_gib"] >= 1
    assert columns["torch"] is not None
    assert columns["dali_cuda"] == "12.0"
    assert columns["data_filesystem"]
    assert "gpu_name" not in columns


def test_versions_read_without_importing_torch_are_the_ones_torch_tells() -> None:
    import torch

    assert environment.version_of("torch") == torch.__version__.partition("+")[0]
    assert environment.torch_cuda() == torch.version.cuda
