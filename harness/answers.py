"""What trained networks answer to the images of a split, each and on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.checkpoint import Checkpoint
from harness.config import AskedWrongly, RunConfig
from harness.predictions import BEST
from harness.workload import autocast, each_image_once, trained_networks
from pipelines import Batch
from pipelines.dataset.statistics import Statistics
from pipelines.sources.imageset import Split


class Answers(NamedTuple):
    """Of every image of a split, in its order, by each of M networks and last by their average."""

    p_label: NDArray[np.float64]  # (M + 1, N): probability of the image's class
    best: NDArray[np.int64]  # (M + 1, N, K): the likeliest five classes (of fewer, all), likeliest first


def wrong(answers: Answers, labels: Sequence[int], among: int) -> NDArray[np.bool_]:
    """(M + 1, N): whether an image's class is not among the so many likeliest."""
    misses: NDArray[np.bool_] = (answers.best[..., :among] != np.asarray(labels)[:, None]).all(axis=-1)
    return misses


def answers_of(
    config: RunConfig,
    checkpoints: Sequence[Checkpoint],
    split: Split,
    statistics: Statistics | None,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Every checkpoint's network asked of each image of a split as `config`, resolved, has them shown.

    The images are decoded once, so all networks are held at once: AlexNet takes 0.25 GB. `progress` is told how many images are
    done. AskedWrongly for weights that are not what was saved or of another network, and where memory is short.
    """
    networks, device = trained_networks(config, checkpoints)
    try:
        with closing(each_image_once(config, split, device, statistics)) as batches:
            return answered(networks, config, batches, len(split), progress)
    except torch.cuda.OutOfMemoryError as error:
        raise AskedWrongly(
            f"{config.images_per_gpu // config.views} images a batch with {config.views} views do not fit into the GPU's memory: "
            "give a smaller --images-per-batch"
        ) from error


def answered(
    networks: Sequence[nn.Module],
    config: RunConfig,
    batches: Iterable[Batch],
    images: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Of `images` images, which `batches` give once each in any order, beside padding; AskedWrongly where they do not."""
    counted = np.zeros(images, np.int64)
    p_label, best = np.zeros((len(networks) + 1, images)), np.zeros((len(networks) + 1, images, 0), np.int64)
    for batch in batches:
        real = batch.indices >= 0
        each = torch.stack([class_probabilities(network, config, batch.images)[real] for network in networks])
        refuse_what_is_not_finite(each)
        scores = torch.cat([each, each.mean(dim=0, keepdim=True)])
        # Of equals the lower class number comes first, on every device.
        likeliest = scores.argsort(dim=-1, descending=True, stable=True)[..., :BEST]
        of_label = scores.gather(-1, batch.labels[real].expand(len(scores), -1)[..., None])[..., 0]
        places = batch.indices[real].cpu().numpy()
        if not best.shape[-1]:
            best = np.zeros((*p_label.shape, likeliest.shape[-1]), np.int64)
        best[:, places], p_label[:, places] = likeliest.cpu().numpy(), of_label.cpu().numpy()
        np.add.at(counted, places, 1)
        progress(int(counted.sum()))
    refuse_miscounted(counted)
    return Answers(p_label, best)


def class_probabilities(network: nn.Module, config: RunConfig, images: Tensor) -> Tensor:
    """(N, classes), float64, of images (N x views, 3, S, S): softmax outputs averaged over the views, the paper's section 4.1."""
    with torch.inference_mode(), autocast(config, images.device):
        logits: Tensor = network(images)
    of_views: Tensor = logits.double().softmax(dim=1).unflatten(0, (-1, config.views))
    return of_views.mean(dim=1)


def refuse_what_is_not_finite(scores: Tensor) -> None:
    """Scores (M, N, classes) of networks in their order."""
    finite = scores.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        number = int(finite.logical_not().nonzero()[0]) + 1
        raise AskedWrongly(
            f"the outputs of checkpoint {number} are not finite, so its training had diverged: give an earlier one"
        )


def refuse_miscounted(counted: NDArray[np.int64]) -> None:
    """How often each image of the split was met."""
    missed, again = int((counted == 0).sum()), int((counted > 1).sum())
    if missed or again:
        raise AskedWrongly(
            f"of {len(counted):,} images {missed:,} were not evaluated and {again:,} were more than once, which no evaluation may do: "
            "nothing was written, please report it"
        )
