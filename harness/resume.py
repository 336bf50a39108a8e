"""What a run that goes on is asked: as before where nothing else is typed, and nothing that would make it another run."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

from harness.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from harness.config import CHECKPOINTS, PLACES, AskedWrongly, RunConfig, names
from harness.recipes import LENGTHS, RECIPES
from pipelines.sources.imageset import ImageSet

NOT_ASKED_AGAIN = (*PLACES, "resume", "gpus", "cpus", "nodes", "launches", "profile", "time_limit")
# What a run is, beside its task and its shape: another one would draw other images, or end elsewhere.
OF_THE_RUN = ("seed", "pipeline", "decode", "steps", "timed_seconds")
OF_EVALUATIONS = ("evaluate_every", "views")  # where the rate depends on what they say
MAY_GROW = ("epochs", "target_train_error_pct")  # the end of a run that is only longer


def completed(typed: dict[str, Any]) -> dict[str, Any]:
    """The typed flags of a run that goes on, over what the checkpoint's run was asked.

    CheckpointError where there is no whole one; AskedWrongly where a place was not typed again.
    """
    saved = open_checkpoint(typed["resume"])
    for place in PLACES:
        if saved.asked.get(place) and place not in typed:
            raise AskedWrongly(
                f"--resume {typed['resume']} was trained with --{place} {saved.asked[place]}: say where that is with --{place}"
            )
    # Here, since what else was asked of one network would be refused of another.
    if typed.get("model", saved.asked["model"]) != saved.asked["model"]:
        raise another_run("model", typed["model"], saved)
    before = {name: value for name, value in saved.asked.items() if value is not None and name not in NOT_ASKED_AGAIN}
    if before["pipeline"] == "synthetic":
        del before["views"]  # of images that it does not read
    if "fine_tune_from" in before:
        # A cell names the run and the step: as a path, whose weights nobody needs any more, it is the same cell again.
        run, _, step = before["fine_tune_from"].rpartition("/")
        before["fine_tune_from"] = str(Path(run, CHECKPOINTS, step))
    if any(length in typed for length in LENGTHS):
        before = {name: value for name, value in before.items() if name not in LENGTHS}
    if before["recipe"] not in RECIPES:
        del before["recipe"]  # a file of the person's, all of whose settings are here
    kind = "gpus" if saved.asked["gpus"] else "cpus"
    ranks = {} if "gpus" in typed or "cpus" in typed else {kind: [saved.asked[kind]]}
    return {**before, **ranks, **typed, "resume": str(saved.folder)}


def located(config: RunConfig) -> RunConfig:
    """With the checkpoints that it names as their own folders: of a run's folder, the newest; CheckpointError where there is none."""
    saved = {name: getattr(config, name) for name in ("resume", "fine_tune_from") if getattr(config, name)}
    if config.resume:
        saved.pop("fine_tune_from", None)
    return config.with_(**{name: str(open_checkpoint(place).folder.resolve()) for name, place in saved.items()})


def refuse_another_run(config: RunConfig, images: ImageSet, dataset: dict[str, Any]) -> None:
    """AskedWrongly, naming the first field, where `config` and these images (`dataset`: a row's cells) are not the checkpoint's
    run; CheckpointError where a file of it is not what was saved."""
    saved = open_checkpoint(config.resume or "")
    asked = config.columns()
    for name in (*names("task"), *names("shape"), *OF_THE_RUN, *(OF_EVALUATIONS if config.patience else ())):
        if name in saved.asked and asked[name] != saved.asked[name]:
            raise another_run(name, asked[name], saved)
    for name, before in saved.manifest["dataset"].items():
        if name in dataset and name != "image_bytes" and dataset[name] != before:
            raise AskedWrongly(
                f"{name} of these images is {shown(dataset[name])} and was {shown(before)} in {saved.folder}: "
                "give the images that it was trained on"
            )
    if images.classes != saved.classes:
        raise AskedWrongly(
            f"these images have other classes than {saved.folder}: give the images that it was trained on"
        )
    refuse_the_end(config, saved, len(images.train))
    saved.refuse_damage()


def another_run(name: str, here: Any, saved: Checkpoint) -> AskedWrongly:
    """What is said of the first field that differs."""
    flag = f"--{name.replace('_', '-')}"
    return AskedWrongly(
        f"{flag} is {shown(here)} here and was {shown(saved.asked[name])} in {saved.folder}: "
        f"leave {flag} out, or begin a new run"
    )


def refuse_the_end(config: RunConfig, saved: Checkpoint, train_images: int) -> None:
    from harness.course import Course

    total = Course.of(config, train_images, saved.manifest["total_steps"]).total_steps
    as_before = all(getattr(config, name) == saved.asked.get(name) for name in MAY_GROW)
    if (saved.at_its_end and as_before) or (total is not None and saved.step >= total):
        raise AskedWrongly(
            f"{saved.folder} has reached its end at step {saved.step}: give more --epochs, or `evaluate` it"
        )


def words_to_go_on(run_folder: Path, config: RunConfig, table: Path) -> str:
    """The command that goes on with a run that ended early; "" where nothing was saved, or it is at its end."""
    found: list[Path | str] = [run_folder, *([config.resume] if config.resume else [])]
    for place in found:
        with contextlib.suppress(CheckpointError):
            if open_checkpoint(place).at_its_end:
                return ""
            places = [word for name in PLACES if (at := getattr(config, name)) for word in (f"--{name}", at)]
            words = ["run", "--resume", str(place), *places, "--table", str(table)]
            # Ranks of several machines are brought by whoever brought them before.
            by = ["-m", "harness"] if config.nodes > 1 else ["python", "-m", "harness"]
            return shlex.join([*by, *words]) + (" (under torchrun, as before)" if config.nodes > 1 else "")
    return ""


def shown(value: Any) -> str:
    return "left out" if value is None else str(value)
