"""How a figure of the paper's is drawn and written: PNG and SVG, each whole or not there. matplotlib is loaded by who draws."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.checkpoint import Checkpoint
from harness.paper.found import TRAIN
from harness.results import csv_text, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DOTS_PER_INCH = 160
INK, FAINT = "#222222", "#8a8a8a"
# Told apart by every kind of colour sight, and in grey.
BLUE, ORANGE = "#7ba7cc", "#e08a3c"


def blank_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure of this size that no window shows; text in INK."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), facecolor="white")


def save_figure(figure: Figure, out: Path, name: str) -> list[Path]:
    """<out>/<name>.png and .svg; the same figure gives the same bytes."""
    from matplotlib import rc_context

    paths = [out / f"{name}.png", out / f"{name}.svg"]
    with rc_context({"svg.hashsalt": name}):
        for path in paths:
            contents = io.BytesIO()
            known = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
            figure.savefig(contents, dpi=PNG_DOTS_PER_INCH, format=path.suffix[1:], metadata=known)
            write_whole(path, contents.getvalue())
    return paths


def save_table(out: Path, name: str, header: Iterable[str], lines: Iterable[Iterable[str]]) -> Path:
    """<out>/<name>.csv."""
    path = out / f"{name}.csv"
    write_whole(path, csv_text(header, lines))
    return path


def about(checkpoint: Checkpoint) -> str:
    """Which network this is, in a line."""
    manifest, asked = checkpoint.manifest, checkpoint.asked
    return (
        f"{asked['model']} after {manifest['epochs_done']:.3g} epochs (step {checkpoint.step:,} of {manifest['run_id']}, "
        f"seed {asked['seed']}, dataset {manifest['dataset']['dataset_id']})"
    )


def wrote(paths: Sequence[Path]) -> str:
    return "wrote " + ", ".join(map(str, paths))


def not_run(claim: str, command: str) -> str:
    """What a figure's command says without a checkpoint: the paper's claim, and the commands that make the figure."""
    return (
        f"{claim}\nno checkpoint was given, so there is nothing of ours to show; these make it (RUN: results/runs/<run_id>):\n"
        f"  {TRAIN} --data FOLDER\n  python -m harness paper {command}"
    )
