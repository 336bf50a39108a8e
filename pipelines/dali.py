"""Batches through NVIDIA DALI: one graph for CPU and GPU, which differ by values of its arguments.

Only the part of a picture that a crop shows is decoded. On a GPU the crop's arithmetic stays on the CPU, decoding
is shared out as `decode` says, and all later work and the outputs are the device's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import math as dali_math
from torch.utils.dlpack import from_dlpack

from pipelines import Batch, Request
from pipelines.augment import (
    CHANNEL_MEANS,
    COLOUR_NOISE_BASIS,
    COLOUR_NOISE_STD,
    CROP_AREA,
    CROP_ASPECT,
    JITTER_FACTOR,
    JITTER_HUE_DEGREES,
    mixed_seed,
    shuffled,
)
from pipelines.diagnose import READER_QUEUE, bad_image

DTYPES = {"float32": types.FLOAT, "float16": types.FLOAT16}


def batches(request: Request) -> DaliBatches:
    """The batches that `request` asks for; the contract of `pipelines`."""
    return DaliBatches(request)


class DaliBatches:
    """An iterator over the outputs of one DALI pipeline. Tensors are views of DALI's memory, kept while they live."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.total = None if request.training else math.ceil(len(request.evaluation_slice) / request.images_per_batch)
        self.delivered = 0
        self.scheduled = 0
        self.classes = torch.tensor(request.split.labels, dtype=torch.int64, device=request.device)
        # An evaluation shorter than the queue would decode images that nobody asked for.
        depth = request.prefetch if self.total is None else min(request.prefetch, max(1, self.total))
        self.depth = depth
        self.pipeline: Pipeline | None = None
        if self.total != 0:
            self.pipeline = graph(request, request.device_id, depth)
            self.pipeline.build()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.pipeline is None or self.delivered == self.total:
            raise StopIteration
        stream = torch.cuda.current_stream(self.request.device) if self.request.on_gpu else None
        try:
            self._schedule()
            images, indices = self.pipeline.share_outputs(cuda_stream=stream)
            self.pipeline.release_outputs()
        except RuntimeError as error:
            raise self._explained(error) from error
        batch = self._batch(from_dlpack(images.as_tensor()), from_dlpack(indices.as_tensor()))
        self.delivered += 1
        return batch

    def close(self) -> None:
        """Free the pipeline: its threads and, once the last batch is gone, its memory."""
        if self.pipeline is not None:
            pipeline, self.pipeline = self.pipeline, None
            pipeline._shutdown()

    def _schedule(self) -> None:
        assert self.pipeline is not None
        if self.total is None or self.scheduled < self.total:
            # DALI's first call fills the whole queue.
            self.scheduled += 1 if self.scheduled else self.depth
            self.pipeline.schedule_run()

    def _batch(self, images: torch.Tensor, indices: torch.Tensor) -> Batch:
        """Images (N, S, S, 3) and int32 indices (N, 1) as DALI gives them, as the contract wants them."""
        places = indices.flatten().long()
        labels = self.classes[places]
        if self.total is not None:
            valid = len(self.request.evaluation_slice) - self.delivered * self.request.images_per_batch
            places[max(0, valid) :] = -1
            labels[max(0, valid) :] = 0
        return Batch(images.permute(0, 3, 1, 2), labels, places)

    def _explained(self, error: RuntimeError) -> Exception:
        self.close()
        if any(sign in str(error).lower() for sign in ("out of memory", "bad_alloc", "cuda runtime api error")):
            # No picture is to blame, and looking for one would take as long as the run has.
            return error
        return bad_image(self.request, self.delivered, str(error)) or error


def graph(request: Request, device_id: int | None, depth: int) -> Pipeline:
    """The pipeline, not yet built: outputs are images (S, S, 3) and the int32 index (1,) of each.

    With `device_id=None` every variant can be constructed and serialised on a machine without a GPU.
    """
    pipeline = Pipeline(
        batch_size=request.images_per_batch,
        num_threads=request.threads,
        device_id=device_id,
        seed=mixed_seed(request.seed, 1, request.shard),
        prefetch_queue_depth=depth,
        exec_dynamic=True,
    )
    with pipeline:
        encoded, index = reader(request)
        images = prepared(request, encoded)
        pipeline.set_outputs(images, index.gpu() if request.on_gpu else index)
    return pipeline


def reader(request: Request, stand_in: str | None = None) -> Any:
    """Encoded files and their int32 indices, in the order of this shard; `stand_in` replaces every file by one.

    Training: epoch e is one seeded permutation for all shards, of which each reads its own equal part. The reader's own
    seed makes the later epochs and ignores the pipeline's; it must be equal on all ranks, or they overlap.
    """
    if request.training:
        places = shuffled(len(request.split), request.seed, request.num_shards)
        sharding: dict[str, Any] = {
            "shard_id": request.shard,
            "num_shards": request.num_shards,
            "shuffle_after_epoch": True,
            "shuffle_after_epoch_seed": mixed_seed(request.seed, 2),
        }
    else:
        places, sharding = list(request.evaluation_slice), {}
    files = [stand_in] * len(places) if stand_in else [request.split.files[place] for place in places]
    return fn.readers.file(files=files, labels=places, name="reader", prefetch_queue_depth=READER_QUEUE, **sharding)


def prepared(request: Request, encoded: Any) -> Any:
    """Encoded images to float (S, S, 3): decoded, cropped, resized, coloured, flipped, minus the mean."""
    if request.training and request.augment != "paper":
        images = random_resized_crop(request, encoded)
    else:
        images = crop_of_resized(request, encoded)
    mean: Any = list(CHANNEL_MEANS)
    if request.training and request.augment == "rrc+jitter":
        images = colour_jitter(images)
    if request.training and request.augment == "paper":
        mean = types.Constant(np.array(CHANNEL_MEANS, np.float32)) - colour_noise()
    return fn.crop_mirror_normalize(
        images,
        dtype=DTYPES[request.dtype],
        output_layout="HWC",
        mean=mean,
        mirror=fn.random.coin_flip() if request.training else 0,
    )


def decoder_arguments(request: Request) -> dict[str, Any]:
    """Device and options of either decoder. Orientation by EXIF is not applied, as in the sets' own labels."""
    arguments: dict[str, Any] = {"device": request.decode, "adjust_orientation": False}
    if request.decode == "mixed":
        # The CPU's decoder smooths chroma as it enlarges it; the GPU's must, or the same file is another picture there.
        arguments["jpeg_fancy_upsampling"] = True
    if request.decode == "mixed" and request.hw_decoder_load is not None:
        arguments["hw_decoder_load"] = request.hw_decoder_load
    return arguments


def on_device(request: Request, images: Any) -> Any:
    """What a CPU decoder gave, moved to where the rest of the work is done."""
    return images.gpu() if request.on_gpu and request.decode == "cpu" else images


def random_resized_crop(request: Request, encoded: Any) -> Any:
    """A random part of the picture, decoded alone and resized to (S, S, 3) uint8."""
    images = fn.decoders.image_random_crop(
        encoded, random_area=list(CROP_AREA), random_aspect_ratio=list(CROP_ASPECT), **decoder_arguments(request)
    )
    return fn.resize(on_device(request, images), size=[request.image_size] * 2)


def crop_of_resized(request: Request, encoded: Any) -> Any:
    """Shorter side resized, its centre square, and of that a crop (S, S, 3) uint8: random in training, else the middle.

    The crop's window is traced back into the stored picture and only that is decoded, with as much around it as the
    resampling filter reaches: the same pixels as resizing the whole, and less work.
    """
    side, cut = request.resized_side, request.image_size
    size = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False)[:2], dtype=types.FLOAT)
    scale = fn.reductions.min(size) / float(side)
    if request.training:
        offset = fn.random.uniform(values=[float(place) for place in range(side - cut + 1)], shape=2)
    else:
        offset = (side - cut) // 2
    start = (size - side * scale) / 2.0 + offset * scale
    end = start + cut * scale
    reach = dali_math.ceil(dali_math.max(scale, 1.0)) + 1.0
    first = dali_math.max(dali_math.floor(start - reach), 0.0)
    last = dali_math.min(dali_math.ceil(end + reach), size)
    images = fn.decoders.image_slice(
        encoded,
        start=fn.cast(first, dtype=types.INT32),
        end=fn.cast(last, dtype=types.INT32),
        axes=[0, 1],
        **decoder_arguments(request),
    )
    return fn.resize(on_device(request, images), size=[cut, cut], roi_start=start - first, roi_end=end - first)


def colour_jitter(images: Any) -> Any:
    """Brightness, contrast, saturation and hue changed at random in one pass; uint8 in and out."""
    factors = {
        name: fn.random.uniform(range=[1 - JITTER_FACTOR, 1 + JITTER_FACTOR])
        for name in ("brightness", "contrast", "saturation")
    }
    return fn.color_twist(images, hue=fn.random.uniform(range=[-JITTER_HUE_DEGREES, JITTER_HUE_DEGREES]), **factors)


def colour_noise() -> Any:
    """The paper's section 4.1: one colour (3,) an image, to be added to all its pixels."""
    basis = types.Constant(np.array(COLOUR_NOISE_BASIS, np.float32))
    return fn.reductions.sum(basis * fn.random.normal(stddev=COLOUR_NOISE_STD, shape=3), axes=1)
