"""What is said of a series of step times: exact on literals, and as often right as it claims on series of a known mean."""

from __future__ import annotations

import math
import random

import pytest
from bootstrap_coverage import coverage, normal

from harness.metrics.intervals import (
    drift_pct_per_min,
    effective_samples,
    is_steady,
    mean_interval,
    outliers,
    relative_half_width,
    rising_pairs,
)


def noisy(count: int, mean: float = 100.0, sigma: float = 1.0, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, sigma) for _ in range(count)]


def each_repeated(values: list[float], times: int) -> list[float]:
    return [value for value in values for _ in range(times)]


# --- the mean -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_of_correlated_steps_holds_their_mean_as_often_as_it_says(seed):
    covered, _ = coverage(normal(0.5), seed=seed, count=2000, steps=200)
    assert 0.93 <= covered <= 0.97


# Bounds: the share promised, and three standard errors of 300 series beyond it.
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_it_does_so_however_strongly_the_steps_are_correlated(rho):
    covered, _ = coverage(normal(rho), seed=1, count=300, steps=200)
    assert 0.90 <= covered <= 0.99


def test_the_interval_is_as_wide_as_students_where_steps_are_independent():
    _, width_ms = coverage(normal(0.0), seed=1, count=300, steps=200)
    assert width_ms == pytest.approx(2 * 1.972 / math.sqrt(200), rel=0.05)


def test_the_interval_is_wider_the_surer_it_has_to_be():
    steps = noisy(200)
    ninety, ninety_nine = mean_interval(steps, 0.90), mean_interval(steps, 0.99)
    assert ninety_nine[0] < ninety[0] < sum(steps) / 200 < ninety[1] < ninety_nine[1]


def test_the_same_steps_give_the_same_interval_and_another_unit_the_same_one_in_that_unit():
    steps = noisy(200)
    low, high = mean_interval(steps)
    assert mean_interval(list(steps)) == (low, high)
    assert mean_interval([step / 1000 for step in steps]) == pytest.approx((low / 1000, high / 1000), rel=1e-9)


def test_repeating_every_step_makes_the_mean_no_surer():
    few, many = mean_interval(noisy(200)), mean_interval(each_repeated(noisy(200), 4))
    assert many[1] - many[0] == pytest.approx(few[1] - few[0], rel=0.15)


def test_a_long_run_of_independent_steps_is_known_as_well_as_its_length_says():
    steps = noisy(100_000)
    low, high = mean_interval(steps)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(100_000), rel=0.1)
    assert low < sum(steps) / 100_000 < high


@pytest.mark.parametrize("count", [16, 999, 3001])
def test_steps_that_are_all_the_same_leave_no_doubt(count):
    assert mean_interval([12.3] * count) == (12.3, 12.3)


def test_steps_that_even_each_other_out_over_every_batch_leave_none_either():
    assert mean_interval([1.0, 3.0] * 1000) == (2.0, 2.0)


def test_fewer_than_sixteen_steps_have_no_interval_and_no_effective_number():
    assert mean_interval(noisy(15)) is None
    assert effective_samples(noisy(15)) is None
    assert mean_interval(noisy(16)) is not None
    assert effective_samples(noisy(16)) is not None


def test_independent_steps_count_one_each():
    assert effective_samples(noisy(1000)) == pytest.approx(1000, rel=0.15)
    assert effective_samples(noisy(100_000)) == pytest.approx(100_000, rel=0.15)


def test_steps_that_come_four_alike_count_a_quarter():
    assert effective_samples(each_repeated(noisy(500), 4)) == pytest.approx(500, rel=0.15)


def test_effective_steps_stay_between_one_and_all():
    assert effective_samples([100.0 + (step % 2) for step in range(200)]) == 200
    assert 1 <= effective_samples([float(step) for step in range(200)]) < 10


def test_how_many_steps_a_constant_counts_for_is_unknown():
    assert effective_samples([12.3] * 200) is None


# --- steps that lie apart, and drift ------------------------------------------------------------------------------


def test_a_step_far_above_the_others_is_counted():
    # Median 100, median distance 1: the bound is 100 + 5 x 1.4826 = 107.4 by noise, but 110 by size.
    steps = [99.0, 100.0, 101.0, 99.0, 101.0, 100.0, 100.0, 99.0, 101.0]
    assert outliers([*steps, 110.0]) == 0
    assert outliers([*steps, 110.1, 300.0]) == 2


def test_where_steps_vary_much_a_step_counts_only_beyond_five_deviations():
    # Median 100, median distance 10: the bound is 174.13.
    steps = [90.0, 110.0, 90.0, 110.0, 100.0, 90.0, 110.0]
    assert outliers([*steps, 50.0, 174.1]) == 0
    assert outliers([*steps, 50.0, 174.2]) == 1


def test_microseconds_count_for_nothing_in_a_perfectly_regular_run():
    assert outliers([100.0] * 50 + [100.004, 109.9]) == 0
    assert outliers([100.0] * 50 + [110.1]) == 1


def test_a_fast_step_is_no_outlier_and_no_steps_have_none():
    assert outliers([100.0] * 50 + [1.0]) == 0
    assert outliers([]) == 0


def test_steps_that_grow_by_a_tenth_of_a_percent_of_the_elapsed_minute_drift_by_so_much():
    # Each step takes 100 ms and 1 ms more for every minute gone when it ends: 1 % a minute.
    steps, ended_ms = [], 0.0
    for _ in range(200):
        steps.append((100 + ended_ms / 60_000) / (1 - 1 / 60_000))
        ended_ms += steps[-1]
    middle = (sorted(steps)[99] + sorted(steps)[100]) / 2
    assert drift_pct_per_min(steps) == pytest.approx(100 / middle, rel=1e-9)


def test_a_few_wild_steps_do_not_make_a_drift():
    assert drift_pct_per_min([100.0] * 90 + [5000.0] * 10) == 0


def test_drift_of_a_long_run_is_that_of_its_blocks():
    # 1 ms slower every 100 steps of about 100 ms: about 6 ms a minute, of a median step of 115 ms.
    steps = [100.0 + step // 100 for step in range(3000)]
    assert drift_pct_per_min(steps) == pytest.approx(100 * 60_000 / 100 / 114.5**2, rel=0.02)


def test_drift_is_unknown_of_too_few_steps_or_too_short_a_time():
    assert drift_pct_per_min([1000.0] * 9) is None
    assert drift_pct_per_min([499.0] * 10) is None
    assert drift_pct_per_min([500.0] * 10) == 0
    assert drift_pct_per_min([]) is None


# --- settled, and sure enough -------------------------------------------------------------------------------------


def steady_after(blocks: list[float]) -> int | None:
    """How many blocks it takes until they are steady; None if they never are."""
    return next((count for count in range(1, len(blocks) + 1) if is_steady(blocks[:count])), None)


@pytest.mark.parametrize("half_life", [1, 2, 5])
def test_a_warm_up_that_decays_is_not_steady_until_it_has_flattened(half_life):
    blocks = [100 * (1 + 2 ** (-block / half_life)) for block in range(60)]
    settled = steady_after(blocks)
    assert settled is not None
    assert sum(blocks[settled - 6 : settled - 3]) <= 1.02 * sum(blocks[settled - 3 : settled])
    assert not any(is_steady(blocks[:count]) for count in range(settled))
    assert all(is_steady(blocks[:count]) for count in range(settled, 61))


def test_a_warm_up_that_decays_under_noise_is_steady_only_near_its_end():
    for seed in range(20):
        noise = noisy(60, 1.0, 0.005, seed)
        blocks = [100 * (1 + 2 ** (-block / 3)) * factor for block, factor in enumerate(noise)]
        assert blocks[steady_after(blocks) - 6] < 1.15 * 100


def test_noise_of_a_tenth_is_steady_nearly_at_once():
    needed = [steady_after(noisy(20, 100.0, 10.0, seed)) for seed in range(200)]
    assert sum(count == 6 for count in needed) >= 170
    assert max(needed) <= 12


def test_a_slow_ramp_is_never_steady():
    for seed in range(20):
        noise = noisy(40, 1.0, 0.001, seed)
        assert steady_after([100 * 1.05**block * factor for block, factor in enumerate(noise)]) is None
        assert steady_after([100 / 1.05**block * factor for block, factor in enumerate(noise)]) is None


@pytest.mark.parametrize("place", range(6))
def test_one_slow_block_does_not_hold_it_up(place):
    blocks = [100.1, 99.9, 100.0, 100.2, 99.8, 100.1, 99.9, 100.0, 100.2, 99.8, 100.1, 99.9]
    blocks[place] = 300.0
    assert any(is_steady(blocks[:count]) for count in range(6, 13))
    assert is_steady(blocks)


def test_a_step_of_a_tenth_in_quiet_blocks_is_seen():
    assert not is_steady([110.0, 110.1, 109.9, 100.0, 100.1, 99.9])
    assert not is_steady([110.0, 110.0, 110.0, 100.0, 100.0, 100.0])


def test_fewer_than_six_blocks_are_not_steady():
    assert not is_steady([100.0] * 5)
    assert is_steady([100.0] * 6)


def test_pairs_that_rise_count_against_those_that_fall():
    assert rising_pairs([1.0, 2.0, 3.0]) == 3
    assert rising_pairs([3.0, 1.0, 2.0]) == -1
    assert rising_pairs([1.0, 1.0]) == 0


def test_half_a_t_interval_over_the_mean():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302653.
    assert relative_half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3) / 2, rel=1e-6)
    assert relative_half_width([2.0, 2.0, 2.0, 2.0]) == 0


def test_fewer_than_three_blocks_tell_no_width():
    assert relative_half_width([1.0, 1.0]) == math.inf
    assert relative_half_width([]) == math.inf
    assert relative_half_width([0.0, 0.0, 0.0]) == math.inf
