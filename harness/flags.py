"""The flags of `run`, one a field of RunConfig, and the RunConfigs that they come to under a recipe."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import models
import pipelines
from harness.config import PLACES, AskedWrongly, RunConfig
from harness.recipes import LENGTHS, OF_THE_JOB, PATIENCE, RECIPES, settings, shared_by

CHOICES: dict[str, Sequence[Any]] = {
    "model": tuple(models.MODELS),
    "pipeline": tuple(pipelines.PIPELINES),
    "augment": pipelines.AUGMENTS,
}


def counts(text: str) -> tuple[int, ...]:
    """`1,2,4`: how many ranks each row group has."""
    numbers = tuple(int(part) for part in text.split(","))
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} asks for less than one rank: give 1 or more")
    return numbers


counts.__name__ = "number of ranks"

# What a recipe cannot say: which ranks and images, and which run or recipe it is about.
OF_ONE_RUN = (*PLACES, "gpus", "cpus", "nodes", "resume", "recipe", "table", "quiet")


def add_run(commands: Any, call: Callable[[argparse.Namespace], int]) -> None:
    """The command `run`, which `call` carries out."""
    run = commands.add_parser(
        "run",
        help="train, measure, append a row a launch",
        description="Without --gpus and --cpus: one rank, on the first GPU or else the CPU. Recipe: throughput with --gpus, "
        "else smoke; a typed flag beats it. Settings left out are chosen for the machine and recorded.",
    )
    groups = {
        "task": "task (what is computed; rows that differ here are never ranked)",
        "shape": "shape",
        "setting": "settings (how it is computed)",
        "bookkeeping": "length and bookkeeping",
    }
    sections = {kind: run.add_argument_group(title) for kind, title in groups.items()}
    for field in fields(RunConfig):
        about = field.metadata
        others = {
            name: own
            for name, values in RECIPES.items()
            if (own := values.get(field.name, field.default)) != field.default
        }
        note = ", ".join(f"{name} {own}" for name, own in others.items())
        if field.default not in (None, ""):
            note = f"{note}, else {field.default}" if note else f"default {field.default}"
        several = {"type": counts} if field.name in ("gpus", "cpus") else {}
        add_field(sections[about["kind"]], field, note, **several)
    run.add_argument("--table", type=Path, help="table to append to (default results/<machine>.csv)")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.set_defaults(call=call)


def add_field(to: argparse._ActionsContainer, field: Any, note: str = "", **changes: Any) -> None:
    """The flag of a field of RunConfig, whose help ends in `(note)`; one that is not typed is no attribute."""
    about = field.metadata
    choices = CHOICES.get(field.name, about["choices"])
    flag = {
        "dest": field.name,
        "type": about["parse"],
        "choices": choices,
        "metavar": None if choices or about["parse"] is str else about["parse"].__name__.split()[-1].upper(),
        "default": argparse.SUPPRESS,
        "help": f"{about['help']} ({note})" if note else about["help"],
    }
    to.add_argument("--" + field.name.replace("_", "-"), **{**flag, **changes})


def typed_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of RunConfig that were typed; AskedWrongly where ranks of both kinds were."""
    typed = {
        field.name: getattr(arguments, field.name) for field in fields(RunConfig) if hasattr(arguments, field.name)
    }
    if typed.get("gpus") and typed.get("cpus"):
        raise AskedWrongly("--gpus and --cpus were both asked and a run has ranks of one kind: give one of them")
    return typed


def configs_of(arguments: argparse.Namespace) -> list[RunConfig]:
    """What was asked, a RunConfig for each row group; AskedWrongly for flags that exclude each other."""
    typed = typed_of(arguments)
    if "resume" in typed:
        from harness.resume import completed

        typed = completed(typed)
    gpus, cpus = typed.pop("gpus", None), typed.pop("cpus", None)
    recipe = typed.pop("recipe", "throughput" if gpus else "smoke")
    named = RECIPES[recipe] if recipe in RECIPES else recipe_of(recipe)
    # What a person wrote into a recipe of their own was asked as if it had been typed.
    said = typed if recipe in RECIPES else settings("", typed, named)
    refuse_both(said)
    model = typed.setdefault("model", named.get("model", RunConfig.model))
    side = models.image_size(model)
    if said.get("image_size", side) != side:
        raise AskedWrongly(f"--image-size {said['image_size']} was asked and {model} takes {side}: leave it out")
    typed["image_size"] = side
    if model in models.OWN_INIT:
        if "init" in said:
            raise AskedWrongly(f"--init was asked and {model} has its own initial weights: leave --init out")
        typed["init"] = None
    asked = settings(Path(recipe).stem, typed, named)
    if not any(asked.get(length) for length in LENGTHS):
        raise AskedWrongly(f"--recipe {recipe} has no length: give it steps, timed_seconds or epochs, or type one")
    asked |= of_the_rate(asked)
    asked |= of_the_augmentation(asked, said)
    refuse_saving(asked, said)
    kind = "gpus" if gpus else "cpus"
    schemes, job = models.schemes(model), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        return [
            RunConfig(**shared_by(asked, number or job, schemes), **({kind: number} if number else {}))
            for number in gpus or cpus or (None,)
        ]
    except ValueError as error:
        raise AskedWrongly(f"--recipe {asked['recipe']}: {error}") from error


def refuse_both(said: dict[str, Any]) -> None:
    """AskedWrongly where two flags were given of which a run has one."""
    lengths = [f"--{name.replace('_', '-')}" for name in LENGTHS if name in said]
    if len(lengths) > 1:
        raise AskedWrongly(f"{' and '.join(lengths)} were both asked and a run has one length: give one of them")
    of_images = [f"--{name}" for name in (*PLACES, "views") if name in said]
    if said.get("pipeline") == "synthetic" and of_images:
        raise AskedWrongly(f"--pipeline synthetic reads no images and {of_images[0]} was given: leave one of them out")


def of_the_augmentation(asked: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What a typed --augment leaves of its recipe's; AskedWrongly where it has not what was `said` of it."""
    augment = asked.get("augment", RunConfig.augment)
    if augment == "none" and asked.get("views", 1) > 1:
        raise AskedWrongly(
            f"--views {asked['views']} was asked and --augment none shows the whole centre square, which has one view: leave --views out"
        )
    if asked.get("jitter") and augment != "rrc+jitter":
        raise AskedWrongly(
            f"--jitter was given and --augment {augment} jitters no colours: ask for --augment rrc+jitter"
        )
    if augment in pipelines.NOISY or asked.get("noise_epochs") is None:
        return {}
    if "noise_epochs" in said:
        raise AskedWrongly(
            f"--noise-epochs was given and --augment {augment} has no colour noise: ask for --augment {' or '.join(pipelines.NOISY)}"
        )
    return {"noise_epochs": None}


def recipe_of(file: str) -> dict[str, Any]:
    """A recipe of a person's own: a TOML file of RunConfig's fields, and those of recipes.OF_THE_JOB."""
    path = Path(file)
    if path.suffix != ".toml":
        raise AskedWrongly(
            f"--recipe {file} is none of {', '.join(RECIPES)}, and no file of your own: those end in .toml"
        )
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AskedWrongly(
            f"--recipe {file} cannot be read ({getattr(error, 'strerror', None) or error}): give a TOML file"
        ) from None
    flags = {field.name: field for field in fields(RunConfig) if field.name not in OF_ONE_RUN}
    for name in said:
        if name in OF_ONE_RUN:
            raise AskedWrongly(f"--recipe {file} has {name}, which is of one run and no recipe's: type it, as a flag")
        if name not in flags and name not in OF_THE_JOB:
            near = get_close_matches(name, [*flags, *OF_THE_JOB], n=1)
            raise AskedWrongly(
                f"--recipe {file} has a field {name!r}, which no run has: "
                + (f"did you mean {near[0]!r}?" if near else "its fields are run's flags, with _ for - (run --help)")
            )
    found = {name: checked(file, name, value) for name, value in said.items()}
    refuse_both(found)
    return found


def checked(file: str, name: str, value: Any) -> Any:
    """A recipe file's value, as the flag of this name would take it."""
    if name in OF_THE_JOB:
        parse, choices = OF_THE_JOB[name], None
    else:
        about = next(field.metadata for field in fields(RunConfig) if field.name == name)
        parse, choices = about["parse"], CHOICES.get(name, about["choices"])
    try:
        # A whole number may be written 60.0.
        parsed = parse(str(int(value) if isinstance(value, float) and value.is_integer() else value))
    except argparse.ArgumentTypeError as error:
        raise AskedWrongly(f"--recipe {file} has {name} = {value!r}: {error}") from None
    except ValueError:
        raise AskedWrongly(f"--recipe {file} has {name} = {value!r}: give a {parse.__name__}") from None
    if choices and parsed not in choices:
        raise AskedWrongly(f"--recipe {file} has {name} = {value!r}: choose from {', '.join(map(str, choices))}")
    return parsed


def of_the_rate(asked: dict[str, Any]) -> dict[str, Any]:
    """What --schedule leaves to its defaults; AskedWrongly where flags about learning do not fit together."""
    schedule = asked.get("schedule", RunConfig.schedule)
    if asked.get("target_train_error_pct") and not asked.get("evaluate_every"):
        raise AskedWrongly("--target-train-error-pct is looked at with every evaluation: give --evaluate-every too")
    if (schedule in ("epochs", "steps")) != bool(asked.get("drops")):
        raise AskedWrongly(
            f"--schedule {schedule} was asked {'with' if asked.get('drops') else 'without'} --drops: "
            "--drops 25,51,79 belongs to --schedule epochs or steps, and only there"
        )
    if schedule != "plateau":
        if asked.get("patience"):
            raise AskedWrongly(
                f"--patience was given and --schedule {schedule} waits for nothing: ask for --schedule plateau"
            )
        return {}
    if not asked.get("evaluate_every"):
        raise AskedWrongly("--schedule plateau looks at the validation error: say how often with --evaluate-every")
    return {"patience": asked.get("patience") or PATIENCE}


def refuse_saving(asked: dict[str, Any], said: dict[str, Any]) -> None:
    """AskedWrongly where what belongs to checkpoints was asked without them, or where several launches would share them."""
    if not asked.get("checkpoint_every"):
        for name in ("keep", "time_limit", "max_restarts"):
            if said.get(name):
                raise AskedWrongly(
                    f"--{name.replace('_', '-')} was given and this run saves nothing: say how often with --checkpoint-every"
                )
    elif asked.get("launches", 1) > 1:
        if said.get("launches"):
            raise AskedWrongly(
                "--launches and --checkpoint-every were both asked and a run that is saved is one launch: leave one out"
            )
        asked["launches"] = 1
