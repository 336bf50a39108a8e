"""Small arithmetic on what a trial holds, which the metrics share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from harness.trial import Alone, RankTrial, Trial, Window

GIB = 2**30
MIB = 2**20


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear between the closest ranks; `share` in 0..1; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def one_a_shard(trial: Trial) -> list[RankTrial]:
    """The ranks that have logits and losses: all, or with columns the first of each shard."""
    return [rank for rank in trial.ranks if rank.column == 0]


def rate(work: float, lap_s: Sequence[float]) -> float:
    """Work a second in the median lap."""
    return work / median(lap_s)


def entropy(counts: Sequence[int]) -> float:
    """Nats of a histogram: the loss of a network that has learned the labels' frequencies and nothing else."""
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n) if total else 0.0


def share_pct(part: float | None, whole: float | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def seconds_between(spans: Sequence[Window | Alone], ahead_s: Sequence[float]) -> float:
    """From the first start to the last stop of the ranks' spans, whose clocks are so far ahead of rank 0's."""
    stops = [span.stop_s - ahead for span, ahead in zip(spans, ahead_s, strict=True)]
    return max(stops) - min(span.start_s - ahead for span, ahead in zip(spans, ahead_s, strict=True))
