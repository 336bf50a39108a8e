"""One rank's run: compile, settle, timed windows with evaluations between them, then the parts alone.

What a rank saw is written to `rank-<index>.json` in the run folder however the run ends; the launcher makes a row of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from harness import ceilings, folders, metrics
from harness.agree import Ranks, clock_ahead_s, must_agree, must_see_the_same
from harness.config import AskedWrongly, RunConfig
from harness.heartbeat import Heartbeat, Place
from harness.images import open_images
from harness.measure import Interrupted, NewestLoss, Recording, TimedWindow, Workload, synchronise, untimed_steps
from harness.progress import Teller
from harness.trial import Alone, Evaluation, RankTrial, Window
from harness.workload import Built, Rank, build, build_cpu_block
from pipelines import DataError
from pipelines.sources.imageset import ImageSet

SETTLE_BLOCK_S = 0.5
SETTLE_BLOCKS_MAX = 12
SETTLE_MAX_S = 20.0
SETTLED_SPREAD = 0.05
ALONE_S = 3.0
ALONE_STEPS_MIN = 5
PARAMETER_SAMPLES = 1000
# In the message of an exception: it is the others' end that this rank met in an exchange.
COLLECTIVES = ("gloo", "Gloo", "NCCL", "c10d")


@dataclass
class Seen:
    """The rank's trial in the making: whatever is here when the run ends is written down."""

    recording: Recording = field(default_factory=Recording)
    windows: list[Window] = field(default_factory=list)
    open_window: TimedWindow | None = None
    warmup_steps: int = 0
    settled: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    alone: dict[str, Alone] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None

    def beat(self, place: Place) -> None:
        if self.heartbeat is not None:
            self.heartbeat.beat(place)

    def close_window(self) -> None:
        if self.open_window is not None:
            window, self.open_window = self.open_window.told(), None
            if window.step_ms:
                self.windows.append(window)


class Signals:
    """SIGINT and SIGTERM end the rank at once, except within a timed window, which then ends after its step."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        first = self.asked is None
        self.asked = number
        if first and not self.deferred:
            raise Interrupted(number)


def die_with_parent() -> None:
    """Have the kernel end this process when its launcher is gone, killed or not (Linux)."""
    parent_gone = os.getppid()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_gone:
        os._exit(1)


def parameter_samples(network: torch.nn.Module) -> dict[str, Tensor]:
    """Up to PARAMETER_SAMPLES evenly spread elements of every parameter."""
    samples = {}
    for name, parameter in network.named_parameters():
        flat = parameter.detach().reshape(-1)
        samples[name] = flat[:: max(1, flat.numel() // PARAMETER_SAMPLES)].clone()
    return samples


def largest_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((after[name] - sample).abs().max()) for name, sample in before.items()}


# --- the phases, in order -----------------------------------------------------------------------------------------


def first_step(config: RunConfig, built: Built, seen: Seen) -> None:
    """The first batch, then the first step, which compiles; each timed apart."""
    workload = built.workload
    seen.beat("waiting for a batch")
    start_s = time.perf_counter()
    batch = next(workload.batches)
    synchronise(workload.device)
    arrived_s = time.perf_counter()
    seen.facts["first_batch_s"] = arrived_s - start_s
    seen.facts["pixel_min"], seen.facts["pixel_max"] = float(batch.images.min()), float(batch.images.max())
    if config.network_columns > 1:
        # Two decoders on a GPU may round a pixel apart; which images came is told by their indices.
        must_see_the_same(batch, built.scheme.shard, pixels=config.decode == "cpu")
    seen.beat("compiling")
    arrived_s = time.perf_counter()
    seen.recording.keep(batch, *workload.step(batch), count_indices=False)
    seen.beat("in a step")
    synchronise(workload.device)
    seen.facts["compile_s"] = time.perf_counter() - arrived_s
    seen.warmup_steps = 1


def settle(workload: Workload, images_per_step: int, seen: Seen, ranks: Ranks, teller: Teller) -> float:
    """Take steps until three blocks of them agree, or the cap; seconds of a step, the same on all ranks."""
    begun_s = time.perf_counter()
    step_s = ranks.agree(untimed_steps(workload, seen.recording, 1))
    seen.warmup_steps += 1
    block = max(1, round(SETTLE_BLOCK_S / step_s))
    blocks_ms: list[float] = []
    while not seen.settled and len(blocks_ms) < SETTLE_BLOCKS_MAX:
        step_s = ranks.agree(untimed_steps(workload, seen.recording, block))
        seen.warmup_steps += block
        blocks_ms.append(1000 * step_s)
        teller.tell(
            "settle",
            step=seen.warmup_steps,
            images_per_s=images_per_step / step_s,
            loss=float(seen.recording.losses[-1]),
        )
        seen.settled = metrics.spread_of_last(blocks_ms) <= SETTLED_SPREAD
        if ranks.agree(time.perf_counter() - begun_s) > SETTLE_MAX_S:
            break
    return step_s


def steps_to_time(config: RunConfig, step_s: float, train_images: int, warmup_steps: int) -> int:
    """How many timed steps the asked length comes to."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * train_images / config.images_per_step) - warmup_steps)
    assert config.timed_seconds is not None
    return max(1, math.ceil(config.timed_seconds / step_s))


def windows(total: int, config: RunConfig) -> list[int]:
    """Steps of each window: one, or as many as evaluations are asked for between them."""
    if not config.evaluate_every:
        return [total]
    each = max(1, round(config.evaluate_every / config.images_per_step))
    return [each] * (total // each) + ([total % each] if total % each else [])


def train_timed(
    config: RunConfig, built: Built, seen: Seen, ranks: Ranks, teller: Teller, signals: Signals, total: int
) -> None:
    workload, newest, done_before = built.workload, NewestLoss(built.workload.device), 0
    for steps in windows(total, config):
        window = TimedWindow(workload, seen.recording)
        forget_peaks(workload.device)
        ranks.wait_for_all()
        begun_s = time.perf_counter()

        def after_step(done: int, loss: Tensor, begun_s: float = begun_s, before: int = done_before) -> bool:
            if teller.due():
                speed = done * config.images_per_step / (time.perf_counter() - begun_s)
                teller.tell("timed", step=before + done, steps=total, images_per_s=speed, loss=newest.offer(loss))
            return signals.asked is not None

        seen.open_window, signals.deferred = window, True
        window.run(steps, after_step)
        seen.close_window()
        signals.deferred = False
        if signals.asked is not None:
            raise Interrupted(signals.asked)
        note_peaks(workload.device, seen)
        done_before += steps
        evaluate(built, seen, teller)


def watched(workload: Workload, seen: Seen, waiting: Place = "waiting for a batch") -> Workload:
    """The workload, which tells the heartbeat before each batch and each step."""

    def batches() -> Iterator[Any]:
        while True:
            seen.beat(waiting)
            yield next(workload.batches)

    def step(batch: Any) -> tuple[Tensor, Tensor]:
        seen.beat("in a step")
        return workload.step(batch)

    return replace(workload, batches=batches(), step=step)


def evaluate(built: Built, seen: Seen, teller: Teller) -> None:
    if built.evaluate is not None:
        teller.tell("evaluate")
        seen.evaluations.append(
            Evaluation(len(seen.recording.losses), *built.evaluate(lambda: seen.beat("evaluating")))
        )


def forget_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def note_peaks(device: torch.device, seen: Seen) -> None:
    """Keep the largest peaks of any window: of torch's allocator on the device, and of this process on the host."""
    peaks = {"host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.type == "cuda":
        peaks["gpu_peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        peaks["gpu_peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    for name, peak in peaks.items():
        seen.facts[name] = max(peak, seen.facts.get(name, 0))


def measure_alone(config: RunConfig, built: Built, seen: Seen, ranks: Ranks, teller: Teller, step_s: float) -> None:
    """Input alone and model alone (and without communication), with the ranks side by side as in training."""
    workload = watched(built.workload, seen, "measuring the parts alone")
    batch = next(workload.batches)
    resident = type(batch)(*(part.clone() for part in batch))
    assert config.prefetch is not None
    if config.pipeline != "synthetic":
        # A batch that is always there has no input path whose speed could be told.
        teller.tell("input")
        ranks.wait_for_all()
        seen.alone["input"] = ceilings.input_alone(workload, ALONE_S, drain=config.prefetch + 1)
    steps = max(ALONE_STEPS_MIN, math.ceil(ALONE_S / step_s))
    for part in ("model", "no_comm") if ranks.count > 1 else ("model",):
        teller.tell(part)
        silenced = built.without_communication() if part == "no_comm" else contextlib.nullcontext()
        with silenced:
            if part == "no_comm":
                # What parts of a network exchange is in their graph, which is compiled once more without it, each rank for itself.
                seen.beat("compiling")
                built.workload.step(resident)
                synchronise(workload.device)
            ranks.wait_for_all()
            seen.alone[part] = ceilings.model_alone(workload, resident, steps, partial(tell_step, teller, part, steps))


def tell_step(teller: Teller, part: str, steps: int, done: int) -> None:
    teller.tell(part, step=done, steps=steps)


def run(
    config: RunConfig, images: ImageSet, rank: Rank, seen: Seen, teller: Teller, signals: Signals, limits: bool
) -> None:
    """Everything between the ranks' meeting and their parting."""
    ranks = Ranks(rank.index, rank.count)
    teller.tell("start")
    if config.block == "fused" and not config.on_gpu:
        teller.tell("block")
        seen.facts["block_build_s"] = build_cpu_block()
    built = build(config, images, rank)
    before = parameter_samples(built.network)
    seen.facts["shard_images"] = len(built.train_split) // config.shards
    seen.facts["shard"], seen.facts["column"] = built.scheme.shard, built.scheme.column
    if rank.count > 1:
        seen.facts["sent_bytes_per_step"] = built.scheme.sent_bytes_per_step(built.network, config)
        seen.facts["clock_ahead_s"] = clock_ahead_s(ranks)
    try:
        teller.tell("compile")
        first_step(config, built, seen)
        unwatched, built.workload = built.workload, watched(built.workload, seen)
        step_s = settle(built.workload, config.images_per_step, seen, ranks, teller)
        total = steps_to_time(config, step_s, len(built.train_split), seen.warmup_steps)
        train_timed(config, built, seen, ranks, teller, signals, total)
        seen.facts["parameter_change_max"] = largest_changes(before, parameter_samples(built.network))
        if limits:
            # What was trained stands though a resident batch more may not fit. With more ranks the others would wait.
            built.workload = unwatched
            with contextlib.suppress(*((torch.cuda.OutOfMemoryError,) if rank.count == 1 else ())):
                measure_alone(config, built, seen, ranks, teller, step_s)
        teller.tell("done")
    finally:
        built.close()


# --- the process --------------------------------------------------------------------------------------------------


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
        return {"interrupted": True}, "", 128 + (signals.asked or signal.SIGTERM)
    except (AskedWrongly, DataError) as error:
        return {}, str(error), 1
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower():
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
        torch.set_num_threads(config.torch_threads or 1)
        store = meet(config)
        shown = images or open_images(config)
        must_agree({"the data": shown.dataset_id}, "another program has changed it: start again")
        seen.heartbeat = Heartbeat(store, rank.index, rank.count, config.heartbeat, on_hang, config.on_gpu)
        run(config, shown, rank, seen, teller, signals, launch.limits)

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
