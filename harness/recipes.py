"""Named settings, as data. A typed flag beats its recipe; the row holds what resulted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.config import whole

IMAGENET = 1_281_167  # training images of ILSVRC-2012: an epoch


def true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


true_or_false.__name__ = "true or false"

# Only a number of ranks makes these into fields of RunConfig: images a step of the whole job, and whether two ranks hold a
# column of the network each.
OF_THE_JOB: dict[str, Callable[[str], Any]] = {"images_per_step": whole(1), "columns_on_two": true_or_false}
RECIPES: dict[str, dict[str, Any]] = {
    # Learns visibly within three minutes on two CPU cores. fp32, since on a CPU without bf16 instructions
    # bf16 is far slower, and what is computed must not depend on the machine.
    "smoke": {
        "augment": "rrc",
        "precision": "fp32",
        "init": "code2012",
        "learning_rate": 0.001,
        "images_per_gpu": 32,
        "steps": 30,
        "launches": 1,
    },
    "throughput": {
        "augment": "rrc+jitter",
        "precision": "bf16",
        "init": "paper",
        "learning_rate": 0.01,
        "images_per_gpu": 1024,
        "timed_seconds": 30.0,
        "launches": 3,
    },
    # As printed, sections 3 to 5: 128 images a step whatever the ranks, a column on each of two; the rate falls when the
    # validation error stops improving.
    "paper": {
        "augment": "paper",
        "precision": "fp32",
        "init": "paper",
        "learning_rate": 0.01,
        "decay_form": "paper",
        "schedule": "plateau",
        "images_per_step": 128,
        "columns_on_two": True,
        "epochs": 90.0,
        "evaluate_every": IMAGENET,
        "checkpoint_every": IMAGENET,
        "launches": 1,
    },
    # As the released source ran, which its configuration and its log tell epoch by epoch.
    "code2012": {
        "model": "alexnet-code2012",
        "augment": "code2012",
        "precision": "fp32",
        "learning_rate": 0.01,
        "decay_form": "paper",
        "schedule": "epochs",
        "drops": "25,51,79",
        "layer_rates": "conv1@67=1e-05,conv1@72=0",
        "noise_epochs": 67.0,
        "images_per_step": 128,
        "columns_on_two": True,
        "epochs": 91.0,
        "evaluate_every": IMAGENET,
        "checkpoint_every": IMAGENET,
        "launches": 1,
    },
    # For Table 2's 40.7 % in fewer hours: eight times the batch, with the rate scaled along and a warm-up to bear it (Goyal
    # et al. 2017). Nobody has run it to its end yet.
    "modern": {
        "augment": "paper",
        "precision": "bf16",
        "init": "paper",
        "learning_rate": 0.08,
        "warmup_epochs": 5.0,
        "schedule": "epochs",
        "drops": "30,50,60",
        "images_per_step": 1024,
        "epochs": 65.0,
        "evaluate_every": IMAGENET,
        "checkpoint_every": IMAGENET,
        "launches": 1,
    },
}

# Evaluations without a lower validation error after which --schedule plateau drops the rate: the paper names no number.
PATIENCE = 5
LENGTHS = ("steps", "timed_seconds", "epochs")


def settings(name: str, typed: dict[str, Any], recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings of the recipe called `name`, ours or `recipe`, under the typed ones; a typed length replaces the recipe's
    whatever its unit."""
    chosen = dict(RECIPES[name] if recipe is None else recipe)
    if any(length in typed for length in LENGTHS):
        chosen = {name: value for name, value in chosen.items() if name not in LENGTHS}
    return {**chosen, **typed, "recipe": name}


def shared_by(asked: dict[str, Any], ranks: int, schemes: tuple[str, ...]) -> dict[str, Any]:
    """The settings with what a recipe says of the whole job told of these ranks; ValueError where it cannot be shared equally.

    `schemes`: those that the network has parts for.
    """
    asked = dict(asked)
    images, columns = asked.pop("images_per_step", None), asked.pop("columns_on_two", False)
    if images and "images_per_gpu" not in asked:
        if images % ranks:
            raise ValueError(f"{images} images a step cannot be shared equally by {ranks} ranks: give --images-per-gpu")
        asked["images_per_gpu"] = images // ranks
    if columns and ranks == 2 and "columns" in schemes:
        asked.setdefault("parallel", "columns")
    return asked
