"""Probes in processes of their own: an all-reduce among ranks, which may hang and must not take the doctor along."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

from harness import environment
from harness.box.laps import Lane, lap_count, laps, one_lap_s, steady

PATIENCE_S = 40.0  # for ranks to start, meet and end, beside what they measure


def in_ranks(main: Callable[..., None], arguments: tuple[Any, ...], ranks: int, timeout_s: float) -> None:
    """`main(rank, *arguments)` in so many processes; TimeoutError or ProcessException where not all end well. None is left."""
    # It would announce, in the middle of a table, that it ends the others of a rank that failed.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    started = spawn(main, arguments, ranks, join=False, daemon=True)
    deadline_s = time.monotonic() + timeout_s
    try:
        while not started.join(timeout=0.2):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the ranks did not end within {timeout_s:g} s")
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def begin(index: int, ranks: int, backend: str, folder: str, timeout_s: float) -> torch.device:
    """Be one rank of `in_ranks` from now on, met with the others by a file in `folder`; the device that is its own."""
    # What a rank prints would tear the table; its exception is handed on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})
    torch.set_num_threads(max(1, environment.cpu_cores_usable() // ranks))
    device = torch.device("cuda", index) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/store",
        rank=index,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    return device


def all_reduce_laps(
    backend: str, ranks: int, numbers: int, seconds: float, patience_s: float = PATIENCE_S
) -> tuple[float, ...]:
    """Seconds of all-reduces of so many float32 numbers, as rank 0 saw them."""
    with tempfile.TemporaryDirectory() as folder:
        timeout_s = patience_s + 2 * seconds
        try:
            in_ranks(all_reduce_rank, (backend, ranks, numbers, seconds, timeout_s, folder), ranks, timeout_s)
        except ProcessException as error:
            raise RuntimeError(f"a rank failed: {str(error).strip().splitlines()[-1]}") from error
        return tuple(json.loads(Path(folder, "laps").read_text()))


def bus_bytes(ranks: int, size_bytes: int) -> float:
    """Bytes that each rank sends, and receives, while a ring all-reduces so many."""
    return 2 * (ranks - 1) / ranks * size_bytes


def all_reduce_rank(
    index: int, backend: str, ranks: int, numbers: int, seconds: float, timeout_s: float, folder: str
) -> None:
    """Be one rank; the first leaves its laps in `folder`."""
    device = begin(index, ranks, backend, folder, timeout_s)
    # A mean leaves the numbers as they are, where a sum would grow out of their range; gloo has none.
    kind = dist.ReduceOp.AVG if backend == "nccl" else dist.ReduceOp.SUM
    tensor = torch.randn(numbers, device=device)
    lanes = [Lane(device, lambda: dist.all_reduce(tensor, kind))]
    one_lap_s(lanes)
    # All ranks must take as many laps as the first.
    count = torch.tensor(lap_count(one_lap_s(lanes), seconds), device=device)
    dist.broadcast(count, 0)
    (lap_s,) = laps(lanes, int(count))
    if index == 0:
        Path(folder, "laps").write_text(json.dumps(steady(lap_s)))
    dist.destroy_process_group()
