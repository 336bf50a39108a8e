"""One launch: fresh processes, a rank each, under torch's elastic agent; what they saw becomes a record."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pipelines
from harness import environment
from harness.config import AskedWrongly, RunConfig
from harness.progress import PHASES, Display, last_phase
from harness.rows import SCHEMA_VERSION
from harness.trial import RankTrial, Trial, from_json
from pipelines.sources.imageset import ImageSet
from pipelines.sources.s3 import SCHEME

PORT_TRIES = 3
# A rank that is asked to stop ends its step and writes what it has; one stuck for longer is killed.
SHUTDOWN_S = 60
# NVML numbers GPUs by their bus and CUDA by their speed: without this a row may name a card that did not run.
GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def resolve(config: RunConfig, cores: int, gpus: int, *, fusible: bool = True, compiler: bool = True) -> RunConfig:
    """Every "auto" as a number for this machine, of `cores` usable cores and `gpus` visible GPUs.

    `fusible`: the model has layers for the fused block; `compiler`: there is one for C++, which the block needs on a CPU.
    """
    if config.gpus is None and config.cpus is None:
        config = config.with_(gpus=1, cpus=0) if gpus else config.with_(gpus=0, cpus=1)
    config = config.with_(gpus=config.gpus or 0, cpus=config.cpus or 0)
    threads = max(1, cores // config.ranks)
    decode = config.decode or ("mixed" if config.on_gpu and config.pipeline == "dali" else "cpu")
    automatic: dict[str, Any] = {
        "compile": "on",
        "block": "fused" if fusible and (config.on_gpu or compiler) else "plain",
        "decode": decode,
        # More than eight host threads a GPU do not speed the GPU's decoder up: it does the work.
        "dali_threads": min(threads, 8) if decode == "mixed" else threads,
        "torch_threads": threads,
        "prefetch": 2,
        "hw_decoder_load": 0.65 if decode == "mixed" else None,
        "bucket_mib": 25,
    }
    return config.with_(**{name: value for name, value in automatic.items() if getattr(config, name) is None})


@dataclass(frozen=True)
class Launch:
    """One launch of a group: `number` counts from 1, and only the first measures the parts alone."""

    config: RunConfig
    images: ImageSet
    group_id: str
    number: int
    run_id: str
    started_at: str
    folder: Path

    @classmethod
    def new(cls, config: RunConfig, images: ImageSet, table: Path, group_id: str, number: int) -> Launch:
        now = datetime.now(UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        folder = table.parent / "runs" / run_id
        return cls(config, images, group_id, number, run_id, now.isoformat(timespec="seconds"), folder)

    def write_asked(self) -> None:
        """Leave in the run folder what every rank must know."""
        self.folder.mkdir(parents=True)
        config = {field.name: getattr(self.config, field.name) for field in fields(self.config)}
        asked = {"config": config, "classes": len(self.images.classes), "limits": self.number == 1}
        (self.folder / "asked.json").write_text(json.dumps(asked))

    def record(self, failure: str = "", stopped_by: int = 0) -> dict[str, Any]:
        """Everything a row is told from, `rows.row_of` says how."""
        images = self.images
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "group_id": self.group_id,
            "launch": self.number,
            "started_at": self.started_at,
            "asked": self.config.columns(),
            "dataset": {
                "dataset_id": images.dataset_id,
                "source_form": images.source_form,
                "statistics_id": images.statistics.statistics_id if images.statistics else None,
                "classes": len(images.classes),
                "train_images": len(images.train),
                "val_images": len(images.val) if images.val else 0,
                "excluded_images": images.excluded,
            },
            "machine": environment.machine(self.config.gpus or 0, Path(images.train.files[0]).parent),
            "trial": asdict(collect(self.config, images, self.folder, failure, stopped_by)),
        }

    def tidy(self) -> None:
        """Take away what the record now holds; logs stay."""
        for path in (*self.folder.glob("rank-*.json"), self.folder / "asked.json", self.folder / "progress.jsonl"):
            path.unlink(missing_ok=True)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def new_group_id() -> str:
    return secrets.token_hex(4)


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
    """One job of torch's elastic agent, on this machine's loopback, without restarts."""
    # Imported here: it brings torch, and bad input should be answered before that.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        shutdown_timeout=SHUTDOWN_S,
    )
    # The agent puts in handlers of its own and leaves them.
    handlers = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        with rank_environment(config):
            elastic_launch(job, sys.executable)("-m", "harness.train", str(run_folder))
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


@contextlib.contextmanager
def rank_environment(config: RunConfig) -> Iterator[None]:
    """The environment that the ranks inherit; put back afterwards."""
    root = str(Path(__file__).parents[1])
    changes = {
        "OMP_NUM_THREADS": str(config.torch_threads),
        # -m looks in the current folder first, where another `models` may lie: the ranks must find ours.
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
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
    """The sentence of the rank that ended first: its own words where it left some, else how it died and when."""
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    left = read_rank(run_folder, rank)
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


def read_rank(run_folder: Path, rank: int) -> dict[str, Any]:
    """What a rank left behind: its failure in words, its trial; neither if it left nothing."""
    with contextlib.suppress(OSError, ValueError):
        left: dict[str, Any] = json.loads((run_folder / f"rank-{rank}.json").read_text())
        return left
    return {"failure": "", "trial": None}


def collect(config: RunConfig, images: ImageSet, run_folder: Path, failure: str, stopped_by: int) -> Trial:
    """The ranks' files as one Trial. Ranks that left none make it a failed one, with the reason."""
    left = [read_rank(run_folder, rank) for rank in range(config.ranks)]
    trials = [from_json(RankTrial, each["trial"]) for each in left if each["trial"] is not None]
    failure = failure or next((each["failure"] for each in left if each["failure"]), "")
    # The ranks beside one that ran out of memory are ended by the agent: its trial is the reason.
    explained = failure or stopped_by or any(trial.out_of_memory for trial in trials)
    if len(trials) < config.ranks and not explained:
        failure = f"only {len(trials)} of {config.ranks} ranks left a trial"
    return Trial(
        classes=len(images.classes),
        train_images=len(images.train),
        ranks_asked=config.ranks,
        ranks_share_images=False,
        ranks_share_cores_with_input=not config.on_gpu,
        ranks=tuple(trials),
        failure=failure,
    )


def check_shape(config: RunConfig, train_images: int) -> None:
    """AskedWrongly where these ranks cannot do what was asked of them."""
    if config.decode == "mixed" and not config.on_gpu:
        raise AskedWrongly("--decode mixed was asked and the ranks are CPUs: ask for --decode cpu, or for --gpus")
    if train_images < config.ranks:
        raise AskedWrongly(
            f"{config.ranks} ranks were asked and {train_images} training images were found: use fewer ranks"
        )


def check_images(config: RunConfig, images: ImageSet) -> None:
    """AskedWrongly where these images cannot be shown as was asked."""
    if images.train.square and config.augment in pipelines.RANDOM_RESIZED:
        raise AskedWrongly(pipelines.no_random_resized(config.augment, images.train.square))
    side = pipelines.resized_side(config.image_size)
    if images.statistics and images.statistics.side != side:
        raise AskedWrongly(
            f"--statistics {config.statistics} has a mean image of {images.statistics.side} pixels and {config.model} cuts its "
            f"{config.image_size} out of {side}: measure with `data statistics --side {side}`"
        )
    if config.pipeline == "torch" and images.train.files[0].startswith(SCHEME):
        raise AskedWrongly(
            "--pipeline torch was asked and its decoder reads no s3:// addresses: ask for --pipeline dali"
        )


def check_gpus(asked: int | None, found: int) -> None:
    if asked and asked > found:
        raise AskedWrongly(
            f"--gpus {asked} was asked and {found} {'GPU was' if found == 1 else 'GPUs were'} found: "
            f"ask for {f'--gpus {found}' if found else 'CPU ranks'}, or try --cpus {asked}"
        )


def cpu_multiplies_bf16() -> bool:
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & environment.cpu_flags())


def plan(config: RunConfig) -> str:
    """What is about to run, and the minutes it may take."""
    ranks = (
        f"{config.gpus} GPU{'s' if config.ranks > 1 else ''}"
        if config.on_gpu
        else f"{config.cpus} CPU rank{'s' if config.ranks > 1 else ''}"
    )
    length = next(
        f"{getattr(config, name):g} {word}"
        for name, word in (("steps", "timed steps"), ("timed_seconds", "timed seconds"), ("epochs", "epochs"))
        if getattr(config, name) is not None
    )
    text = f"{config.recipe}: {config.model} in {config.precision} on {ranks}, {config.images_per_gpu} images a rank, {length}, {config.launches} launch{'es' if config.launches > 1 else ''}"
    if config.timed_seconds is None:
        return text
    # Start, compile and settle take about a minute, evaluation and the parts alone about half of one more.
    minutes = (config.launches * (config.timed_seconds + 60) + 30) / 60
    return f"{text}; about {minutes:.0f} minutes"


def inside_a_job() -> bool:
    """Whether another launcher (torchrun) has made this process one rank of its job."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"))


def join(config: RunConfig, table: Path) -> tuple[Launch, int]:
    """Be one rank of torchrun's job on one machine; the launch that rank 0 makes a row of, and this rank's index."""
    import torch.distributed as dist

    from harness import train
    from harness.images import open_images

    world = int(os.environ["WORLD_SIZE"])
    if config.ranks != world:
        kind = "--gpus" if config.on_gpu else "--cpus"
        raise AskedWrongly(f"torchrun started {world} ranks and {kind} asks for {config.ranks}: give {kind} {world}")
    images = open_images(config)
    check_shape(config, len(images.train))
    check_images(config, images)
    os.environ.update(GPU_ORDER)
    train.meet(config)
    shared: list[Any] = [Launch.new(config, images, table, new_group_id(), 1)]
    dist.broadcast_object_list(shared, src=0)
    job: Launch = shared[0]
    if dist.get_rank() == 0:
        job.write_asked()
    dist.barrier()
    train.main(job.folder)
    dist.barrier()
    return job, dist.get_rank()
