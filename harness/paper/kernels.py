"""Figure 3: conv1's kernels as a picture, the two GPUs' columns above each other, and how much of each is colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import models
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.config import AskedWrongly
from harness.data import made
from harness.metrics.numbers import percentile
from harness.paper.claims import CLAIMS
from harness.paper.drawing import FAINT, INK, about, blank_figure, not_run, save_figure, save_table, wrote
from harness.rows import cell, words
from harness.showing import config_of
from harness.summary import markdown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Kernels = NDArray[np.float32]  # (kernels, 3, size, size): red, green, blue

FIRST_LAYERS = ("conv1.weight", "features.0.weight")  # torchvision's net calls it so
OF_RANDOM_WEIGHTS = 2 / 3  # a third of such a kernel's energy lies along the grey axis, one of three
ACROSS = 16  # kernels in a line: the paper's 96 make six of them
GAP = 1  # pixels between kernels


class Column(NamedTuple):
    """The kernels that one of the paper's GPUs holds, or all of a network that is not in columns."""

    name: str
    kernels: Kernels
    colour: list[float | None]  # of each kernel, colour_selectivity


def colour_selectivity(kernel: NDArray[Any]) -> float | None:
    """The share of a kernel's energy that is not grey, 0 to 1; None of a kernel of zeros.

    The kernel w is (3, height, width). At every place its three weights are split along the grey axis (1, 1, 1) / sqrt(3) and
    across it: 1 - |along|^2 / |w|^2, summed over places. A kernel alike in red, green and blue has 0; one whose colours
    cancel, blind to grey, 1; independent random weights 2/3 on average.
    """
    kernel = kernel.astype("float64")
    energy = float((kernel**2).sum())
    along = float((kernel.sum(axis=0) ** 2).sum()) / 3
    return max(0.0, 1 - along / energy) if energy else None


def scaled(kernel: NDArray[Any]) -> NDArray[np.uint8]:
    """A kernel (3, height, width) as pixels (height, width, 3): its own least weight 0, its largest 255; mid-grey if all are equal."""
    import numpy as np

    least, most = float(kernel.min()), float(kernel.max())
    if least == most:
        return np.full((*kernel.shape[1:], 3), 128, np.uint8)
    return np.rint((kernel.transpose(1, 2, 0).astype("float64") - least) / (most - least) * 255).astype(np.uint8)


def sheet(kernels: Kernels, across: int) -> NDArray[np.uint8]:
    """The kernels in their order, `across` in a line, as one picture (height, width, 3) with white between them."""
    import numpy as np

    count, size = len(kernels), kernels.shape[-1]
    cell_side = size + GAP
    page = np.full((-(-count // across) * cell_side - GAP, across * cell_side - GAP, 3), 255, np.uint8)
    for place, kernel in enumerate(kernels):
        top, left = (number * cell_side for number in divmod(place, across))
        page[top : top + size, left : left + size] = scaled(kernel)
    return page


def first_kernels(checkpoint: Checkpoint) -> Kernels:
    """conv1's kernels; AskedWrongly where the network's first layer is not a convolution of colours, or diverged."""
    import numpy as np

    weights = checkpoint.weights()
    found = next((weights[name] for name in FIRST_LAYERS if name in weights), None)
    if found is None or found.ndim != 4 or found.shape[1] != 3:
        raise AskedWrongly(
            f"the checkpoint {checkpoint.folder} has no conv1 of kernels over red, green and blue: give one of a network of "
            "`run --model`"
        )
    kernels = found.float().numpy()
    if not np.isfinite(kernels).all():
        raise AskedWrongly(
            f"the checkpoint {checkpoint.folder} has kernels that are not finite (its run diverged): give an earlier one"
        )
    return kernels


def columns_of(kernels: Kernels, in_columns: bool) -> list[Column]:
    """The first half of the kernels and the second, where the network has the paper's two columns; else all."""
    half = len(kernels) // 2
    parts = {"GPU 1": kernels[:half], "GPU 2": kernels[half:]} if in_columns else {"all": kernels}
    return [Column(name, part, [colour_selectivity(kernel) for kernel in part]) for name, part in parts.items()]


def quartiles(values: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Lower quartile, median, upper quartile of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return percentile(known, 0.25), percentile(known, 0.5), percentile(known, 0.75)


def draw(columns: Sequence[Column], title: str) -> Any:
    """The figure: a sheet a column, above each other, each under its name and its median colour."""
    sheets = [sheet(column.kernels, ACROSS) for column in columns]
    width_in, margin_in, head_in = 8.0, 0.15, 0.42
    heights = [(width_in - 2 * margin_in) * page.shape[0] / page.shape[1] for page in sheets]
    height_in = sum(heights) + head_in * (len(sheets) + 1) + margin_in
    figure = blank_figure(width_in, height_in)
    left, top = margin_in / width_in, height_in - head_in
    figure.text(left, (top + 0.06) / height_in, title, fontsize=8.5, color=FAINT, va="bottom")
    for column, page, high in zip(columns, sheets, heights, strict=True):
        figure.text(left, (top - head_in + 0.09) / height_in, heading(column), fontsize=10.5, color=INK, va="bottom")
        top -= head_in + high
        axes = figure.add_axes((left, top / height_in, 1 - 2 * left, high / height_in))
        axes.imshow(page, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    return figure


def heading(column: Column) -> str:
    count, size = len(column.kernels), column.kernels.shape[-1]
    name = "" if column.name == "all" else f"{column.name}: "
    return f"{name}{count} kernels of {size} x {size}, colour selectivity {told(quartiles(column.colour)[1])} (median)"


def told(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def figure3(place: Path, out: Path) -> str:
    """Writes figure3.png, .svg, figure3.csv (a line a column) and figure3-kernels.csv into `out`; what was found, in words."""
    checkpoint = open_checkpoint(place)
    made(out)
    columns = columns_of(first_kernels(checkpoint), "columns" in models.schemes(config_of(checkpoint).model))
    spread = {column.name: (len(column.kernels), *quartiles(column.colour)) for column in columns}
    lines = [[name, *map(cell, numbers)] for name, numbers in spread.items()]
    each = [[column.name, str(n), cell(value)] for column in columns for n, value in enumerate(column.colour, 1)]
    paths = [
        *save_figure(draw(columns, about(checkpoint)), out, "figure3"),
        save_table(out, "figure3", SPREAD, lines),
        save_table(out, "figure3-kernels", ["column", "kernel", "colour_selectivity"], each),
    ]
    shown = [
        {"column": name, "kernels": str(count), **{head: told(value) for head, value in zip(HEADS, of, strict=True)}}
        for name, (count, *of) in spread.items()
    ]
    return f"{about(checkpoint)}\n\n{markdown(shown)}\n\n{MEANING}\n{PAPER_SAYS}\n{wrote(paths)}"


SPREAD = words("column kernels colour_selectivity_q1 colour_selectivity_median colour_selectivity_q3")
HEADS = ("lower quartile", "colour selectivity, median", "upper quartile")


MEANING = f"colour selectivity: 0 is a grey kernel, 1 one whose colours cancel; weights never trained have {OF_RANDOM_WEIGHTS:.2f}"
PAPER_SAYS = f"the paper ({CLAIMS['figure3'].section}): {CLAIMS['figure3'].says}"
NOT_RUN = not_run(PAPER_SAYS, "figure3 RUN")
