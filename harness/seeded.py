"""A seeded step of a network as it runs here, against the same step in eager float32: how far apart their gradients are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import workload
from harness.config import RunConfig
from harness.schemes import Scheme, scheme_of
from models.shares import part_of

# `workload.build_network`, or one with a fault in it.
Build = Callable[[RunConfig, int, workload.Rank, Scheme], nn.Module]

# Rounding can turn a max-pool's winner, which moves a gradient by a thousandth: rare, and another one in every draw of
# images. A fault is in all of them, so the least difference of five draws is judged.
DRAWS = 5
IMAGES = 2  # a shard


def distance(
    config: RunConfig, classes: int, rank: workload.Rank, scheme: Scheme, build: Build = workload.build_network
) -> float:
    """The largest distance of a parameter's gradient from eager float32's, as a share of its norm; the least of DRAWS draws.

    A collective: the ranks share a step as `config` says, and one process's step on all images is what they are held to.
    Dropout is off, which would draw another network in each. Leaves another state of torch's generator.
    """
    ours = scheme.wrapped(build(config, classes, rank, scheme), config, rank.device).eval()
    one = plain(config)
    exact = build(one, classes, workload.Rank(0, 1, rank.device), scheme_of(one, 0)).eval()
    mine = slice(scheme.shard, None, config.shards)
    part = scheme.parts.rank if scheme.parts else 0
    found = []
    for seed in range(DRAWS):
        images, labels = pictures(seed, IMAGES * config.shards, config.image_size, classes, rank.device)
        with workload.autocast(config, rank.device):
            logits = ours(images[mine])
        got = gradients_by_name(ours, logits, labels[mine], scheme.loss_divisor)
        expected = gradients_by_name(exact, exact(images), labels)
        found.append(apart(list(got.values()), list(part_of(expected, got, part).values())))
    return least(found)


def plain(config: RunConfig) -> RunConfig:
    """The same network as one process has it, operation by operation in float32."""
    one = {"gpus": 1} if config.on_gpu else {"cpus": 1}
    return config.with_(precision="fp32", compile="off", block="plain", parallel="data", **one)


def pictures(seed: int, images: int, side: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) of raw pixels minus their mean, and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 256 * torch.rand((images, 3, side, side), generator=generator) - 128
    return pixels.to(device, memory_format=torch.channels_last), torch.arange(images, device=device) % classes


def gradients_by_name(network: nn.Module, logits: Tensor, labels: Tensor, divisor: int = 1) -> dict[str, Tensor]:
    """Of each parameter of a network, wrapped or not; of several columns the first alone has logits."""
    (F.cross_entropy(logits.float(), labels[: len(logits)]) / divisor).backward()
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        found[name.removeprefix("module.")] = parameter.grad.clone()
        parameter.grad = None
    return found


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance of two tensors of the lists, as a share of the expected one's norm."""
    pairs = zip(found, expected, strict=True)
    return largest(float((one - other).norm() / other.norm()) for one, other in pairs)


def largest(values: Iterable[float]) -> float:
    """The largest, or NaN if one of them is; `max` would overlook it."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


def least(values: Iterable[float]) -> float:
    """The least, or NaN if one of them is."""
    return -largest(-value for value in values)
