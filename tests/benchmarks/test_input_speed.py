"""How many images a second the input gives, alone: `pytest --benchmark-only -k input`."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import pytest
import torch

import pipelines
from pipelines.dataset import open_embedded_set
from pipelines.sources import Split, open_folder

BATCH, DTYPE = 64, "float32"
CPU_CASES = [
    ("dali", "cpu", "rrc"),
    ("dali", "cpu", "rrc+jitter"),
    ("dali", "cpu", "paper"),
    ("torch", "cpu", "rrc"),
]
GPU_CASES = [
    pytest.param(case, marks=pytest.mark.gpus(1)) for case in (("dali", "cuda:0", "rrc"), ("dali", "cuda:0", "paper"))
]


def case_id(case: tuple[str, str, str]) -> str:
    pipeline, device, augment = case
    return f"{pipeline}-{augment}-{device}-batch{BATCH}-{DTYPE}"


@pytest.fixture(scope="module")
def split(request: pytest.FixtureRequest) -> Split:
    data = request.config.getoption("--data")
    return (open_folder(data) if data else open_embedded_set()).train


@pytest.mark.benchmark(group="input")
@pytest.mark.parametrize("case", [*CPU_CASES, *GPU_CASES], ids=case_id)
def test_input_alone(benchmark: Any, split: Split, case: tuple[str, str, str]) -> None:
    """Rounds of four batches each, after the queues have filled; on a GPU up to the images' arrival."""
    pipeline, device, augment = case
    asked = {
        "split": split,
        "images_per_batch": BATCH,
        "augment": augment,
        "device": device,
        "dtype": DTYPE,
        "threads": len(os.sched_getaffinity(0)),
        "decode": "cpu" if device == "cpu" else "mixed",
    }
    batches_a_round = 4  # as many as wait in the peer's queues
    with closing(pipelines.create(pipeline, **asked)) as batches:

        def take() -> None:
            for _ in range(batches_a_round):
                next(batches)
            if device != "cpu":
                torch.cuda.synchronize()

        benchmark.pedantic(take, rounds=3, iterations=1, warmup_rounds=1)
    benchmark.extra_info["images_per_s"] = batches_a_round * BATCH / benchmark.stats.stats.median
