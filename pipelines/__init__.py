"""Where batches come from: a name and plain arguments in, an iterator of `Batch` out.

Every pipeline keeps one contract. Images are raw RGB pixels, 0 to 255, minus a mean; they are never divided by a
standard deviation, which would silently switch the network's response normalisation off. Training iterators are
endless and every batch is full: the reader wraps round. Evaluation gives every image of the split exactly once over
all shards; the places that fill up a shard's last batch have index -1 and label 0.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import torch

    from pipelines.sources import Split

PIPELINES = {
    "dali": "pipelines.dali:batches",
    "torch": "pipelines.torch_loader:batches",
    "synthetic": "pipelines.synthetic:batches",
}
AUGMENTS = ("rrc", "rrc+jitter", "paper")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16")
DECODES = ("cpu", "mixed")


class DataError(ValueError):
    """The data asked for cannot be used: one sentence of what was asked, what was found and what to do."""


class Batch(NamedTuple):
    """Images with their labels, all on the device asked for; the shapes never change."""

    images: torch.Tensor  # (N, 3, S, S) float32 or float16, channels-last: raw pixels minus the mean
    labels: torch.Tensor  # (N,) int64
    indices: torch.Tensor  # (N,) int64: place in `Split.files`, -1 where evaluation pads


class Batches(Protocol):
    """An iterator of batches that holds threads, memory or processes until it is closed."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """What a pipeline is asked for. ValueError, naming the right values, for what no pipeline can do."""

    split: Split
    images_per_batch: int
    training: bool = True
    augment: str = "rrc"  # training only
    image_size: int = 224  # side of the square image, pixels
    seed: int = 0
    shard: int = 0
    num_shards: int = 1
    device: str = "cpu"  # or "cuda:0"
    dtype: str = "float32"
    threads: int = 2  # decoding threads, or loader processes
    prefetch: int = 2  # batches made ahead
    decode: str = "cpu"
    hw_decoder_load: float | None = None  # share of JPEGs for the hardware decoder; None: DALI's own choice

    def __post_init__(self) -> None:
        one_of("augment", self.augment, AUGMENTS)
        one_of("device", self.device.partition(":")[0], DEVICES)
        one_of("dtype", self.dtype, DTYPES)
        one_of("decode", self.decode, DECODES)
        for name in ("images_per_batch", "image_size", "num_shards", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is too small: give at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard {self.shard} of {self.num_shards} does not exist: count shards from 0")
        if self.decode == "mixed" and self.device == "cpu":
            raise ValueError("decode mixed needs a GPU and the device is cpu: ask for decode cpu")
        if self.training and len(self.split) < self.num_shards:
            raise DataError(f"{len(self.split)} training images cannot feed {self.num_shards} ranks: use fewer ranks")

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def device_id(self) -> int | None:
        """The GPU's number; None on a CPU."""
        return int(self.device.partition(":")[2] or 0) if self.on_gpu else None

    @property
    def resized_side(self) -> int:
        """Pixels of the shorter side that `image_size` is cut from: 256 for 224, the paper's section 2."""
        return round(self.image_size * 256 / 224)

    @property
    def evaluation_slice(self) -> range:
        """Places of the split that this shard evaluates: contiguous, sizes differing by one at most."""
        total = len(self.split)
        return range(total * self.shard // self.num_shards, total * (self.shard + 1) // self.num_shards)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError that lists the right values where `value` is none of them."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(allowed)}")


def create(name: str, **arguments: Any) -> Batches:
    """The pipeline `name`, with the fields of `Request` as arguments.

    ValueError for an unknown name or value, `DataError` for data that cannot be used, ImportError with the line that
    installs what is missing.
    """
    one_of("pipeline", name, tuple(PIPELINES))
    module, _, function = PIPELINES[name].partition(":")
    return cast(Batches, getattr(importlib.import_module(module), function)(Request(**arguments)))
