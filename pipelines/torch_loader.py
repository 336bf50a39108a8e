"""The peer: the same batches through torchvision's transforms and torch's DataLoader, decoded on the CPU by Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipelines import RANDOM_RESIZED, Batch, DataError, Request, State, resumable
from pipelines.augment import CODE2012_DIVISOR, COLOUR_NOISE_STD, CROP_AREA, CROP_ASPECT, IMAGES_A_CROP, mixed_seed
from pipelines.diagnose import encoded_at
from pipelines.feed import Feed, numbers_of
from pipelines.pictures import fault_in, rgb
from pipelines.sources import name_of

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
        resumable(request, "torch")
        self.request = request
        self.delivered = request.resume.batches if request.resume else 0
        self.classes = torch.tensor(request.split.labels, dtype=torch.int64, device=request.device)
        self.loader: Iterator[tuple[Tensor, Tensor]] = iter(
            DataLoader(
                Images(request),
                batch_sampler=Visits(request),
                num_workers=request.threads,
                prefetch_factor=request.prefetch,
                pin_memory=request.on_gpu,
                persistent_workers=True,
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
        self.delivered += 1
        images = images.to(self.request.device, non_blocking=True).to(getattr(torch, self.request.dtype))
        indices = indices.to(self.request.device, non_blocking=True)
        labels = torch.where(indices < 0, 0, self.classes[indices])
        return Batch(images.permute(0, 3, 1, 2), labels, indices)

    def state(self) -> State:
        """After the batches delivered so far; for training only."""
        return State(self.delivered, "torch", self.request.request_id)

    def close(self) -> None:
        """End the worker processes."""
        self.loader = iter(())  # torch ends them with the iterator


class Visits(Sampler[list[Visit]]):
    """Batches of what to load: for ever in training, with places of index -1 at the end of an evaluation."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def __iter__(self) -> Iterator[list[Visit]]:
        request, feed = self.request, Feed(self.request)
        size = request.images_per_batch
        batches = math.ceil(len(request.evaluation_slice) / size) if not request.training else 2**62
        for batch in range(request.resume.batches if request.resume else 0, batches):
            yield [(int(place), batch * size + number) for number, place in enumerate(feed.places(batch))]


class Images(Dataset[tuple[Tensor, int]]):
    """Prepared images (S, S, 3) float32, minus the mean, with their indices; zeros for index -1."""

    def __init__(self, request: Request) -> None:
        if request.views > 1:
            raise ValueError("pipeline torch shows one view: ask for pipeline dali")
        self.request, self.feed = request, Feed(request)
        means = request.mean_image if request.mean_image is not None else np.array(request.channel_means, np.float32)
        self.mean = torch.from_numpy(means)
        self.noise = COLOUR_NOISE_STD * torch.tensor(request.colour_basis)
        self.cut, self.colour = preparation(request)

    def __getitem__(self, visit: Visit) -> tuple[Tensor, int]:
        place, drawn = visit
        request = self.request
        if place < 0:
            return torch.zeros(request.image_size, request.image_size, 3), place
        code2012 = request.training and request.augment == "code2012"
        # An image's augmentation must not depend on which worker it falls to.
        torch.manual_seed(mixed_seed(request.seed, 4, request.shard, drawn // IMAGES_A_CROP if code2012 else drawn))
        picture = self.cut(decoded(self.feed, place))
        torch.manual_seed(mixed_seed(request.seed, 5, request.shard, drawn))
        image = torch.from_numpy(np.array(self.colour(picture))).float()
        if request.dtype == "uint8":
            return image, place
        image -= self.mean
        noisy = request.noise_images is None or drawn < request.noise_images
        if request.training and noisy and "noise" in numbers_of(request):
            image += self.noise @ torch.randn(3)
        return image / CODE2012_DIVISOR if code2012 else image, place


def decoded(feed: Feed, place: int) -> Image.Image:
    """One image in RGB, not turned by EXIF; `DataError` that names it where it cannot be decoded."""
    split, encoded = feed.request.split, b""
    if split.raw:
        return Image.fromarray(feed.image(place))
    try:
        encoded = encoded_at(feed, place)
        with Image.open(io.BytesIO(encoded)) as image:
            return rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (encoded and fault_in(encoded)) or error
        raise DataError(
            f"the image {name_of(split, place)} cannot be decoded ({reason}): mend or remove it, or leave it "
            "out with --exclude, and run again"
        ) from error


Prepare = Callable[[Image.Image], Image.Image]


def preparation(request: Request) -> tuple[Prepare, Prepare]:
    """torchvision's transforms for what is asked: to an (S, S) picture, then its colours."""
    side, cut = request.resized_side, request.image_size
    if not request.training or request.augment == "none":
        steps = [transforms.Resize(side), transforms.CenterCrop(cut)]
    elif request.augment in RANDOM_RESIZED:
        steps = [transforms.RandomResizedCrop(cut, scale=CROP_AREA, ratio=CROP_ASPECT)]
    else:
        steps = [transforms.Resize(side), transforms.CenterCrop(side), transforms.RandomCrop(cut)]
    if request.training and request.augment != "none":
        steps.append(transforms.RandomHorizontalFlip())
    brightness, contrast, saturation, hue = request.jitter
    jittered = request.training and request.augment == "rrc+jitter"
    colour: Prepare = (
        transforms.ColorJitter(brightness, contrast, saturation, hue) if jittered else transforms.Identity()
    )
    whole: Prepare = transforms.Compose(steps)
    return whole, colour


def _one_thread(_worker: int) -> None:
    # Each worker is one of the threads asked for.
    torch.set_num_threads(1)
