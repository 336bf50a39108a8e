"""Networks as tables of layers: what a table may say, how one becomes another, and the module that computes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Step = Callable[..., Tensor]


@dataclass(frozen=True)
class Layer:
    """A layer with `outputs` maps or units, the steps before it, and those that follow it: `then`, and dropout if asked.

    Where ranks hold parts of a network, a layer may see the maps or units of `sees` ranks, joined by a step before it, and its
    parameters may pass `through` a step before they are used.
    Its weights start from N(0, std^2), its biases at `bias`. `decay` multiplies the run's weight decay for the weights,
    `bias_rate` and `bias_decay` the run's learning rate and weight decay for the biases.
    """

    outputs: int
    _: KW_ONLY
    sees: int = 1
    through: Step | None = None
    before: tuple[Step, ...] = ()
    then: tuple[Step, ...] = ()
    dropout: bool = False
    std: float = 0.01
    bias: float = 0.0
    decay: float = 1.0
    bias_rate: float = 1.0
    bias_decay: float = 1.0

    def module(self, inputs: int) -> nn.Module:
        """The layer itself, for `inputs` maps or units."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution with kernels of size x size."""

    size: int
    _: KW_ONLY
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def module(self, inputs: int) -> nn.Module:
        return nn.Conv2d(inputs, self.outputs, self.size, self.stride, self.padding, groups=self.groups)


@dataclass(frozen=True)
class Local(Layer):
    """A locally connected layer on maps of side x side places."""

    size: int
    _: KW_ONLY
    side: int
    padding: int = 0

    def module(self, inputs: int) -> nn.Module:
        return LocallyConnected(inputs, self.outputs, self.size, self.padding, self.side)


@dataclass(frozen=True)
class Linear(Layer):
    """A fully connected layer on maps of side x side places, or on units."""

    _: KW_ONLY
    side: int = 1
    before: tuple[Step, ...] = (partial(torch.flatten, start_dim=1),)

    def module(self, inputs: int) -> nn.Module:
        return nn.Linear(inputs * self.side**2, self.outputs)


@dataclass(frozen=True)
class Relay(Layer):
    """No layer of this rank: the steps before it hand on what another rank's layer sees."""

    outputs: int = 0

    def module(self, inputs: int) -> nn.Module:
        return nn.Identity()


Layers = dict[str, Layer]


# --- tables from tables -------------------------------------------------------------------------------------------


def changed(layers: Layers, **fields: Any) -> Layers:
    """layers with these fields in every layer."""
    return {name: replace(layer, **fields) for name, layer in layers.items()}


def changed_in(layers: Layers, name: str, **fields: Any) -> Layers:
    """layers with these fields in the layer called `name`."""
    return layers | {name: replace(layers[name], **fields)}


def swapped(layers: Layers, old: Step, *new: Step) -> Layers:
    """layers with `new` in place of each step that is `old`, whatever its arguments; without `new` it is left out."""

    def swap(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return tuple(other for step in steps for other in (new if function_of(step) is old else (step,)))

    return {name: replace(layer, then=swap(layer.then)) for name, layer in layers.items()}


def function_of(step: Step) -> Step:
    return step.func if isinstance(step, partial) else step


def with_classes(layers: Layers, num_classes: int) -> Layers:
    """layers whose last has an output a class."""
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
    return changed_in(layers, list(layers)[-1], outputs=num_classes)


# --- modules ------------------------------------------------------------------------------------------------------


class LocallyConnected(nn.Module):
    """A convolution whose kernels and biases are another set at every place of its output.

    In: (N, channels, side, side). Out: (N, kernels, side, side), so size must be 2 * padding + 1.
    The weights are (places, channels * size * size, kernels), the biases (places, kernels).
    """

    def __init__(self, channels: int, kernels: int, size: int, padding: int, side: int) -> None:
        super().__init__()
        self.size, self.padding, self.side = size, padding, side
        self.weight = nn.Parameter(torch.empty(side**2, channels * size**2, kernels))
        self.bias = nn.Parameter(torch.empty(side**2, kernels))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.size, padding=self.padding).permute(2, 0, 1)
        maps = torch.baddbmm(self.bias[:, None], patches, self.weight)
        return maps.permute(1, 2, 0).reshape(len(x), -1, self.side, self.side)


class Scale(NamedTuple):
    """What a parameter's learning rate and weight decay are multiplied by."""

    learning_rate: float
    weight_decay: float


class Network(nn.Module):
    """The network of a table, its layers' modules called as in the table.

    In: float images (N, *image_shape), raw 0..255 pixels minus the mean, best in channels-last memory.
    Out: logits (N, classes), in the images' dtype or autocast's.
    Layers that ask for dropout leave out the share `dropout` of their outputs while training.
    """

    image_shape: ClassVar[tuple[int, int, int]]

    def __init__(self, layers: Layers, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = layers
        self.dropout = dropout
        self.parameter_scales: dict[str, Scale] = {}
        inputs = self.image_shape[0]
        for name, layer in layers.items():
            self.add_module(name, layer.module(inputs * layer.sees))
            self.parameter_scales[f"{name}.weight"] = Scale(1.0, layer.decay)
            self.parameter_scales[f"{name}.bias"] = Scale(layer.bias_rate, layer.bias_decay)
            inputs = layer.outputs
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the weights and set the biases by the table, from torch's global generator."""
        for name, layer in self.layers.items():
            if not isinstance(layer, Relay):
                self.get_parameter(f"{name}.weight").normal_(0.0, layer.std)
                self.get_parameter(f"{name}.bias").fill_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images have shape {tuple(images.shape)}; {type(self).__name__} takes (N, {wanted})")
        x = images
        for name, layer in self.layers.items():
            for step in layer.before:
                x = step(x)
            x = self.compute(name, layer, x)
            for step in layer.then:
                x = step(x)
            if layer.dropout:
                x = F.dropout(x, self.dropout, self.training)
        return x

    def compute(self, name: str, layer: Layer, x: Tensor) -> Tensor:
        """The layer itself, without the steps around it."""
        module = self.get_submodule(name)
        if layer.through is None:
            return module(x)  # type: ignore[no-any-return]
        parameters = {key: layer.through(parameter) for key, parameter in module.named_parameters()}
        return functional_call(module, parameters, x)  # type: ignore[no-any-return]
