"""What is trained: networks by name.

Importing this package imports no torch, so that a command can list the names where torch is not installed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from models.exchange import Group


@dataclass(frozen=True)
class Model:
    """The function that builds a network, the arguments that make it this one, and what must be known without torch.

    It takes square images of `image_size` pixels a side. `fusible`: it has layers that models/block.py computes; `schemes`:
    the names in SCHEMES by which ranks can hold parts of it.
    """

    build: str
    arguments: dict[str, object]
    image_size: int
    fusible: bool = False
    own_init: bool = False
    needs_torchvision: bool = False
    schemes: tuple[str, ...] = ()


# How ranks may hold parts of one network: the function that makes a table of layers that of one rank.
SCHEMES = {"columns": "models.columns:column", "hybrid": "models.hybrid:split"}
HYBRID_UNITS = 4096  # of each fully connected layer but the last, which `hybrid` shares equally


def paper_net(variant: str, *, fusible: bool = True, columns: bool = True, **arguments: object) -> Model:
    """AlexNet in a form of models.alexnet.VARIANTS, of two columns or of one."""
    arguments = {"variant": variant, **arguments}
    schemes = ("columns", "hybrid") if columns else ("hybrid",)
    own_init = "init" in arguments
    return Model("models.alexnet:alexnet", arguments, 224, fusible=fusible, own_init=own_init, schemes=schemes)


def cifar_net(variant: str) -> Model:
    """A net of models.cifar.VARIANTS."""
    return Model("models.cifar:cifar", {"variant": variant}, image_size=32, own_init=True)


MODELS = {
    "alexnet": paper_net("paper"),
    "alexnet-code2012": paper_net("code2012", init="code2012", fusible=False),
    "alexnet-half": paper_net("half", columns=False),
    "alexnet-nogroups": paper_net("nogroups", columns=False),
    "alexnet-nolrn": paper_net("nolrn", fusible=False),
    "alexnet-pool2x2": paper_net("pool2x2", fusible=False),
    "alexnet-tanh": paper_net("tanh", fusible=False),
    "alexnet-nodropout": paper_net("paper", dropout=0.0),
    "alexnet-no-conv3": paper_net("no-conv3"),
    "alexnet-no-conv4": paper_net("no-conv4"),
    "alexnet-no-conv5": paper_net("no-conv5"),
    "alexnet-conv6": paper_net("conv6"),
    "alexnet-torchvision": Model(
        "models.alexnet:alexnet_torchvision", {}, image_size=224, own_init=True, needs_torchvision=True
    ),
    "cifar-18pct": cifar_net("18pct"),
    "cifar-18pct-tanh": cifar_net("18pct-tanh"),
    "cifar-18pct-nonorm": cifar_net("18pct-nonorm"),
    "cifar-18pct-nonorm-tanh": cifar_net("18pct-nonorm-tanh"),
    "cifar-13pct": cifar_net("13pct"),
    "cifar-13pct-lrn": cifar_net("13pct-lrn"),
    "cifar-11pct": cifar_net("11pct"),
}
# Networks that bring their own initial weights, and those that need torchvision.
OWN_INIT = tuple(name for name, model in MODELS.items() if model.own_init)
NEED_TORCHVISION = tuple(name for name, model in MODELS.items() if model.needs_torchvision)


def look_up(name: str) -> Model:
    """The entry called `name` in MODELS; ValueError, with the right names, where there is none."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}; the models are {', '.join(sorted(MODELS))}")
    return MODELS[name]


def image_size(name: str) -> int:
    """The side in pixels of the images that the network called `name` takes."""
    return look_up(name).image_size


def can_fuse(name: str) -> bool:
    """Whether the network called `name` has layers of ReLU, LRN and 3/2 max-pool in this order: block="fused"."""
    return look_up(name).fusible


def schemes(name: str) -> tuple[str, ...]:
    """The names in SCHEMES by which ranks can hold parts of the network called `name`."""
    return look_up(name).schemes


def create(name: str, **arguments: object) -> nn.Module:
    """The network called `name` in MODELS, on the CPU and in training mode, built with `arguments`.

    Every network takes `num_classes` and `block`, those not in OWN_INIT `init`.
    Raises ValueError for an unknown name or an argument that this network does not take,
    ModuleNotFoundError where the network needs an optional package that is not installed.
    """
    model = look_up(name)
    if not model.fusible and arguments.pop("block", "plain") != "plain":
        raise ValueError(f"model {name} has no ReLU, LRN and 3/2 max-pool in this order: block must be 'plain'")
    module, function = model.build.split(":")
    build = getattr(import_module(module), function)
    known = [argument for argument in inspect.signature(build).parameters if argument not in model.arguments]
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"model {name} takes no argument {argument!r}; it takes {', '.join(known)}")
    network: nn.Module = build(**model.arguments, **arguments)
    return network


def create_part(name: str, scheme: str, group: Group, **arguments: object) -> nn.Module:
    """The part of the network called `name` that this rank of `group` holds, with the weights that `create` draws.

    Raises ValueError where the network has no such parts, or the group has the wrong number of ranks for it.
    """
    from models.shares import part_of

    if scheme not in schemes(name):
        raise ValueError(f"model {name} cannot be held in parts by {scheme!r}")
    module, function = SCHEMES[scheme].split(":")
    whole = create(name, **arguments)
    part = create(name, **arguments, share=partial(getattr(import_module(module), function), group=group))
    part.load_state_dict(part_of(whole.state_dict(), part.state_dict(), group.rank))
    return part


def parameter_groups(network: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of a network, wrapped or not, as torch.optim's groups: each with its `lr` and `weight_decay`.

    The print has one learning rate and one decay: one group. The released sources scale them by layer and for biases.
    """
    inside = next((module for module in network.modules() if "parameter_scales" in vars(module)), network)
    scales = getattr(inside, "parameter_scales", {})
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in inside.named_parameters():
        groups.setdefault(scales.get(name, (1.0, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "lr": rate * learning_rate, "weight_decay": decay * weight_decay}
        for (rate, decay), parameters in groups.items()
    ]
