"""A network of a few thousand parameters for the checks of a step, built as harness.checks.network is; ranks import it too."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.config import RunConfig
from harness.workload import Rank


def build(config: RunConfig, rank: Rank) -> nn.Module:
    torch.manual_seed(config.seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 11, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 27 * 27, 10))
    if config.compile == "on":
        network.compile(fullgraph=True)
    return DistributedDataParallel(network) if rank.count > 1 else network


def wrong_when_compiled(config: RunConfig, rank: Rank) -> nn.Module:
    """A thousandth too large in one gradient, where a compiled step is asked for."""
    network = build(config.with_(compile="off"), rank)
    if config.compile == "on":
        network.get_parameter("3.bias").register_hook(lambda gradient: gradient * 1.001)
    return network


def without_communication(config: RunConfig, rank: Rank) -> nn.Module:
    """Ranks that never hear of each other."""
    return build(config, Rank(rank.index, 1, rank.device))


def broken(config: RunConfig, rank: Rank) -> nn.Module:
    raise RuntimeError("no memory for these weights\nand forty lines more")
