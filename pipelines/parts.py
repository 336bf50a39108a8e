"""The input ended early: the graph of `dali.py` up to a stage, whose outputs nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.dlpack import from_dlpack

from pipelines import Request
from pipelines.dali import DaliBatches


def part(request: Request, part: str) -> DaliPart:
    """The part of the input that `request` asks for; the contract of `pipelines.Part`."""
    return DaliPart(request, part)


class DaliPart:
    """Counts the images that come out of a graph. Their shapes differ, so that they make no `Batch`."""

    def __init__(self, request: Request, part: str) -> None:
        self.batches = DaliBatches(request, part)
        self.indices: torch.Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        images, indices = self.batches.outputs()
        self.indices = from_dlpack(indices.as_tensor()).flatten()
        return len(images)

    def close(self) -> None:
        """Free the pipeline."""
        self.batches.close()
