"""Figure 4 as a picture: a line a test image, with its likeliest classes as bars and its nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.paper.claims import FIGURE_4_CLASSES, FIGURE_4_NEIGHBOURS
from harness.paper.drawing import BLUE, FAINT, INK, ORANGE, blank_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]  # (side, side, 3)

# Inches.
LINE, PICTURE, BARS, GAP, MARGIN, HEAD = 1.5, 1.2, 2.3, 0.12, 0.2, 0.75
BAR_LETTERS, CAPTION_LETTERS = 30, 17


class Line(NamedTuple):
    """A test image: its pixels and class, its likeliest classes with their probabilities, its neighbours, nearest first."""

    pixels: Pixels
    label: str
    likeliest: Sequence[tuple[str, float]]
    neighbours: Sequence[tuple[Pixels, str, float]]  # pixels, class, distance


def panel(lines: Sequence[Line], title: str, activations: str) -> Figure:
    """The figure. What is of the test image's own class is ORANGE."""
    width = 2 * MARGIN + PICTURE + GAP + BARS + 2 * GAP + FIGURE_4_NEIGHBOURS * (PICTURE + GAP)
    height = HEAD + len(lines) * LINE + MARGIN
    figure = blank_figure(width, height)

    def axes_at(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / width, 1 - top / height, text, va="top", **style)

    bars_at = MARGIN + PICTURE + GAP
    first_at = bars_at + BARS + 2 * GAP
    write(MARGIN, 0.14, title, fontsize=8.5, color=FAINT)
    figure.text(
        1 - (MARGIN + GAP) / width, 1 - 0.44 / height, "orange: of the test image's class",
        va="top", ha="right", fontsize=8.5, color=ORANGE,
    )  # fmt: skip
    for left, text in (
        (MARGIN, "test image"),
        (bars_at, "likeliest classes"),
        (first_at, f"nearest training images, by the distance of {activations}"),
    ):
        write(left, 0.42, text, fontsize=10, color=INK, weight="bold")
    for number, line in enumerate(lines):
        top = HEAD + number * LINE
        show(axes_at(MARGIN, top, PICTURE, PICTURE), line.pixels, FAINT)
        write(MARGIN, top + PICTURE + 0.04, short(line.label, CAPTION_LETTERS), fontsize=8.5, color=INK, weight="bold")
        draw_bars(axes_at(bars_at, top, BARS, PICTURE), line)
        for place, (pixels, label, distance) in enumerate(line.neighbours):
            left = first_at + place * (PICTURE + GAP)
            same = label == line.label
            show(axes_at(left, top, PICTURE, PICTURE), pixels, ORANGE if same else FAINT)
            write(left, top + PICTURE + 0.04, short(label, CAPTION_LETTERS), fontsize=7.5, color=INK)
            figure.text(
                (left + PICTURE) / width, 1 - (top + PICTURE + 0.04) / height, f"{distance:#.3g}",
                va="top", ha="right", fontsize=7.5, color=FAINT,
            )  # fmt: skip
    return figure


def show(axes: Axes, pixels: Pixels, edge: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set(edgecolor=edge, linewidth=2.5 if edge == ORANGE else 0.8)


def draw_bars(axes: Axes, line: Line) -> None:
    """Probabilities from 0 to 1, the likeliest on top, each with its class on it and its per cent at the end."""
    for place, (label, probability) in enumerate(line.likeliest):
        axes.barh(-place, probability, height=0.82, color=ORANGE if label == line.label else BLUE)
        axes.text(0.02, -place, short(label, BAR_LETTERS), va="center", fontsize=8, color=INK)
        axes.text(1.0, -place, per_cent(probability), va="center", ha="right", fontsize=8, color=INK)
    axes.set(xlim=(0, 1), ylim=(0.6 - max(FIGURE_4_CLASSES, len(line.likeliest)), 0.5), xticks=[], yticks=[])
    axes.patch.set_facecolor("#f4f4f4")
    for side in axes.spines.values():
        side.set_visible(False)


def per_cent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else "< 1 %"


def short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
