"""The learning rate of every step: drops by epoch, by step and by plateau, warm-up, and rates of single layers."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction

import pytest

from harness.schedule import (
    LayerRate,
    Schedule,
    drops,
    drops_of,
    first_step,
    layer_rate,
    layer_rates,
    layer_rates_of,
    next_change,
    plateau_drops,
    rate_factor,
)

IMAGENET_STEPS = 1_281_167 / 128
CODE2012 = Schedule("epochs", 0.01, IMAGENET_STEPS, drops=(25, 51, 79))


def rate(schedule: Schedule, step: int, drops_taken: int = 0) -> float:
    return schedule.base_rate * rate_factor(schedule, step, drops_taken)


# --- plateau ------------------------------------------------------------------------------------------------------

FALLING = [90, 80, 71, 65, 60, 58, 57, 56.5, 56.25, 56]
FLAT = [50.0] * 12
NOISY = [60, 52, 55, 50, 51, 53, 49.5, 50, 50.5, 49.75, 44, 44.5, 43, 43.5, 43.25, 43]


@pytest.mark.parametrize(
    ("errors", "patience", "drops_after"),
    [
        (FALLING, 1, ()),
        (FALLING, 3, ()),
        (FLAT, 3, (4, 7, 10)),  # the first is an improvement on nothing; three drops, and not a fourth at 13
        (FLAT + FLAT, 3, (4, 7, 10)),
        (NOISY, 2, (6, 9, 15)),
        (NOISY, 3, (10, 16)),
        (NOISY, 4, ()),
        ([70, 60, 60], 5, ()),  # fewer than patience
        ([], 1, ()),
        ([60, 61, 62, 59, 60, 61, 58], 2, (3, 6)),  # lower again after a drop: the count starts afresh
        ([60, 61, 62, 63, 59], 2, (3,)),  # the evaluation after a drop is the first of the new count
        ([60, 61, 62, 61, 60.5], 2, (3, 5)),  # better than since the drop, not than ever: no improvement
        ([60, 60, 59], 2, ()),  # equal is not below; the third came in time
        ([math.nan] * 5, 2, (2, 4)),
        ([60, math.nan, 59, math.nan, math.nan], 2, (5,)),
    ],
)
def test_the_rate_drops_after_evaluations_without_a_lower_error(
    errors: list[float], patience: int, drops_after: tuple[int, ...]
) -> None:
    assert plateau_drops(errors, patience) == drops_after


def test_a_drop_once_taken_stays_whatever_the_curve_does_later() -> None:
    for curve in (FALLING, FLAT, NOISY):
        whole = plateau_drops(curve, 2)
        for seen in range(len(curve) + 1):
            assert plateau_drops(curve[:seen], 2) == tuple(drop for drop in whole if drop <= seen)


def test_the_number_of_drops_may_be_another_than_the_papers_three() -> None:
    assert plateau_drops(FLAT, 2, most=1) == (3,)
    assert plateau_drops(FLAT, 2, most=5) == (3, 5, 7, 9, 11)
    assert plateau_drops(FLAT, 2, most=0) == ()


def test_a_plateau_schedule_has_as_many_tenths_as_drops_were_taken() -> None:
    plateau = Schedule("plateau", 0.01, 100.0, patience=3)
    assert [rate(plateau, 10**6, taken) for taken in range(4)] == [0.01, 0.001, 0.0001, 0.00001]


# --- known beforehand ---------------------------------------------------------------------------------------------


def test_the_released_sources_rate_over_its_91_epochs() -> None:
    in_epoch = {epoch: rate(CODE2012, first_step(epoch, IMAGENET_STEPS)) for epoch in range(91)}
    assert [epoch for epoch in range(1, 91) if in_epoch[epoch] != in_epoch[epoch - 1]] == [25, 51, 79]
    assert [in_epoch[epoch] for epoch in (0, 24, 25, 50, 51, 78, 79, 90)] == [
        0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001, 0.00001, 0.00001,
    ]  # fmt: skip


def test_a_drop_comes_with_the_first_step_before_which_its_epochs_images_were_seen() -> None:
    # 10 images, 3 a step: after 3 steps 9 of them, after 4 steps 12.
    schedule = Schedule("epochs", 1.0, 10 / 3, drops=(1, 2.7))
    assert [rate_factor(schedule, step, 0) for step in range(11)] == [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]


def test_first_steps_are_those_of_exact_fractions() -> None:
    for images in (1, 7, 100, 2048, 50_000, 1_281_167):
        for a_step in (1, 3, 32, 49, 96, 128, 1000):
            for epoch in range(1, 100):
                assert first_step(epoch, images / a_step) == math.ceil(Fraction(epoch * images, a_step))


def test_drops_by_step_come_after_so_many_steps() -> None:
    schedule = Schedule("steps", 1.0, 7.5, drops=(2, 5))
    assert [rate_factor(schedule, step, 0) for step in range(7)] == [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]


def test_a_constant_rate_is_constant() -> None:
    constant = Schedule("constant", 0.01, 10.0)
    assert {rate(constant, step) for step in range(1000)} == {0.01}
    assert next_change(constant, 0) == math.inf


def test_only_a_plateau_reads_the_drops_taken() -> None:
    assert rate_factor(CODE2012, 0, 3) == 1
    assert rate_factor(Schedule("constant", 0.01, 10.0), 0, 3) == 1


def test_warm_up_rises_in_equal_parts_to_the_whole_rate_and_meets_drops() -> None:
    schedule = Schedule("steps", 1.0, 10.0, drops=(2,), warmup_steps=4)
    assert [rate_factor(schedule, step, 0) for step in range(6)] == [0.25, 0.5, 0.075, 0.1, 0.1, 0.1]
    assert rate_factor(Schedule("constant", 1.0, 10.0, warmup_steps=1), 0, 0) == 1


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("constant", 0.01, 10 / 3),
        Schedule("constant", 0.01, 10 / 3, warmup_steps=1),
        Schedule("plateau", 0.01, 10 / 3, patience=2, warmup_steps=6),
        Schedule("epochs", 0.01, 10 / 3, drops=(1, 2, 3.5), warmup_steps=5),
        Schedule("epochs", 0.01, 0.25, drops=(1, 2, 3, 9)),
        Schedule("steps", 0.01, 10 / 3, drops=(2, 3, 20), warmup_steps=9),
    ],
)
def test_nothing_changes_before_the_step_that_is_told(schedule: Schedule) -> None:
    factors = [rate_factor(schedule, step, 1) for step in range(40)]
    for step in range(40):
        until = min(40, next_change(schedule, step))
        assert until > step
        assert set(factors[step : int(until)]) == {factors[step]}


# --- single layers ------------------------------------------------------------------------------------------------


def test_conv1_of_the_released_source_slows_down_and_freezes() -> None:
    rates = layer_rates_of("conv1@67=0.00001,conv1@72=0")
    assert rates == (("conv1", 67.0, 0.00001), ("conv1", 72.0, 0.0))
    epochs = (0, 66.99, 67, 71.99, 72, 90)
    assert [layer_rate(rates, "conv1.weight", epoch) for epoch in epochs] == [None, None, 0.00001, 0.00001, 0.0, 0.0]
    assert layer_rate(rates, "conv1.bias", 70) == 0.00001
    assert layer_rate(rates, "conv2.weight", 90) is None


def test_a_layer_is_a_whole_name_before_a_dot_or_a_parameter() -> None:
    rates = (LayerRate("conv1", 0, 0.5), LayerRate("fc.8.bias", 0, 0.25))
    assert layer_rate(rates, "conv10.weight", 1) is None
    assert layer_rate(rates, "block.conv1.weight", 1) is None
    assert layer_rate(rates, "fc.8.bias", 1) == 0.25
    assert layer_rate(rates, "fc.8.weight", 1) is None


def test_layer_rates_may_be_asked_in_any_order() -> None:
    assert layer_rates_of("conv1@72=0, conv2@3=1e-3,conv1@67=0.1") == (
        ("conv2", 3.0, 0.001),
        ("conv1", 67.0, 0.1),
        ("conv1", 72.0, 0.0),
    )


@pytest.mark.parametrize(
    "text", ["", "conv1", "conv1@3", "conv1=0.1", "@3=0.1", "conv1@x=0", "conv1@3=y", "conv1@-1=0", "conv1@3=-0.1",
             "conv1@nan=0", "conv1@3=nan", "conv1@3=inf", "conv1@inf=0", "conv1@3=0,"],
)  # fmt: skip
def test_what_is_no_layer_rate_is_told_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"conv1@67=0\.00001,conv1@72=0"):
        layer_rates_of(text)


def test_layer_rates_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"conv1 has two rates from epoch 3 on"):
        layer_rates_of("conv1@3=0.1,conv1@3=0.2")
    with pytest.raises(argparse.ArgumentTypeError, match=r"conv1\.bias has two rates from epoch 3 on"):
        layer_rates_of("conv1@3=0.1,conv1.bias@3=0.2")
    with pytest.raises(argparse.ArgumentTypeError, match=r"conv1\.weight is to learn from epoch 5 and frozen at 3"):
        layer_rates_of("conv1.weight@5=0.1,conv1@3=0")
    assert len(layer_rates_of("conv1@3=0,conv2@5=0.1,conv1@6=0")) == 3


# --- as text ------------------------------------------------------------------------------------------------------


def test_drops_are_read_as_numbers() -> None:
    assert drops_of("25,51,79") == (25.0, 51.0, 79.0)
    assert drops_of(" 0.5, 1250000") == (0.5, 1250000.0)


@pytest.mark.parametrize("text", ["", "x", "25,51,", "25;51", "51,25", "25,25", "0,5", "-1", "nan", "3,nan,5", "5,inf"])
def test_what_is_no_list_of_drops_is_told_with_an_example(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="25,51,79"):
        drops_of(text)


def test_equal_settings_are_equal_cells_that_can_be_read_again() -> None:
    assert drops("25.0, 51,79.50") == "25,51,79.5"
    assert drops_of(drops("1234567,1234567.25")) == (1234567.0, 1234567.25)
    assert layer_rates("conv1@72.0=0.0,conv1@67=0.00001") == "conv1@67=1e-05,conv1@72=0"
    assert layer_rates_of(layer_rates("conv1@72=0,conv1@67=1e-5")) == layer_rates_of("conv1@67=0.00001,conv1@72=0")
