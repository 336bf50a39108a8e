"""What was asked of a run: every flag, its kind, and its column, written once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.schedule import FORMS, drops, layer_rates
from harness.schedule import KINDS as SCHEDULES
from pipelines.augment import JITTER

PARALLEL = ("data", "columns", "hybrid")
# Fields that say where images and their statistics lie, and the folder of a run's checkpoints in the run's.
PLACES = ("data", "exclude", "statistics")
CHECKPOINTS = "checkpoints"
KINDS = ("task", "shape", "setting", "bookkeeping")


class AskedWrongly(Exception):
    """What a person asked cannot be done: one sentence of what was asked, what was found and what to do. Exit 2."""


def whole(minimum: int, maximum: int = 10**12) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not minimum <= number <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is out of range: give a whole number from {minimum} to {maximum}")
        return number

    parse.__name__ = "whole number"
    return parse


def real(minimum: float, *, above: bool = False, maximum: float = math.inf) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = float(text)
        too_small = number <= minimum if above else number < minimum
        if not math.isfinite(number) or too_small or number > maximum:
            rule = f"{'above' if above else 'of at least'} {minimum:g}"
            rule += f" and at most {maximum:g}" if maximum < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: give a finite number {rule}")
        return number

    parse.__name__ = "number"
    return parse


def jitter(text: str) -> str | None:
    """`brightness,contrast,saturation,hue`; None for what `rrc+jitter` means anyway."""
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 4 or not all(0 <= number <= most for number, most in zip(numbers, (1, 1, 1, 0.5), strict=True)):
        raise argparse.ArgumentTypeError(
            f"{text} is no jitter: give brightness,contrast,saturation (0 to 1) and hue (0 to 0.5 turns), as 0.4,0.4,0.4,0.1"
        )
    return None if numbers == JITTER else ",".join(f"{number:g}" for number in numbers)


def path(text: str) -> str:
    return text  # a name of its own, for `--help`


def asked(kind: str, text: str, default: Any, *, parse: Callable[[str], Any] = str, choices: Any = None) -> Any:
    """A field of RunConfig: `kind` decides which digest it enters, `text` is its line in --help."""
    assert kind in KINDS
    return field(default=default, metadata={"kind": kind, "help": text, "parse": parse, "choices": choices})


@dataclass(frozen=True)
class RunConfig:
    """One group of launches as asked for. None is "auto" until `harness.resolve` resolves it for this machine.

    Nothing here says where to print or write: that changes no number.
    """

    # fmt: off
    model: str = asked("task", "network, by name", "alexnet")
    augment: str = asked("task", "training augmentation: random-resized crops (rrc, rrc+jitter), the paper's crops of 256x256 as printed (paper) or as its source does (code2012), or the centre square alone (none)", "rrc")
    jitter: str | None = asked("task", "of rrc+jitter: most change of brightness,contrast,saturation, and of hue in turns; 0.4,0.4,0.4,0.1 if left out", None, parse=jitter)
    precision: str = asked("task", "fp32 (TF32 off) or bf16 autocast", "fp32", choices=("fp32", "bf16"))
    image_size: int = asked("task", "side of the square input, pixels; the network's own if left out", 224, parse=whole(1))
    optimiser: str = asked("task", "the paper's SGD with momentum", "sgd", choices=("sgd",))
    learning_rate: float = asked("task", "learning rate, before --schedule changes it", 0.01, parse=real(0, above=True))
    schedule: str = asked("task", "learning rate over time: constant; divided by ten when the validation error stops improving, three times (plateau); or divided by ten after --drops epochs or steps", "constant", choices=SCHEDULES)
    drops: str | None = asked("task", "epochs or steps after which --schedule divides the rate by ten, as 25,51,79", None, parse=drops)
    patience: int | None = asked("task", "of --schedule plateau: evaluations without a lower error before the rate drops; 5 if left out", None, parse=whole(1))
    warmup_epochs: float = asked("task", "epochs over which the rate rises to --learning-rate", 0.0, parse=real(0))
    layer_rates: str | None = asked("task", "rates of single layers from an epoch on, 0 to freeze, as conv1@67=0.00001,conv1@72=0", None, parse=layer_rates)
    decay_form: str = asked("task", "how momentum meets a new rate: as torch has it, or as the paper prints it", "torch", choices=FORMS)
    noise_epochs: float | None = asked("task", "epochs with the colour noise of --augment paper or code2012; all of them if left out", None, parse=real(0))
    fine_tune_from: str | None = asked("task", "checkpoint whose weights this run starts from, but for the last layer's", None, parse=path)
    momentum: float = asked("task", "momentum", 0.9, parse=real(0, maximum=1))
    weight_decay: float = asked("task", "weight decay", 0.0005, parse=real(0))
    init: str | None = asked("task", "initial weights: paper (0.01) or code2012 (0.03 in conv3-5); some nets have their own", "paper", choices=("paper", "code2012"))

    gpus: int | None = asked("shape", "GPUs, one rank each; 1,2,4 gives a row group for each", None, parse=whole(1))
    cpus: int | None = asked("shape", "CPU ranks over gloo, the same code path as GPUs over NCCL", None, parse=whole(1))
    nodes: int = asked("shape", "machines, as torchrun has started them; left out, as many as it says", 1, parse=whole(1))
    parallel: str = asked("shape", "how ranks share the work: images (data), the network's two columns (columns: pairs of ranks, the paper's way), or images in convolutions and units in fully connected layers (hybrid); recipes paper and code2012 have columns on two ranks", "data", choices=PARALLEL)
    images_per_gpu: int = asked("shape", "images a rank a step", 128, parse=whole(1))

    pipeline: str = asked("setting", "where batches come from: dali, torch or synthetic", "dali")
    compile: str | None = asked("setting", "torch.compile the step", None, choices=("on", "off"))
    block: str | None = asked("setting", "ReLU, LRN and max-pool as one kernel or as separate operations", None, choices=("fused", "plain"))
    decode: str | None = asked("setting", "JPEG decoding: mixed (GPU) or cpu", None, choices=("mixed", "cpu"))
    dali_threads: int | None = asked("setting", "input threads (or loader workers) a rank", None, parse=whole(1))
    torch_threads: int | None = asked("setting", "torch's CPU threads a rank", None, parse=whole(1))
    prefetch: int | None = asked("setting", "batches decoded ahead", None, parse=whole(1))
    hw_decoder_load: float | None = asked("setting", "share of JPEGs for the hardware decoder", None, parse=real(0, maximum=1))
    bucket_mib: int | None = asked("setting", "gradient bucket of data parallelism, MiB", None, parse=whole(1))

    data: str | None = asked("bookkeeping", "images: class folders, ImageNet as distributed, WebDataset or TFRecord shards, a set of `data prepare`, or s3:// class folders; the embedded set if left out", None, parse=path)
    exclude: str | None = asked("bookkeeping", "file of images to leave out, as `data check` writes it", None, parse=path)
    statistics: str | None = asked("bookkeeping", "file of `data statistics`: its mean image and colours in place of ImageNet's", None, parse=path)
    views: int = asked("bookkeeping", "views of an image in evaluations: its middle, or the paper's ten with their outputs averaged", 1, parse=whole(1), choices=(1, 10))
    steps: int | None = asked("bookkeeping", "length: timed steps, after warm-up", None, parse=whole(1))
    timed_seconds: float | None = asked("bookkeeping", "length: seconds of timed steps once settled", None, parse=real(0, above=True))
    epochs: float | None = asked("bookkeeping", "length: passes over the training images", None, parse=real(0, above=True))
    target_train_error_pct: float | None = asked("bookkeeping", "end early, once the training error between two evaluations is this or less, per cent", None, parse=real(0, above=True, maximum=100))
    launches: int = asked("bookkeeping", "fresh processes, a row each; three or more give an interval", 1, parse=whole(1))
    seed: int = asked("bookkeeping", "seed of weights, order and augmentation", 1, parse=whole(0, 2**62))
    evaluate_every: int | None = asked("bookkeeping", "also evaluate after every this many images", None, parse=whole(1))
    checkpoint_every: int | None = asked("bookkeeping", "save the run after every this many images, at its end, and when it is stopped", None, parse=whole(1))
    keep: int = asked("bookkeeping", "newest checkpoints that stay, beside the best", 2, parse=whole(1))
    resume: str | None = asked("bookkeeping", "run or checkpoint to go on from, in the middle of an epoch too; what is left out is as it was there", None, parse=path)
    time_limit: float | None = asked("bookkeeping", "seconds after which the run saves itself and ends", None, parse=real(0, above=True))
    max_restarts: int = asked("bookkeeping", "times that the ranks start again from the newest checkpoint after one has died", 0, parse=whole(0, 100))
    limits: str = asked("bookkeeping", "after training: input and model alone (brief), or also the input while training, reading and decoding alone (full)", "brief", choices=("brief", "full"))
    profile: int | None = asked("bookkeeping", "write a trace of this many steps after the timed ones; such a run is never ranked", None, parse=whole(1, 1000))
    heartbeat: float = asked("bookkeeping", "seconds after which a rank that does not move is named and the job ended; also how long ranks wait to meet", 120.0, parse=real(1))
    label: str = asked("bookkeeping", "your name for this box or experiment", "")
    recipe: str = asked("bookkeeping", "named settings that a typed flag beats, or a TOML file of them; throughput with --gpus", "smoke")
    # fmt: on

    @property
    def ranks(self) -> int:
        return self.gpus or self.cpus or 1

    @property
    def network_columns(self) -> int:
        """Ranks that see the same images, a column of the network each."""
        return 2 if self.parallel == "columns" else 1

    @property
    def shards(self) -> int:
        """Equal shares of the images, each seen by the ranks of its columns."""
        return self.ranks // self.network_columns

    @property
    def images_per_batch(self) -> int:
        """Images that a rank sees a step."""
        return self.images_per_gpu * self.network_columns

    @property
    def images_per_step(self) -> int:
        """Images of the whole job a step."""
        return self.images_per_gpu * self.ranks

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpus)

    def with_(self, **changes: Any) -> RunConfig:
        return replace(self, **changes)

    @classmethod
    def of(cls, cells: dict[str, Any]) -> RunConfig:
        """What `columns` gave, read again; fields that older cells lack have their defaults, and paths are last names."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in cells.items() if name in known})

    def columns(self) -> dict[str, Any]:
        """The fields as cells. A path is told by its last name: what leads there means nothing on another machine."""
        cells = {item.name: getattr(self, item.name) for item in fields(self)}
        paths = {name: Path(cells[name]).resolve().name for name in PLACES if cells[name]}
        saved = {name: run_and_step(Path(cells[name])) for name in ("resume", "fine_tune_from") if cells[name]}
        return {**cells, **paths, **saved}


def run_and_step(checkpoint: Path) -> str:
    """A checkpoint as a cell: its run's id and its step. What leads there means nothing on another machine."""
    folder = checkpoint.resolve()
    return "/".join((folder.parents[1].name, folder.name)) if folder.parent.name == CHECKPOINTS else folder.name


def names(kind: str) -> tuple[str, ...]:
    """Names of the RunConfig fields of one kind, in order."""
    assert kind in KINDS
    return tuple(item.name for item in fields(RunConfig) if item.metadata["kind"] == kind)
