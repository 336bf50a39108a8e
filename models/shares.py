"""Weights between a whole network and the parts of it that ranks hold, bit for bit.

A part has the whole's parameters by name: all of one, an equal share of it along one dimension, or, beyond the first
rank, none. Which it is can be read from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def dimension_cut(whole: torch.Size, part: torch.Size) -> int | None:
    """The dimension in which a part's shape is a share of the whole's; None where it is all of it."""
    cut = [dim for dim, (all_of_it, share) in enumerate(zip(whole, part, strict=True)) if all_of_it != share]
    if len(cut) > 1:
        raise ValueError(f"a part of shape {tuple(part)} is no share of {tuple(whole)} along one dimension")
    return cut[0] if cut else None


def part_of(whole: State, part: State, index: int) -> dict[str, Tensor]:
    """The values of `whole` that the parameters of `part`, the one of rank `index`, stand for, as copies."""
    values = {}
    for name, like in part.items():
        dim = dimension_cut(whole[name].shape, like.shape)
        share = whole[name] if dim is None else whole[name].narrow(dim, index * like.shape[dim], like.shape[dim])
        values[name] = share.clone()
    return values


def whole_of(parts: Sequence[State], whole: State) -> dict[str, Tensor]:
    """The whole network's values from those of every rank in order; `whole` gives the shapes alone."""
    values = {}
    for name, like in whole.items():
        dim = dimension_cut(like.shape, parts[0][name].shape)
        values[name] = parts[0][name].clone() if dim is None else torch.cat([part[name] for part in parts], dim)
    return values
