"""`data prepare`: the middle square of every image of a set, in shards that are quick to read.

A folder becomes a set when its `set.json` appears, last of all. Until then `unfinished.json` says what is being made
there, and a sidecar beside each shard that it is finished, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from pipelines import DataError
from pipelines.dataset.plan import Job, Planned, missing_places, refuse_wrong, splits_alike
from pipelines.dataset.squares import Bad, Shard, Written, finished, jpeg, middle, write
from pipelines.dataset.whole import PARTIAL, write_whole
from pipelines.dataset.workers import Event, WorkerDied, at_work, usable_cores
from pipelines.sources.imageset import ImageSet, Progress
from pipelines.sources.prepared_set import SET, UNFINISHED, as_json, check_sizes, read_description

# Of a small set, shards small enough for every core to have some: a shard is the work of one.
IMAGES_PER_SHARD = 1000
SHARDS_LEAST, IMAGES_PER_SHARD_LEAST = 32, 16
BAD, LOCK = "bad.txt", ".prepare.lock"
SAMPLED = 50  # images encoded to estimate the size of all
SPACE_MARGIN = 1.1


def prepare(
    images: ImageSet,
    out: Path,
    *,
    form: str,
    side: int = 256,
    quality: int = 95,
    workers: int | None = None,
    images_per_shard: int | None = None,
    progress: Progress | None = None,
    root: Path | None = None,
    whole: ImageSet | None = None,
) -> Path:
    """Write the prepared set of `images` into the folder `out`, or go on with it; returns `out`.

    `form` is prepared-jpeg or prepared-raw; `workers` None means one a usable core. Same arguments give the same bytes.
    `whole` is the same source with nothing left out: given it, one more image left out of `images` redoes only the
    shard it was in, where otherwise it makes another set. `root` is what names in the list of bad images are relative
    to (None: the images' common folder). `progress` is called from this process. `DataError` where images are bad (all
    others are then done), where `out` holds something else, is in use or too small, and for sources prepared before.
    """
    if whole and not splits_alike(whole, images):
        whole = None  # without a val/ folder other images are held out once some are left out: that is another set
    source = whole or images
    job = Job(
        source,
        Path(out),
        form,
        side,
        quality if form == "prepared-jpeg" else None,
        images_per_shard or fair_shard(len(source.train)),
        root,
        missing_places(whole, images) if whole else {},
    )
    refuse_wrong(job)
    if root and job.out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out} lies inside {root}, the set that it is made from: give a folder outside it")
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        refuse_strangers(job.out)
        with FileLock(job.out / LOCK, blocking=False):
            if not claimed(job):
                finish(job, written_shards(job, workers or usable_cores(), progress))
    except Timeout:
        raise DataError(f"{out} is being prepared by another process: wait for it, or give another folder") from None
    except OSError as error:
        raise DataError(
            f"the prepared set cannot be written to {out} ({error.strerror or error}): {remedy(error)}"
        ) from error
    return job.out


def claimed(job: Job) -> bool:
    """Make `out` this job's, and tell whether its set is there already. `DataError` where something else is there."""
    whole, begun = read_description(job.out / SET), read_description(job.out / UNFINISHED)
    if found := whole or begun:
        refuse_other(job, found, job.described)
    if whole:
        refuse_other(job, {"list_of_images_left_out": gaps_told(whole)}, {"list_of_images_left_out": job.all_gaps})
        check_sizes(job.out, whole)
        clear(job.out)
        return True
    remove_partial(job.out)
    return False


def refuse_strangers(out: Path) -> None:
    """`DataError` where a folder holds anything but a prepared set, or what was to become one."""
    ours = (path.name for path in out.iterdir() if path.name not in (LOCK, BAD))
    names = sorted(name for name in ours if not name.endswith(PARTIAL))
    if names and SET not in names and UNFINISHED not in names:
        raise DataError(f"{out} holds other things ({', '.join(names[:3])}): give an empty folder, or a new one")


def gaps_told(described: dict[str, Any]) -> dict[str, list[int]]:
    """File -> places left out, of the shards that lack any."""
    entries = [entry for entries in described["splits"].values() for entry in entries]
    return {entry["file"]: entry["left_out"] for entry in entries if "left_out" in entry}


def refuse_other(job: Job, found: dict[str, Any], asked: dict[str, Any]) -> None:
    for key, value in asked.items():
        if found.get(key) != value:
            differs = f" {found.get(key)}, and {value} was asked" if isinstance(value, str | int) else ""
            raise DataError(
                f"{job.out} holds a set of another {key.replace('_', ' ')}{differs}: give another folder, or empty this one"
            )


def fair_shard(images: int) -> int:
    """Images a shard for a training split of so many, whatever machine prepares it."""
    return min(IMAGES_PER_SHARD, max(IMAGES_PER_SHARD_LEAST, -(-images // SHARDS_LEAST)))


def written_shards(job: Job, workers: int, progress: Progress | None) -> dict[str, Written]:
    """Every shard of the job by name, those that are missing written now. `DataError` unless all could be."""
    done = {
        planned.file: written
        for planned in job.planned()
        if (written := finished(job.out / planned.file)) and written.left_out == job.gaps(planned)
    }
    missing = [planned for planned in job.planned() if planned.file not in done]
    total = sum(planned.stop - planned.start - len(job.gaps(planned)) for planned in job.planned())
    check_space(job, missing)
    write_whole(job.out / UNFINISHED, as_json(job.described))
    bad: list[tuple[str, Bad]] = []
    counts = {"before": sum(written.images for written in done.values())}
    tell = progress or (lambda _done, _of: None)
    tell(counts["before"], total)
    by_path = {str(job.out / planned.file): planned for planned in missing}
    tasks = (job.shard(planned) for planned in missing)
    try:
        with closing(at_work(write, tasks, min(workers, len(missing)))) as events:
            for event in events:
                planned = by_path[event.task.path]
                counts[planned.file] = len(event.task.sources) if event.told < 0 else event.told
                take(event, planned, done, bad)
                tell(sum(counts.values()), total)
    except WorkerDied as death:
        which = f"the worker that wrote {Path(death.task.path).name}" if isinstance(death.task, Shard) else "a worker"
        raise DataError(
            f"{which} ended in the middle ({death.how}), perhaps for want of memory: finished shards are kept; "
            "free memory or ask for fewer workers, and run again"
        ) from death
    finally:
        remove_partial(job.out)
    if bad:
        raise bad_images(job, bad, total)
    return done


def take(event: Event[Shard, Any], planned: Planned, done: dict[str, Written], bad: list[tuple[str, Bad]]) -> None:
    """Put a shard's outcome where it belongs; raises what kept it from being written."""
    if event.error is not None:
        raise event.error
    if isinstance(event.result, Written):
        done[planned.file] = event.result
    elif event.result is not None:
        bad += [(planned.part, each) for each in event.result]


def check_space(job: Job, missing: list[Planned]) -> None:
    """`DataError` where the shards still to be written will not fit."""
    images = sum(planned.stop - planned.start - len(job.gaps(planned)) for planned in missing)
    if job.form == "prepared-raw":
        needed = images * (job.side**2 * 3 + 2)
    else:
        sample = (source for planned in missing for source in job.sources(planned))
        squares = (middle(source, job.side) for source, _ in zip(sample, range(SAMPLED), strict=False))
        # A tar's members begin with a block of 512 bytes and end on one.
        sizes = [1536 + -(-len(jpeg(each, job.quality)) // 512) * 512 for each in squares if not isinstance(each, Bad)]
        needed = round(images * sum(sizes) / max(1, len(sizes)) * SPACE_MARGIN)
    free = shutil.disk_usage(job.out).free
    if needed > free:
        raise DataError(
            f"{images:,} images as {job.form} take about {gib(needed)} and {job.out} has {gib(free)} free: "
            "free some space, or give a folder on another disk"
        )


def bad_images(job: Job, bad: list[tuple[str, Bad]], total: int) -> DataError:
    """Write the list of them, those left out before included; the sentence about it."""
    reasons = {job.name(part, int(job.orders[part][each.place])): each.reason for part, each in bad}
    before = [job.name(part, int(original)) for part, gone in job.left_out.items() for original in np.flatnonzero(gone)]
    # A name that breaks the line cannot be listed: it is told as a comment, to be mended by hand.
    lines = [name if name.splitlines() == [name] else f"# rename: {name!r}" for name in sorted([*reasons, *before])]
    write_whole(job.out / BAD, b"".join(os.fsencode(f"{line}\n") for line in lines))
    first = ", ".join(f"{name}: {' '.join(reasons[name].split())}" for name in sorted(reasons)[:3])
    return DataError(
        f"{len(bad)} of {total:,} images cannot be decoded ({first}): mend them, or leave them out with "
        f"--exclude {job.out / BAD}, and run again; every shard without one is kept"
    )


def finish(job: Job, done: dict[str, Written]) -> None:
    """Write `set.json`, which makes the folder a set."""
    splits: dict[str, list[dict[str, Any]]] = {part: [] for part in job.splits}
    for planned in job.planned():
        written = done[planned.file]
        entry = {"file": planned.file, "images": written.images, "bytes": written.bytes, "sha256": written.sha256}
        if written.labels_sha256:
            entry["labels_sha256"] = written.labels_sha256
        if written.left_out:
            entry["left_out"] = list(written.left_out)
        splits[planned.part].append(entry)
    splits = {part: entries for part, entries in splits.items() if entries}
    write_whole(job.out / SET, as_json({**job.described, "excluded": job.excluded, "splits": splits}))
    if not job.excluded:
        (job.out / BAD).unlink(missing_ok=True)
    clear(job.out)


def clear(folder: Path) -> None:
    """Remove what only an unfinished set needs."""
    remove_partial(folder)
    for pattern in ("*.tar.json", "*.raw.json", UNFINISHED):
        for path in folder.glob(pattern):
            path.unlink()


def remove_partial(folder: Path) -> None:
    """Remove what workers that are gone had not finished."""
    for path in folder.glob(f"*{PARTIAL}"):
        path.unlink(missing_ok=True)


def gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "finished shards are kept; free some space and run again"
    return "finished shards are kept; give a folder that can be written to, and run again"
