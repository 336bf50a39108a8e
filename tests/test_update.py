"""torch's SGD under a schedule, against the paper's update written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from harness.config import AskedWrongly
from harness.schedule import Schedule, layer_rates_of, rate_factor
from harness.update import Rates, check_rates, groups_by_layer, set_rates

BASE, MOMENTUM, DECAY = 0.02, 0.9, 0.0005
STEPS = 50
WITH_DROPS = Schedule("epochs", BASE, 10 / 3, drops=(6, 10.5), warmup_steps=7)
SLOPES, START, GOAL = (1.0, 3.0, 0.2), (2.0, -1.0, 4.0), (0.5, 0.25, -8.0)


def by_hand(rate_at: Callable[[int], float]) -> Iterator[list[float]]:
    """The weights after every step of v = m v - wd lr w - lr g; w = w + v on the loss sum of slope (w - goal)^4 / 4."""
    weights, speeds = list(START), [0.0] * len(START)
    for step in range(STEPS):
        rate = rate_at(step)
        for i in range(len(weights)):
            gradient = SLOPES[i] * (weights[i] - GOAL[i]) ** 3 / 100
            speeds[i] = MOMENTUM * speeds[i] - DECAY * rate * weights[i] - rate * gradient
            weights[i] = weights[i] + speeds[i]
        yield list(weights)


def loss_of(weights: Tensor) -> Tensor:
    slopes, goal = (torch.tensor(numbers, dtype=weights.dtype) for numbers in (SLOPES, GOAL))
    return (slopes * (weights - goal) ** 4).sum() / 400


def sgd(groups: Any, rate: float = BASE) -> torch.optim.SGD:
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, weight_decay=DECAY, fused=True)


def taught(set_step: Callable[[torch.optim.SGD, int], None], steps: int = STEPS) -> list[Tensor]:
    """The weights after every step of torch's SGD, in float64; `set_step` comes before each."""
    weights = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimiser = sgd([weights])
    seen = []
    for step in range(steps):
        optimiser.zero_grad()
        loss_of(weights).backward()
        set_step(optimiser, step)
        optimiser.step()
        seen.append(weights.detach().clone())
    return seen


def with_rates(
    schedule: Schedule, form: str, drops_taken: Callable[[int], int] = lambda step: 0
) -> Callable[[torch.optim.SGD, int], None]:
    rates: list[Rates] = []

    def set_step(optimiser: torch.optim.SGD, step: int) -> None:
        if not rates:
            rates.append(Rates(optimiser, schedule, form))
        rates[0].at(step, drops_taken(step))

    return set_step


# --- the paper's equations ----------------------------------------------------------------------------------------


def test_fifty_steps_with_warm_up_and_drops_are_the_papers() -> None:
    ours = taught(with_rates(WITH_DROPS, "paper"))
    papers = list(by_hand(lambda step: BASE * rate_factor(WITH_DROPS, step, 0)))
    rates = [BASE * rate_factor(WITH_DROPS, step, 0) for step in range(STEPS)]
    assert rates[0] == BASE / 7
    assert len({*rates}) == 9  # seven of warm-up, and two drops
    for weights, expected in zip(ours, papers, strict=True):
        assert weights.tolist() == pytest.approx(expected, rel=1e-12, abs=0)


def test_fifty_steps_with_drops_of_a_plateau_are_the_papers() -> None:
    plateau = Schedule("plateau", BASE, 10.0, patience=2)

    def taken(step: int) -> int:
        return (step >= 12) + (step >= 13) + (step >= 40)

    for weights, expected in zip(
        taught(with_rates(plateau, "paper", taken)), by_hand(lambda step: BASE / 10 ** taken(step)), strict=True
    ):
        assert weights.tolist() == pytest.approx(expected, rel=1e-12, abs=0)


def test_torchs_form_is_torchs_own_sgd_bit_for_bit() -> None:
    def plain(optimiser: torch.optim.SGD, step: int) -> None:
        optimiser.param_groups[0]["lr"] = BASE * rate_factor(WITH_DROPS, step, 0)

    assert torch.equal(torch.stack(taught(with_rates(WITH_DROPS, "torch"))), torch.stack(taught(plain)))


def test_at_one_rate_the_forms_are_one_bit_for_bit() -> None:
    constant = Schedule("constant", BASE, 10.0)
    papers, torchs = (torch.stack(taught(with_rates(constant, form))) for form in ("paper", "torch"))
    assert torch.equal(papers, torchs)


def test_torchs_form_leaves_the_papers_with_the_first_change_of_rate() -> None:
    dropped = Schedule("steps", BASE, 10.0, drops=(20,))
    papers, torchs = (torch.stack(taught(with_rates(dropped, form))) for form in ("paper", "torch"))
    assert torch.equal(papers[:20], torchs[:20])
    apart = (papers - torchs).abs() / torchs.abs()
    assert (apart[20:] > 1e-4).all()


def test_what_a_drop_leaves_between_the_forms_decays_with_momentum() -> None:
    """On a constant slope the two speeds after a drop differ by 0.9 of what they did a step before."""
    speeds = {form: speeds_on_a_slope(form) for form in ("paper", "torch")}
    apart = [papers - torchs for papers, torchs in zip(speeds["paper"], speeds["torch"], strict=True)]
    assert apart[:20] == [0.0] * 20
    # The paper's goes on with all of the speed, torch's with a tenth of it.
    assert apart[20] == pytest.approx(MOMENTUM * 0.9 * speeds["paper"][19], rel=1e-9)
    for before, after in pairwise(apart[20:]):
        assert after == pytest.approx(MOMENTUM * before, rel=1e-6)
    # Ten steps leave about a third of it, forty a seventieth.
    assert apart[30] / apart[20] == pytest.approx(0.9**10, rel=1e-6)
    assert apart[60] / apart[20] == pytest.approx(0.9**40, rel=1e-4)


def speeds_on_a_slope(form: str) -> list[float]:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([weight], lr=BASE, momentum=MOMENTUM, fused=True)
    rates = Rates(optimiser, Schedule("steps", BASE, 10.0, drops=(20,)), form)
    places = [0.0]
    for step in range(80):
        weight.grad = torch.ones_like(weight)
        rates.at(step)
        optimiser.step()
        places.append(weight.item())
    return [after - before for before, after in pairwise(places)]


# --- groups -------------------------------------------------------------------------------------------------------


def small_network() -> nn.Sequential:
    torch.manual_seed(1)
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 4, 3))
    network.add_module("conv10", nn.Conv2d(4, 2, 3))
    network.parameter_scales = {"conv1.bias": (2.0, 0.0), "conv10.bias": (2.0, 0.0)}  # type: ignore[assignment]
    return network


def groups_of(network: nn.Module, layer_rates: str) -> list[dict[str, Any]]:
    return groups_by_layer(models.parameter_groups(network, BASE, DECAY), network, layer_rates_of(layer_rates))


def test_groups_are_split_for_the_named_layers_alone() -> None:
    network = small_network()
    names = {parameter: name for name, parameter in network.named_parameters()}
    split = [
        ([names[p] for p in group["params"]], group["lr"], group["weight_decay"])
        for group in groups_of(network, "conv1@3=0.1")
    ]
    assert split == [
        (["conv1.weight"], BASE, DECAY),
        (["conv10.weight"], BASE, DECAY),
        (["conv1.bias"], 2 * BASE, 0.0),
        (["conv10.bias"], 2 * BASE, 0.0),
    ]
    whole = groups_by_layer(models.parameter_groups(network, BASE, DECAY), network, ())
    assert [len(group["params"]) for group in whole] == [2, 2]


def test_every_group_has_the_schedules_rate_times_its_own_and_named_layers_theirs() -> None:
    network = small_network()
    asked = "conv1@2=0.003,conv1@4=0,conv10.bias@3=0.5"
    schedule = Schedule("epochs", BASE, 2.5, drops=(1, 3), warmup_steps=2)
    rates = Rates(sgd(groups_of(network, asked)), schedule, "torch", layer_rates_of(asked))
    table = {}
    for step in range(12):
        rates.at(step)
        table[step] = rates.in_groups
    # conv1.weight, conv10.weight, conv1.bias, conv10.bias
    assert table[0] == [0.01, 0.01, 0.02, 0.02]
    assert table[1] == table[2] == [0.02, 0.02, 0.04, 0.04]
    assert table[3] == table[4] == [0.002, 0.002, 0.004, 0.004]
    assert table[5] == table[7] == [0.003, 0.002, 0.006, 0.004]
    assert table[8] == table[9] == [0.003, 0.0002, 0.006, 1.0]
    assert table[10] == table[11] == [0.0, 0.0002, 0.0, 1.0]
    assert rates.rate == 0.0002


@pytest.mark.parametrize("form", ["torch", "paper"])
def test_a_frozen_layer_stands_still_and_the_others_go_on(form: str) -> None:
    network = small_network()
    optimiser = sgd(groups_of(network, "conv1@3=0"))
    rates = Rates(optimiser, Schedule("constant", BASE, 1.0), form, layer_rates_of("conv1@3=0"))
    states = []
    for step in range(6):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        rates.at(step)
        optimiser.step()
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    assert not torch.equal(states[1]["conv1.weight"], states[2]["conv1.weight"])
    for name in ("conv1.weight", "conv1.bias"):
        assert torch.equal(states[2][name], states[5][name])
    for name in ("conv10.weight", "conv10.bias"):
        assert not torch.equal(states[4][name], states[5][name])


def test_what_is_frozen_is_not_given_a_rate_again() -> None:
    optimiser = sgd([nn.Parameter(torch.zeros(1))])
    set_rates(optimiser, [0.0], "paper")
    set_rates(optimiser, [0.0], "paper")
    with pytest.raises(AssertionError, match="frozen"):
        set_rates(optimiser, [0.1], "paper")


def test_momentum_is_scaled_only_where_the_paper_asks_and_the_rate_changes() -> None:
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimiser = sgd([{"params": [each]} for each in parameters], rate=0.5)
    set_rates(optimiser, [0.25, 0.25], "paper")
    assert not optimiser.state  # nothing to scale before the first step, and no entry made
    for each in parameters:
        each.grad = torch.tensor([1.0, -2.0])
    optimiser.step()
    set_rates(optimiser, [0.0625, 0.25], "paper")
    buffers = [optimiser.state[each]["momentum_buffer"].tolist() for each in parameters]
    assert buffers == [[4.0, -8.0], [1.0, -2.0]]
    set_rates(optimiser, [0.03125, 0.125], "torch")
    assert [optimiser.state[each]["momentum_buffer"].tolist() for each in parameters] == buffers


def test_a_layer_that_the_network_lacks_is_named_with_those_it_has() -> None:
    names = [name for name, _ in small_network().named_parameters()]
    check_rates(layer_rates_of("conv1@3=0,conv10.bias@3=0"), names, "small")
    with pytest.raises(
        AskedWrongly, match=r"names conv7, of which small has no parameter: its layers are conv1, conv10$"
    ):
        check_rates(layer_rates_of("conv1@3=0,conv7@3=0"), names, "small")


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["torch", "paper"])
@pytest.mark.parametrize("stopped_after", [1, 5, 19, 20, 21, 34, 35, 36])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(form: str, stopped_after: int) -> None:
    """Also where the step after the stop is the first at another rate."""
    uninterrupted = taught(with_rates(WITH_DROPS, form))
    assert {20, 35} <= {step for step in range(1, 50) if rate_changes(step)}
    weights = nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimiser = sgd([weights])
    rates = Rates(optimiser, WITH_DROPS, form)
    for step in range(STEPS):
        if step == stopped_after:
            saved = (weights.detach().clone(), optimiser.state[weights]["momentum_buffer"].clone(), rates.in_groups)
            weights = nn.Parameter(saved[0])
            optimiser = sgd([weights])
            optimiser.state[weights]["momentum_buffer"] = saved[1]
            rates = Rates(optimiser, WITH_DROPS, form)
            rates.restore(saved[2])
        optimiser.zero_grad()
        loss_of(weights).backward()
        rates.at(step)
        optimiser.step()
        assert torch.equal(weights.detach(), uninterrupted[step])


def test_rates_that_were_restored_give_way_to_those_of_the_next_step() -> None:
    rates = Rates(sgd([nn.Parameter(torch.zeros(1))]), WITH_DROPS, "paper")
    rates.at(10)
    rates.restore([0.125])
    assert rates.in_groups == [0.125]
    rates.at(10)
    assert rates.in_groups == [BASE]


def rate_changes(step: int) -> bool:
    return rate_factor(WITH_DROPS, step, 0) != rate_factor(WITH_DROPS, step - 1, 0)


def test_rates_that_were_set_for_a_step_are_set_for_any_other() -> None:
    rates = Rates(sgd([nn.Parameter(torch.zeros(1))]), WITH_DROPS, "torch")
    for step in (40, 0, 20, 19, 34, 35, 6, 7, 1, 49, 0):
        rates.at(step)
        assert rates.in_groups == [BASE * rate_factor(WITH_DROPS, step, 0)]


def test_the_fused_update_of_float32_on_a_cpu_takes_every_rate() -> None:
    weights = nn.Parameter(torch.tensor(START))
    optimiser = sgd([weights])
    rates = Rates(optimiser, WITH_DROPS, "paper")
    for step in range(STEPS):
        optimiser.zero_grad()
        loss_of(weights).backward()
        rates.at(step)
        optimiser.step()
    *_, expected = by_hand(lambda step: BASE * rate_factor(WITH_DROPS, step, 0))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
