"""How saved networks are shown the validation images of a set, and which networks and sets go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import models
from harness import environment
from harness.config import AskedWrongly, RunConfig, names
from harness.progress import Display

if TYPE_CHECKING:
    from harness.checkpoint import Checkpoint
    from pipelines.sources.imageset import ImageSet

VIEWS_PER_BATCH = 160  # unless it is said how many images
ONE_AT_A_TIME = "evaluate one at a time, the second --against the first's evaluation"


def config_for(
    checkpoints: Sequence[Checkpoint],
    *,
    data: str | None,
    exclude: str | None,
    statistics: str | None,
    views: int | None,
    precision: str | None,
    images_per_batch: int | None,
) -> RunConfig:
    """How all these networks are shown the images on this machine; AskedWrongly where they cannot be shown alike."""
    from harness import resolve

    asked = [config_of(checkpoint) for checkpoint in checkpoints]
    for checkpoint, config in zip(checkpoints[1:], asked[1:], strict=True):
        refuse_another_way(checkpoints[0], checkpoint, asked[0], config, precision)
    views = views or (1 if asked[0].augment == "none" else 10)
    if views > 1 and asked[0].augment == "none":
        raise AskedWrongly(
            f"--views {views} was asked and the network was trained with --augment none, which shows the whole centre square and "
            "has one view: leave --views out"
        )
    images_per_batch = images_per_batch or VIEWS_PER_BATCH // views
    # How the machine that trained was used says nothing of this one.
    settings: dict[str, Any] = {
        field.name: field.default for field in fields(RunConfig) if field.name in names("setting")
    }
    config = asked[0].with_(
        **settings, gpus=None, cpus=None, nodes=1, parallel="data", images_per_gpu=images_per_batch * views, views=views,
        precision=precision or asked[0].precision, data=data, exclude=exclude, statistics=statistics,
    )  # fmt: skip
    config = resolve.resolve(config, environment.cpu_cores_usable(), environment.visible_gpus())
    # A GPU runs Triton's kernels, which are compiled in eager mode too.
    if config.on_gpu and (lacks := environment.what_compiling_lacks(on_gpu=True)):
        raise AskedWrongly(lacks)
    return config


def config_of(checkpoint: Checkpoint) -> RunConfig:
    """What its run was asked; AskedWrongly for a network that cannot be built here."""
    config = RunConfig.of(checkpoint.asked)
    if config.model not in models.MODELS:
        raise AskedWrongly(
            f"{checkpoint.folder} is of {config.model}, which this harness does not know: update the harness"
        )
    if config.model in models.NEED_TORCHVISION and environment.version_of("torchvision") is None:
        raise AskedWrongly(
            f"{checkpoint.folder} is of {config.model} and torchvision is not installed: python -m pip install -e '.[peer]'"
        )
    return config


def refuse_another_way(
    first: Checkpoint, other: Checkpoint, of_first: RunConfig, of_other: RunConfig, precision: str | None
) -> None:
    """AskedWrongly where two networks do not take the same images, do not know the same classes, or compute differently."""
    refuse_other_classes(first.classes, other.classes, str(first.folder), str(other.folder))
    if of_first.image_size != of_other.image_size:
        raise AskedWrongly(
            f"{first.folder} takes images of {of_first.image_size} pixels and {other.folder} of {of_other.image_size}: {ONE_AT_A_TIME}"
        )
    if (of_first.augment == "none") != (of_other.augment == "none"):
        raise AskedWrongly(
            f"{first.folder} was trained with --augment {of_first.augment} and {other.folder} with --augment {of_other.augment}, and "
            f"none shows another square: {ONE_AT_A_TIME}"
        )
    if of_first.precision != of_other.precision and precision is None:
        raise AskedWrongly(
            f"{first.folder} was trained in {of_first.precision} and {other.folder} in {of_other.precision}: give --precision"
        )


def refuse_other_classes(a: Sequence[str], b: Sequence[str], of_a: str, of_b: str) -> None:
    """AskedWrongly, naming the first difference, where the labels of the one mean other classes of the other."""
    for number in range(max(len(a), len(b))):
        in_a, in_b = (classes[number] if number < len(classes) else None for classes in (a, b))
        if in_a != in_b:
            raise AskedWrongly(
                f"{of_a} has {len(a):,} classes and {of_b} {len(b):,}, and they differ first at number {number} "
                f"({in_a or 'none'} and {in_b or 'none'}): give checkpoints and --data of the same classes"
            )


def refuse_other_statistics(checkpoint: Checkpoint, config: RunConfig, images: ImageSet) -> None:
    """AskedWrongly where a network would be shown images minus another mean than it was trained with."""
    trained = checkpoint.manifest["dataset"].get("statistics_id") or None
    given = images.statistics.statistics_id if images.statistics else None
    if trained == given:
        return
    was = f"with the mean image of statistics-{trained}.npz" if trained else "without --statistics"
    found = (
        f"--statistics {config.statistics} (statistics-{given}.npz) was given" if given else "--statistics was left out"
    )
    todo = f"give --statistics statistics-{trained}.npz" if trained else "leave --statistics out"
    raise AskedWrongly(f"{checkpoint.folder} was trained {was} and {found}: {todo}")


def opened(config: RunConfig, checkpoints: Sequence[Checkpoint], *, quiet: bool) -> ImageSet:
    """The set to evaluate on; AskedWrongly where it is none for these networks."""
    from harness.images import open_images
    from pipelines import sources

    with Display(quiet=quiet) as display:
        images = open_images(config, lambda done, of: display.show({"phase": "data", "share": done / max(of, 1)}))
    if not quiet:
        print(sources.described(images), flush=True)
    where = f"--data {config.data}" if config.data else "the embedded set"
    if not images.val:
        raise AskedWrongly(f"{where} has no validation images to evaluate on: give a set with some in val/")
    for checkpoint in checkpoints:
        refuse_other_classes(checkpoint.classes, images.classes, str(checkpoint.folder), where)
        refuse_other_statistics(checkpoint, config, images)
    return images
