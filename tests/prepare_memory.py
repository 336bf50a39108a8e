"""Prints what `data prepare` takes in memory against the number of images: python tests/prepare_memory.py FOLDER.

FOLDER has the photographs of class folders, which are repeated to the numbers asked for.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.dataset.prepare import prepare
from pipelines.sources import ImageSet, open_source

COUNTS = (300, 1200, 4800)
WORKERS = 2
MIB = 2**20


def repeated(images: ImageSet, count: int) -> ImageSet:
    """The training images over and over, up to `count`."""
    files, labels = (
        tuple(itertools.islice(itertools.cycle(each), count)) for each in (images.train.files, images.train.labels)
    )
    return replace(images, train=replace(images.train, files=files, labels=labels), val=None)


def measured(images: ImageSet, form: str, out: Path) -> tuple[float, float, float]:
    """Images/s, and the most MiB that this process and the largest of its workers were seen with."""
    this, most = psutil.Process(), [0.0, 0.0]

    def look(_done: int, _of: int) -> None:
        workers = [child.memory_info().rss for child in this.children()]
        for place, rss in enumerate((this.memory_info().rss, max(workers, default=0))):
            most[place] = max(most[place], rss / MIB)

    start_s = time.perf_counter()
    prepare(images, out, form=form, workers=WORKERS, images_per_shard=100, progress=look)
    return len(images.train) / (time.perf_counter() - start_s), *most


if __name__ == "__main__":
    photographs = open_source(sys.argv[1])
    print(f"{'form':<14}{'images':>8}{'images/s':>10}{'asker MiB':>11}{'worker MiB':>12}   ({WORKERS} workers)")
    for form, count in itertools.product(("prepared-jpeg", "prepared-raw"), COUNTS):
        with tempfile.TemporaryDirectory() as folder:
            images_per_s, asker, worker = measured(repeated(photographs, count), form, Path(folder) / "set")
        print(f"{form:<14}{count:>8}{images_per_s:>10.0f}{asker:>11.0f}{worker:>12.0f}", flush=True)
