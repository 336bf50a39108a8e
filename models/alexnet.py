"""AlexNet as printed, as it ran, and in every other form that the paper names.

Krizhevsky, Sutskever, Hinton 2012, sections 3.1 to 3.5, 4.2, 5 and 7. The paper's two GPUs are two columns here: a
layer that sees its own column only is a convolution of two groups, and local response normalisation never reaches from
one half of the maps into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.block import relu_lrn_maxpool
from models.lrn import local_response_norm
from models.network import (
    Conv,
    Layer,
    Layers,
    Linear,
    LocallyConnected,
    Network,
    Step,
    changed,
    changed_in,
    function_of,
    swapped,
    with_classes,
)
from models.within_map import within_map_norm

paper_norm = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0, columns=2)
overlapping_pool = partial(F.max_pool2d, kernel_size=3, stride=2)

# The paper's 224 pixels give 55 places a side only with three more on the right and at the bottom.
pad_image = partial(F.pad, pad=(0, 3, 0, 3))

PAPER: Layers = {
    "conv1": Conv(96, 11, stride=4, before=(pad_image,), then=(F.relu, paper_norm, overlapping_pool)),
    "conv2": Conv(256, 5, padding=2, groups=2, bias=1.0, then=(F.relu, paper_norm, overlapping_pool)),
    "conv3": Conv(384, 3, padding=1, then=(F.relu,)),
    "conv4": Conv(384, 3, padding=1, groups=2, bias=1.0, then=(F.relu,)),
    "conv5": Conv(256, 3, padding=1, groups=2, bias=1.0, then=(F.relu, overlapping_pool)),
    "fc6": Linear(4096, side=6, bias=1.0, then=(F.relu,), dropout=True),
    "fc7": Linear(4096, bias=1.0, then=(F.relu,), dropout=True),
    "fc8": Linear(1000),
}

# As the released source ran: it divides its alpha of 1e-4 by the window's 5 maps, and the other scale by its 25 places.
norm_2012 = partial(paper_norm, alpha=1e-4 / 5)
within_map_norm_2012 = partial(within_map_norm, size=5, scale=1e-3 / 25, power=0.75)

# The source's network and its rates; what it did to the images and at the end of training is not a network's to say.
CODE2012: Layers = changed(
    PAPER
    | {
        "conv1": replace(PAPER["conv1"], then=(norm_2012, overlapping_pool, F.relu)),
        "conv2": replace(PAPER["conv2"], then=(F.relu, norm_2012, within_map_norm_2012, overlapping_pool)),
    },
    bias_rate=2.0,
    bias_decay=0.0,
)


def one_column(layers: Layers) -> Layers:
    """Every layer sees all maps, and so does normalisation, whose N is the number of maps on one GPU: here all of them."""

    def join(layer: Layer) -> Layer:
        if not isinstance(layer, Conv):
            return layer
        norms = {step: partial(step, columns=1) for step in layer.then if function_of(step) is local_response_norm}
        return replace(layer, groups=1, then=tuple(norms.get(step, step) for step in layer.then))

    return {name: join(layer) for name, layer in layers.items()}


def half(layers: Layers) -> Layers:
    """Half the kernels of conv1 to conv4; the half net that ran kept conv5 and the fully connected layers whole."""
    for name in ("conv1", "conv2", "conv3", "conv4"):
        layers = changed_in(layers, name, outputs=layers[name].outputs // 2)
    return layers


def pool2x2(layers: Layers) -> Layers:
    """Pools that do not overlap, padded so that fc6 still sees maps of 6 x 6: 55-28-26-13-13-13-11-6."""
    layers = swapped(layers, F.max_pool2d, partial(F.max_pool2d, kernel_size=2, stride=2, ceil_mode=True))
    layers = changed_in(layers, "conv2", padding=1)
    return changed_in(layers, "conv5", padding=0)


def without(layers: Layers, name: str) -> Layers:
    """The layer is taken out and its pool moves to the layer before it, whose maps the layer after it sees.

    Without conv3, columns meet before fc6 only; without conv5, fc6 sees conv4's 384 maps. Our reading of section 7.
    """
    names = list(layers)
    before = names[names.index(name) - 1]
    _activation, *rest = layers[name].then
    layers = changed_in(layers, before, then=(*layers[before].then, *rest))
    return {other: layer for other, layer in layers.items() if other != name}


def with_conv6(layers: Layers) -> Layers:
    """CNN*'s sixth convolution over the last pool. The paper gives no sizes: these are our choice."""
    convolutions = {name: layer for name, layer in layers.items() if isinstance(layer, Conv)}
    conv6 = Conv(256, 3, padding=1, groups=2, bias=1.0, then=(F.relu,))
    return convolutions | {"conv6": conv6} | layers


VARIANTS: dict[str, Layers] = {
    "paper": PAPER,
    "code2012": CODE2012,
    "half": half(one_column(PAPER)),
    "nogroups": one_column(PAPER),
    "nolrn": swapped(PAPER, local_response_norm),
    "pool2x2": pool2x2(PAPER),
    "tanh": swapped(PAPER, F.relu, torch.tanh),
    "no-conv3": without(PAPER, "conv3"),
    "no-conv4": without(PAPER, "conv4"),
    "no-conv5": without(PAPER, "conv5"),
    "conv6": with_conv6(PAPER),
}

# Standard deviations of the initial weights where they are not 0.01; conv6's, like conv6 itself, is our choice.
INITS: dict[str, dict[str, float]] = {
    "paper": {},
    "code2012": {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03},
}


def fused(layers: Layers) -> Layers:
    """layers with ReLU, LRN and overlapping pool as one operator where they follow a convolution in this order.

    Raises ValueError where none does.
    """

    def fuse(steps: tuple[Step, ...]) -> tuple[Step, ...]:
        match steps:
            case (F.relu, partial() as norm, pool, *rest) if (
                norm.func is local_response_norm and pool is overlapping_pool
            ):
                return (partial(relu_lrn_maxpool, **norm.keywords), *rest)
        return steps

    result = {name: replace(layer, then=fuse(layer.then)) for name, layer in layers.items()}
    if result == layers:
        raise ValueError("block is 'fused'; this network has no ReLU, LRN and 3/2 max-pool in this order, give 'plain'")
    return result


class AlexNet(Network):
    """A network of VARIANTS."""

    image_shape = (3, 224, 224)


def alexnet(
    num_classes: int = 1000,
    init: str = "paper",
    dropout: float = 0.5,
    norm: Callable[[Tensor], Tensor] | None = None,
    block: str = "plain",
    variant: str = "paper",
    share: Callable[[Layers], Layers] | None = None,
) -> AlexNet:
    """A network of VARIANTS with channels-last weights; `init` is a name in INITS.

    `norm` replaces local response normalisation: a function of activations (N, C, H, W), for comparisons.
    `block` is "plain", or "fused" for ReLU, LRN and overlapping pool as one operator (models/block.py).
    `share` makes the table that of one rank of several (models.columns, models.hybrid).
    Raises ValueError for an argument out of range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant is called {variant!r}; the variants are {', '.join(sorted(VARIANTS))}")
    if init not in INITS:
        raise ValueError(f"no init is called {init!r}; the inits are {', '.join(sorted(INITS))}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and under 1")
    if block not in ("plain", "fused"):
        raise ValueError(f"block is {block!r}; it must be plain or fused")
    layers = with_classes(VARIANTS[variant], num_classes)
    layers = {name: replace(layer, std=INITS[init].get(name, layer.std)) for name, layer in layers.items()}
    if norm is not None:
        layers = swapped(layers, local_response_norm, norm)
    if block == "fused":
        layers = fused(layers)
    if share is not None:
        layers = share(layers)
    return AlexNet(layers, dropout).to(memory_format=torch.channels_last)


def alexnet_torchvision(num_classes: int = 1000) -> nn.Module:
    """torchvision's AlexNet, the peer: another network (no normalisation, no groups, 64 kernels in conv1).

    Raises ModuleNotFoundError where torchvision is not installed.
    """
    try:
        from torchvision.models import alexnet as build
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "model alexnet-torchvision needs torchvision, which is not installed; "
            "install it with: python -m pip install -e '.[peer]'"
        ) from error
    network: nn.Module = build(weights=None, num_classes=num_classes)
    return network.to(memory_format=torch.channels_last)


class MultiplyAdds(NamedTuple):
    """Multiply-adds an image of convolutions, locally connected and linear layers: forward, and a training step's."""

    forward: int
    training: int


COUNTED = (nn.Conv2d, nn.Linear, LocallyConnected)


def multiply_adds(network: nn.Module) -> MultiplyAdds:
    """Count network's work on one image of the size it takes, without computing anything.

    A training step is the forward pass, the same again for the weights' gradients and again for the inputs' gradients,
    which the first layer has no use for. FLOPs are twice that.
    """
    layers: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, COUNTED)
        # A convolution uses each of its weights at every place of its output, the others once.
        places = prod(output.shape[2:]) if isinstance(layer, nn.Conv2d) else 1
        layers.append(places * layer.weight.numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, COUNTED)]
    try:
        shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
        image_shape = getattr(network, "image_shape", AlexNet.image_shape)
        functional_call(network, shapes, torch.empty(1, *image_shape, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return MultiplyAdds(sum(layers), 3 * sum(layers) - layers[0])
