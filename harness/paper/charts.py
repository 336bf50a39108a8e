"""Error curves as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.paper.drawing import FAINT, INK, blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 7.0, 4.6
# Hues that every kind of colour sight tells apart, dark enough for thin lines (Okabe and Ito's blue and vermilion).
SOLID, DASHED = ("#0072b2", "-"), ("#d55e00", "--")


@dataclass(frozen=True)
class Curve:
    """A run's errors, per cent, by epoch. Curves of one `label` look alike; `end`: the point to mark."""

    label: str
    look: tuple[str, str]
    epochs: Sequence[float]
    errors_pct: Sequence[float]
    end: tuple[float, float] | None = None


def error_curves(
    curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, level_pct: float | None = None
) -> Figure:
    """All curves on linear axes from zero, a line in the legend for each label, and a level across."""
    figure = blank_figure(WIDTH_IN, HEIGHT_IN)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for curve in curves:
        colour, line = curve.look
        label = "_" if curve.label in labelled else curve.label
        labelled.add(curve.label)
        axes.plot(curve.epochs, curve.errors_pct, line, color=colour, linewidth=1.1, label=label)
        if curve.end is not None:
            axes.plot(*curve.end, "o", color=colour, markersize=4.5)
    if level_pct is not None:
        axes.axhline(level_pct, color=INK, linewidth=0.9, linestyle=":", label=f"{level_pct:g} %")
    axes.set_title(title, color=INK, fontsize="medium")
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))
    axes.grid(color=FAINT, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
