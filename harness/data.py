"""The commands about data sets, thin: make, check, prepare, statistics."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import AskedWrongly, whole
from harness.environment import cpu_cores_usable
from harness.progress import Display

if TYPE_CHECKING:
    from pipelines.sources.imageset import ImageSet

FORMS = {"jpeg": "prepared-jpeg", "raw": "prepared-raw"}


def add_data(commands: Any, parser_class: Any) -> None:
    """`data` and its four commands."""
    data = commands.add_parser("data", help="make, check, prepare and measure sets of images")
    what = data.add_subparsers(
        dest="what", metavar="make|check|prepare|statistics", required=True, parser_class=parser_class
    )

    make = what.add_parser("make", help="write the embedded set to its cache, and say where it is")
    make.set_defaults(call=run_make)

    check = what.add_parser("check", help="find every image that a run could not use: exclude.txt and manifest.csv")
    check.add_argument("folder", metavar="FOLDER", help="class folders, or ImageNet as distributed")
    check.add_argument(
        "--out", metavar="FOLDER", type=Path, help="where the two files go (default: <FOLDER's name>-check)"
    )
    check.add_argument(
        "--pixel-limit", metavar="NUMBER", type=whole(1), help="more pixels by the header are never decoded"
    )
    check.set_defaults(call=run_check)

    prepare, statistics = add_prepare(what), add_statistics(what)
    for command in (prepare, statistics):
        command.add_argument("--exclude", metavar="FILE", help="images to leave out, as `data check` writes them")
    for command in (check, prepare, statistics):
        command.add_argument(
            "--workers", metavar="NUMBER", type=whole(1), help="threads or processes (default: usable cores)"
        )


def add_prepare(what: Any) -> argparse.ArgumentParser:
    prepare: argparse.ArgumentParser = what.add_parser(
        "prepare", help="write a set again as 256x256 squares, in shards that runs read faster"
    )
    prepare.add_argument("folder", metavar="FOLDER", help="any set that --data takes")
    prepare.add_argument(
        "out", metavar="OUT", type=Path, help="the prepared set's folder; the same command goes on where it stopped"
    )
    prepare.add_argument(
        "--form",
        choices=tuple(FORMS),
        default="jpeg",
        help="jpeg: WebDataset shards, quality 95; raw: pixels, seven times the bytes (default jpeg)",
    )
    prepare.set_defaults(call=run_prepare)
    return prepare


def add_statistics(what: Any) -> argparse.ArgumentParser:
    statistics: argparse.ArgumentParser = what.add_parser(
        "statistics", help="mean image and colour covariance of a training set, for run --statistics"
    )
    statistics.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="any set that --data takes; the embedded set if left out"
    )
    statistics.add_argument(
        "--side", metavar="PIXELS", type=whole(1, 4096), default=256, help="side of the mean image (default 256)"
    )
    statistics.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path(), help="where the file goes (default: here)"
    )
    statistics.set_defaults(call=run_statistics)
    return statistics


@contextmanager
def shown(phase: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """`progress(done, of)` as a bar with rate and time left; `quiet` shows nothing."""
    begun_s, before = time.monotonic(), -1
    # A way of its own to the terminal: `data check` leads standard error elsewhere while the decoders work.
    with os.fdopen(os.dup(2), "w") as stream, Display(quiet=quiet, stream=stream) as display:
        display.show({"phase": phase})

        def progress(done: int, of: int) -> None:
            nonlocal before
            # What an earlier run did was not done in this time.
            before = done if before < 0 else before
            rate = (done - before) / max(time.monotonic() - begun_s, 1e-9)
            display.show({"phase": phase, "done": done, "of": of, "share": done / max(of, 1), "images_per_s": rate})

        yield progress


def opened(folder: str | None, exclude: str | None) -> ImageSet:
    """The set, said aloud."""
    from pipelines import sources
    from pipelines.dataset import embedded

    with shown("data") as progress:
        images = (
            sources.open_source(folder, exclude, progress)
            if folder is not None
            else embedded.open_embedded_set(progress=progress)
        )
    print(sources.described(images), flush=True)
    return images


def made(out: Path) -> None:
    """The folder for what is written at the end, made now: hours of work are not to be lost to its name."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise AskedWrongly(f"--out {out} cannot be written to ({error.strerror}): name another folder") from error


def workers(arguments: argparse.Namespace) -> int:
    return arguments.workers or cpu_cores_usable()


def run_make(_arguments: argparse.Namespace) -> int:
    from pipelines.dataset import embedded

    with shown("data") as progress:
        path = embedded.make_embedded_set(progress=progress)
    print(path)
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    from pipelines.dataset import check
    from pipelines.sources.prepared_set import SET, verify

    if (Path(arguments.folder) / SET).is_file():
        with shown("check") as progress:
            verify(Path(arguments.folder), progress)
        print(f"every shard of {arguments.folder} holds the bytes that were written")
        return 0
    out = arguments.out or Path(f"{Path(arguments.folder).resolve().name}-check")
    if out.resolve().is_relative_to(Path(arguments.folder).resolve()):
        raise AskedWrongly(
            f"the check's files would go to {out}, inside the set that they are about: name another --out"
        )
    made(out)
    limit = {"pixel_limit": arguments.pixel_limit} if arguments.pixel_limit else {}
    with shown("check") as progress:
        report = check.check(arguments.folder, workers=workers(arguments), progress=progress, **limit)
    check.write(report, out)
    print(check.told(report, out))
    return int(bool(report.bad))


def run_prepare(arguments: argparse.Namespace) -> int:
    from pipelines import sources
    from pipelines.dataset.prepare import prepare

    images = opened(arguments.folder, arguments.exclude)
    # With the whole set at hand only the shards of images that are left out now are written anew.
    whole = sources.open_source(arguments.folder) if arguments.exclude else None
    with shown("prepare") as progress:
        out = prepare(
            images, arguments.out, form=FORMS[arguments.form], workers=workers(arguments), progress=progress,
            root=Path(arguments.folder), whole=whole,
        )  # fmt: skip
    print(
        f"{sources.described(sources.open_source(out))}\nuse it as: python -m harness run --data {out} --augment paper"
    )
    return 0


def run_statistics(arguments: argparse.Namespace) -> int:
    from pipelines.dataset import statistics

    made(arguments.out)
    images = opened(arguments.folder, arguments.exclude)
    with shown("statistics") as progress:
        found = statistics.measure(
            images.train,
            side=arguments.side,
            threads=workers(arguments),
            progress=progress,
            dataset_id=images.dataset_id,
        )
    path = statistics.save(found, arguments.out)
    means, roots = (
        " ".join(f"{number:.2f}" for number in row) for row in (found.channel_means, found.eigenvalue_roots)
    )
    print(f"{found.count:,} images: mean R G B {means}, colour deviations {roots}")
    of = "".join(
        f" --{name} {value}" for name, value in (("data", arguments.folder), ("exclude", arguments.exclude)) if value
    )
    print(f"use it as: python -m harness run{of} --augment paper --statistics {path}")
    return 0
