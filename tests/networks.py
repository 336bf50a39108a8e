"""What tests ask of a network without computing: on the meta device tensors have shapes and no numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import models

OPERATIONS = {  # torch's operators, as a reader of the paper calls them
    "aten.constant_pad_nd": "pad",
    "aten.convolution": "conv",
    "aten.baddbmm": "local",
    "aten.addmm": "linear",
    "aten.relu": "relu",
    "aten.tanh": "tanh",
    "models.local_response_norm": "lrn",
    "aten.max_pool2d_with_indices": "max",
    "aten.avg_pool2d": "average",
    "aten.bernoulli_": "dropout",
    "models.relu_lrn_maxpool": "block",
}


def shapes_of(name: str, **arguments: Any) -> nn.Module:
    """The network called `name` in MODELS, in training mode, its parameters without numbers."""
    with torch.device("meta"):
        return models.create(name, **arguments)


def forward(network: nn.Module) -> None:
    side = network.image_shape[-1] if hasattr(network, "image_shape") else 224
    network(torch.empty(1, 3, side, side, device="meta"))


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name in OPERATIONS:
            self.seen.append(OPERATIONS[name])
        return func(*args, **(kwargs or {}))


def operations(network: nn.Module) -> str:
    """The operators of one training forward pass in their order, as one line of OPERATIONS' words."""
    with Recorder() as recorder:
        forward(network)
    return " ".join(recorder.seen)


def count_layers(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(parameters, forward multiply-adds an image) of each layer, the latter by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        forward(network)
    flops = counter.get_flop_counts()
    return {
        name: (
            sum(parameter.numel() for parameter in layer.parameters()),
            sum(flops[f"{type(network).__name__}.{name}"].values()) // 2,
        )
        for name, layer in network.named_children()
        if any(True for _ in layer.parameters())
    }


def sides(network: nn.Module) -> str:
    """How many places a side the maps have that each layer sees and makes, as "conv1 227-55, ..."."""
    seen: list[str] = []

    def see(name: str) -> Any:
        return lambda _, inputs, output: seen.append(f"{name} {inputs[0].shape[-1]}-{output.shape[-1]}")

    maps = [(name, layer) for name, layer in network.named_children() if not isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(see(name)) for name, layer in maps]
    forward(network)
    for handle in handles:
        handle.remove()
    return ", ".join(seen)
