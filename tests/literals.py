"""Trials, records and rows as literals, for tests to change one thing of."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from harness.config import RunConfig
from harness.rows import SCHEMA_VERSION
from harness.trial import Alone, Evaluation, RankTrial, Trial, Window

TEN_CLASSES = math.log(10)
PARAMETERS_MOVED = {"conv1.weight": 0.01, "fc8.bias": 0.002}

MACHINE = {
    "cpu_name": "Example 9000", "cpu_cores_usable": 16, "ram_gib": 128, "os": "Linux 6.8", "numa_nodes": 1,
    "gpu_name": "Example GPU", "gpu_memory_gib": 80.0, "gpu_power_limit_w": 700, "gpu_link": "NVLink",
    "pcie_gen_width": "5x16", "driver_version": "580.10", "torch": "2.14.1", "torch_cuda": "13.0", "dali": "2.4.0",
    "dali_cuda": "12.0", "triton": "3.8.0", "cudnn": "9.1", "nccl": "2.28", "python": "3.12.1", "harness": "0.1.0",
    "git_commit": "0123abc",
}  # fmt: skip
DATASET = {
    "dataset_id": "embedded-v1", "source_form": "jpeg", "classes": 10, "train_images": 2048, "val_images": 512,
}  # fmt: skip


def window_of(steps: int = 10, step_ms: float = 100.0, wait_ms: float = 1.0, start_s: float = 50.0) -> Window:
    return Window(start_s, start_s + steps * step_ms / 1000, (step_ms,) * steps, (wait_ms,) * steps)


def rank_of(rank: int = 0, **changes: Any) -> RankTrial:
    """Ten timed steps of 100 ms after five of warm-up, 32 images a step: 320 images/s."""
    plain = RankTrial(
        rank=rank,
        images_per_step=32,
        warmup_steps=5,
        settled=True,
        windows=(window_of(),),
        losses=(TEN_CLASSES,) * 15,
        correct=(4,) * 15,
        indices_count=320,
        indices_digest=f"digest of rank {rank}",
        index_repeats_max=1,
        shard_images=1024,
        label_counts=(48,) * 10,
        pixel_min=-120.0,
        pixel_max=140.0,
        parameter_change_max=PARAMETERS_MOVED,
        evaluations=(Evaluation(step=15, images=256, top1_correct=64, top5_correct=192),),
        alone={"input": Alone(640, 60.0, 61.0), "model": Alone(400, 62.0, 63.0)},
        first_batch_s=0.5,
        compile_s=12.0,
        host_peak_rss_bytes=2**30,
    )
    return replace(plain, **changes)


def trial_of(*ranks: RankTrial, **changes: Any) -> Trial:
    seen = ranks or (rank_of(),)
    plain = Trial(
        classes=10,
        train_images=2048,
        ranks_asked=len(seen),
        ranks_share_cores_with_input=False,
        ranks=seen,
    )
    return replace(plain, **changes)


def record_of(
    trial: Trial | None = None,
    *,
    asked: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What one launch of one GPU leaves; each keyword changes one part of it."""
    config = RunConfig(gpus=1, images_per_gpu=32, compile="on", dali_threads=8)
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": "run-1",
        "group_id": "group-1",
        "launch": 1,
        "started_at": "2026-01-01T00:00:00Z",
        "asked": {**config.columns(), **(asked or {})},
        "dataset": {**DATASET, **(dataset or {})},
        "machine": {**MACHINE, **(machine or {})},
        "trial": asdict(trial or trial_of()),
        **changes,
    }


def launch_of(images_per_s: float, **changes: Any) -> dict[str, Any]:
    """A record whose launch ran at this speed and is believable in everything."""
    step_ms = 32_000 / images_per_s
    return record_of(trial_of(rank_of(windows=(window_of(step_ms=step_ms),))), **changes)
