"""What "auto" becomes on this machine, and what cannot be done: all that is known of a run before its first process."""

from __future__ import annotations

from typing import Any

import models
import pipelines
from harness import environment
from harness.config import AskedWrongly, RunConfig
from pipelines.sources.imageset import ImageSet
from pipelines.sources.s3 import SCHEME


def resolve(config: RunConfig, cores: int, gpus: int, *, fusible: bool = True, compiler: bool = True) -> RunConfig:
    """Every "auto" as a number for this machine, of `cores` usable cores and `gpus` visible GPUs.

    `fusible`: the model has layers for the fused block; `compiler`: there is one for C++, which the block needs on a CPU.
    Of several nodes, each has an equal share of the ranks.
    """
    if config.gpus is None and config.cpus is None:
        config = config.with_(gpus=1, cpus=0) if gpus else config.with_(gpus=0, cpus=1)
    config = config.with_(gpus=config.gpus or 0, cpus=config.cpus or 0)
    threads = max(1, cores // max(1, config.ranks // config.nodes))
    decode = config.decode or ("mixed" if config.on_gpu and config.pipeline == "dali" else "cpu")
    automatic: dict[str, Any] = {
        "compile": "on",
        "block": "fused" if fusible and (config.on_gpu or compiler) else "plain",
        "decode": decode,
        # More than eight host threads a GPU do not speed the GPU's decoder up: it does the work.
        "dali_threads": min(threads, 8) if decode == "mixed" else threads,
        "torch_threads": threads,
        "prefetch": 2,
        "hw_decoder_load": 0.65 if decode == "mixed" else None,
        "bucket_mib": 25,
    }
    return config.with_(**{name: value for name, value in automatic.items() if getattr(config, name) is None})


def check_shape(config: RunConfig, train_images: int) -> None:
    """AskedWrongly where these ranks cannot do what was asked of them."""
    if config.decode == "mixed" and not config.on_gpu:
        raise AskedWrongly("--decode mixed was asked and the ranks are CPUs: ask for --decode cpu, or for --gpus")
    check_scheme(config)
    if train_images < config.shards:
        raise AskedWrongly(
            f"{config.ranks} ranks were asked and {train_images} training images were found: use fewer ranks"
        )


def check_scheme(config: RunConfig) -> None:
    """AskedWrongly where ranks cannot share this network as --parallel asks."""
    scheme, ranks = config.parallel, config.ranks
    if scheme == "data":
        return
    if scheme not in models.schemes(config.model):
        able = ", ".join(name for name in models.MODELS if scheme in models.schemes(name))
        raise AskedWrongly(
            f"--parallel {scheme} was asked and {config.model} has no parts for it: ask for --parallel data, or for one of {able}"
        )
    if ranks % config.network_columns or ranks < 2:
        were = "1 rank was" if ranks == 1 else f"{ranks} ranks were"
        needs = "pairs of ranks, a column each" if scheme == "columns" else "two ranks or more"
        kind = "--gpus" if config.on_gpu else "--cpus"
        raise AskedWrongly(
            f"--parallel {scheme} needs {needs}, and {were} asked: give {kind} {ranks + ranks % 2 if ranks > 1 else 2}"
        )
    if scheme == "hybrid" and models.HYBRID_UNITS % ranks:
        raise AskedWrongly(
            f"--parallel hybrid shares {models.HYBRID_UNITS} units equally, and {ranks} ranks were asked: give a power of two"
        )


def check_block(config: RunConfig, compiler: bool) -> None:
    """AskedWrongly where the fused block was asked of a network or a machine that cannot have it."""
    if config.block != "fused":
        return
    if not models.can_fuse(config.model):
        raise AskedWrongly(
            f"--block fused was asked and {config.model} has no ReLU, LRN and 3/2 max-pool in this order: leave --block out"
        )
    if not (config.on_gpu or compiler):
        raise AskedWrongly(
            "--block fused was asked and on a CPU it needs a C++ compiler: `apt-get install g++`, or --block plain"
        )


def check_images(config: RunConfig, images: ImageSet) -> None:
    """AskedWrongly where these images cannot be shown as was asked, or not to this network with the rates and weights asked."""
    if images.train.square and config.augment in pipelines.RANDOM_RESIZED:
        raise AskedWrongly(pipelines.no_random_resized(config.augment, images.train.square))
    if config.schedule == "plateau" and images.val is None:
        raise AskedWrongly(
            "--schedule plateau was asked and these images have no validation set to look at: ask for --schedule epochs, or add a val/"
        )
    side = pipelines.resized_side(config.image_size, config.augment)
    if images.statistics and images.statistics.side != side:
        raise AskedWrongly(
            f"--statistics {config.statistics} has a mean image of {images.statistics.side} pixels and {config.model} cuts its "
            f"{config.image_size} out of {side}: measure with `data statistics --side {side}`"
        )
    if config.pipeline == "torch" and images.train.files[0].startswith(SCHEME):
        raise AskedWrongly(
            "--pipeline torch was asked and its decoder reads no s3:// addresses: ask for --pipeline dali"
        )
    if config.layer_rates or config.fine_tune_from:
        from harness.workload import check_layers  # slow to import

        check_layers(config, len(images.classes))


def check_gpus(asked: int | None, found: int) -> None:
    if asked and asked > found:
        raise AskedWrongly(
            f"--gpus {asked} was asked and {found} {'GPU was' if found == 1 else 'GPUs were'} found: "
            f"ask for {f'--gpus {found}' if found else 'CPU ranks'}, or try --cpus {asked}"
        )


def cpu_multiplies_bf16() -> bool:
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & environment.cpu_flags())


def plan(config: RunConfig) -> str:
    """What is about to run, and the minutes it may take."""
    ranks = (
        f"{config.gpus} GPU{'s' if config.ranks > 1 else ''}"
        if config.on_gpu
        else f"{config.cpus} CPU rank{'s' if config.ranks > 1 else ''}"
    )
    if config.ranks > 1:
        ranks += f" ({config.parallel})"
    length = next(
        f"{getattr(config, name):g} {word}"
        for name, word in (("steps", "timed steps"), ("timed_seconds", "timed seconds"), ("epochs", "epochs"))
        if getattr(config, name) is not None
    )
    text = f"{config.recipe}: {config.model} in {config.precision} on {ranks}, {config.images_per_gpu} images a rank, {length}, {config.launches} launch{'es' if config.launches > 1 else ''}"
    if config.timed_seconds is None:
        return text
    # Start, compile and settle take about a minute, evaluation and the parts alone about half of one more.
    minutes = (config.launches * (config.timed_seconds + 60) + 30) / 60
    return f"{text}; about {minutes:.0f} minutes"
