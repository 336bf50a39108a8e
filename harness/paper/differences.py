"""The numbers of the paper's comparisons: pure functions of what runs have seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean, stdev
from typing import NamedTuple

from harness.metrics.intervals import CONFIDENCE, student
from harness.metrics.learning import images_a_step
from harness.metrics.numbers import one_a_shard
from harness.trial import Trial

# --- of one run ---------------------------------------------------------------------------------------------------


def epoch_steps(trial: Trial) -> int:
    """Steps of an epoch's worth of images, rounded up."""
    return math.ceil(trial.train_images / images_a_step(trial))


def training_errors_pct(trial: Trial) -> list[float]:
    """Per cent of the newest epoch's worth of images that the network got wrong as it was trained on them.

    One after every step, from the first on by which there is an epoch; empty before.
    """
    steps, images = epoch_steps(trial), images_a_step(trial)
    right = [sum(each) for each in zip(*(rank.correct for rank in one_a_shard(trial)), strict=False)]
    so_far = [0, *accumulate(right)]
    return [
        100 * (1 - (after - before) / (steps * images)) for before, after in zip(so_far, so_far[steps:], strict=False)
    ]


def last_training_error_pct(trial: Trial) -> float | None:
    return next(reversed(training_errors_pct(trial)), None) if trial.ranks else None


def epochs_after(trial: Trial, steps: int) -> float:
    return steps * images_a_step(trial) / trial.train_images


def epochs_to_training_error(trial: Trial, pct: float) -> float | None:
    """Epochs after which the newest epoch's training error first is `pct` or less; None where it never is."""
    if not trial.ranks:
        return None
    errors = training_errors_pct(trial)
    first = next((place for place, error in enumerate(errors) if error <= pct), None)
    return None if first is None else epochs_after(trial, first + epoch_steps(trial))


# --- of several, told apart by seed -------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over so many seeds and where it lies (95 %, Student's t); no interval of one seed."""

    value: float
    low: float | None
    high: float | None
    seeds: int


def mean_of(values: Sequence[float]) -> Estimate | None:
    """None of nothing."""
    if not values:
        return None
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, 1)
    half = student((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, len(values))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate | None:
    """The mean of a less b over the seeds that both have."""
    return mean_of([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


class Ratio(NamedTuple):
    """How many times as much; `at_least`: the greater side did not end, so that the truth is this or more."""

    value: float
    at_least: bool = False


def ratio_of(epochs: float | None, by: float | None, ran: float) -> Ratio | None:
    """Epochs to the target over another run's; a run that went `ran` epochs without reaching it needs more than that.

    None where the other did not reach it.
    """
    if by is None:
        return None
    return Ratio(ran / by, at_least=True) if epochs is None else Ratio(epochs / by)


def geometric_mean(ratios: Iterable[Ratio]) -> tuple[Estimate, bool] | None:
    """Of ratios paired by seed, and whether it is a lower bound, of which no interval can be told; None of none.

    The interval is that of the mean logarithm.
    """
    known = list(ratios)
    logs = mean_of([math.log(ratio.value) for ratio in known])
    if logs is None:
        return None
    at_least = any(ratio.at_least for ratio in known)
    low, high = (None if end is None or at_least else math.exp(end) for end in (logs.low, logs.high))
    return Estimate(math.exp(logs.value), low, high, logs.seeds), at_least
