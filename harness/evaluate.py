"""The command `evaluate`: saved networks on a set's validation images, each and their average, every prediction kept."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import PLACES, AskedWrongly, RunConfig, whole
from harness.data import made, shown
from harness.flags import add_field
from harness.predictions import (
    BEST,
    EVALUATIONS,
    Evaluation,
    Prediction,
    comparison_words,
    errors_words,
    image_names,
    in_order,
    paired,
    read_evaluation,
    write_evaluation,
)
from harness.showing import VIEWS_PER_BATCH, config_for, opened

if TYPE_CHECKING:
    from harness.answers import Answers
    from harness.checkpoint import Checkpoint
    from pipelines.sources.imageset import ImageSet

DEFAULT_OUT = Path("results") / EVALUATIONS
ASKED = (*PLACES, "views", "precision")
NOTES = {"views": "default 10, or 1 for a network of --augment none", "precision": "default the checkpoint's own"}
MACHINE = ("cpu_name", "gpu_name", "torch", "dali", "harness", "git_commit")


def add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="validation error of saved networks, alone or averaged, with every prediction kept",
        description="Errors on the validation images with 95 % intervals (Wilson's). Of several checkpoints the softmax outputs are "
        "averaged, and each is compared with the first on the same images: the second's error less the first's, its interval "
        "(Agresti and Min's), and McNemar's exact test. One process, on the first GPU or else the CPU.",
    )
    command.add_argument(
        "checkpoints",
        metavar="CHECKPOINT",
        nargs="+",
        type=Path,
        help="a checkpoint, or a run's folder: its newest one",
    )
    for field in fields(RunConfig):
        if field.name in ASKED:
            add_field(command, field, NOTES.get(field.name, ""), default=None)
    command.add_argument(
        "--images-per-batch",
        metavar="NUMBER",
        type=whole(1),
        help=f"images at once, each with its views (default {VIEWS_PER_BATCH // 10} with ten, {VIEWS_PER_BATCH} with one)",
    )
    command.add_argument(
        "--out", metavar="FOLDER", type=Path, default=DEFAULT_OUT, help=f"where its folder goes (default {DEFAULT_OUT})"
    )
    command.add_argument(
        "--against",
        metavar="EVALUATION",
        type=Path,
        help="folder of an earlier one, to compare with on the same images",
    )
    command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(call=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from harness.checkpoint import open_checkpoint

    checkpoints = [open_checkpoint(place) for place in arguments.checkpoints]
    asked = {name: getattr(arguments, name) for name in (*ASKED, "images_per_batch")}
    config = config_for(checkpoints, **asked)
    made(arguments.out)
    earlier = read_evaluation(arguments.against) if arguments.against else None
    images = opened(config, checkpoints, quiet=arguments.quiet)
    # Other images are refused before an hour's work.
    before = predictions_on(images, earlier) if earlier else []
    answers = answers_shown(config, checkpoints, images, quiet=arguments.quiet)
    predictions = predictions_of(images, answers)
    done = write_evaluation(arguments.out, told(config, checkpoints, images, answers), predictions)
    if not arguments.quiet:
        print("\n".join(report(done, images, answers)))
        if earlier:
            print("\n".join(against(earlier, before, predictions, images)))
        print(done.folder)
    return 0


# --- what is answered ---------------------------------------------------------------------------------------------


def answers_shown(config: RunConfig, checkpoints: Sequence[Checkpoint], images: ImageSet, *, quiet: bool) -> Answers:
    """The networks' answers, with a bar while they come."""
    from harness.answers import answers_of

    assert images.val is not None
    of = len(images.val)
    with shown("evaluate", quiet=quiet) as progress:
        progress(0, of)
        return answers_of(config, checkpoints, images.val, images.statistics, lambda done: progress(done, of))


def predictions_of(images: ImageSet, answers: Answers) -> list[Prediction]:
    """Those of the average, in the split's order."""
    assert images.val is not None
    names = image_names(images, images.val)
    each = zip(names, images.val.labels, answers.p_label[-1], answers.best[-1].tolist(), strict=True)
    return [Prediction(place, name, label, float(p), tuple(best)) for place, (name, label, p, best) in enumerate(each)]


def predictions_on(images: ImageSet, earlier: Evaluation) -> list[Prediction]:
    """An earlier evaluation's, in the order of these images; AskedWrongly where it is of others."""
    theirs = earlier.about["dataset"]["dataset_id"]
    if theirs != images.dataset_id:
        raise AskedWrongly(
            f"{earlier.folder} is of other images (dataset {theirs}) than these (dataset {images.dataset_id}): give both the same --data"
        )
    assert images.val is not None
    return in_order(earlier.predictions(), image_names(images, images.val), images.val.labels, str(earlier.folder))


def told(config: RunConfig, checkpoints: Sequence[Checkpoint], images: ImageSet, answers: Answers) -> dict[str, Any]:
    """evaluation.json, but for its schema_version."""
    from harness import environment
    from harness.answers import wrong
    from harness.folders import dataset_cells

    assert images.val is not None
    now = datetime.now(UTC)
    top1, top5 = (wrong(answers, images.val.labels, among).sum(axis=1).tolist() for among in (1, BEST))
    machine = environment.machine(int(config.on_gpu), ".")
    return {
        "evaluation_id": f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
        "made_at": now.isoformat(timespec="seconds"),
        "views": config.views,
        "precision": config.precision,
        "dataset": dataset_cells(images),
        "images": len(images.val),
        "top1_wrong": top1[-1],
        "top5_wrong": top5[-1],
        "checkpoints": [
            {**cells_of(each), "top1_wrong": one, "top5_wrong": five}
            for each, one, five in zip(checkpoints, top1, top5, strict=False)
        ],
        "machine": {name: machine.get(name) for name in MACHINE},
    }


def cells_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which network it is of, and how far that had come."""
    from harness.checkpoint import digest_of

    found = {**checkpoint.asked, **checkpoint.manifest}
    named = ("run_id", "step", "epochs_done", "model", "seed", "fine_tune_from")
    return {**{name: found.get(name) for name in named}, "manifest_sha256": digest_of(checkpoint.manifest)}


# --- what is said -------------------------------------------------------------------------------------------------


def report(done: Evaluation, images: ImageSet, answers: Answers) -> list[str]:
    """A line on how it was done, one for the errors of each network and of their average, and what sets the first apart."""
    from harness.answers import wrong

    assert images.val is not None
    about, nets = done.about, done.about["checkpoints"]
    where = about["machine"]["gpu_name"] or about["machine"]["cpu_name"] or "a CPU"
    lines = [f"{about['images']:,} images, each counted once, {done.way}, on {where}"]
    for number, net in enumerate(nets, 1):
        lines.append(
            f"net {number}: {errors_words(net, about['images'])} ({net['model']}, {net['run_id']}, step {net['step']:,})"
        )
    if len(nets) == 1:
        return lines
    lines.append(f"average of {len(nets)}: {errors_words(about, about['images'])}")
    names = [*(f"net {number}" for number in range(1, len(nets) + 1)), "the average"]
    for among in informative(images):
        first, *others = wrong(answers, images.val.labels, among).tolist()
        for name, other in zip(names[1:], others, strict=True):
            lines.append(f"top-{among}: {comparison_words(names[0], name, paired(first, other))}")
    return lines


def against(
    earlier: Evaluation, before: Sequence[Prediction], now: Sequence[Prediction], images: ImageSet
) -> list[str]:
    """An earlier evaluation and this one on the same images in the same order."""
    lines = [f"against {earlier.evaluation_id} ({earlier.way})"]
    for among in informative(images):
        pairs = paired([each.wrong(among) for each in before], [each.wrong(among) for each in now])
        lines.append(f"top-{among}: {comparison_words('that', 'this', pairs)}")
    return lines


def informative(images: ImageSet) -> list[int]:
    """Of five classes or fewer, every one is among the likeliest five."""
    return [among for among in (1, BEST) if among < len(images.classes)]
