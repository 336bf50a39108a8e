"""What can be said of a series of times: how sure its mean is, what lies apart, whether it drifts, whether it has settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95  # of every interval that is told

# A block, and the lags that are looked at, are never longer than this share of the series: with fewer blocks their spread
# says next to nothing; and 16 steps are then the fewest of which a block can have two.
FEWEST_BLOCKS = 8
FEWEST_STEPS = 2 * FEWEST_BLOCKS
# Longer series become means of neighbours, at least so many of them, so that the cost stays the same.
POINTS = 1000
RESAMPLES = 2000
MAD_TO_SIGMA = 1.4826  # of the normal distribution
OUTLIER_SIGMAS = 5
OUTLIER_ABOVE_MEDIAN = 1.10
DRIFT_POINTS = 300
DRIFT_FEWEST_STEPS = 10
DRIFT_SHORTEST_MS = 5000
SETTLING_BLOCKS = 6
STEADY_WITHIN = 0.02
# Of the 15 pairs of six blocks, so many more that fall than rise, or the reverse: 1.7 % of orders without a trend.
TREND_OF_PAIRS = 13


# --- the mean -----------------------------------------------------------------------------------------------------


class LongRun(NamedTuple):
    """Of a series of correlated values: n times the variance of its mean, the degrees of freedom with which that is known,
    and the means of its blocks, one from every start on a circle, less the mean of all."""

    variance: float
    freedom: float
    block: int
    block_means: Array


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Where the mean of such a series lies, by a circular block bootstrap; None of fewer than 16 values.

    The block's length follows Politis and White's rule (2004, corrected 2009), with the lags up to twice the correlation
    time. A plain percentile interval of resampled means is too narrow for three reasons, each put right by its own size:
    blocks cut the correlations at their edges and lie about the series' own mean instead of the true one (`long_run`); and
    their variance is itself an estimate, so that Student's quantile at its degrees of freedom takes the normal's place.

    It holds for stationary series, also skewed ones, of at least about twenty effective samples. It is too narrow for fewer
    than ten, and where rare slow steps that make up the mean were seen a few times or never; too wide where slow steps
    return regularly, or neighbours even each other out. Drift, and whatever differs between launches, is not in it.
    """
    if len(values) < FEWEST_STEPS:
        return None
    mean = fmean(values)
    if min(values) == max(values):
        return values[0], values[0]
    points = means_of_neighbours(values)
    run = long_run(points)
    resampled = resampled_means(run)
    spread = float(resampled.std())
    if not spread:
        return mean, mean
    share = (1 + confidence) / 2
    enlarged = student(share, run.freedom) / NormalDist().inv_cdf(share)
    scale = enlarged * math.sqrt(run.variance / len(points)) / spread
    low, high = np.quantile(resampled, (1 - share, share))
    return mean + scale * float(low), mean + scale * float(high)


def effective_samples(values: Sequence[float]) -> float | None:
    """How many uncorrelated values would tell the mean as well: n over the integrated autocorrelation time, in 1..n.

    None of fewer than 16 values, and of a constant.
    """
    if len(values) < FEWEST_STEPS or min(values) == max(values):
        return None
    points = means_of_neighbours(values)
    correlated = long_run(points).variance * (len(values) // len(points))
    alone = float(np.var(np.asarray(values, dtype=np.float64)))
    return min(max(len(values) * alone / correlated, 1.0), float(len(values))) if correlated else float(len(values))


def means_of_neighbours(values: Sequence[float]) -> Array:
    """Means of equal batches of a long series, less a last part of one; the series itself if it is short."""
    batch = max(1, len(values) // POINTS)
    whole = np.asarray(values, dtype=np.float64)[: len(values) // batch * batch]
    means: Array = whole.reshape(-1, batch).mean(axis=1)
    return means


def autocovariances(points: Array) -> Array:
    """By lag from 0 to an eighth of the series, about its mean, each over n."""
    n, deviations = len(points), points - points.mean()
    return np.array([deviations[: n - lag] @ deviations[lag:] for lag in range(n // FEWEST_BLOCKS + 1)]) / n


def correlated_lags(covariances: Array) -> int:
    """The least lag that is at least twice the correlation time summed up to it (Sokal's window), or the last there is."""
    if not covariances[0]:
        return 1
    times = 2 * np.cumsum(covariances) / covariances[0] - 1
    enough = np.flatnonzero(np.arange(len(times)) >= 2 * np.maximum(times, 1))
    return int(enough[0]) if len(enough) else len(covariances) - 1


def block_length(covariances: Array, lags: int, n: int) -> int:
    """(3/2 (G/g)^2 n)^(1/3), with g the sum of the autocovariances and G that of each times its lag, on both sides.

    Not under the cube root of n, the order at which correlations too weak to be seen still do no harm.
    """
    near = covariances[1 : lags + 1]
    total = covariances[0] + 2 * near.sum()
    slope = 2 * (np.arange(1, lags + 1) @ near)
    ideal = (1.5 * (slope / total) ** 2 * n) ** (1 / 3) if total > 0 else math.inf
    return math.ceil(min(max(float(ideal), math.cbrt(n)), n // FEWEST_BLOCKS))


def long_run(points: Array) -> LongRun:
    """The variance of blocks of l values gives each autocovariance the weight 1 - k/l, or none from l on; the rest, k/l or
    all, of those that can be told from noise is added. Deviations from the series' own mean make a sum of such weights W too
    small by the share W / n; and it varies as with n / (the sum of their squares) degrees of freedom, less the mean's one."""
    n, covariances = len(points), autocovariances(points)
    lags = correlated_lags(covariances)
    block = block_length(covariances, lags, n)
    sums = np.concatenate(([0.0], np.cumsum(np.concatenate((points, points[:block])) - points.mean())))
    block_means = (sums[block:] - sums[:-block])[:n] / block
    lag = np.arange(1, max(lags, block) + 1)
    missing = np.minimum(lag / block, 1)
    added = 2 * float(missing[:lags] @ covariances[1 : lags + 1])
    weights = 1 - missing + missing * ((lag <= lags) & (added > 0))
    variance = block * float(block_means @ block_means) / n + max(added, 0.0)
    share_lost = (1 + 2 * float(weights.sum())) / n
    freedom = n / (1 + 2 * float(weights @ weights)) - 1
    return LongRun(variance / (1 - share_lost), freedom, block, block_means)


def resampled_means(run: LongRun) -> Array:
    """Means of as many blocks, drawn with replacement, as the series is long; the same for the same series."""
    n = len(run.block_means)
    starts = np.random.default_rng(0).integers(0, n, (RESAMPLES, n // run.block))
    means: Array = run.block_means[starts].mean(axis=1)
    return means


def student(share: float, freedom: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit  # slow to import: only where it is needed

    return float(stdtrit(freedom, share))


# --- steps that lie apart, and drift ------------------------------------------------------------------------------


def outliers(values: Sequence[float]) -> int:
    """Values over 5 robust standard deviations and over 10 % above the median: counted, dropped nowhere."""
    if not values:
        return 0
    middle = median(values)
    sigma = MAD_TO_SIGMA * median(abs(value - middle) for value in values)
    bound = max(middle + OUTLIER_SIGMAS * sigma, OUTLIER_ABOVE_MEDIAN * middle)
    return sum(value > bound for value in values)


def drift_pct_per_min(step_ms: Sequence[float]) -> float | None:
    """The median slope (Theil and Sen) of the step time against when the step ended, as a share of the median step a minute.

    Of the medians of blocks where there are more than 300 steps; None of fewer than 10 steps, or of less than 5 s.
    """
    if len(step_ms) < DRIFT_FEWEST_STEPS or sum(step_ms) < DRIFT_SHORTEST_MS:
        return None
    batch = math.ceil(len(step_ms) / DRIFT_POINTS)
    steps = np.asarray(step_ms, dtype=np.float64)
    whole = len(steps) // batch * batch
    times, ended = (np.median(each[:whole].reshape(-1, batch), axis=1) for each in (steps, np.cumsum(steps) / 60_000))
    first, second = np.triu_indices(len(times), k=1)
    minutes = ended[second] - ended[first]
    slopes = (times[second] - times[first])[minutes > 0] / minutes[minutes > 0]
    middle = float(np.median(steps))
    return 100 * float(np.median(slopes)) / middle if middle else None


# --- settled, and sure enough -------------------------------------------------------------------------------------


def is_steady(block_ms: Sequence[float]) -> bool:
    """Whether the mean step times of consecutive equal blocks have settled, by the last six; False of fewer.

    They have if the later three's mean is within 2 % of the earlier three's; or within what their noise explains, by
    Welch's t (97.5 %), and the six do not go one way: a steep decay has so wide a spread that t alone takes it for noise.
    """
    last = block_ms[-SETTLING_BLOCKS:]
    if len(last) < SETTLING_BLOCKS:
        return False
    half = SETTLING_BLOCKS // 2
    earlier, later = last[:half], last[half:]
    if abs(fmean(later) - fmean(earlier)) <= STEADY_WITHIN * fmean(earlier):
        return True
    return not are_apart(earlier, later) and abs(rising_pairs(last)) < TREND_OF_PAIRS


def are_apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two samples' means differ by more than Welch's t-test (two-sided, 5 %) puts down to noise."""
    of_a, of_b = stdev(a) ** 2 / len(a), stdev(b) ** 2 / len(b)
    if not of_a + of_b:
        return fmean(a) != fmean(b)
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return abs(fmean(a) - fmean(b)) > student(0.975, freedom) * math.sqrt(of_a + of_b)


def rising_pairs(values: Sequence[float]) -> int:
    """Pairs whose later value is the greater, less those whose earlier one is (Kendall's S)."""
    pairs = [(a, b) for place, a in enumerate(values) for b in values[place + 1 :]]
    return sum((b > a) - (b < a) for a, b in pairs)


def relative_half_width(block_s: Sequence[float]) -> float:
    """Half of the 95 % t-interval of the mean of equal blocks' seconds, over that mean; infinite for fewer than three."""
    if len(block_s) < 3 or not fmean(block_s) > 0:
        return math.inf
    return student(0.975, len(block_s) - 1) * stdev(block_s) / math.sqrt(len(block_s)) / fmean(block_s)
