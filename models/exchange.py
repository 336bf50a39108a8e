"""What ranks that hold parts of one network send each other, forward and backward, in eager mode and inside a compiled graph.

Each exchange is an operation of torch's own with the operation that undoes it as its gradient. On "meta" tensors nothing
is sent, and `counted` says how much would be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

collectives = torch.ops._c10d_functional
received = collectives.wait_tensor

# Read while a network is traced: torch.compile makes another graph where it has changed.
silent = False


class Group(NamedTuple):
    """Ranks that exchange: their process group's name in torch, how many they are, and which of them this one is."""

    name: str
    size: int
    rank: int


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Nothing is sent: every rank takes copies of its own numbers for those of the others, which costs the same memory."""
    global silent
    silent = True
    try:
        yield
    finally:
        silent = False


# --- the exchanges ------------------------------------------------------------------------------------------------


def gather(x: Tensor, group: Group, dim: int) -> Tensor:
    """Every rank's x, joined along `dim` in the ranks' order; each rank is given the sum of all gradients of its own."""
    if silent:
        return torch.cat([x] * group.size, dim)
    parts: Tensor = Gathered.apply(x, group.size, group.name)
    return parts if dim == 0 else torch.cat(parts.chunk(group.size), dim)


def scatter_sum(x: Tensor, group: Group) -> Tensor:
    """The sum of every rank's x (size x N, ...), of which each rank keeps its own N rows."""
    if silent:
        return x.chunk(group.size)[group.rank]
    total: Tensor = ScatteredSum.apply(x, group.size, group.name)
    return total


def to_first(x: Tensor, group: Group) -> Tensor:
    """On the first rank every rank's x (N, units), joined along the units; on the others no rows, (0, units)."""
    first, rows = group.rank == 0, len(x)
    if silent:
        return torch.cat([x] * group.size, 1) if first else x[:0]
    sends = [rows] + [0] * (group.size - 1)
    takes = [rows] * group.size if first else [0] * group.size
    parts: Tensor = Sent.apply(x, takes, sends, group.name)
    return torch.cat(parts.chunk(group.size), 1) if first else parts


def replicated(parameter: Tensor, group: Group) -> Tensor:
    """The parameter itself, whose gradient becomes the sum over ranks: all of them hold it, each sees its own images."""
    if silent:
        return parameter
    same: Tensor = Replicated.apply(parameter, group.name)
    return same


class Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, name: str) -> Tensor:
        ctx.group = size, name
        return received(collectives.all_gather_into_tensor(x.contiguous(), size, name))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        own = received(collectives.reduce_scatter_tensor(gradient.contiguous(), "sum", *ctx.group))
        return own, None, None


class ScatteredSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, name: str) -> Tensor:
        ctx.group = size, name
        return received(collectives.reduce_scatter_tensor(x.contiguous(), "sum", size, name))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return received(collectives.all_gather_into_tensor(gradient.contiguous(), *ctx.group)), None, None


class Sent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, takes: list[int], sends: list[int], name: str) -> Tensor:
        ctx.way_back = sends, takes, name
        return received(collectives.all_to_all_single(x.contiguous(), takes, sends, name))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return received(collectives.all_to_all_single(gradient.contiguous(), *ctx.way_back)), None, None, None


class Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, name: str) -> Tensor:
        ctx.name = name
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return received(collectives.all_reduce(gradient.contiguous(), "sum", ctx.name)), None


# --- how much that is ---------------------------------------------------------------------------------------------


class Sends(NamedTuple):
    """Numbers that one rank sends to others in a training step: activations, their gradients, parameters' gradients."""

    forward: int
    backward: int
    parameters: int


class Counting(TorchDispatchMode):
    """Adds up the numbers that the collectives inside would have this rank send, the fewest that can do each."""

    def __init__(self, group: Group) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        others = group.size - 1
        self.activations = self.parameters = 0
        # What of an exchange's first argument (N numbers) leaves this rank.
        self._leaving: dict[str, Callable[[int, tuple[Any, ...]], float]] = {
            "all_gather_into_tensor": lambda numbers, _: numbers * others,
            "reduce_scatter_tensor": lambda numbers, _: numbers * others / group.size,
            "all_reduce": lambda numbers, _: 2 * numbers * others / group.size,
            "all_to_all_single": lambda numbers, rest: numbers * others_share(rest[1], group.rank),
        }

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "_c10d_functional" and (leaving := self._leaving.get(function._opname)):
            numbers = round(leaving(prod(args[0].shape), args[1:]))
            if function._opname == "all_reduce":
                self.parameters += numbers
            else:
                self.activations += numbers
        return function(*args, **(kwargs or {}))


def others_share(sends: list[int], own: int) -> float:
    """The share of the rows that do not stay here."""
    return 1 - sends[own] / sum(sends) if sum(sends) else 0.0


def counted(network: nn.Module, group: Group, images_shape: tuple[int, ...]) -> Sends:
    """What this rank sends in a training step on images (N, 3, S, S), read off the graph; nothing is computed or sent."""
    meta = {name: value.to("meta").requires_grad_() for name, value in network.state_dict().items()}
    with torch.compiler.set_stance("force_eager"), Counting(group) as forward:
        output = functional_call(network, meta, torch.empty(images_shape, device="meta"))
    with Counting(group) as backward:
        output.sum().backward()
    return Sends(forward.activations, backward.activations, forward.parameters + backward.parameters)
