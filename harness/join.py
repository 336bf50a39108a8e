"""One rank of a job that another launcher started (torchrun, on one machine or several): one launch, and one row for all."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import folders
from harness.config import PLACES, AskedWrongly, RunConfig
from harness.launch import GPU_ORDER
from harness.resolve import check_images, check_shape
from harness.resume import refuse_another_run
from pipelines import DataError
from pipelines.sources.imageset import ImageSet


class Job(NamedTuple):
    """What the other launcher has told this process by its environment."""

    ranks: int
    ranks_here: int
    nodes: int


def inside_a_job() -> Job | None:
    """The job that this process is a rank of; None where no launcher has made it one."""
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")):
        return None
    ranks = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return Job(ranks, here, int(os.environ.get("GROUP_WORLD_SIZE", max(1, ranks // here))))


def as_the_job(config: RunConfig, job: Job, gpus: int) -> RunConfig:
    """The config with the job's ranks and nodes, of the kind asked for or else GPUs where each rank has one."""
    if 0 < gpus < job.ranks_here and config.cpus is None:
        raise AskedWrongly(
            f"{job.ranks_here} ranks run here and each sees {gpus} GPU{'s' * (gpus > 1)}: let every task see all of its node's "
            f"(Slurm: --gpus-per-node, not --gpus-per-task), or give --cpus {job.ranks}"
        )
    if config.gpus is None and config.cpus is None:
        kind = "gpus" if gpus >= job.ranks_here else "cpus"
        config = config.with_(**{kind: job.ranks})
    if config.ranks != job.ranks:
        kind = "--gpus" if config.on_gpu else "--cpus"
        raise AskedWrongly(
            f"{kind} {config.ranks} was asked and torchrun started {job.ranks} ranks: give {kind} {job.ranks}, or leave it out"
        )
    if config.nodes not in (1, job.nodes):
        raise AskedWrongly(
            f"--nodes {config.nodes} was asked and torchrun started {job.nodes} of them: give --nodes {job.nodes}, or leave it out"
        )
    if job.ranks % job.nodes:
        raise AskedWrongly(f"{job.ranks} ranks on {job.nodes} nodes are not as many on each: start as many on each")
    return config.with_(nodes=job.nodes)


def join(asked: RunConfig, config: RunConfig, table: Path) -> tuple[folders.Launch, int]:
    """Be one rank of the job; the launch, whose row rank 0 makes, and this rank's index.

    Every rank must have `asked` the same; what is "auto" there is rank 0's `config` for all. A rank that fails ends this process, and the launch's folder tells the rest.
    """
    import torch.distributed as dist

    from harness import agree, rank
    from harness.images import open_images

    rank.die_with_parent()
    os.environ.update(GPU_ORDER)
    await_host(config.heartbeat)
    rank.meet(config)
    agree.must_agree({"the code": agree.code_digest()}, "install the same harness on every node")
    agree.must_agree(flags(asked), "give every rank the same flags")
    images: ImageSet = together(lambda: open_images(config))
    agree.must_agree({"the data": images.dataset_id}, "give every node the same images by --data")
    check_shape(config, len(images.train))
    together(lambda: check_images(config, images))
    if config.resume:
        together(lambda: refuse_another_run(config, images, folders.dataset_cells(images)))
    index = dist.get_rank()

    def begin() -> folders.Launch | None:
        ranks_here = config.ranks // config.nodes
        return (
            folders.Launch.begin(config, images, table, folders.new_group_id(), 1, ranks_here) if index == 0 else None
        )

    launch = together(begin)
    # The lock stays with rank 0, and with its own object.
    shared: list[Any] = [replace(launch, held=[]) if launch else None]
    dist.broadcast_object_list(shared, src=0)
    launch = launch or shared[0]
    end = rank.be_a_rank(launch, images)
    gather_ends(launch.folder, end)
    dist.destroy_process_group()
    return launch, index


def together(work: Callable[[], Any]) -> Any:
    """What `work` gives; AskedWrongly on every rank where one of them cannot do it, in the words of the first such."""
    from harness import agree

    done, said = None, ""
    try:
        done = work()
    except (AskedWrongly, DataError) as error:
        said = str(error)
    except OSError as error:
        said = f"{error.filename or 'a file'} cannot be read or written ({error.strerror})"
    for rank, words in enumerate(agree.everyones(said)):
        if words:
            raise AskedWrongly(f"rank {rank}: {words}")
    return done


def await_host(patience_s: float) -> None:
    """AskedWrongly where nobody listens at the job's address in time; torch's own attempt writes pages into the output."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    end_s = time.monotonic() + patience_s
    while os.environ["RANK"] != "0":
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=patience_s):
            return
        if time.monotonic() > end_s:
            raise AskedWrongly(
                f"rank {os.environ['RANK']} waited {patience_s:g} s at {address}:{port} and nobody answered: start rank 0, "
                "or look whether that address can be reached"
            )
        time.sleep(0.1)


def flags(asked: RunConfig) -> dict[str, Any]:
    """What was asked, flag by flag, but for the paths, which may be others on each node: what lies there is compared."""
    names = (item.name for item in fields(RunConfig) if item.name not in (*PLACES, "resume", "fine_tune_from"))
    return {f"--{name.replace('_', '-')}": getattr(asked, name) for name in names}


def gather_ends(folder: Path, end: dict[str, Any]) -> None:
    """Rank 0 writes down what ranks saw whose file is not in its folder, for nodes may share no file system."""
    import torch.distributed as dist

    rank = dist.get_rank()
    ends: list[Any] | None = [None] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(end, ends, dst=0)
    for other, left in enumerate(ends or []):
        if not (folder / f"rank-{other}.json").exists():
            folders.write_rank(folder, other, **left)
