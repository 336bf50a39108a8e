"""`--profile N`: a trace of N steps with the loop's phases as ranges, and the operators that took longest."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from harness.measure import Workload, synchronise
from harness.progress import OPERATORS, TRACE

HEAVIEST = 10


def trace(workload: Workload, steps: int, folder: Path | None, before_writing: Callable[[], None]) -> None:
    """Take a step, then `steps` that are profiled; the trace and its operators into `folder`. Without one: just the steps.

    Ranks must take the same steps, and one of them is enough to look at.
    """
    phased(workload)
    synchronise(workload.device)
    if folder is None:
        for _ in range(steps):
            phased(workload)
        synchronise(workload.device)
        return
    on_gpu = workload.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        for _ in range(steps):
            phased(workload)
        synchronise(workload.device)
    before_writing()
    seen.export_chrome_trace(str(folder / TRACE))
    write_operators(folder / OPERATORS, seen.key_averages(), on_gpu=on_gpu)


def phased(workload: Workload) -> None:
    """One step, its phases named as in a Window."""
    with record_function("step"):
        with record_function("wait for data"):
            batch = next(workload.batches)
        with record_function("gradients"):
            workload.gradients(batch)
        with record_function("optimiser"):
            workload.update()


def write_operators(path: Path, averages: Any, *, on_gpu: bool) -> None:
    """The heaviest operators by the time of their own on the device, the heaviest first."""
    # A GPU's kernels stand in the list for themselves and again for the operator that started them; ranges stand for what is in them.
    shown = [each for each in averages if not each.is_user_annotation]
    if on_gpu:
        shown = [each for each in shown if each.device_type.name == "CUDA"]
    timed = [(each.self_device_time_total if on_gpu else each.self_cpu_time_total, each) for each in shown]
    operators = sorted(timed, key=lambda pair: -pair[0])
    total_us = sum(us for us, _ in operators)
    with path.open("w", newline="") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(("operator", "calls", "self_ms", "share_pct"))
        for us, each in operators[:HEAVIEST]:
            write((each.key, each.count, f"{us / 1000:.3f}", f"{100 * us / total_us:.1f}" if total_us else ""))
