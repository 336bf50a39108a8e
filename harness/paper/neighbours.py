"""Figure 4: what a network makes of some test images, and the training images that lie nearest in its last hidden layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.checkpoint import Checkpoint, open_checkpoint
from harness.config import RunConfig
from harness.data import made
from harness.paper.claims import CLAIMS, FIGURE_4_CLASSES, FIGURE_4_NEIGHBOURS
from harness.paper.drawing import about, not_run, save_figure, save_table, wrote
from harness.paper.hidden import Nearest, activations, last_layer, nearest, scores, with_progress
from harness.paper.panel import Line, panel
from harness.predictions import image_names
from harness.rows import cell, words
from harness.showing import config_for, opened
from harness.summary import markdown

if TYPE_CHECKING:
    from harness.paper.hidden import Floats
    from pipelines.sources.imageset import ImageSet, Split

IMAGES_PER_BATCH = 128


def spread(count: int, of: int) -> list[int]:
    """`count` places of 0..of-1, evenly spread, each the middle of its equal share; all of them where there are fewer."""
    count = min(count, of)
    return [(2 * place + 1) * of // (2 * count) for place in range(count)]


def chosen(split: Split, places: Sequence[int]) -> Split:
    """The images of a split at these places, in this order."""
    spans = None if split.spans is None else split.spans[list(places)]
    files, labels = tuple(split.files[place] for place in places), tuple(split.labels[place] for place in places)
    return replace(split, files=files, labels=labels, spans=spans)


class Found(NamedTuple):
    """What the figure shows of Q test images; places are those of the two whole splits."""

    tests: list[int]
    probabilities: Floats  # (Q, classes)
    nearest: Nearest  # places in the training split
    hidden: str  # what the distances are of, in words


def look(
    checkpoint: Checkpoint, config: RunConfig, images: ImageSet, tests: Sequence[int], searched: Sequence[int]
) -> Found:
    """The tests through the network, and the nearest to each of the training images at the places `searched`."""
    import numpy as np
    import torch

    from harness.answers import refuse_what_is_not_finite
    from harness.workload import each_image_once, trained_networks

    assert images.val is not None
    (network,), device = trained_networks(config, [checkpoint])

    def batches(split: Split, places: Sequence[int]) -> Any:
        # A few images need no full batch of padding.
        few = config.with_(images_per_gpu=min(IMAGES_PER_BATCH, len(places)))
        return each_image_once(few, chosen(split, places), device, images.statistics)

    probabilities, queries = scores(network, batches(images.val, tests))
    refuse_what_is_not_finite(torch.from_numpy(probabilities)[None])
    trained = batches(images.train, searched)
    try:
        found = nearest(queries, with_progress(activations(network, trained), len(searched)), FIGURE_4_NEIGHBOURS)
    finally:
        trained.close()
    places = np.asarray(searched, np.int64)[found.places]
    name, layer = last_layer(network)
    hidden = (
        f"fc7's {layer.in_features:,} activations" if name == "fc8" else f"the {layer.in_features:,} inputs of {name}"
    )
    return Found(list(tests), probabilities, Nearest(places, found.distances), hidden)


def lines_of(found: Found, config: RunConfig, images: ImageSet) -> list[Line]:
    """What the panel draws, pictures and all."""
    from harness.workload import as_shown

    assert images.val is not None
    pictures = as_shown(config, chosen(images.val, found.tests)).numpy()
    neighbours = as_shown(config, chosen(images.train, found.nearest.places.ravel().tolist())).numpy()
    by_test = neighbours.reshape(*found.nearest.places.shape, *neighbours.shape[1:])
    names = images.classes
    lines = []
    for number, test in enumerate(found.tests):
        labels = [names[images.train.labels[place]] for place in found.nearest.places[number]]
        near = zip(by_test[number], labels, found.nearest.distances[number].tolist(), strict=True)
        likeliest = [(names[place], probability) for place, probability in likeliest_of(found.probabilities[number])]
        lines.append(Line(pictures[number], names[images.val.labels[test]], likeliest, list(near)))
    return lines


def likeliest_of(probabilities: Floats) -> list[tuple[int, float]]:
    """The five classes of the highest probabilities (classes,), of equals the lower number first."""
    order = (-probabilities).argsort(kind="stable")[:FIGURE_4_CLASSES]
    return [(int(place), float(probabilities[place])) for place in order]


def figure4(
    place: Path,
    out: Path,
    *,
    data: str | None,
    exclude: str | None,
    statistics: str | None,
    tests: int,
    train_images: int | None,
) -> str:
    """Writes figure4.png, .svg, figure4.csv (the neighbours) and figure4-classes.csv into `out`; what was found, in words."""
    checkpoint = open_checkpoint(place)
    made(out)
    config = config_for(
        [checkpoint], data=data, exclude=exclude, statistics=statistics, views=1, precision="fp32",
        images_per_batch=IMAGES_PER_BATCH,
    )  # fmt: skip
    print(about(checkpoint))
    images = opened(config, [checkpoint], quiet=False)
    assert images.val is not None
    searched = spread(train_images or len(images.train), len(images.train))
    print(searching(len(searched), len(images.train)), flush=True)
    found = look(checkpoint, config, images, spread(tests, len(images.val)), searched)
    lines = lines_of(found, config, images)
    title = f"{about(checkpoint)}; {searching(len(searched), len(images.train))}"
    paths = [
        *save_figure(panel(lines, title, found.hidden), out, "figure4"),
        save_table(out, "figure4", NEIGHBOURS, neighbour_cells(found, images)),
        save_table(out, "figure4-classes", CLASSES, class_cells(found, images)),
    ]
    return f"\n{markdown([told(line) for line in lines])}\n\n{agreement(lines)}\n{PAPER_SAYS}\n{wrote(paths)}"


NEIGHBOURS = words("test_image class rank training_image training_class distance")
CLASSES = words("test_image class rank predicted probability")


def searching(images: int, of: int) -> str:
    how_many = f"all {of:,}" if images == of else f"{images:,}, evenly spread, of {of:,}"
    return f"nearest among {how_many} training images"


def neighbour_cells(found: Found, images: ImageSet) -> Iterator[list[str]]:
    """The lines of figure4.csv."""
    names, train, trained = images.classes, images.train, image_names(images, images.train)
    for test, places, distances in zip(named_tests(found, images), *found.nearest, strict=True):
        for rank, (near, distance) in enumerate(zip(places.tolist(), distances.tolist(), strict=True), 1):
            yield [*test, str(rank), trained[near], names[train.labels[near]], cell(distance)]


def class_cells(found: Found, images: ImageSet) -> Iterator[list[str]]:
    """The lines of figure4-classes.csv."""
    for test, probabilities in zip(named_tests(found, images), found.probabilities, strict=True):
        for rank, (label, probability) in enumerate(likeliest_of(probabilities), 1):
            yield [*test, str(rank), images.classes[label], cell(probability)]


def named_tests(found: Found, images: ImageSet) -> list[list[str]]:
    """Name and class of each test image."""
    assert images.val is not None
    names = image_names(images, images.val)
    return [[names[test], images.classes[images.val.labels[test]]] for test in found.tests]


def told(line: Line) -> dict[str, str]:
    """A test image as a line of the terminal's table."""
    label, probability = line.likeliest[0]
    return {
        "test image": line.label,
        "likeliest": label,
        "probability, %": f"{100 * probability:.1f}",
        "in its five": "yes" if line.label in dict(line.likeliest) else "no",
        "nearest training images": ", ".join(near for _, near, _ in line.neighbours),
    }


def agreement(lines: Sequence[Line]) -> str:
    near = [neighbour == line.label for line in lines for _, neighbour, _ in line.neighbours]
    return f"{sum(near)} of these {len(near)} nearest training images are of their test image's class"


PAPER_SAYS = f"the paper ({CLAIMS['figure4'].section}): {CLAIMS['figure4'].says}"
NOT_RUN = not_run(PAPER_SAYS, "figure4 RUN --data FOLDER")
