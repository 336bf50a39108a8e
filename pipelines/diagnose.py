"""Which image of a batch cannot be decoded: DALI does not always say."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipelines import DataError, Request

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")


def bad_image(request: Request, batch: int, told: str) -> DataError | None:
    """The error that names the bad image of a batch that DALI gave up on; None where no image of it is bad.

    `batch` counts from 0 in this shard's order; `told` is DALI's own message.
    """
    for place in indices_of(request, batch):
        path = request.split.files[place]
        found = fault(path)
        if found or path in told:
            return DataError(
                f"the image {path} cannot be decoded ({found or 'damaged'}): mend or remove it, and run again"
            )
    return None


def indices_of(request: Request, batch: int) -> list[int]:
    """Indices in batch number `batch` of this shard, from the same reader fed with a small stand-in for every file."""
    from nvidia.dali import Pipeline

    from pipelines.dali import reader

    pipeline = Pipeline(batch_size=request.images_per_batch, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(reader(request, stand_in=str(Path(__file__).with_name("__init__.py")))[1])
    for _ in range(batch + 1):
        (indices,) = pipeline.run()
    places = [int(place) for place in indices.as_array().flatten()]
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
