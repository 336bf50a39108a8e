"""Batches through NVIDIA DALI: one graph for CPU and GPU, which differ by values of its arguments.

Only the part of a picture that a crop shows is decoded. On a GPU the crop's arithmetic stays on the CPU, decoding
is shared out as `decode` says, and all later work and the outputs are the device's.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import math as dali_math
from torch.utils.dlpack import from_dlpack

from pipelines import RANDOM_RESIZED, Batch, DataError, Request, State, resumable
from pipelines.augment import CODE2012_DIVISOR, CROP_AREA, CROP_ASPECT, mixed_seed
from pipelines.diagnose import bad_image
from pipelines.feed import Feed, numbers_of

DTYPES = {"float32": types.FLOAT, "float16": types.FLOAT16}


def batches(request: Request) -> DaliBatches:
    """The batches that `request` asks for; the contract of `pipelines`."""
    return DaliBatches(request)


class DaliBatches:
    """An iterator over the outputs of one DALI pipeline. Tensors are views of DALI's memory, kept while they live."""

    def __init__(self, request: Request, part: str = "augment") -> None:
        resumable(request, "dali")
        self.request = request
        self.total = None if request.training else math.ceil(len(request.evaluation_slice) / request.images_per_batch)
        self.delivered = request.resume.batches if request.resume else 0
        self.scheduled = 0
        self.classes = torch.tensor(request.split.labels, dtype=torch.int64, device=request.device)
        # An evaluation shorter than the queue would decode images that nobody asked for.
        self.depth = request.prefetch if self.total is None else min(request.prefetch, max(1, self.total))
        self.pipeline: Pipeline | None = None
        if self.total != 0:
            self.pipeline = graph(request, request.device_id, self.depth, part)
            self.pipeline.build()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        images, indices = self.outputs()
        return self._batch(from_dlpack(images.as_tensor()), from_dlpack(indices.as_tensor()))

    def outputs(self) -> tuple[Any, Any]:
        """The graph's outputs for the next batch, ready for what follows on the device's current stream."""
        if self.pipeline is None or self.delivered == self.total:
            raise StopIteration
        stream = torch.cuda.current_stream(self.request.device) if self.request.on_gpu else None
        try:
            self._schedule()
            images, indices, *_ = self.pipeline.share_outputs(cuda_stream=stream)
            self.pipeline.release_outputs()
        except DataError:
            self.close()
            raise
        except RuntimeError as error:
            raise self._explained(error) from error
        self.delivered += 1
        return images, indices

    def state(self) -> State:
        """After the batches delivered so far; for training only."""
        assert self.pipeline is not None
        return State(
            self.delivered, "dali", self.request.request_id, base64.b64encode(self.pipeline.checkpoint()).decode()
        )

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
        """Images (N, S, S, 3), or (N, 10, S, S, 3), and int32 indices (N, 1), as the contract wants them."""
        places = indices.flatten().long()
        labels = self.classes[places.clamp(min=0)] * (places >= 0)
        return Batch(images.flatten(0, -4).permute(0, 3, 1, 2), labels, places)

    def _explained(self, error: RuntimeError) -> Exception:
        self.close()
        if any(sign in str(error).lower() for sign in ("out of memory", "bad_alloc", "cuda runtime api error")):
            # No picture is to blame, and looking for one would take as long as the run has.
            return error
        return bad_image(self.request, self.delivered, str(error)) or error


def graph(request: Request, device_id: int | None, depth: int, part: str = "augment") -> Pipeline:
    """The pipeline, not yet built: outputs are images (S, S, 3) and the int32 index (1,) of each.

    An earlier `part` ends the graph there: "storage" at the bytes as they lie, "decode" at pixels of any height and width.
    With `device_id=None` every variant can be constructed and serialised on a machine without a GPU.
    """
    resume = request.resume
    pipeline = Pipeline(
        batch_size=request.images_per_batch,
        num_threads=request.threads,
        device_id=device_id,
        seed=mixed_seed(request.seed, 1, request.shard),
        prefetch_queue_depth=depth,
        exec_dynamic=True,
        enable_checkpointing=request.training,
        checkpoint=unpacked(resume) if resume else None,
    )
    with pipeline:
        images, index, numbers = fed(request)
        images = PARTS[part](request, images, numbers)
        # DALI warns of numbers that nobody takes.
        left_over = () if part == "augment" else numbers.values()
        pipeline.set_outputs(images, index.gpu() if request.on_gpu else index, *left_over)
    return pipeline


def unpacked(state: State) -> bytes:
    """What DALI wrote of its operators."""
    try:
        return base64.b64decode(state.operators, validate=True)
    except ValueError as error:
        raise DataError("the saved state of the input is damaged: resume from another one, or begin anew") from error


def fed(request: Request) -> tuple[Any, Any, dict[str, Any]]:
    """Encoded images (raw sets: their pixels), the index of each, and the random numbers by name."""
    feed = Feed(request)
    names = numbers_of(request) if request.training else ()
    whole_files = request.split.spans is None
    # The feed's maps live as long as the graph that holds it: DALI need not copy what they show.
    layout = "HWC" if request.split.raw else None
    images = fn.external_source(feed.images, batch=True, no_copy=not whole_files, dtype=types.UINT8, layout=layout)
    if whole_files:
        images = fn.io.file.read(images)
    index, *numbers = fn.external_source(feed.numbers, num_outputs=1 + len(names), batch=True)
    return images, index, dict(zip(names, numbers, strict=True))


def copied(_request: Request, images: Any, _numbers: dict[str, Any]) -> Any:
    """What `fed` gives, in memory of its own: of a file that is mapped, only what somebody looks at is ever read."""
    return fn.copy(images)


def decoded(request: Request, images: Any, numbers: dict[str, Any]) -> Any:
    """What `prepared` decodes in training, where it decodes it."""
    if request.augment in RANDOM_RESIZED:
        return random_part(request, images)
    return part_of_resized(request, images, numbers.get("offset"), request.image_size)[0]


def prepared(request: Request, images: Any, numbers: dict[str, Any]) -> Any:
    """What `fed` gives to float (S, S, 3), or (10, S, S, 3): decoded, cropped, resized, coloured, flipped, minus the mean."""
    if not request.training and request.views == 10:
        square = crop_of_resized(request, images, None, request.resized_side)
        corners = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
        places = (*corners, place_in_room(request, None))
        return fn.stack(*(less_mean(request, square, at, mirror) for mirror in (0, 1) for at in places))
    at = None
    if request.training and request.augment in RANDOM_RESIZED:
        images = fn.resize(on_device(request, random_part(request, images)), size=[request.image_size] * 2)
    elif (
        request.split.raw
        and request.split.square == request.resized_side
        and not request.on_gpu
        and request.dtype != "uint8"
    ):
        # Cut in the pass that subtracts the mean: a pass less over the pixels.
        at = place_in_room(request, numbers.get("offset"))
    else:
        images = crop_of_resized(request, images, numbers.get("offset"), request.image_size)
    if "jitter" in numbers:
        images = colour_jitter(images, numbers["jitter"])
    if request.dtype == "uint8":
        return images
    return less_mean(request, images, at, numbers.get("mirror", 0), numbers.get("noise"))


def place_in_room(request: Request, offset: Any) -> tuple[Any, Any]:
    """Down and right, as shares of the room that a crop has in the square; the middle without an offset."""
    room = request.resized_side - request.image_size
    if offset is None:
        middle = room // 2 / max(1, room)
        return middle, middle
    at = offset / float(max(1, room))
    return at[0], at[1]


def less_mean(request: Request, images: Any, at: tuple[Any, Any] | None, mirror: Any, noise: Any = None) -> Any:
    """Pixels (S, S, 3) minus the mean, plus a colour; cut out `at` a place in their room first, and flipped.

    The mean image's centre is taken from every crop as it is shown, wherever it was cut: the paper's source does so.
    """
    mean: Any = [0.0] * 3 if request.mean_image is not None else list(request.channel_means)
    if noise is not None:
        mean = types.Constant(np.array(mean, np.float32)) - noise
    divisor = CODE2012_DIVISOR if request.training and request.augment == "code2012" else 1.0
    cut: dict[str, Any] = {"crop": [request.image_size] * 2, "crop_pos_y": at[0], "crop_pos_x": at[1]} if at else {}
    dtype = types.FLOAT if request.mean_image is not None else DTYPES[request.dtype]
    images = fn.crop_mirror_normalize(
        images, dtype=dtype, output_layout="HWC", mean=mean, std=[divisor] * 3, mirror=mirror, **cut
    )
    if request.mean_image is None:
        return images
    images = images - types.Constant(
        request.mean_image / np.float32(divisor), device="gpu" if request.on_gpu else "cpu"
    )
    return images if request.dtype == "float32" else fn.cast(images, dtype=DTYPES[request.dtype])


def decoder_arguments(request: Request) -> dict[str, Any]:
    """Device and options of every decoder. Orientation by EXIF is not applied, as in the sets' own labels."""
    arguments: dict[str, Any] = {"device": request.decode, "adjust_orientation": False}
    if request.decode == "mixed":
        # The CPU's decoder smooths chroma as it enlarges it; the GPU's must, or the same file is another picture there.
        arguments["jpeg_fancy_upsampling"] = True
    if request.decode == "mixed" and request.hw_decoder_load is not None:
        arguments["hw_decoder_load"] = request.hw_decoder_load
    return arguments


def on_device(request: Request, images: Any) -> Any:
    """What the CPU gave, moved to where the rest of the work is done."""
    return images.gpu() if request.on_gpu and (request.decode == "cpu" or request.split.raw) else images


def random_part(request: Request, encoded: Any) -> Any:
    """A random part of the picture, decoded alone; uint8."""
    return fn.decoders.image_random_crop(
        encoded, random_area=list(CROP_AREA), random_aspect_ratio=list(CROP_ASPECT), **decoder_arguments(request)
    )


def crop_of_resized(request: Request, images: Any, offset: Any, cut: int) -> Any:
    """Shorter side resized, its centre square, and of that a crop (cut, cut, 3) uint8 at `offset`, or its middle."""
    part, window = part_of_resized(request, images, offset, cut)
    part = on_device(request, part)
    return fn.resize(part, size=[cut, cut], **window) if window else part


def part_of_resized(request: Request, images: Any, offset: Any, cut: int) -> tuple[Any, dict[str, Any]]:
    """The part of each picture that a crop at `offset`, whole pixels, or in the middle shows; and the window of it to resize, if it
    is not that size.

    The crop's window is traced back into the stored picture and only that is decoded, with as much around it as the
    resampling filter reaches: the same pixels as resizing the whole, and less work.
    """
    side = request.resized_side
    if offset is None:
        offset = types.Constant([float((side - cut) // 2)] * 2)
    if request.split.square == side:
        return cut_out(request, images, start=fn.cast(offset, dtype=types.INT32), shape=[cut, cut]), {}
    size = fn.cast(shape_of(request, images)[:2], dtype=types.FLOAT)
    # What `augment.centre_square` says, as a graph.
    scale = fn.reductions.min(size) / float(side)
    resized = dali_math.floor(size / scale + 0.5)
    first = dali_math.floor((resized - side) / 2.0 + 0.5)
    start = size / 2.0 + (first - resized / 2.0 + offset) * scale
    end = start + cut * scale
    reach = dali_math.ceil(dali_math.max(scale, 1.0)) + 1.0
    lowest = dali_math.max(dali_math.floor(start - reach), 0.0)
    highest = dali_math.min(dali_math.ceil(end + reach), size)
    whole = {"start": fn.cast(lowest, dtype=types.INT32), "end": fn.cast(highest, dtype=types.INT32)}
    return cut_out(request, images, **whole), {"roi_start": start - lowest, "roi_end": end - lowest}


def cut_out(request: Request, images: Any, **window: Any) -> Any:
    """A window of each picture in whole pixels, height before width: decoded alone where it is not pixels already."""
    if request.split.raw:
        return fn.slice(images, axes=[0, 1], **window)
    return fn.decoders.image_slice(images, axes=[0, 1], **window, **decoder_arguments(request))


def shape_of(request: Request, images: Any) -> Any:
    """Height, width and channels of each picture, before it is decoded."""
    return images.shape() if request.split.raw else fn.peek_image_shape(images, adjust_orientation=False)


def colour_jitter(images: Any, jitter: Any) -> Any:
    """Brightness, contrast, saturation and hue changed by each image's (4,) numbers in one pass; uint8 in and out."""
    names = ("brightness", "contrast", "saturation", "hue")
    return fn.color_twist(images, **{name: jitter[place] for place, name in enumerate(names)})


PARTS = {"storage": copied, "decode": decoded, "augment": prepared}
