"""The paper's two GPUs (section 3.5, Figure 2): the network of models.alexnet, cut in two.

Each rank holds a column: half the kernels of every convolution, half the units of fc6 and fc7. Both see the same images.
A layer that is a convolution of two groups there sees its own column only, and here is a convolution of one group; every
other layer sees both columns, so that their maps or units are exchanged before it. fc8 is the first column's alone: the
second hands its units to it. Normalisation stays within a column, as in the paper.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from models.exchange import Group, gather, to_first
from models.network import Conv, Layer, Layers, Relay, Step

COLUMNS = 2


def column(layers: Layers, group: Group) -> Layers:
    """The layers of the column that is this rank's, from a table whose columns are groups of two (models.alexnet).

    On the first rank the network gives logits (N, classes), on the other none: (0, units).
    Raises ValueError where the group is not two ranks.
    """
    if group.size != COLUMNS:
        raise ValueError(f"the group has {group.size} ranks; the network has {COLUMNS} columns")
    first, *middle, last = layers
    return (
        {first: half(layers[first])}
        | {name: half(joined(layers[name], group)) for name in middle}
        | {last: classifier(layers[last], group)}
    )


def joined(layer: Layer, group: Group) -> Layer:
    """The layer, which sees both columns unless it is a convolution of two groups."""
    match layer:
        case Conv(groups=2):
            return layer
        case Conv():
            return replace(layer, sees=COLUMNS, before=(*layer.before, partial(gather_maps, group=group)))
        case _:
            return replace(layer, sees=COLUMNS, before=(*layer.before, partial(gather, group=group, dim=1)))


def half(layer: Layer) -> Layer:
    """Half the layer's maps or units; a step that knows of columns has one of them left."""
    layer = replace(layer, outputs=layer.outputs // COLUMNS, then=tuple(map(within_a_column, layer.then)))
    return replace(layer, groups=1) if isinstance(layer, Conv) else layer


def within_a_column(step: Step) -> Step:
    return partial(step, columns=1) if isinstance(step, partial) and "columns" in step.keywords else step


def classifier(layer: Layer, group: Group) -> Layer:
    """The last layer, which is the first column's alone."""
    before: tuple[Step, ...] = (*layer.before, partial(to_first, group=group))
    return replace(layer, sees=COLUMNS, before=before) if group.rank == 0 else Relay(before=before)


def gather_maps(x: Tensor, group: Group) -> Tensor:
    """Both columns' maps x (N, maps, H, W), joined; in channels-last memory, as they lie there."""
    return gather(x.permute(0, 2, 3, 1), group, dim=3).permute(0, 3, 1, 2)
