"""Figure 1: ReLU against tanh on CIFAR-10, in epochs to a training error of 25 % (section 3.1).

Our reading of "a four-layer CNN": cifar-18pct, without its normalisations. No regularisation of any kind: no weight decay,
every picture shown as it is, no dropout. Each activation has its own learning rate, constant, from a search: three epochs of
seed 1 at 0.001, 0.003 and 0.01, and at the next rate of that ladder as long as the best one lies at the end of those tried;
the rate with the least training error over the last epoch's worth of images wins. The search's runs, too, stop at 25 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config import RunConfig
from harness.paper.claims import CLAIMS, FIGURE_1_TRAIN_ERROR_PCT
from harness.paper.differences import last_training_error_pct
from harness.paper.groups import Row, Study

CLAIM = CLAIMS["relu"]
TARGET_PCT = FIGURE_1_TRAIN_ERROR_PCT
RELU, TANH = "ReLU", "tanh"
NETS = {RELU: "cifar-18pct-nonorm", TANH: "cifar-18pct-nonorm-tanh"}
SEARCH_EPOCHS, EPOCHS = 3, 60
FIRST_RATES = (0.001, 0.003, 0.01)
LADDER = (0.00001, 0.00003, 0.0001, 0.0003, *FIRST_RATES, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Asked:
    """What is the same in all of the study's runs: fields of RunConfig that say where the images are, and how it is computed."""

    how: Mapping[str, Any]

    def config(self, activation: str, rate: float, seed: int, epochs: int) -> RunConfig:
        """An ordinary `run`."""
        return RunConfig(
            model=NETS[activation], augment="none", image_size=32, init=None, learning_rate=rate, weight_decay=0.0,
            seed=seed, epochs=epochs, target_train_error_pct=TARGET_PCT, **self.how,
        )  # fmt: skip

    def search(self, activation: str, rate: float) -> RunConfig:
        return self.config(activation, rate, 1, SEARCH_EPOCHS)

    def final(self, activation: str, rate: float, seed: int) -> RunConfig:
        return self.config(activation, rate, seed, EPOCHS)


def rates_to_try(errors: Mapping[float, float]) -> tuple[float, ...]:
    """What is left of the search, for the training errors at the rates tried so far; () at its end."""
    first = tuple(rate for rate in FIRST_RATES if rate not in errors)
    if first:
        return first
    place = LADDER.index(best_rate(errors))
    return tuple(rate for rate in LADDER[max(place - 1, 0) : place + 2] if rate not in errors)


def best_rate(errors: Mapping[float, float]) -> float:
    """The rate with the least error, the lowest of equals."""
    return min(sorted(errors), key=lambda rate: errors[rate])


def searched(study: Study, asked: Asked, activation: str) -> dict[float, float]:
    """The training error of each rate that was tried, per cent; infinite where the loss diverged."""
    rows = {rate: study.row_of(asked.search(activation, rate)) for rate in LADDER}
    return {rate: search_error_pct(study, row) for rate, row in rows.items() if row}


def search_error_pct(study: Study, row: Row) -> float:
    error = last_training_error_pct(study.trial_of(row)) if row["status"] != "diverged" else None
    return math.inf if error is None else error


def chosen_rate(errors: Mapping[float, float]) -> float | None:
    """What an ended search found; None before its end, and where every rate diverged."""
    ended = bool(errors) and not rates_to_try(errors)
    return best_rate(errors) if ended and min(errors.values()) < math.inf else None


def rate_of(study: Study, asked: Asked, activation: str) -> float | None:
    return chosen_rate(searched(study, asked, activation))


def wanted(study: Study, asked: Asked, seeds: int) -> list[RunConfig]:
    """The search's runs as far as they are known, and a run a seed for an activation that has its rate."""
    runs = []
    for activation in NETS:
        left = rates_to_try(searched(study, asked, activation))
        runs += [asked.search(activation, rate) for rate in left]
    for seed in range(1, seeds + 1):
        for activation in NETS:
            rate = rate_of(study, asked, activation)
            runs += [asked.final(activation, rate, seed)] if rate else []
    return runs
