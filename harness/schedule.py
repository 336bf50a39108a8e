"""The learning rate of every training step, and when it drops: pure functions of what was asked and of the errors seen.

The paper (section 5) starts with 0.01 and divides by ten three times "when the validation error rate stopped improving with
the current learning rate"; its released source names the epochs. `plateau_drops` makes the first exact.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

KINDS = ("constant", "plateau", "epochs", "steps")
PAPER_DROPS = 3
FORMS = ("torch", "paper")  # of the update: see update.py


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes: from `base_rate`, divided by ten at each drop.

    `drops`: after how many epochs (kind "epochs") or steps ("steps") each comes. `patience`: of kind "plateau", in
    evaluations. `steps_per_epoch` = training images / images of the whole job a step, seldom a whole number.
    """

    kind: str
    base_rate: float
    steps_per_epoch: float
    drops: tuple[float, ...] = ()
    patience: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        assert self.kind in KINDS
        assert self.base_rate > 0
        assert self.steps_per_epoch > 0
        assert not self.drops or self.kind in ("epochs", "steps")
        assert self.patience > 0 or self.kind != "plateau"


def plateau_drops(errors: Sequence[float], patience: int, most: int = PAPER_DROPS) -> tuple[int, ...]:
    """The evaluations, numbered from 1, after which the rate is divided by ten, for the error of each so far.

    The rule: the rate drops after the last of `patience` evaluations in a row, all of them later than the drop before, of
    which none was below the lowest error of all evaluations before it, until the rate has dropped `most` times.
    An error that is NaN is below nothing. The paper (section 5) gives no more than "when the validation error rate stopped
    improving with the current learning rate", and three drops.
    """
    assert patience > 0
    lowest, without_gain = math.inf, 0
    drops: list[int] = []
    for evaluation, error in enumerate(errors, start=1):
        without_gain += 1
        if error < lowest:
            lowest, without_gain = error, 0
        if without_gain == patience and len(drops) < most:
            drops.append(evaluation)
            without_gain = 0
    return tuple(drops)


def rate_factor(schedule: Schedule, step: int, drops_taken: int) -> float:
    """What the base rate is multiplied by in training step `step`, counted from 0.

    `drops_taken`: of kind "plateau", how many drops the evaluations so far gave; the other kinds do not read it. Warm-up
    is linear: step s of `warmup_steps` has (s + 1) / warmup_steps of the rate.
    """
    drops = drops_taken if schedule.kind == "plateau" else sum(step >= first for first in drop_steps(schedule))
    warm = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    return warm / 10.0**drops


def next_change(schedule: Schedule, step: int) -> float:
    """The first step after `step` whose factor may differ while `drops_taken` stays; infinity where there is none."""
    if step + 1 < schedule.warmup_steps:
        return step + 1
    return min((first for first in drop_steps(schedule) if first > step), default=math.inf)


def drop_steps(schedule: Schedule) -> tuple[int, ...]:
    """The first step at each lower rate that is known beforehand."""
    a_unit = {"epochs": schedule.steps_per_epoch, "steps": 1.0}
    return tuple(first_step(drop, a_unit[schedule.kind]) for drop in schedule.drops)


def first_step(epoch: float, steps_per_epoch: float) -> int:
    """The first step, counted from 0, before which the images of so many epochs have all been trained on."""
    # Less than a millionth of a step is rounding: 49 epochs of 100 / 49 steps are 100 steps, not 101.
    return math.ceil(epoch * steps_per_epoch - 1e-6)


class LayerRate(NamedTuple):
    """From `epoch` on the parameters of `layer` have `rate` whatever the schedule says; 0 freezes them."""

    layer: str
    epoch: float
    rate: float


def layer_rate(rates: Iterable[LayerRate], name: str, epoch: float) -> float | None:
    """The rate of the parameter called `name` once `epoch` is reached; None where the schedule's holds.

    `rates` are in the order of their epochs, as `layer_rates_of` gives them.
    """
    reached = [each.rate for each in rates if each.epoch <= epoch and covers(each.layer, name)]
    return reached[-1] if reached else None


def covers(layer: str, name: str) -> bool:
    """Whether `layer` is this parameter or holds it: conv1 covers conv1.weight, not conv10.weight."""
    return f"{name}.".startswith(f"{layer}.")


def drops_of(text: str) -> tuple[float, ...]:
    """The drops of `25,51,79`, increasing; argparse.ArgumentTypeError where they are not."""
    try:
        drops = tuple(float(part) for part in text.split(","))
    except ValueError:
        drops = ()
    rising = all(earlier < later for earlier, later in pairwise((0.0, *drops)))
    if not drops or not rising or drops[-1] == math.inf:
        raise argparse.ArgumentTypeError(
            f"{text} is no list of drops: give the epochs or steps after which the rate falls, above 0 and increasing, as 25,51,79"
        )
    return drops


def layer_rates_of(text: str) -> tuple[LayerRate, ...]:
    """The layer rates of `conv1@67=0.00001,conv1@72=0`, by epoch; argparse.ArgumentTypeError where they make no sense."""
    try:
        rates = tuple(sorted((one_layer_rate(part) for part in text.split(",")), key=lambda each: each.epoch))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text} gives no layer rates: write layer@epoch=rate, as conv1@67=0.00001,conv1@72=0"
        ) from error
    for number, later in enumerate(rates):
        for earlier in rates[:number]:
            refuse_contradiction(earlier, later)
    return rates


def one_layer_rate(text: str) -> LayerRate:
    layer, at, rest = text.strip().partition("@")
    epoch, equals, rate = rest.partition("=")
    found = LayerRate(layer, float(epoch), float(rate))
    if not (layer and at and equals and 0 <= found.epoch < math.inf and 0 <= found.rate < math.inf):
        raise ValueError(text)
    return found


def refuse_contradiction(earlier: LayerRate, later: LayerRate) -> None:
    if not (covers(earlier.layer, later.layer) or covers(later.layer, earlier.layer)):
        return
    if earlier.epoch == later.epoch:
        raise argparse.ArgumentTypeError(f"{later.layer} has two rates from epoch {later.epoch:g} on: give one")
    if earlier.rate == 0 < later.rate:
        raise argparse.ArgumentTypeError(
            f"{later.layer} is to learn from epoch {later.epoch:g} and frozen at {earlier.epoch:g}: what is frozen stays so"
        )


def drops(text: str) -> str:
    """Drops as a cell of a row: equal ones are equal text. For RunConfig's `parse`."""
    return ",".join(number_text(drop) for drop in drops_of(text))


def layer_rates(text: str) -> str:
    """Layer rates as a cell of a row: equal ones are equal text. For RunConfig's `parse`."""
    rates = layer_rates_of(text)
    return ",".join(f"{each.layer}@{number_text(each.epoch)}={number_text(each.rate)}" for each in rates)


def number_text(number: float) -> str:
    return f"{number:.15g}"
