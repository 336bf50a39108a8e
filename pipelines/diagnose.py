"""Which image of a batch cannot be decoded: DALI does not always say."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipelines import DataError, Request

READER_QUEUE = 2  # batches that the reader holds beyond those being decoded
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def bad_image(request: Request, batch: int, told: str) -> DataError | None:
    """The error that names the bad image that DALI gave up on; None where no image it may have met is bad.

    `batch` counts from 0 in this shard's order; `told` is DALI's own message. A file that cannot even be read stops
    the reader, which is ahead of the batch.
    """
    for place in upcoming(request, batch, 1 + request.prefetch + READER_QUEUE):
        path = request.split.files[place]
        found = fault(path)
        if found or path in told:
            return DataError(
                f"the image {path} cannot be decoded ({found or 'damaged'}): mend or remove it, and run again"
            )
    return None


def upcoming(request: Request, batch: int, count: int) -> list[int]:
    """Indices in `count` batches of this shard from `batch` on: of the same reader, with a small stand-in for each file."""
    from nvidia.dali import Pipeline

    from pipelines.dali import reader

    pipeline = Pipeline(batch_size=request.images_per_batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(reader(request, stand_in=str(Path(__file__).with_name("__init__.py")))[1])
    places: list[int] = []
    for number in range(batch + count):
        (indices,) = pipeline.run()
        if number >= batch:
            places += map(int, indices.as_array().flatten())
    pipeline._shutdown()
    return places


def fault(path: str) -> str | None:
    """What is wrong with an image file, in a few words; None where Pillow can decode it."""
    try:
        if Path(path).stat().st_size == 0:
            return "the file is empty"
        with Image.open(path) as image:
            if image.format not in FORMATS:
                return f"it is {image.format}, not {', '.join(FORMATS)}"
            image.load()
    except UnidentifiedImageError:
        return "it is no image"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return None
