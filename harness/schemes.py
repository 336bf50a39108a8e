"""How ranks share one training step: which of them see the same images, hold parts of one network, or average gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from harness.config import RunConfig
from models import exchange

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GRADIENT_BYTES = 4  # parameters and their gradients are float32 whatever a step computes in


@dataclass(frozen=True)
class Scheme:
    """A rank's place. `parts`: the ranks that hold the parts of one network with this one, None where each holds it whole.

    `replicas`: the ranks that hold what this one holds and average its gradients, None where there are no others, or where
    the parts' own exchange has summed them.
    """

    shard: int
    column: int
    parts: exchange.Group | None
    replicas: dist.ProcessGroup | None
    loss_divisor: int  # a rank's loss over this is its share of the job's mean loss, where gradients are summed

    def wrapped(self, network: nn.Module, config: RunConfig, device: torch.device) -> nn.Module:
        """The network as training calls it: itself, or under DistributedDataParallel."""
        if self.replicas is None:
            return network
        return DistributedDataParallel(
            network,
            device_ids=[device.index] if device.type == "cuda" else None,
            process_group=self.replicas,
            bucket_cap_mb=config.bucket_mib,
            gradient_as_bucket_view=True,
        )

    def without_communication(self, wrapped: nn.Module) -> Callable[[], contextlib.AbstractContextManager[Any]]:
        """A context in which the same steps send nothing. What a compiled network exchanges is in its graph: it gets another."""

        @contextlib.contextmanager
        def quiet() -> Any:
            with contextlib.ExitStack() as stack:
                if isinstance(wrapped, DistributedDataParallel):
                    stack.enter_context(wrapped.no_sync())
                if self.parts is not None:
                    stack.enter_context(exchange.silenced())
                yield

        return quiet

    def sent_bytes_per_step(self, network: nn.Module, config: RunConfig) -> int:
        """What this rank sends in a training step: counted in the network's graph, and for averages the least that they take."""
        sent = 0
        if self.parts is not None:
            images = (config.images_per_batch, 3, config.image_size, config.image_size)
            sends = exchange.counted(network, self.parts, images)
            sent += (sends.forward + sends.backward) * DTYPES[config.precision].itemsize
            sent += sends.parameters * GRADIENT_BYTES
        if self.replicas is not None:
            ranks = self.replicas.size()
            sent += 2 * (ranks - 1) * sum(p.numel() for p in network.parameters()) * GRADIENT_BYTES // ranks
        return sent


def scheme_of(config: RunConfig, index: int) -> Scheme:
    """The place of the rank called `index` of the job, whose process group is there; makes the groups that it needs."""
    shard, column = divmod(index, config.network_columns)
    if config.ranks == 1:
        return Scheme(shard, column, None, None, 1)
    if config.parallel == "data":
        return Scheme(shard, column, None, dist.group.WORLD, 1)
    if config.parallel == "hybrid":
        return Scheme(shard, column, group_of(dist.group.WORLD), None, config.ranks)
    kind = "cuda" if config.on_gpu else "cpu"
    mesh = init_device_mesh(kind, (config.shards, config.network_columns), mesh_dim_names=("data", "column"))
    replicas = mesh.get_group("data") if config.shards > 1 else None
    return Scheme(shard, column, group_of(mesh.get_group("column")), replicas, 1)


def group_of(ranks: dist.ProcessGroup | None) -> exchange.Group:
    assert ranks is not None
    return exchange.Group(ranks.group_name, ranks.size(), ranks.rank())
