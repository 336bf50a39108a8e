"""One rank's process: it meets the others, runs, and leaves what it saw in `rank-<index>.json` however it ends.

The launcher, or rank 0 of another launcher's job, makes a row of those files.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from harness import folders
from harness.agree import must_agree
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.config import AskedWrongly, RunConfig
from harness.heartbeat import Heartbeat
from harness.images import open_images
from harness.measure import Interrupted
from harness.progress import Teller
from harness.seen import Seen, Signals
from harness.state import Keeper, Saved
from harness.train import out_of_memory, run
from harness.trial import RankTrial
from harness.workload import Rank
from pipelines import DataError
from pipelines.sources.imageset import ImageSet

# In the message of an exception: it is the others' end that this rank met in an exchange.
COLLECTIVES = ("gloo", "Gloo", "NCCL", "c10d")


def die_with_parent() -> None:
    """Have the kernel end this process when its launcher is gone, killed or not (Linux); end at once where it is gone already."""
    # Another launcher's job says nothing of its process: there it is whoever is the parent now.
    launcher = int(os.environ.get(folders.LAUNCHER, os.getppid()))
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(1)


def rank_trial(config: RunConfig, classes: int, rank: Rank, seen: Seen, ended: dict[str, Any]) -> RankTrial:
    facts: dict[str, Any] = {"shard_images": 0, "pixel_min": None, "pixel_max": None, "parameter_change_max": {}}
    return RankTrial(
        rank=rank.index,
        images_per_step=config.images_per_batch,
        warmup_steps=seen.warmup_steps,
        settled=seen.settled,
        windows=tuple(seen.windows),
        evaluations=tuple(seen.evaluations),
        alone=seen.alone,
        **{**facts, **seen.facts, **seen.recording.told(classes), **ended},
    )


def attempt(work: Callable[[], None], signals: Signals) -> tuple[dict[str, Any], str, int]:
    """Do the work; (what the trial must know of its end, the sentence for a person, exit status)."""
    try:
        work()
    except Interrupted:
        # Its own time limit ends a rank in good order: an agent that restarts what died must leave it alone.
        by = signals.asked or signal.SIGTERM
        return {"interrupted": True}, "", 0 if by == signal.SIGALRM else 128 + by
    except (AskedWrongly, DataError) as error:
        return {}, str(error), 1
    except Exception as error:
        if out_of_memory(error):
            return {"out_of_memory": True}, "", 1
        if signals.asked is not None:
            # Another rank left in the middle of a collective because it was asked to stop, as this one was.
            return {"interrupted": True}, "", 128 + signals.asked
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]
        if isinstance(error, dist.DistError) or any(word in first_line for word in COLLECTIVES):
            return {}, f"rank {os.environ['RANK']} {folders.LOST_THE_OTHERS} ({first_words(error)})", 1
        return {}, f"{type(error).__name__}: {first_line}", 1
    return {}, "", 0


def first_words(error: Exception) -> str:
    """What an exception of a collective says first, without the place in torch's source that stands before it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.rpartition("] ")[2].split(". ")[0]


def be_a_rank(launch: folders.Launch, images: ImageSet | None = None) -> dict[str, Any]:
    """Be one rank from beginning to end; what it leaves, as `folders.write_rank` takes it.

    Where it fails or is stopped, the process ends here with another status, and its file in the launch's folder tells.
    """
    signals, seen, config = Signals(), Seen(), launch.config
    rank = Rank.from_environment(config.on_gpu)
    here = launch.folder.is_dir()
    teller = Teller(launch.folder / "progress.jsonl" if rank.index == 0 else None)
    seen.facts["restarts"] = restarts()
    folders.forget_rank(launch.folder, rank.index)

    def leave(failure: str, ended: dict[str, Any]) -> dict[str, Any]:
        trial = None if failure else asdict(rank_trial(config, launch.classes, rank, seen, ended))
        if here:
            folders.write_rank(launch.folder, rank.index, failure, trial)
        return {"failure": failure, "trial": trial}

    def on_hang(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)
        leave(sentence, {})
        os._exit(1)

    def work() -> None:
        alarm(launch)
        torch.set_num_threads(config.torch_threads or 1)
        store = meet(config)
        shown = images or opened_by_all(config)
        seen.heartbeat = Heartbeat(store, rank.index, rank.count, config.heartbeat, on_hang, config.on_gpu)
        saves, saved = bool(config.checkpoint_every), to_go_on_from(launch)
        keeper = Keeper.of(launch.folder, config, launch.told, shown.classes) if saves else None
        run(
            config, shown, rank, seen, teller, signals, limits=launch.limits, folder=launch.folder if here else None,
            keeper=keeper, saved=Saved.read(saved, rank.index) if saved else None,
        )  # fmt: skip

    ended, failure, status = attempt(work, signals)
    signals.deferred = True
    if seen.heartbeat is not None:
        seen.heartbeat.close()
    if status != 1:
        seen.close_window()
    left = leave(failure, ended)
    teller.close()
    if status:
        # Threads of a broken collective or decoder may never join: what matters is on the disk.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return left


def opened_by_all(config: RunConfig) -> ImageSet:
    """The images, which every rank opens by itself; AskedWrongly where they have found other ones."""
    images = open_images(config)
    must_agree({"the data": images.dataset_id}, "another program has changed it: start again")
    return images


def to_go_on_from(launch: folders.Launch) -> Checkpoint | None:
    """The newest that this launch saved before a rank of it died, else what it was asked to go on from."""
    if restarts() and launch.saved:
        return open_checkpoint(launch.folder)
    return open_checkpoint(launch.config.resume) if launch.config.resume else None


def restarts() -> int:
    """How often torch's agent has started these ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def alarm(launch: folders.Launch) -> None:
    """Have SIGALRM end this rank at the launch's time limit, however often it was started."""
    if launch.config.time_limit is not None:
        passed_s = time.time() - datetime.fromisoformat(launch.told["started_at"]).timestamp()
        signal.setitimer(signal.ITIMER_REAL, max(0.001, launch.config.time_limit - passed_s))


store_of_the_job: list[Any] = []


def meet(config: RunConfig) -> Any:
    """Join the job's process group, if this process has not yet; on a GPU, take the one of this rank. The job's store.

    AskedWrongly where the others do not come within the heartbeat's seconds.
    """
    if config.on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not store_of_the_job:
        patience = timedelta(seconds=config.heartbeat)
        try:
            store, rank, count = next(rendezvous("env://", timeout=patience))
            await_everyone(store, count, patience)
        except (dist.DistError, RuntimeError):
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise AskedWrongly(
                f"rank {os.environ['RANK']} waited {config.heartbeat:g} s at {where} for the {os.environ['WORLD_SIZE']} ranks "
                "of the job and they did not all come: start every one of them, or look whether that address can be reached"
            ) from None
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if config.on_gpu else "gloo", store=store, rank=rank, world_size=count
            )
        except (dist.DistError, RuntimeError) as error:
            raise AskedWrongly(
                f"rank {rank} cannot connect to the other ranks ({first_words(error)}): look at GLOO_SOCKET_IFNAME and "
                "NCCL_SOCKET_IFNAME, and whether the nodes reach each other on every port"
            ) from None
        store_of_the_job.append(store)
    return store_of_the_job[0]


def await_everyone(store: Any, count: int, patience: timedelta) -> None:
    """Return when every rank has come to the store."""
    if store.add("harness/came", 1) == count:
        store.set("harness/all came", "")
    store.wait(["harness/all came"], patience)


if __name__ == "__main__":
    die_with_parent()
    be_a_rank(folders.Launch.read(Path(sys.argv[1])))
    dist.destroy_process_group()
