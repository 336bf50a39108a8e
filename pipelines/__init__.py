"""Where batches come from: a name and plain arguments in, an iterator of `Batch` out.

Every pipeline keeps one contract. Images are raw RGB pixels, 0 to 255, minus a mean; they are never divided by a
standard deviation, which would silently switch the network's response normalisation off. Training iterators are
endless and every batch is full: one epoch runs into the next. Order and augmentation are functions of the seed and of
the images drawn before, so that an iterator can be had again from the middle of an epoch (`State`). Evaluation gives
every image of the split exactly once over all shards; the places that fill up a shard's last batch have index -1 and
label 0.

sources/        where images lie: class folders, ImageNet as distributed, shards, prepared sets, buckets
order.py        which image comes when; draws.py: the random numbers of each; augment.py: the constants
feed.py         what goes into the graph for a batch
dali.py         the graph and its iterator; torch_loader.py: the peer; synthetic.py: no input at all
parts.py        the same input, ended earlier: what storage and decoding alone can give
diagnose.py     which image of a batch cannot be decoded; pictures.py: what Pillow makes of one
dataset/        sets made and measured: the embedded one, check, prepare, statistics
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pipelines.augment import CHANNEL_MEANS, COLOUR_NOISE_BASIS, JITTER

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipelines.sources import Split

PIPELINES = {
    "dali": "pipelines.dali:batches",
    "torch": "pipelines.torch_loader:batches",
    "synthetic": "pipelines.synthetic:batches",
}
AUGMENTS = ("rrc", "rrc+jitter", "paper", "code2012", "none")
RANDOM_RESIZED = ("rrc", "rrc+jitter")
NOISY = ("paper", "code2012")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float16", "uint8")
VIEWS = (1, 10)
PARTED = {"dali": "pipelines.parts:part"}  # pipelines that can end early
PARTS = ("storage", "decode")
DECODES = ("cpu", "mixed")


class DataError(ValueError):
    """The data asked for cannot be used: one sentence of what was asked, what was found and what to do."""


class Batch(NamedTuple):
    """Images with their labels, all on the device asked for; the shapes never change."""

    # (N, 3, S, S) as `Request.dtype` says, channels-last; ten views: (10 N, 3, S, S), an image's together.
    images: torch.Tensor
    labels: torch.Tensor  # (N,) int64
    indices: torch.Tensor  # (N,) int64: place in `Split.files`, -1 where evaluation pads


@dataclass(frozen=True)
class State:
    """Where a training iterator stands after some batches; `Request.resume` goes on from there with the same numbers."""

    batches: int
    pipeline: str  # its name
    request_id: str  # of what was asked: anything else refuses this state
    operators: str = ""  # what the pipeline's own random operators know, base64


class Batches(Protocol):
    """An iterator of batches that holds threads, memory or processes until it is closed."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state(self) -> State: ...

    def close(self) -> None: ...


class Part(Protocol):
    """The images of a training input in its order, on their way through its first stages only; closed as `Batches` are."""

    indices: torch.Tensor | None  # (N,) int32: which images the last batch had, as `Batch.indices`

    def __iter__(self) -> Iterator[int]: ...

    def __next__(self) -> int:
        """Images that went through in the next batch; on a GPU, once the work queued on its current stream is done."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """What a pipeline is asked for. ValueError, naming the right values, for what no pipeline can do."""

    split: Split
    images_per_batch: int
    training: bool = True
    augment: str = "rrc"  # training only, but for "none": the centre square and no more, in evaluation too
    jitter: tuple[float, float, float, float] = JITTER  # rrc+jitter: brightness, contrast, saturation, hue in turns
    image_size: int = 224  # side of the square image, pixels
    resized_side: int = 0  # pixels of the shorter side that `image_size` is cut from; 0: the function of that name
    mean_image: NDArray[np.float32] | None = field(default=None, compare=False)  # (S, S, 3); None: `channel_means`
    channel_means: tuple[float, ...] = CHANNEL_MEANS
    colour_basis: tuple[tuple[float, ...], ...] = COLOUR_NOISE_BASIS  # (3, 3), see `augment`
    views: int = 1  # evaluation: the middle, or the paper's ten
    seed: int = 0
    shard: int = 0
    num_shards: int = 1
    device: str = "cpu"  # or "cuda:0"
    dtype: str = "float32"
    threads: int = 2  # decoding threads, or loader processes
    prefetch: int = 2  # batches made ahead
    decode: str = "cpu"
    hw_decoder_load: float | None = None  # share of JPEGs for the hardware decoder; None: DALI's own choice
    noise_images: int | None = None  # colour noise for this shard's first so many images; None: for all of them
    resume: State | None = None  # training only: go on after these batches

    def __post_init__(self) -> None:
        object.__setattr__(self, "resized_side", self.resized_side or resized_side(self.image_size, self.augment))
        one_of("augment", self.augment, AUGMENTS)
        one_of("device", self.device.partition(":")[0], DEVICES)
        one_of("dtype", self.dtype, DTYPES)
        one_of("decode", self.decode, DECODES)
        one_of("views", self.views, VIEWS)
        for name in ("images_per_batch", "image_size", "num_shards", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is too small: give at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard {self.shard} of {self.num_shards} does not exist: count shards from 0")
        if self.decode == "mixed" and self.device == "cpu":
            raise ValueError("decode mixed needs a GPU and the device is cpu: ask for decode cpu")
        if self.augment == "none" and self.views > 1:
            raise ValueError("augment none shows the whole centre square, which has one view: ask for views 1")
        if self.resized_side < self.image_size:
            raise ValueError(f"image_size {self.image_size} cannot be cut from {self.resized_side}: resize to more")
        if self.training and (self.views > 1 or self.dtype == "uint8"):
            raise ValueError("ten views and raw pixels are for evaluation: ask for training=False")
        if self.training and self.augment in RANDOM_RESIZED and self.split.square:
            raise DataError(no_random_resized(self.augment, self.split.square))
        if self.training and len(self.split) < self.num_shards:
            raise DataError(f"{len(self.split)} training images cannot feed {self.num_shards} ranks: use fewer ranks")

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def device_id(self) -> int | None:
        """The GPU's number; None on a CPU."""
        return int(self.device.partition(":")[2] or 0) if self.on_gpu else None

    @cached_property
    def request_id(self) -> str:
        """Digest of all that the stream of training images depends on; threads, queues and where the set lies are not."""
        split = self.split
        above = len(os.path.commonpath([os.path.dirname(file) for file in (min(split.files), max(split.files))]))
        digest = hashlib.sha256("\0".join(file[above:] for file in split.files).encode(errors="surrogateescape"))
        spans = split.spans.tobytes() if split.spans is not None else b""
        means = self.mean_image.tobytes() if self.mean_image is not None else b""
        asked = (split.labels, split.square, split.raw, self.images_per_batch, self.augment, self.jitter, self.image_size,
                 self.resized_side, self.channel_means, self.colour_basis, self.seed, self.shard, self.num_shards,
                 self.noise_images)  # fmt: skip
        for part in (spans, means, repr(asked).encode()):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:16]

    @property
    def evaluation_slice(self) -> range:
        """Places of the split that this shard evaluates: contiguous, sizes differing by one at most."""
        total = len(self.split)
        return range(total * self.shard // self.num_shards, total * (self.shard + 1) // self.num_shards)


def resized_side(image_size: int, augment: str) -> int:
    """Pixels of the shorter side that a crop of `image_size` is cut from: 256 for 224, the paper's section 2.

    Without augmentation nothing is cut from the centre square, neither in training nor in evaluation.
    """
    return image_size if augment == "none" else round(image_size * 256 / 224)


def no_random_resized(augment: str, square: int) -> str:
    """Why squares that were cut before cannot be cut at random again, and what to do."""
    return (
        f"--augment {augment} was asked of images that were prepared as {square}x{square} squares, whose random areas and "
        "aspects of the whole photograph are gone: ask for --augment paper, or give --data the originals"
    )


def resumable(request: Request, pipeline: str) -> None:
    """`DataError` where `request.resume` is the state of another stream."""
    state = request.resume
    if state is not None and (state.pipeline, state.request_id) != (pipeline, request.request_id):
        raise DataError(
            "the saved state of the input belongs to other images, seed, augmentation, batch size, ranks or pipeline: "
            "resume with what it was saved with"
        )


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """ValueError that lists the right values where `value` is none of them."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(map(str, allowed))}")


def create(name: str, **arguments: Any) -> Batches:
    """The pipeline `name`, with the fields of `Request` as arguments.

    ValueError for an unknown name or value, `DataError` for data that cannot be used, ImportError with the line that
    installs what is missing.
    """
    one_of("pipeline", name, tuple(PIPELINES))
    return cast(Batches, function_at(PIPELINES[name])(Request(**arguments)))


def part(name: str, part: str, **arguments: Any) -> Part | None:
    """The training input that `create` gives, ended early: after "storage" every byte of the encoded images was read into
    memory, after "decode" that part of each picture was decoded that the augmentation shows, and nothing more was done.

    None where there is nothing to tell apart: for a pipeline whose stages are not ours to end, and for the decoding of raw
    pixels. Errors as in `create`; ValueError for evaluation, or from the middle.
    """
    one_of("pipeline", name, tuple(PIPELINES))
    one_of("part", part, PARTS)
    request = Request(**arguments)
    if not request.training or request.resume is not None:
        raise ValueError("a part of the input is of training from its first batch on: leave training and resume out")
    if name not in PARTED or (part == "decode" and request.split.raw):
        return None
    return cast(Part, function_at(PARTED[name])(request, part))


def function_at(place: str) -> Callable[..., Any]:
    """What a table's "module:function" names."""
    module, _, function = place.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), function))
