"""Convolutions by images, fully connected layers by units: the split of Krizhevsky's "One weird trick" (2014), section 3.

Each rank holds every convolution and sees its own images, and the convolutions' gradients are summed over ranks. Before
fc6 all ranks' activations are gathered into one batch; each rank then computes its share of the units of fc6 and fc7 for
all images, and its share of fc8's sums, of which every rank is given those of its own images. The fully connected layers,
most of the parameters, never cross between ranks.

The loss of each rank is the mean over its own images: divided by the ranks, its gradients are those of one big batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.exchange import Group, gather, replicated, scatter_sum
from models.network import Layer, Layers, Linear


def split(layers: Layers, group: Group) -> Layers:
    """The layers of one rank, from a table of convolutions and then fully connected layers.

    Raises ValueError where the ranks do not divide the units of a layer but the last.
    """
    *names, last = [name for name, layer in layers.items() if isinstance(layer, Linear)]
    convolutions = {name: replace(layer, through=partial(replicated, group=group)) for name, layer in layers.items()}
    by_units = {name: share_of_units(name, layers[name], group, first=name == names[0]) for name in names}
    return convolutions | by_units | {last: summed(layers[last], group)}


def share_of_units(name: str, layer: Layer, group: Group, *, first: bool) -> Layer:
    """The rank's units of a layer that sees all images: gathered before the first, all ranks' units of them after."""
    if layer.outputs % group.size:
        raise ValueError(f"{name} has {layer.outputs} units; {group.size} ranks cannot share them equally")
    gathered = partial(gather, group=group, dim=0 if first else 1)
    sees = 1 if first else group.size
    return replace(layer, outputs=layer.outputs // group.size, sees=sees, before=(*layer.before, gathered))


def summed(layer: Layer, group: Group) -> Layer:
    return SummedLinear(
        layer.outputs, before=layer.before, std=layer.std, bias=layer.bias, decay=layer.decay,
        bias_rate=layer.bias_rate, bias_decay=layer.bias_decay, group=group,
    )  # fmt: skip


@dataclass(frozen=True)
class SummedLinear(Linear):
    """A fully connected layer of whose inputs every rank holds a share."""

    group: Group

    def module(self, inputs: int) -> nn.Module:
        return LinearOfShares(inputs, self.outputs, self.group)


class LinearOfShares(nn.Linear):
    """In: this rank's units of all ranks' images (size x N, units). Out: the outputs of its own images (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, group: Group) -> None:
        super().__init__(inputs, outputs)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return scatter_sum(F.linear(x, self.weight), self.group) + replicated(self.bias, self.group)
