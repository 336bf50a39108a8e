"""Tables 1 and 2: the paper's lines, and beside them ours, from the evaluations and rows that lie under a results folder.

Which line a network belongs to is decided by what was recorded of it. The files of ILSVRC's sets are not known here, so that a set is
told by its counts: 1,000 classes and 150,000 evaluated images are ILSVRC-2010's test set; 1,000 classes, 50,000 evaluated and about
1,281,167 training images are ILSVRC-2012 with its validation set (2010's and 2011's have 50,000 too, and fewer to train on). Images
that were left out by name count as there. `dataset_id` stands beside every line for whoever knows better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.paper.claims import (
    CNN_1,
    CNN_1_PRETRAINED,
    CNN_2010,
    CNN_2010_CENTRE,
    CNNS_5,
    CNNS_7_PRETRAINED,
    TABLE_1,
    TABLE_2,
    Printed,
)
from harness.paper.found import SIX_LAYERS, SIZES, TRAIN, Ours, found_under
from harness.predictions import error_pct
from harness.recipes import IMAGENET
from harness.summary import markdown

CLASSES = 1000
TRAIN_IMAGES_2010, TEST_IMAGES_2010, VAL_IMAGES_2012 = 1_261_406, 150_000, 50_000
ABOUT = 0.005  # of the training images, which some have lost a few of
# `markdown` leaves out a column that is empty in every line: ours is there also where nothing has been run.
NOTHING = " "


# --- which line of the table it is --------------------------------------------------------------------------------


def is_all_but_excluded(found: int, of: int, excluded: int | None) -> bool:
    """Where it is unknown how many were left out by name, nothing less than all is all."""
    return of - (excluded or 0) <= found <= of


def on_test_2010(ours: Ours) -> bool:
    all_there = is_all_but_excluded(ours.images, TEST_IMAGES_2010, ours.dataset["excluded_images"])
    return ours.dataset["classes"] == CLASSES and all_there


def on_validation_2012(ours: Ours) -> bool:
    classes, train_images, excluded = (ours.dataset[name] for name in SIZES)
    tolerated = ABOUT * IMAGENET
    most, least = IMAGENET + tolerated, IMAGENET - tolerated - (excluded or 0)
    evaluated = is_all_but_excluded(ours.images, VAL_IMAGES_2012, excluded)
    return classes == CLASSES and evaluated and train_images is not None and least <= train_images <= most


def kinds(ours: Ours) -> tuple[int, int] | None:
    """How many plain and how many pre-trained networks were averaged, each of a run of its own; None where another is among them."""
    plain, pretrained = sum(net.plain for net in ours.nets), sum(net.pretrained for net in ours.nets)
    apart = len({net.run_id for net in ours.nets}) == len(ours.nets)
    return (plain, pretrained) if apart and plain + pretrained == len(ours.nets) else None


def line_of_table1(ours: Ours) -> Printed | str:
    """The line that it stands beside, or why it stands beside none."""
    if not on_test_2010(ours):
        return "not of ILSVRC-2010's test set"
    if kinds(ours) != (1, 0):
        return "not of one alexnet"
    return CNN_2010 if ours.views == 10 else CNN_2010_CENTRE


AVERAGED = {(1, 0): CNN_1, (5, 0): CNNS_5, (0, 1): CNN_1_PRETRAINED, (5, 2): CNNS_7_PRETRAINED}


def line_of_table2(ours: Ours) -> Printed | str:
    """The line that it stands beside, or why it stands beside none."""
    if not on_validation_2012(ours):
        return "not of ILSVRC-2012's validation set"
    if ours.views != 10:
        return "not of ten views"
    return AVERAGED.get(kinds(ours) or (0, 0), "of other networks than these lines'")


# --- told ---------------------------------------------------------------------------------------------------------


def lines_beside(
    printed: Sequence[Printed], found: Iterable[tuple[Ours, Printed | str]], test_column: bool
) -> list[dict[str, str]]:
    """A line for each of the paper's, or as many as ours for it."""
    beside: dict[Printed, list[Ours]] = {line: [] for line in printed}
    for ours, line in found:
        if isinstance(line, Printed):
            beside[line].append(ours)
    return [
        {**paper_cells(line, test_column), **ours}
        for line, several in beside.items()
        for ours in [our_cells(each) for each in several] or [NOT_RUN]
    ]


def paper_cells(line: Printed, test_column: bool) -> dict[str, str]:
    errors = {"paper top-1, %": line.top1_error_pct, "paper top-5, %": line.top5_error_pct}
    if test_column:
        errors["paper test top-5, %"] = line.test_top5_error_pct
    return {"network": line.name, **{name: "" if error is None else f"{error}" for name, error in errors.items()}}


OURS = (
    "ours top-1, %",
    "ours top-5, %",
    "networks",
    "views",
    "precision",
    "epochs",
    "seeds",
    "dataset",
    "images",
    "from",
)
NOT_RUN = {**dict.fromkeys(OURS, ""), OURS[0]: NOTHING, OURS[1]: NOTHING}


def our_cells(ours: Ours) -> dict[str, str]:
    models = Counter(net.model for net in ours.nets)
    cells = (
        with_interval(ours.top1_wrong, ours.images),
        with_interval(ours.top5_wrong, ours.images),
        " + ".join(f"{count} {model}" for model, count in models.items()),
        str(ours.views),
        ours.precision,
        span([net.epochs for net in ours.nets]),
        " ".join(net.seed for net in ours.nets),
        ours.dataset_id,
        str(ours.images),
        ours.source,
    )
    return dict(zip(OURS, cells, strict=True))


def with_interval(wrong: int, images: int) -> str:
    """`40.72 (40.29 to 41.15)`: per cent, with Wilson's 95 % interval."""
    error, low, high = error_pct(wrong, images)
    return f"{error:.2f} ({low:.2f} to {high:.2f})"


def span(epochs: Sequence[float | None]) -> str:
    known = [number for number in epochs if number is not None]
    if len(known) < len(epochs):
        return ""
    least, most = (f"{number:.3g}" for number in (min(known), max(known)))
    return least if least == most else f"{least} to {most}"


def left_out(found: Iterable[tuple[Ours, Printed | str]]) -> list[str]:
    """What was found and belongs to no line, in words."""
    reasons = Counter(reason for _, reason in found if isinstance(reason, str))
    several = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return [f"Errors found here that stand beside no line: {several}."] if several else []


OF_2010, TEST_OF_2010, OF_FALL_2011 = "TRAIN2010", "TEST2010", "FALL2011"
# What stands for a folder or folders in the commands, and which.
STANDS_FOR = {
    OF_2010: "ILSVRC-2010's images",
    TEST_OF_2010: "its test images, see docs/imagenet.md: not to be trained with, since their errors would set the rate",
    "FOLDER": "ILSVRC-2012's images",
    OF_FALL_2011: "those of the Fall 2011 release's 22,000 classes",
    "RUN": "results/runs/<run_id>",
}


def train(folder: str, more: str = "", train_images: int | None = None) -> str:
    """`train_images`: an epoch, where it is not ILSVRC-2012's."""
    often = f" --evaluate-every {train_images} --checkpoint-every {train_images}" if train_images else ""
    return f"{TRAIN} --data {folder}{often}{more}"


def evaluate(runs: str, views: int, folder: str = "FOLDER") -> str:
    return f"python -m harness evaluate {runs} --data {folder} --views {views}"


# The lines that can be run here, and what fills each.
FILLED_BY: dict[Printed, tuple[str, ...]] = {
    CNN_2010: (train(OF_2010, train_images=TRAIN_IMAGES_2010), evaluate("RUN", 10, TEST_OF_2010)),
    CNN_2010_CENTRE: (evaluate("RUN", 1, TEST_OF_2010),),
    CNN_1: (train("FOLDER"), evaluate("RUN", 10)),
    CNNS_5: (
        train("FOLDER", " --seed 1"),
        "and so with --seed 2, 3, 4 and 5",
        evaluate("RUN RUN RUN RUN RUN", 10),
    ),
    CNN_1_PRETRAINED: (
        train(OF_FALL_2011, f" --model {SIX_LAYERS}"),
        train("FOLDER", f" --model {SIX_LAYERS} --fine-tune-from RUN"),
        evaluate("RUN", 10),
    ),
    CNNS_7_PRETRAINED: (
        train("FOLDER", f" --model {SIX_LAYERS} --fine-tune-from RUN --seed 2"),
        evaluate("RUN RUN RUN RUN RUN RUN RUN", 10) + "   # five CNNs and two CNN*",
    ),
}


def to_fill(printed: Sequence[Printed], found: Iterable[tuple[Ours, Printed | str]]) -> list[str]:
    """The commands that fill the lines which are empty."""
    there = {line for _, line in found}
    missing = [line for line in printed if line in FILLED_BY and line not in there]
    if not missing:
        return []
    width = max(len(line.name) for line in missing)
    commands = [
        f"  {line.name if not place else '':<{width}}  {command}"
        for line in missing
        for place, command in enumerate(FILLED_BY[line])
    ]
    used = {word for command in commands for word in command.split()}
    legend = [f"  {name}: {means}" for name, means in STANDS_FOR.items() if name in used]
    statistics = "Where the network is trained with --statistics, `evaluate` takes them too."
    return ["What fills the empty lines:", *commands, *legend, statistics]


def told(heading: str, printed: Sequence[Printed], found: Sequence[tuple[Ours, Printed | str]], *notes: str) -> str:
    table = markdown(lines_beside(printed, found, test_column=printed is TABLE_2))
    return "\n".join([heading, "", table, "", *notes, *left_out(found), *to_fill(printed, found)])


def table1(results: Path) -> str:
    """Table 1 with ours, as `paper table1` prints it."""
    return told(
        "Table 1 of the paper: error on ILSVRC-2010's test set",
        TABLE_1,
        [(ours, line_of_table1(ours)) for ours in found_under(results)],
        "The centre crop's errors are those of the paper's footnote 5, without averaging over ten views.",
        INTERVALS,
        "A set of 1,000 classes and 150,000 evaluated images is taken for this one, whose files are not known here.",
    )


def table2(results: Path) -> str:
    """Table 2 with ours, as `paper table2` prints it."""
    return told(
        "Table 2 of the paper: error on ILSVRC-2012's validation set; the labels of its test set are not published",
        TABLE_2,
        [(ours, line_of_table2(ours)) for ours in found_under(results)],
        f"CNN*: a sixth convolution over the last pool (of our sizes: {SIX_LAYERS}), trained on the whole Fall 2011 release and "
        "fine-tuned. Ours: any that was fine-tuned; on what it was trained before is not recorded with its error.",
        INTERVALS,
        f"A set of 1,000 classes, 50,000 evaluated and about {IMAGENET:,} training images is taken for this one, whose files are not known here.",
    )


INTERVALS = "Ours: per cent of the images, and Wilson's 95 % interval over them; how much other seeds would differ is not in it."
TABLES: dict[str, Callable[[Path], str]] = {"table1": table1, "table2": table2}
