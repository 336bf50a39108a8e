"""The ranks of one launch on this machine: fresh processes under torch's elastic agent, and why they ended."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.environment import children_of
from harness.folders import LAUNCHER, LOST_THE_OTHERS, read_rank
from harness.progress import PHASES, Display, last_phase

PORT_TRIES = 3
# A rank that is asked to stop ends its step and writes what it has; one stuck for longer is killed.
SHUTDOWN_S = 25
SAVING_S = 120  # and where it saves itself first
ORPHANS_S = 5.0
# NVML numbers GPUs by their bus and CUDA by their speed: without this a row may name a card that did not run.
GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def run_ranks(config: RunConfig, run_folder: Path, display: Display) -> tuple[str, int]:
    """Start the ranks and wait for their end; (why the job failed or "", the signal that stopped it or 0)."""
    failure, stopped_by = "", 0
    for attempt in range(1, PORT_TRIES + 1):
        display.follow(run_folder / "progress.jsonl")
        failure, stopped_by = run_agent(config, run_folder, attempt)
        if "EADDRINUSE" not in failure and "address already in use" not in failure.lower():
            break
    return failure, stopped_by


def run_agent(config: RunConfig, run_folder: Path, attempt: int) -> tuple[str, int]:
    """One job of torch's elastic agent, on this machine's loopback."""
    # Imported here: it brings torch, and bad input should be answered before that.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Some of its loggers have levels of their own.
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    overlook_the_timer()
    logs = run_folder / "logs" / str(attempt)
    logs.mkdir(parents=True)
    job = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.ranks,
        run_id=run_folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=config.max_restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        shutdown_timeout=SAVING_S if config.checkpoint_every else SHUTDOWN_S,
    )
    # The agent puts in handlers of its own and leaves them.
    handlers = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        with rank_environment(config), without_orphans():
            elastic_launch(job, sys.executable)("-m", "harness.rank", str(run_folder))
    except SignalException as stopped:
        return "", int(stopped.sigval)
    except ChildFailedError as error:
        return why_ranks_failed(error.failures, run_folder), 0
    except (RuntimeError, OSError) as error:
        return f"the ranks could not be started: {(str(error) or type(error).__name__).splitlines()[0]}", 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return "", 0


def overlook_the_timer() -> None:
    """Have this process print nothing where the rendezvous of torch's agent is freed by its own timer's thread.

    That thread then tries to join itself, and Python prints a traceback about it, though the thread ends all the same.
    """
    told_before = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "cannot join current thread":
            told_before(unraisable)

    if getattr(told_before, "__name__", "") != tell.__name__:
        sys.unraisablehook = tell


@contextlib.contextmanager
def without_orphans() -> Iterator[None]:
    """Nothing that the body has started is left after it: the compilers of a rank that was killed become ours, and end."""
    ours = set(children_of())
    pr_set_child_subreaper, libc = 36, ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None:
        libc.prctl(pr_set_child_subreaper, 1)
    try:
        yield
    finally:
        end_s = time.monotonic() + ORPHANS_S
        while (left := set(children_of()) - ours) and time.monotonic() < end_s:
            for process in left:
                # What it has started becomes ours in turn.
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, os.WNOHANG)
            time.sleep(0.02)


@contextlib.contextmanager
def rank_environment(config: RunConfig) -> Iterator[None]:
    """The environment that the ranks inherit; put back afterwards."""
    root = str(Path(__file__).parents[1])
    changes = {
        "OMP_NUM_THREADS": str(config.torch_threads),
        # -m looks in the current folder first, where another `models` may lie: the ranks must find ours.
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
        LAUNCHER: str(os.getpid()),
        # Ranks that start again while the agent's store serves them too mostly fail to meet over gloo.
        **({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if config.max_restarts else {}),
        **GPU_ORDER,
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def why_ranks_failed(failures: dict[int, Any], run_folder: Path) -> str:
    """Why the job failed: the words of the first rank that had any, else which died, how and when."""
    order = sorted(failures, key=lambda rank: (rank_order(read_rank(run_folder, rank)), failures[rank].timestamp))
    rank = order[0]
    left, failure = read_rank(run_folder, rank), failures[rank]
    if left["failure"]:
        return str(left["failure"])
    if left["trial"] is not None:
        # It ended in good order (out of memory, say), and its trial says how.
        return ""
    how = f"exit status {failure.exitcode}"
    if failure.exitcode < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-failure.exitcode).name
        if how == "SIGBUS":
            how += " (a shard was shortened while it was read, or memory shared with it ran out)"
    phase = PHASES[last_phase(run_folder / "progress.jsonl")]
    return f"rank {rank} ended by {how} while {phase}; see {run_folder / 'logs'}"


def rank_order(left: dict[str, Any]) -> int:
    """Whose end explains the job's: one with words of its own, then one without any, then one that the others' end took along."""
    if LOST_THE_OTHERS in left["failure"] or (left["trial"] is not None and left["trial"]["interrupted"]):
        return 2
    return 0 if left["failure"] or left["trial"] is not None else 1
