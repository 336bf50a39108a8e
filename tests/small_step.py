"""A network of a few thousand parameters for the checks of a step, built as harness.checks.network is; ranks import it too."""

from __future__ import annotations

import torch
from torch import nn

from harness.config import RunConfig
from harness.schemes import Scheme
from harness.workload import Rank


def build(config: RunConfig, _classes: int, _rank: Rank, _scheme: Scheme) -> nn.Module:
    torch.manual_seed(config.seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 11, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 27 * 27, 10))
    if config.compile == "on":
        network.compile(fullgraph=True)
    return network


def wrong_when_compiled(config: RunConfig, classes: int, rank: Rank, scheme: Scheme) -> nn.Module:
    """A thousandth too large in one gradient, where a compiled step is asked for."""
    network = build(config.with_(compile="off"), classes, rank, scheme)
    if config.compile == "on":
        network.get_parameter("3.bias").register_hook(lambda gradient: gradient * 1.001)
    return network


def without_communication(config: RunConfig, classes: int, rank: Rank, scheme: Scheme) -> nn.Module:
    """Ranks that hear nothing of each other but of one bias."""
    network = build(config, classes, rank, scheme)
    network._ddp_params_and_buffers_to_ignore = [n for n, _ in network.named_parameters() if n != "3.bias"]
    return network


def broken(config: RunConfig, classes: int, rank: Rank, scheme: Scheme) -> nn.Module:
    raise RuntimeError("no memory for these weights\nand forty lines more")
