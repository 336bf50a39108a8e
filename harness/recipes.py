"""Named settings, as data. A typed flag beats its recipe; the row holds what resulted."""

from __future__ import annotations

from typing import Any

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
}

# Evaluations without a lower validation error after which --schedule plateau drops the rate: the paper names no number.
PATIENCE = 5
LENGTHS = ("steps", "timed_seconds", "epochs")


def settings(recipe: str, typed: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings under the typed ones; a typed length replaces the recipe's whatever its unit."""
    chosen = dict(RECIPES[recipe])
    if any(length in typed for length in LENGTHS):
        chosen = {name: value for name, value in chosen.items() if name not in LENGTHS}
    return {**chosen, **typed, "recipe": recipe}
