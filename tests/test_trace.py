"""`--profile N`: what a person finds in the folder, and that all ranks take the same steps."""

from __future__ import annotations

import csv
import gzip
import json
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import torch

from harness import summary
from harness.measure import Workload
from harness.progress import OPERATORS, TRACE
from harness.trace import trace, write_operators

CPU = torch.device("cpu")


def multiplying() -> tuple[Workload, list[int]]:
    """A workload whose gradients are one product, and the list of its steps."""
    steps: list[int] = []
    matrix = torch.ones(64, 64)

    def gradients(_batch: None) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(len(steps))
        return (matrix @ matrix).sum(), torch.tensor(0)

    return Workload(repeat(None), gradients, lambda: None, 1, CPU), steps


def test_a_trace_has_the_phases_of_every_step_as_ranges(tmp_path: Path) -> None:
    workload, steps = multiplying()
    trace(workload, 3, tmp_path, lambda: None)
    events = json.loads(gzip.decompress((tmp_path / TRACE).read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert {name: names.count(name) for name in ("step", "wait for data", "gradients", "optimiser")} == {
        "step": 3,
        "wait for data": 3,
        "gradients": 3,
        "optimiser": 3,
    }
    assert len(steps) == 4, "one to warm up"


def test_the_heaviest_operators_are_told_and_ranges_are_none_of_them(tmp_path: Path) -> None:
    trace(multiplying()[0], 3, tmp_path, lambda: None)
    with (tmp_path / OPERATORS).open(newline="") as file:
        told = {line["operator"]: line["calls"] for line in csv.DictReader(file)}
    assert told["aten::mm"] == "3"
    assert "gradients" not in told
    assert "aten::mm" in summary.profile(tmp_path)


def test_a_rank_without_a_folder_takes_the_same_steps_and_leaves_nothing(tmp_path: Path) -> None:
    workload, steps = multiplying()
    trace(workload, 3, None, lambda: None)
    assert len(steps) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_gpus_kernels_count_once_and_not_again_for_the_operator_that_started_them(tmp_path: Path) -> None:
    def event(key: str, device: str, us: float, *, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, count=2, device_type=SimpleNamespace(name=device), self_device_time_total=us, is_user_annotation=annotation
        )  # fmt: skip

    seen = [event("aten::mm", "CPU", 3000), event("gemm", "CUDA", 3000), event("copy", "CUDA", 1000)]
    write_operators(tmp_path / OPERATORS, [*seen, event("step", "CUDA", 4000, annotation=True)], on_gpu=True)
    assert (tmp_path / OPERATORS).read_text().splitlines() == [
        "operator,calls,self_ms,share_pct",
        "gemm,2,3.000,75.0",
        "copy,2,1.000,25.0",
    ]
