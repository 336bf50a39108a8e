"""Group `exchange`: two ranks' training step as `run` ships it against other settings of DDP, and the schemes against each other.

    pytest --benchmark-only -k exchange [--benchmark-min-rounds BLOCKS]

Two GPUs over NCCL where there are two, else two CPU ranks of a thread each over gloo. This file is also the program of a
rank: it stays while the tests run, and takes steps of a side, or all-reduces alone, when its standard input says so.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import models
from harness.config import RunConfig
from harness.measure import synchronise
from harness.schemes import Scheme, scheme_of
from harness.workload import Rank, build_cpu_block, build_network, exact_fp32, training_step
from pipelines import Batch

ROOT = Path(__file__).parents[2]
RANKS = 2
CUDA = torch.cuda.is_available() and torch.cuda.device_count() >= RANKS
STEPS_A_TURN = 20 if CUDA else 1
CONFIG = RunConfig(
    gpus=RANKS if CUDA else 0,
    cpus=0 if CUDA else RANKS,
    precision="bf16" if CUDA else "fp32",
    images_per_gpu=1024 if CUDA else 8,
    learning_rate=1e-4,
    block="fused",
    bucket_mib=25,
)
SETTING = f"{RANKS}{'gpus' if CUDA else 'cpus'}-{CONFIG.images_per_gpu}images-{CONFIG.precision}"
CLASSES = 1000
BUCKETS_MIB = (1, 8, 25, 64, 256)
PIECES = [(dtype, mib) for dtype in ("float32", "bfloat16") for mib in BUCKETS_MIB]


@dataclass(frozen=True)
class Side:
    """A way to train: what `run` is asked, and what it does not offer.

    `compiled`: the network, or the wrapper around it; `split`: torch cuts the graph where a bucket is full, so that its
    gradients leave before the backward pass ends; `silent`: the same steps, and nothing is sent.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    gradients: str = "float32"
    compiled: str = "network"
    split: bool = True
    static_graph: bool = False
    silent: bool = False


SIDES = {
    "shipped": Side(),
    "silent": Side(silent=True),
    **{f"buckets of {mib} MiB": Side({"bucket_mib": mib}) for mib in BUCKETS_MIB if mib != CONFIG.bucket_mib},
    "the same again": Side({"label": "again"}),
    "gradients in bfloat16": Side(gradients="bfloat16"),
    "unsplit": Side(split=False),
    "ddp compiled": Side(compiled="ddp"),
    "ddp compiled, unsplit": Side(compiled="ddp", split=False),
    "static graph": Side(static_graph=True),
    "columns": Side({"parallel": "columns"}),
    "columns, silent": Side({"parallel": "columns"}, silent=True),
    "hybrid": Side({"parallel": "hybrid"}),
    "hybrid, silent": Side({"parallel": "hybrid"}, silent=True),
}
AGAINST_SHIPPED = [("shipped", name) for name in SIDES if name != "shipped" and not name.endswith(", silent")]
CASES = [*AGAINST_SHIPPED, ("columns", "columns, silent"), ("hybrid", "hybrid, silent")]


# --- the tests ----------------------------------------------------------------------------------------------------


class Pair:
    """The ranks, at work until they are closed."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        program = [sys.executable, __file__, str(folder / "store")]
        self.ranks = [
            subprocess.Popen([*program, str(rank)], stdin=-1, stdout=-1, text=True, env=environment)
            for rank in range(RANKS)
        ]

    def both(self, *words: object) -> float:
        """Have both ranks do one thing, and wait for both; the longer one's seconds."""
        for rank in self.ranks:
            assert rank.stdin is not None
            print(*words, sep="\t", file=rank.stdin, flush=True)
        answers = [rank.stdout.readline().strip() if rank.stdout else "" for rank in self.ranks]
        if wrong := [answer or "ended" for answer in answers if not answer.startswith("done ")]:
            pytest.fail(f"{words}: {wrong}")
        return max(float(answer.split()[1]) for answer in answers)

    def close(self) -> None:
        for rank in self.ranks:
            try:
                rank.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    ranks = Pair(tmp_path_factory.mktemp("exchange"))
    yield ranks
    ranks.close()


@pytest.fixture
def blocks(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--benchmark-min-rounds"))


@pytest.mark.benchmark(group="exchange")
@pytest.mark.parametrize("setting", [SETTING])
def test_all_reduce_alone(
    benchmark: Any, remember: Callable[[str, str], None], pair: Pair, blocks: int, setting: str
) -> None:
    """All gradients, in pieces that are all under way at once, and no step beside them."""
    found: dict[tuple[str, int], list[float]] = {piece: [] for piece in PIECES}

    def each_once() -> None:
        for piece, seconds in found.items():
            seconds.append(pair.both("reduce", *piece))

    benchmark.pedantic(each_once, rounds=blocks, warmup_rounds=1)
    for dtype in ("float32", "bfloat16"):
        times = ", ".join(f"{mib} MiB {1000 * middle(found[dtype, mib][1:]):.0f}" for mib in BUCKETS_MIB)
        remember(f"all-reduce of {gradient_numbers():,} gradients in {dtype}, ms by piece", times)


@pytest.mark.benchmark(group="exchange")
@pytest.mark.parametrize("setting", [SETTING])
@pytest.mark.parametrize(("ours", "theirs"), CASES, ids=[f"{ours} against {theirs}" for ours, theirs in CASES])
def test_step(against: Callable[..., float], pair: Pair, blocks: int, ours: str, theirs: str, setting: str) -> None:
    pair.both("keep", ours, theirs)
    # The first steps compile, and DDP lays its buckets anew after them.
    for side in (ours, theirs) * 2:
        pair.both("take", side)
    images = CONFIG.images_per_step * STEPS_A_TURN
    against(partial(pair.both, "take", ours), partial(pair.both, "take", theirs), blocks, images=images)


def middle(numbers: list[float]) -> float:
    return float(torch.tensor(numbers, dtype=torch.float64).quantile(0.5))


def gradient_numbers() -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in models.create("alexnet", num_classes=CLASSES).parameters())


# --- a rank -------------------------------------------------------------------------------------------------------


class Steps:
    """One side's network on this rank, and steps of it on a resident batch."""

    def __init__(self, side: Side, rank: Rank) -> None:
        config = CONFIG.with_(**side.asked)
        scheme = scheme_of(config, rank.index)
        network = build_network(config.with_(compile="off"), CLASSES, rank, scheme)
        wrapped = scheme.wrapped(network, config, rank.device)
        self.split, self.device, self.batch = side.split, rank.device, resident(config, scheme, rank.device)
        self.without_communication = scheme.without_communication(wrapped)
        if isinstance(wrapped, DistributedDataParallel):
            unlike_shipped(wrapped, side, scheme)
        compile_alone(wrapped if side.compiled == "ddp" else network, whole=side.compiled == "network")
        rates = models.parameter_groups(network, config.learning_rate, config.weight_decay)
        optimiser = torch.optim.SGD(rates, momentum=config.momentum, fused=True)
        self.gradients, self.update = training_step(wrapped, optimiser, config, scheme.loss_divisor)

    def take(self, silent: bool) -> None:
        quiet = self.without_communication() if silent else nullcontext()
        with torch._dynamo.config.patch(optimize_ddp=self.split), quiet:
            for _ in range(STEPS_A_TURN):
                self.gradients(self.batch)
                self.update()
        synchronise(self.device)


def unlike_shipped(wrapped: DistributedDataParallel, side: Side, scheme: Scheme) -> None:
    """What a side has of DDP that `run` does not offer."""
    if side.gradients == "bfloat16":
        wrapped.register_comm_hook(scheme.replicas, bf16_compress_hook)
    if side.static_graph:
        wrapped._set_static_graph()


def compile_alone(module: nn.Module, whole: bool) -> None:
    """torch.compile, as `run` does it, with a graph that is this module's alone.

    Two networks that look alike share one, also where DDP's buckets differ, by which it is split: unless their backends differ.
    And where one sees more images than the other, the later one's would be for any number of them.
    """
    module.compile(fullgraph=whole, dynamic=False, backend=partial(torch._dynamo.lookup_backend("inductor")))


def resident(config: RunConfig, scheme: Scheme, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(scheme.shard)
    side, count = config.image_size, config.images_per_batch
    images = 65 * torch.randn(count, 3, side, side, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator).to(device)
    return Batch(images.to(device, memory_format=torch.channels_last), labels, labels)


class Worker:
    """Does what a line says: `keep SIDE...` frees all others, `take SIDE` a turn of steps, `reduce DTYPE MIB`."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.steps: dict[str, Steps] = {}
        self.gradients: dict[str, torch.Tensor] = {}

    def keep(self, *names: str) -> None:
        wanted = {built_for(name) for name in names}
        self.gradients.clear()
        self.steps = {name: steps for name, steps in self.steps.items() if name in wanted}
        gc.collect()
        # Of graphs that were compiled torch keeps no more than eight.
        torch.compiler.reset()

    def take(self, name: str) -> None:
        built = built_for(name)
        if built not in self.steps:
            self.steps[built] = Steps(SIDES[built], self.rank)
        self.steps[built].take(SIDES[name].silent)

    def reduce(self, dtype: str, mib: str) -> None:
        if dtype not in self.gradients:
            self.gradients[dtype] = torch.zeros(
                gradient_numbers(), dtype=getattr(torch, dtype), device=self.rank.device
            )
        # As many numbers as a bucket holds of float32 gradients, in whatever they are sent.
        under_way = [
            dist.all_reduce(piece, async_op=True) for piece in self.gradients[dtype].split(int(mib) * 2**20 // 4)
        ]
        for work in under_way:
            work.wait()
        synchronise(self.rank.device)


def built_for(name: str) -> str:
    """The side whose network takes this one's steps: of two that differ in what is sent, the first."""
    alike = replace(SIDES[name], silent=False)
    return next(other for other, side in SIDES.items() if side == alike)


def be_a_rank(store: str, index: int) -> None:
    """Do what standard input says, answering each line with `done SECONDS` or what went wrong, until it ends."""
    rank = Rank(index, RANKS, torch.device(f"cuda:{index}" if CUDA else "cpu"))
    if CUDA:
        torch.cuda.set_device(rank.device)
    else:
        torch.set_num_threads(1)
        build_cpu_block()
    exact_fp32()
    backend = "cpu:gloo,cuda:nccl" if CUDA else "gloo"
    patience = timedelta(minutes=5)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=index, world_size=RANKS, timeout=patience)
    worker = Worker(rank)
    for line in sys.stdin:
        word, *arguments = line.rstrip("\n").split("\t")
        start_s = time.perf_counter()
        try:
            getattr(worker, word)(*arguments)
            print("done", time.perf_counter() - start_s, flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    be_a_rank(sys.argv[1], int(sys.argv[2]))
