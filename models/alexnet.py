"""AlexNet as printed: Krizhevsky, Sutskever, Hinton 2012, sections 3.1 to 3.5, 4.2 and 5.

The paper's two GPUs are two columns here: a layer that sees its own column only is a convolution of two groups,
and local response normalisation never reaches from one half of the maps into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.lrn import local_response_norm

IMAGE_SHAPE = (3, 224, 224)


@dataclass(frozen=True)
class Conv:
    """A convolution, then ReLU, and where asked local response normalisation and a max-pool of 3 with stride 2."""

    kernels: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    normalise: bool = False
    pool: bool = False
    bias: float = 0.0


@dataclass(frozen=True)
class Linear:
    """A fully connected layer, then ReLU and dropout."""

    units: int
    bias: float = 1.0


CONVOLUTIONS = {
    "conv1": Conv(96, 11, stride=4, normalise=True, pool=True),
    "conv2": Conv(256, 5, padding=2, groups=2, normalise=True, pool=True, bias=1.0),
    "conv3": Conv(384, 3, padding=1),
    "conv4": Conv(384, 3, padding=1, groups=2, bias=1.0),
    "conv5": Conv(256, 3, padding=1, groups=2, pool=True, bias=1.0),
}
HIDDEN = {"fc6": Linear(4096), "fc7": Linear(4096)}
CLASSIFIER_BIAS = 0.0

# Standard deviation of the initial weights: of every layer, then of those that differ.
INITS = {
    "paper": (0.01, {}),
    "code2012": (0.01, {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}),
}

paper_norm = partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0, columns=2)


class AlexNet(nn.Module):
    """The network of CONVOLUTIONS and HIDDEN.

    In: float images (N, 3, 224, 224), raw 0..255 pixels minus the mean, best in channels-last memory.
    Out: logits (N, num_classes), in the images' dtype or autocast's.
    """

    def __init__(
        self, num_classes: int, init: str, dropout: float, norm: Callable[[Tensor], Tensor] = paper_norm
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = norm
        channels = IMAGE_SHAPE[0]
        for name, conv in CONVOLUTIONS.items():
            layer = nn.Conv2d(channels, conv.kernels, conv.size, conv.stride, conv.padding, groups=conv.groups)
            self.add_module(name, layer)
            channels = conv.kernels
        features = channels * 6 * 6
        for name, linear in HIDDEN.items():
            self.add_module(name, nn.Linear(features, linear.units))
            features = linear.units
        self.fc8 = nn.Linear(features, num_classes)
        self.initialise(init)

    @torch.no_grad()
    def initialise(self, init: str) -> None:
        """Weights from N(0, std^2) by INITS[init], biases by the layer tables; draws from torch's global generator."""
        std, others = INITS[init]
        biases = {name: layer.bias for name, layer in (CONVOLUTIONS | HIDDEN).items()} | {"fc8": CLASSIFIER_BIAS}
        for name, bias in biases.items():
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert layer.bias is not None
            layer.weight.normal_(0.0, others.get(name, std))
            layer.bias.fill_(bias)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"images have shape {tuple(images.shape)}; AlexNet takes (N, 3, 224, 224)")
        # The paper's 224 pixels give 55 places a side only with three more on the right and at the bottom.
        x = F.pad(images, (0, 3, 0, 3))
        for name, conv in CONVOLUTIONS.items():
            x = F.relu(self.get_submodule(name)(x))
            if conv.normalise:
                x = self.norm(x)
            if conv.pool:
                x = F.max_pool2d(x, kernel_size=3, stride=2)
        x = x.flatten(1)
        for name in HIDDEN:
            x = F.dropout(F.relu(self.get_submodule(name)(x)), self.dropout, self.training)
        logits: Tensor = self.fc8(x)
        return logits


def alexnet(
    num_classes: int = 1000,
    init: str = "paper",
    dropout: float = 0.5,
    norm: Callable[[Tensor], Tensor] = paper_norm,
) -> AlexNet:
    """The paper's network with channels-last weights; `init` is a name in INITS.

    `norm` replaces local response normalisation: a function of activations (N, C, H, W), for comparisons.
    Raises ValueError for an argument out of range.
    """
    if init not in INITS:
        raise ValueError(f"no init is called {init!r}; the inits are {', '.join(sorted(INITS))}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and under 1")
    network = AlexNet(num_classes, init, dropout, norm)
    return network.to(memory_format=torch.channels_last)


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
    """Multiply-adds an image of convolutions and linear layers: forward, and a training step's."""

    forward: int
    training: int


def multiply_adds(network: nn.Module) -> MultiplyAdds:
    """Count network's work on one image of 3x224x224 pixels, without computing anything.

    A training step is the forward pass, the same again for the weights' gradients and again for the inputs' gradients,
    which the first layer has no use for. FLOPs are twice that.
    """
    layers: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        places = prod(output.shape[2:]) if isinstance(layer, nn.Conv2d) else 1
        layers.append(places * layer.weight.numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
        functional_call(network, shapes, torch.empty(1, *IMAGE_SHAPE, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return MultiplyAdds(sum(layers), 3 * sum(layers) - layers[0])
