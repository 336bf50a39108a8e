"""One batch of random pixels that stays on the device and is given out for ever: what a step costs without input."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pipelines import Batch, Request, State
from pipelines.augment import CHANNEL_MEANS, mixed_seed


def batches(request: Request) -> SyntheticBatches:
    """The batches that `request` asks for; ValueError where evaluation is asked of pictures that do not exist."""
    if not request.training:
        raise ValueError("pipeline synthetic has no images to evaluate: ask for training, or for pipeline dali")
    return SyntheticBatches(request)


class SyntheticBatches:
    """An endless iterator over one batch, a function of seed and shard. Indices are distinct over all shards."""

    def __init__(self, request: Request) -> None:
        self.batch: Batch | None = resident_batch(request)
        self.request_id = request.request_id

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.batch is None:
            raise StopIteration
        return self.batch

    def state(self) -> State:
        """The batch is always the same one."""
        return State(0, "synthetic", self.request_id)

    def close(self) -> None:
        """Let go of the batch."""
        self.batch = None


def resident_batch(request: Request) -> Batch:
    """Whole pixel values minus the mean, labels, and indices from `shard * N` on. Drawn on the CPU: equal everywhere."""
    generator = torch.Generator().manual_seed(mixed_seed(request.seed, 3, request.shard))
    count, side = request.images_per_batch, request.image_size
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, request.split.num_classes, (count,), generator=generator)
    indices = torch.arange(request.shard * count, (request.shard + 1) * count)
    images = (pixels.float() - torch.tensor(CHANNEL_MEANS)).to(getattr(torch, request.dtype))
    device = request.device
    return Batch(images.permute(0, 3, 1, 2).to(device), labels.to(device), indices.to(device))
