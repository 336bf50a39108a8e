"""RunConfig and rank -> what runs: the only file that builds models and pipelines."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.block
import pipelines
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.config import AskedWrongly, RunConfig
from harness.measure import Workload
from harness.schedule import layer_rates_of
from harness.schemes import DTYPES, Scheme, scheme_of
from harness.update import Rates, check_rates, optimiser_of
from models.alexnet import multiply_adds
from models.shares import part_of
from pipelines.augment import JITTER
from pipelines.dataset.statistics import Statistics, colour_basis, mean_crop
from pipelines.sources.imageset import ImageSet, Split


@dataclass(frozen=True)
class Rank:
    """Which process of the job this is, from the environment that torch's launchers set."""

    index: int
    count: int
    device: torch.device

    @classmethod
    def from_environment(cls, on_gpu: bool) -> Rank:
        device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu")
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


@dataclass
class Built:
    """A rank's workload, and what the run around it needs besides the loop."""

    workload: Workload
    scheme: Scheme
    network: nn.Module
    optimiser: torch.optim.Optimizer
    rates: Rates
    train_split: Split
    evaluate: Callable[[Callable[[], None]], tuple[int, int, int]] | None
    without_communication: Callable[[], contextlib.AbstractContextManager[Any]]
    shortened: Callable[[str], Any]  # the training input cut short after its part of this name; None where it has none
    input_state: Callable[[], pipelines.State]  # where the training input stands
    close: Callable[[], None]


def build(config: RunConfig, images: ImageSet, rank: Rank, resume: pipelines.State | None = None) -> Built:
    """The workload that `config` asks of this rank on `images`, whose training input goes on from `resume`."""
    exact_fp32()
    scheme = scheme_of(config, rank.index)
    network = build_network(config, len(images.classes), rank, scheme)
    if config.fine_tune_from and not config.resume:
        whole = whole_shapes(config, len(images.classes))
        take_over(network, open_checkpoint(config.fine_tune_from), whole, scheme)
    wrapped = scheme.wrapped(network, config, rank.device)
    optimiser, rates = optimiser_of(config, network, len(images.train))
    mine: dict[str, Any] = {"rank": rank, "scheme": scheme, "statistics": images.statistics}
    shown: Callable[..., Any] = partial(create_batches, config, **mine)
    batches = shown(images.train, training=True, resume=resume)
    evaluate = partial(evaluation, network, config, shown, images.val, scheme) if images.val is not None else None
    gradients, update = training_step(wrapped, optimiser, config, scheme.loss_divisor)
    return Built(
        workload=Workload(batches, gradients, update, config.images_per_batch, rank.device),
        scheme=scheme,
        network=network,
        optimiser=optimiser,
        rates=rates,
        train_split=images.train,
        evaluate=evaluate,
        without_communication=scheme.without_communication(wrapped),
        shortened=partial(shortened_input, config, images.train, **mine),
        input_state=batches.state,
        close=batches.close,
    )


def build_cpu_block() -> float:
    """Have the CPU's fused block compiled; seconds until it is there."""
    start_s = time.perf_counter()
    models.block.build()
    return time.perf_counter() - start_s


def exact_fp32() -> None:
    """fp32 means fp32: torch would use TF32 in cuDNN's convolutions."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def build_network(config: RunConfig, classes: int, rank: Rank, scheme: Scheme) -> nn.Module:
    """The network, or this rank's part of it, compiled in place."""
    torch.manual_seed(config.seed)
    asked: dict[str, Any] = {"block": config.block or "plain", **({"init": config.init} if config.init else {})}
    if scheme.parts is None:
        network = models.create(config.model, num_classes=classes, **asked)
    else:
        network = models.create_part(config.model, config.parallel, scheme.parts, num_classes=classes, **asked)
    network = network.to(rank.device).to(memory_format=torch.channels_last)
    if config.compile == "on":
        # Shapes never change within a graph: another batch size, as the seeded step has, is another graph.
        network.compile(fullgraph=True, dynamic=False)
    # The weights are equal on all ranks, or parts of one set; what dropout leaves out must not be.
    torch.manual_seed(config.seed + 1 + rank.index)
    return network


def whole_shapes(config: RunConfig, classes: int) -> dict[str, Tensor]:
    """The parameters of the whole network by name, without values."""
    with torch.device("meta"):
        return dict(models.create(config.model, num_classes=classes).state_dict())


def last_layer_name(parameters: Iterable[str]) -> str:
    """The layer that gives the logits, by the names of a whole network's parameters in their order."""
    *_, last = parameters
    return last.rpartition(".")[0]


def check_layers(config: RunConfig, classes: int) -> None:
    """AskedWrongly where --layer-rates names a layer that the network has not, or --fine-tune-from a checkpoint of one whose
    layers below the last are others; CheckpointError where its weights are not what was saved."""
    whole = whole_shapes(config, classes)
    if config.layer_rates:
        check_rates(layer_rates_of(config.layer_rates), whole, config.model)
    if config.fine_tune_from and not config.resume:
        saved = open_checkpoint(config.fine_tune_from)
        kept, wanted = (shapes_below_the_last(parameters, whole) for parameters in (saved.weights(), whole))
        if kept != wanted:
            raise AskedWrongly(
                f"--fine-tune-from {saved.folder} is a checkpoint of {saved.asked['model']}, whose layers below the last are not "
                f"those of {config.model}: ask for the same --model"
            )


def shapes_below_the_last(parameters: Mapping[str, Tensor], whole: Iterable[str]) -> dict[str, torch.Size]:
    """Shapes by name but for the last layer's; `whole`: as in `last_layer_name`, since a file has an order of its own."""
    last = last_layer_name(whole)
    return {name: each.shape for name, each in parameters.items() if not name.startswith(f"{last}.")}


def take_over(network: nn.Module, saved: Checkpoint, whole: Iterable[str], scheme: Scheme) -> None:
    """Put the saved network's weights into this one, or this part of one, but for the last layer's; `whole`: its parameters' names
    in their order. What is not alike was refused by `check_layers`."""
    last = last_layer_name(whole)
    mine = {name: each for name, each in network.state_dict().items() if not name.startswith(f"{last}.")}
    network.load_state_dict(part_of(saved.weights(), mine, scheme.parts.rank if scheme.parts else 0), strict=False)


def train_multiply_adds_per_image(config: RunConfig, classes: int) -> int:
    """Of the whole network, forward and backward, whoever computes it."""
    with torch.device("meta"):
        return multiply_adds(models.create(config.model, num_classes=classes)).training


def autocast(config: RunConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    dtype = DTYPES[config.precision]
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()


def training_step(
    network: nn.Module, optimiser: torch.optim.Optimizer, config: RunConfig, loss_divisor: int = 1
) -> tuple[Callable[[pipelines.Batch], tuple[Tensor, Tensor]], Callable[[], None]]:
    """A Workload's `gradients` and `update`."""

    def gradients(batch: pipelines.Batch) -> tuple[Tensor, Tensor]:
        with autocast(config, batch.images.device):
            logits = network(batch.images)
        # Of several columns the first alone has logits: the others' loss is the mean over no images.
        labels = batch.labels[: len(logits)]
        loss = F.cross_entropy(logits.float(), labels)
        (loss / loss_divisor).backward()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def update() -> None:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return gradients, update


def create_batches(config: RunConfig, split: Split, **shown: Any) -> Any:
    """The pipeline's batches; `shown` as in `request_for`."""
    training = shown["training"]
    return pipelines.create(config.pipeline if training else "dali", **request_for(config, split, **shown))


def shortened_input(config: RunConfig, split: Split, part: str, **shown: Any) -> Any:
    """The training input cut short after `part`; None where this pipeline cannot be cut there."""
    return pipelines.part(config.pipeline, part, **request_for(config, split, training=True, **shown))


def request_for(
    config: RunConfig,
    split: Split,
    *,
    rank: Rank,
    scheme: Scheme,
    training: bool,
    statistics: Statistics | None = None,
    resume: pipelines.State | None = None,
) -> dict[str, Any]:
    """What a pipeline is asked for this rank's share of a split; training may go on from `resume`."""
    shard_images = len(split) // config.shards
    return {
        "split": split,
        # Ten views of an image take ten images' memory.
        "images_per_batch": config.images_per_batch if training else max(1, config.images_per_batch // config.views),
        "image_size": config.image_size,
        "training": training,
        "augment": config.augment,
        "jitter": tuple(float(part) for part in config.jitter.split(",")) if config.jitter else JITTER,
        "views": 1 if training else config.views,
        "seed": config.seed,
        "shard": scheme.shard,
        "num_shards": config.shards,
        "device": str(rank.device),
        "dtype": "float32" if config.precision == "fp32" else "float16",
        "threads": config.dali_threads,
        "prefetch": config.prefetch,
        "decode": config.decode,
        "hw_decoder_load": config.hw_decoder_load,
        "noise_images": round(config.noise_epochs * shard_images) if config.noise_epochs is not None else None,
        "resume": resume,
        **(means_and_colours(statistics, config.image_size) if statistics else {}),
    }


def means_and_colours(statistics: Statistics, image_size: int) -> dict[str, Any]:
    """What a pipeline takes from statistics over a training set in place of ImageNet's constants."""
    basis = tuple(tuple(float(number) for number in row) for row in colour_basis(statistics))
    return {"mean_image": mean_crop(statistics, image_size), "colour_basis": basis}


def evaluation(
    network: nn.Module,
    config: RunConfig,
    shown: Callable[..., Any],
    split: Split,
    scheme: Scheme,
    beat: Callable[[], None],
) -> tuple[int, int, int]:
    """(images, top-1 right, top-5 right) of this rank's share of a split; places with index -1 are padding.

    `beat` is called before each batch.
    """
    batches = shown(split, training=False)
    device = next(network.parameters()).device
    sums = torch.zeros(3, dtype=torch.int64, device=device)
    network.eval()
    try:
        with torch.inference_mode():
            for batch in as_many_as_the_others(batches, config, len(split), device):
                beat()
                with autocast(config, batch.images.device):
                    # forward itself, not the call, so that no second graph is compiled for a few batches.
                    logits = network.forward(batch.images)
                if scheme.column == 0:
                    counts = right_answers(over_views(logits, config.views), batch.labels, batch.indices >= 0)
                    sums += counts
    finally:
        network.train()
        batches.close()
    images, top1, top5 = sums.tolist()
    return int(images), int(top1), int(top5)


def as_many_as_the_others(
    batches: Iterator[pipelines.Batch], config: RunConfig, images: int, device: torch.device
) -> Iterator[pipelines.Batch]:
    """The batches, and empty ones where another shard has more: ranks that gather must call the network equally often."""
    size = max(1, config.images_per_batch // config.views)
    to_come = math.ceil(math.ceil(images / config.shards) / size)
    for batch in batches:
        to_come -= 1
        yield batch
    side = config.image_size
    for _ in range(to_come):
        nothing = torch.zeros(size * config.views, 3, side, side, device=device)
        yield pipelines.Batch(
            nothing, torch.zeros(size, dtype=torch.int64, device=device), torch.full((size,), -1, device=device)
        )


def trained_network(config: RunConfig, classes: int, weights: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """The whole network with these parameters, by name, in evaluation mode and not compiled.

    AskedWrongly, naming the first parameter that differs, where they are another network's.
    """
    network = models.create(config.model, num_classes=classes, **({"init": config.init} if config.init else {}))
    for name, like in network.state_dict().items():
        if name not in weights or weights[name].shape != like.shape:
            found = f"of shape {tuple(weights[name].shape)}" if name in weights else "not there"
            raise AskedWrongly(
                f"the weights are of another network than {config.model} with {classes} classes: {name} should have shape "
                f"{tuple(like.shape)} and is {found}: give a checkpoint of this network, or its own --model"
            )
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.to(device).to(memory_format=torch.channels_last).eval()


def trained_networks(config: RunConfig, checkpoints: Sequence[Checkpoint]) -> tuple[list[nn.Module], torch.device]:
    """The saved networks, all on the device that `config`, resolved, has one process ask them on, and this device.

    Sets for this process how exactly and with how many threads it computes. AskedWrongly for weights that are not what was saved
    or of another network.
    """
    exact_fp32()
    torch.set_num_threads(config.torch_threads or 1)
    device = torch.device("cuda:0" if config.on_gpu else "cpu")
    networks = [
        trained_network(RunConfig.of(each.asked), len(each.classes), each.weights(), device) for each in checkpoints
    ]
    return networks, device


def each_image_once(config: RunConfig, split: Split, device: torch.device, statistics: Statistics | None = None) -> Any:
    """Batches of a split for evaluation by one process, as training evaluates: places with index -1 are padding."""
    alone = config.with_(gpus=int(device.type == "cuda"), cpus=int(device.type == "cpu"), parallel="data", nodes=1)
    rank = Rank(0, 1, device)
    return create_batches(
        alone, split, rank=rank, scheme=Scheme(0, 0, None, None, 1), training=False, statistics=statistics
    )


def over_views(logits: Tensor, views: int) -> Tensor:
    """Scores (N, classes) of logits (N x views, classes): softmax outputs averaged, the paper's section 4.1."""
    return logits.float().softmax(dim=1).unflatten(0, (-1, views)).mean(dim=1) if views > 1 else logits


def right_answers(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """(images, top-1, top-5) as one int64 tensor of 3; `counted` (N,) bool leaves out padding."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (best == labels[:, None]) & counted[:, None]
    return torch.stack([counted.sum(), hits[:, 0].sum(), hits.sum()])


def as_shown(config: RunConfig, split: Split) -> Tensor:
    """The images of a split as evaluation's middle view shows them, before the mean is taken: uint8 (N, S, S, 3) on the CPU."""
    alone = config.with_(
        gpus=0, cpus=1, parallel="data", nodes=1, images_per_gpu=len(split), views=1, decode="cpu", hw_decoder_load=None
    )
    rank = Rank(0, 1, torch.device("cpu"))
    asked = request_for(alone, split, rank=rank, scheme=Scheme(0, 0, None, None, 1), training=False)
    batches = pipelines.create("dali", **{**asked, "dtype": "uint8"})
    try:
        # A copy, since DALI's memory goes back with the pipeline.
        return next(batches).images.permute(0, 2, 3, 1).clone()
    finally:
        batches.close()
