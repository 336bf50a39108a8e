"""The same workload with a part taken away: what its input alone and its model alone can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.measure import Workload, synchronise
from harness.trial import Alone


def input_alone(workload: Workload, seconds: float, drain: int) -> Alone:
    """Take batches and train on none. The first `drain` were decoded ahead, before the clock: they do not count."""
    for _ in range(drain):
        next(workload.batches)
    synchronise(workload.device)
    start_s = time.perf_counter()
    batches = 0
    while time.perf_counter() - start_s < seconds or batches < drain:
        next(workload.batches)
        batches += 1
        if workload.device.type == "cuda":
            # Nothing else here waits for the decoder. The stream and not the device: batches decoded ahead go on.
            torch.cuda.current_stream(workload.device).synchronize()
    return Alone(batches * workload.images_per_step, start_s, time.perf_counter())


def model_alone(workload: Workload, resident: Any, steps: int, tell: Callable[[int], None]) -> Alone:
    """Train on one resident batch, whose pixels need no input path."""
    workload.step(resident)
    synchronise(workload.device)
    start_s = time.perf_counter()
    for done in range(1, steps + 1):
        workload.step(resident)
        tell(done)
    synchronise(workload.device)
    return Alone(steps * workload.images_per_step, start_s, time.perf_counter())
