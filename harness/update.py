"""The learning rates given to torch's SGD step by step, in the paper's form of the update or in torch's.

The paper (section 5): v = m v - wd lr w - lr g; w = w + v. torch.optim.SGD: b = m b + (g + wd w); w = w - lr b. With
v = -lr b they are the same as long as lr stays. Where it goes from lr to lr', v keeps what it was, so that b must become
b lr / lr': scaling torch's momentum once makes every later step the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import models
from harness.config import AskedWrongly, RunConfig
from harness.schedule import (
    FORMS,
    LayerRate,
    Schedule,
    covers,
    drops_of,
    first_step,
    layer_rate,
    layer_rates_of,
    next_change,
    rate_factor,
)

MEMBER = "member"  # key of a group of `groups_by_layer`: the name of one of its parameters, which stands for all


def optimiser_of(config: RunConfig, network: nn.Module, train_images: int) -> tuple[Optimizer, Rates]:
    """SGD over a network's parameters, or those of a part of it, and what sets its learning rates step by step."""
    layers = layer_rates_of(config.layer_rates) if config.layer_rates else ()
    groups = models.parameter_groups(network, config.learning_rate, config.weight_decay)
    if layers:
        groups = groups_by_layer(groups, network, layers)
    optimiser = torch.optim.SGD(groups, momentum=config.momentum, fused=True)
    steps_per_epoch = train_images / config.images_per_step
    schedule = Schedule(
        kind=config.schedule,
        base_rate=config.learning_rate,
        steps_per_epoch=steps_per_epoch,
        drops=drops_of(config.drops) if config.drops else (),
        patience=config.patience or 0,
        warmup_steps=first_step(config.warmup_epochs, steps_per_epoch),
    )
    return optimiser, Rates(optimiser, schedule, config.decay_form, layers)


class Rates:
    """Sets the learning rate of every group of an optimiser from a schedule, and from `layer_rates` for some layers.

    A group keeps its multiple of the base rate (biases may learn twice as fast) under either. With `layer_rates` the groups
    must come from `groups_by_layer`. `rate` is the base rate times the schedule's factor in the step last given to `at`.
    To go on with momentum that was saved, save `in_groups` with it and `restore` them.
    """

    def __init__(
        self, optimiser: Optimizer, schedule: Schedule, form: str, layer_rates: Iterable[LayerRate] = ()
    ) -> None:
        self.optimiser, self.schedule, self.form = optimiser, schedule, form
        self.from_step = [each._replace(epoch=first_step(each.epoch, schedule.steps_per_epoch)) for each in layer_rates]
        self.multiples = [rate / schedule.base_rate for rate in self.in_groups]
        self.rate = math.nan
        self.drops_taken = -1
        self.since, self.until = 0, -math.inf

    def at(self, step: int, drops_taken: int = 0) -> None:
        """Before the update of training step `step`, counted from 0; `drops_taken` as in `rate_factor`."""
        if self.since <= step < self.until and drops_taken == self.drops_taken:
            return
        self.rate = self.schedule.base_rate * rate_factor(self.schedule, step, drops_taken)
        set_rates(self.optimiser, self.of_groups(step), self.form)
        layer_changes = [each.epoch for each in self.from_step if each.epoch > step]
        self.since, self.until = step, min([next_change(self.schedule, step), *layer_changes])
        self.drops_taken = drops_taken

    @property
    def in_groups(self) -> list[float]:
        """The rate of every group as the last update used it; the optimiser's momentum belongs to these."""
        return [group["lr"] for group in self.optimiser.param_groups]

    def restore(self, in_groups: Sequence[float]) -> None:
        """Take up the rates that loaded momentum belongs to, before `at` is called again. Momentum stays as it is."""
        for group, rate in zip(self.optimiser.param_groups, in_groups, strict=True):
            group["lr"] = rate
        self.until = -math.inf

    def of_groups(self, step: int) -> list[float]:
        """The rate of every group in `step`, where `rate` is that of the schedule."""
        rates = []
        for group, multiple in zip(self.optimiser.param_groups, self.multiples, strict=True):
            own = layer_rate(self.from_step, group[MEMBER], step) if self.from_step else None
            rates.append(multiple * (self.rate if own is None else own))
        return rates


def set_rates(optimiser: Optimizer, rates: Sequence[float], form: str) -> None:
    """Give every group of a torch.optim.SGD its learning rate; the form "paper" scales momentum where it changes.

    A rate of 0 freezes the group: its weights move no more, in either form, and it has no other rate again.
    """
    assert form in FORMS
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        before = group["lr"]
        if rate == before:
            continue
        assert before > 0, "a frozen group was given a rate"
        if form == "paper" and rate > 0:
            scale_momentum(optimiser, group["params"], before / rate)
        group["lr"] = rate


def scale_momentum(optimiser: Optimizer, parameters: Iterable[nn.Parameter], factor: float) -> None:
    for parameter in parameters:
        # `get`, since the state makes an entry for whoever asks by index, and it would be saved.
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffer.mul_(factor)


def groups_by_layer(
    groups: Iterable[dict[str, Any]], network: nn.Module, layer_rates: Iterable[LayerRate]
) -> list[dict[str, Any]]:
    """The groups of models.parameter_groups, split so that every one is covered by the same of `layer_rates`, or none.

    `network` holds the parameters by name, as it is before it is wrapped. A rank's part of a network may lack a layer.
    """
    layers = list(dict.fromkeys(each.layer for each in layer_rates))
    names = {parameter: name for name, parameter in network.named_parameters()}
    split = []
    for group in groups:
        alike: dict[tuple[str, ...], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            covering = tuple(layer for layer in layers if covers(layer, names[parameter]))
            alike.setdefault(covering, []).append(parameter)
        split += [{**group, "params": some, MEMBER: names[some[0]]} for some in alike.values()]
    return split


def check_rates(layer_rates: Iterable[LayerRate], names: Iterable[str], model: str) -> None:
    """AskedWrongly where a layer has no parameter among `names`, those of the whole network."""
    known = list(names)
    for each in layer_rates:
        if not any(covers(each.layer, name) for name in known):
            layers = dict.fromkeys(name.rpartition(".")[0] or name for name in known)
            raise AskedWrongly(
                f"--layer-rates names {each.layer}, of which {model} has no parameter: its layers are {', '.join(layers)}"
            )
