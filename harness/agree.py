"""What the ranks of a job must agree on: what was asked and of which code, the first batch, numbers, and when to start."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.config import AskedWrongly

PACKAGES = ("harness", "models", "pipelines")
ECHOES = 16


class Ranks:
    """The job as one rank sees it: rank 0's word, and moments to start together."""

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count

    def agree(self, number: float) -> float:
        """Rank 0's number, on every rank."""
        word = torch.tensor(number, dtype=torch.float64)
        if self.count > 1:
            dist.broadcast(word, src=0)
        return float(word)

    def total(self, number: float) -> float:
        """The sum of every rank's number, on every rank."""
        word = torch.tensor(number, dtype=torch.float64)
        if self.count > 1:
            dist.all_reduce(word)
        return float(word)

    def largest(self, number: float) -> float:
        """The largest of every rank's numbers, on every rank."""
        word = torch.tensor(number, dtype=torch.float64)
        if self.count > 1:
            dist.all_reduce(word, op=dist.ReduceOp.MAX)
        return float(word)

    def wait_for_all(self) -> None:
        self.agree(0)


def everyones(word: Any) -> list[Any]:
    """Every rank's `word`, in the ranks' order."""
    words: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(words, word)
    return words


# --- what was asked, and of which code -----------------------------------------------------------------------------


def code_digest() -> str:
    """Of every source file that a run reads."""
    root = Path(__file__).parents[1]
    files = sorted(path for name in PACKAGES for path in (root / name).rglob("*") if path.suffix in (".py", ".cpp"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def disagreement(words: Sequence[dict[str, Any]], remedy: str) -> str:
    """A sentence about the first thing that some rank has otherwise than rank 0, both named; "" where all agree."""
    for rank, word in enumerate(words):
        for name, value in word.items():
            if value != words[0][name]:
                return f"rank 0 has {name} {words[0][name]} and rank {rank} has {value}: {remedy}"
    return ""


def must_agree(word: dict[str, Any], remedy: str) -> None:
    """AskedWrongly, on every rank, where some rank's word differs from rank 0's."""
    if sentence := disagreement(everyones(word), remedy):
        raise AskedWrongly(sentence)


# --- the first batch ----------------------------------------------------------------------------------------------


def batch_digest(batch: Any, *, pixels: bool) -> str:
    """Of which images a batch holds, and of their pixels where these are the same on every device."""
    digest = hashlib.sha256()
    for part in (batch.labels, batch.indices, *((batch.images,) if pixels else ())):
        digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def different_batches(words: Sequence[tuple[int, str]]) -> str:
    """A sentence where two ranks of one shard have batches of different digests; `words` are (shard, digest) by rank."""
    first: dict[int, int] = {}
    for rank, (shard, digest) in enumerate(words):
        other = first.setdefault(shard, rank)
        if words[other][1] != digest:
            return (
                f"ranks {other} and {rank} hold columns of one network and their first batches differ: "
                "give both the same images, and the same --seed"
            )
    return ""


def must_see_the_same(batch: Any, shard: int, *, pixels: bool) -> None:
    """AskedWrongly, on every rank, where ranks of one shard were given different first batches."""
    if sentence := different_batches(everyones((shard, batch_digest(batch, pixels=pixels)))):
        raise AskedWrongly(sentence)


# --- clocks -------------------------------------------------------------------------------------------------------


def clock_ahead_s(ranks: Ranks, clock: Callable[[], float] = time.perf_counter) -> float:
    """How far this rank's clock is ahead of rank 0's, by the quickest of ECHOES answers; 0 where they share a machine's clock.

    A collective: ranks take their turn with rank 0.
    """
    if len(set(everyones(boot_id()))) == 1 and clock is time.perf_counter:
        return 0.0
    ahead = 0.0
    for other in range(1, ranks.count):
        if ranks.index == 0:
            answer_with_clock(other, clock)
        elif ranks.index == other:
            ahead = ask_for_clock(clock)
    return ahead


def boot_id() -> str:
    """Of this start of this machine: monotonic clocks with one are one clock."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def answer_with_clock(other: int, clock: Callable[[], float]) -> None:
    word = torch.zeros(1, dtype=torch.float64)
    for _ in range(ECHOES):
        dist.recv(word, src=other)
        dist.send(torch.tensor([clock()], dtype=torch.float64), dst=other)


def ask_for_clock(clock: Callable[[], float]) -> float:
    word = torch.zeros(1, dtype=torch.float64)
    echoes = []
    for _ in range(ECHOES):
        asked_s = clock()
        dist.send(word, dst=0)
        dist.recv(word, src=0)
        echoes.append((asked_s, float(word), clock()))
    return ahead_of(echoes)


def ahead_of(echoes: Sequence[tuple[float, float, float]]) -> float:
    """Our clock less theirs, from (ours when asked, theirs, ours when answered); the quickest answer is the surest."""
    asked_s, theirs_s, answered_s = min(echoes, key=lambda echo: echo[2] - echo[0])
    return (asked_s + answered_s) / 2 - theirs_s
