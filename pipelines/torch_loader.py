"""The peer: the same batches through torchvision's transforms and torch's DataLoader, decoded on the CPU by Pillow."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines import Batch, DataError, Request
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
from pipelines.diagnose import fault

try:
    from torchvision.transforms import v2 as transforms
except ModuleNotFoundError as error:
    raise ImportError(
        'pipeline torch needs torchvision, which is not installed: python -m pip install -e ".[peer]"'
    ) from error

Visit = tuple[int, int]  # which image, and how many images this shard drew before it


def batches(request: Request) -> LoaderBatches:
    """The batches that `request` asks for; `decode` and `hw_decoder_load` have no meaning here."""
    return LoaderBatches(request)


class LoaderBatches:
    """An iterator over a DataLoader with one process a thread asked for."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.classes = torch.tensor(request.split.labels, dtype=torch.int64, device=request.device)
        self.loader: Iterator[tuple[Tensor, Tensor]] = iter(
            DataLoader(
                Images(request),
                batch_sampler=Order(request),
                num_workers=request.threads,
                prefetch_factor=request.prefetch,
                pin_memory=request.on_gpu,
                # A forked copy of a process that runs torch's and DALI's threads may hang.
                multiprocessing_context="spawn",
                worker_init_fn=_one_thread,
            )
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            images, indices = next(self.loader)
        except DataError as error:
            # torch puts the worker's traceback before what the worker said.
            raise DataError(str(error).strip().rpartition("DataError: ")[2]) from None
        images = images.to(self.request.device, non_blocking=True).to(getattr(torch, self.request.dtype))
        indices = indices.to(self.request.device, non_blocking=True)
        labels = torch.where(indices < 0, 0, self.classes[indices])
        return Batch(images.permute(0, 3, 1, 2), labels, indices)

    def close(self) -> None:
        """End the worker processes."""
        self.loader = iter(())  # torch ends them with the iterator


class Order(Sampler[list[Visit]]):
    """Batches of what to load: for ever in training, with places of index -1 at the end of an evaluation."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __iter__(self) -> Iterator[list[Visit]]:
        places = self._endless() if self.request.training else self._padded()
        batch: list[Visit] = []
        for visit in places:
            batch.append(visit)
            if len(batch) == self.request.images_per_batch:
                yield batch
                batch = []

    def _endless(self) -> Iterator[Visit]:
        request, drawn = self.request, 0
        order = shuffled(len(request.split), request.seed, request.num_shards)
        share = len(order) // request.num_shards
        own = slice(request.shard * share, (request.shard + 1) * share)
        for epoch in itertools.count():
            if epoch:
                random.Random(mixed_seed(request.seed, 2, epoch)).shuffle(order)
            for place in order[own]:
                yield place, drawn
                drawn += 1

    def _padded(self) -> Iterator[Visit]:
        own, size = self.request.evaluation_slice, self.request.images_per_batch
        yield from ((place, 0) for place in own)
        yield from ((-1, 0) for _ in range(math.ceil(len(own) / size) * size - len(own)))


class Images(Dataset[tuple[Tensor, int]]):
    """Prepared images (S, S, 3) float32, minus the mean, with their indices; zeros for index -1."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.mean = torch.tensor(CHANNEL_MEANS)
        self.prepare = preparation(request)

    def __getitem__(self, visit: Visit) -> tuple[Tensor, int]:
        place, drawn = visit
        request = self.request
        if place < 0:
            return torch.zeros(request.image_size, request.image_size, 3), place
        # An image's augmentation must not depend on which worker it falls to.
        torch.manual_seed(mixed_seed(request.seed, 4, request.shard, drawn))
        picture = self.prepare(decoded(request.split.files[place]))
        image = torch.from_numpy(np.array(picture)).float() - self.mean
        if request.training and request.augment == "paper":
            image += torch.tensor(COLOUR_NOISE_BASIS) @ (COLOUR_NOISE_STD * torch.randn(3))
        return image, place


def decoded(path: str) -> Image.Image:
    """The file's picture in RGB, not turned by EXIF; `DataError` that names it where it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"the image {path} cannot be decoded ({fault(path) or error}): mend or remove it, and run again"
        ) from error


def preparation(request: Request) -> Callable[[Image.Image], Image.Image]:
    """torchvision's transforms for what is asked: a picture in, an (S, S) picture out."""
    side, cut = request.resized_side, request.image_size
    if not request.training:
        steps = [transforms.Resize(side), transforms.CenterCrop(cut)]
    elif request.augment == "paper":
        steps = [transforms.Resize(side), transforms.CenterCrop(side), transforms.RandomCrop(cut)]
    else:
        steps = [transforms.RandomResizedCrop(cut, scale=CROP_AREA, ratio=CROP_ASPECT)]
    if request.training and request.augment == "rrc+jitter":
        steps.append(transforms.ColorJitter(*[JITTER_FACTOR] * 3, hue=JITTER_HUE_DEGREES / 360))
    if request.training:
        steps.append(transforms.RandomHorizontalFlip())
    prepare: Callable[[Image.Image], Image.Image] = transforms.Compose(steps)
    return prepare


def _one_thread(_worker: int) -> None:
    # Each worker is one of the threads asked for.
    torch.set_num_threads(1)
