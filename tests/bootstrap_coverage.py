"""Prints how often the interval of `mean_interval` holds the true mean: python tests/bootstrap_coverage.py [SERIES].

SERIES: simulated series a line, 2000 if left out; the lines of AR(1), rho 0.5, 200 steps, are the promised ones.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.metrics.intervals import FEWEST_STEPS, mean_interval

Array = NDArray[np.float64]
# Simulates so many series of so many steps; every kind has the same mean at any length.
Simulation = Callable[[np.random.Generator, int, int], Array]

MEAN_MS = 100.0
RUN_IN_STEPS = 100
SPIKE_MS, SPIKE_SHARE = 50.0, 0.02
PERIOD = 20


def unit_ar1(rho: float, rng: np.random.Generator, count: int, steps: int) -> Array:
    """Rows of a first-order autoregression of variance 1 and mean 0."""
    rows = rng.standard_normal((steps + RUN_IN_STEPS, count))
    for before, now in itertools.pairwise(rows):
        now *= math.sqrt(1 - rho**2)
        now += rho * before
    return np.ascontiguousarray(rows[RUN_IN_STEPS:].T)


def normal(rho: float) -> Simulation:
    return lambda rng, count, steps: MEAN_MS + unit_ar1(rho, rng, count, steps)


def log_normal(rho: float, sigma: float = 0.5) -> Simulation:
    def simulation(rng: np.random.Generator, count: int, steps: int) -> Array:
        rows: Array = MEAN_MS * np.exp(sigma * unit_ar1(rho, rng, count, steps) - sigma**2 / 2)
        return rows

    return simulation


def moving_average(rng: np.random.Generator, count: int, steps: int) -> Array:
    noise = rng.standard_normal((count, steps + 9))
    rows = np.full((count, steps), MEAN_MS)
    for start in range(10):
        rows += noise[:, start : start + steps]
    return rows


def rare_spikes(rng: np.random.Generator, count: int, steps: int) -> Array:
    spikes = SPIKE_MS * (rng.random((count, steps)) < SPIKE_SHARE)
    rows: Array = MEAN_MS - SPIKE_MS * SPIKE_SHARE + rng.standard_normal((count, steps)) + spikes
    return rows


def regular_spikes(rng: np.random.Generator, count: int, steps: int) -> Array:
    spikes = SPIKE_MS * ((np.arange(steps) + rng.integers(0, PERIOD, (count, 1))) % PERIOD == 0)
    rows: Array = MEAN_MS - SPIKE_MS / PERIOD + rng.standard_normal((count, steps)) + spikes
    return rows


def coverage(simulation: Simulation, seed: int, count: int, steps: int) -> tuple[float, float]:
    """Share of the series whose interval holds the true mean, and the median of the intervals' widths."""
    series = simulation(np.random.default_rng(seed), count, steps)
    ends = np.array([mean_interval(row.tolist()) for row in series], dtype=np.float64)
    inside = (ends[:, 0] <= MEAN_MS) & (ends[:, 1] >= MEAN_MS)
    return float(inside.mean()), float(np.median(ends[:, 1] - ends[:, 0]))


RHOS = (-0.5, 0.0, 0.5, 0.8)
LENGTHS = (FEWEST_STEPS, 30, 200, 1000)
PROMISED = [("AR(1), rho 0.5", normal(0.5), 200, seed) for seed in (1, 2, 3)]
KINDS = [
    *((f"AR(1), rho {rho}", normal(rho)) for rho in RHOS),
    *((f"log-normal, rho {rho}", log_normal(rho)) for rho in RHOS),
    ("moving average of 10", moving_average),
    ("2 % slow steps", rare_spikes),
    (f"every {PERIOD}th step slow", regular_spikes),
]
OTHERS = [(name, simulation, steps, 1) for name, simulation in KINDS for steps in LENGTHS]


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(
        f"{'series':<24}{'steps':>6}{'seed':>6}{'covered %':>11}{'width ms':>10}   (95 % asked, {asked} series a line)"
    )
    for label, kind, length, seeded in [*PROMISED, *OTHERS]:
        covered, width_ms = coverage(kind, seeded, asked, length)
        print(f"{label:<24}{length:>6}{seeded:>6}{100 * covered:>11.1f}{width_ms:>10.3f}", flush=True)
