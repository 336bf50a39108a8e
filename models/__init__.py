"""What is trained: networks by name.

Importing this package imports no torch, so that a command can list the names where torch is not installed.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MODELS = {
    "alexnet": "models.alexnet:alexnet",
    "alexnet-torchvision": "models.alexnet:alexnet_torchvision",
}
# Networks that bring their own initial weights, and those that need torchvision.
OWN_INIT = ("alexnet-torchvision",)
NEED_TORCHVISION = ("alexnet-torchvision",)


def create(name: str, **arguments: object) -> nn.Module:
    """The network called `name` in MODELS, on the CPU and in training mode, built with `arguments`.

    Raises ValueError for an unknown name or an argument that this network does not take,
    ModuleNotFoundError where the network needs an optional package that is not installed.
    """
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(sorted(MODELS))}")
    module, function = MODELS[name].split(":")
    build = getattr(import_module(module), function)
    known = inspect.signature(build).parameters
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"model {name} takes no argument {argument!r}; it takes {', '.join(known)}")
    network: nn.Module = build(**arguments)
    return network
