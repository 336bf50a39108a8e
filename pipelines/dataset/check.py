"""`data check`: every image file under a folder, its header and its decoding; what is bad, and what is worth knowing.

Bad images go into a list that a run takes as `--exclude`; all go into a manifest. A file whose bytes were changed and
which still decodes is told only where the decoder noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pipelines import DataError
from pipelines.dataset.encoded import Decoder, header_of, pillow_quiet, refusal
from pipelines.dataset.manifest import Report, Row, read_manifest, told, write
from pipelines.pictures import PIXEL_LIMIT
from pipelines.sources import open_source
from pipelines.sources.folders import existing, is_image
from pipelines.sources.imageset import Progress, StrPath

__all__ = ["PIXEL_LIMIT", "Report", "Row", "check", "read_manifest", "told", "write"]

IMAGES_PER_BATCH = 64
PIXELS_PER_BATCH = 64_000_000
BYTES_KEPT = 1 << 20  # a larger file is read again when it is decoded, so that files waiting take little memory
FILES_AHEAD = 4 * IMAGES_PER_BATCH


def check(root: StrPath, *, workers: int, pixel_limit: int = PIXEL_LIMIT, progress: Progress | None = None) -> Report:
    """Look at every image file under `root`, the same report whatever the number of workers.

    No file is decoded whose header asks for more than `pixel_limit` pixels. `DataError` where there is no image file.
    """
    folder = str(existing(root))
    names = list(_names(folder))
    if not names:
        raise DataError(
            f"{root} holds no image files: data check reads class folders; shards are checked as they are prepared"
        )
    rows: list[Row] = []
    with (
        pillow_quiet(),
        contextlib.closing(_Decoding(workers)) as decoding,
        contextlib.closing(_inspected(folder, names, workers, pixel_limit)) as inspected,
    ):
        for row, contents in inspected:
            rows.append(row)
            if not row.fault:
                decoding.add(os.path.join(folder, row.path), row, contents)
            if progress is not None and len(rows) % IMAGES_PER_BATCH == 0:
                progress(len(rows) - len(decoding.waiting), len(names))
        decoding.flush()
    if progress is not None:
        progress(len(names), len(names))
    rows.sort(key=lambda row: row.path)
    _note_duplicates(rows)
    return Report(tuple(rows), frozenset(_seen_by_runs(folder, [row.path for row in rows if row.fault])))


def _names(root: str) -> Iterator[tuple[str, str]]:
    """Relative path and fault (empty as a rule) of every image file, and of every folder that cannot be entered."""
    real_root = os.path.realpath(root)

    def inside(folder: str, above: frozenset[str]) -> Iterator[tuple[str, str]]:
        real = os.path.realpath(os.path.join(root, folder))
        if not _is_within(real, real_root):
            yield folder, f"outside the folder: it leads to {real!r}"
        elif real not in above:  # else a link leads back to where it lies
            try:
                with os.scandir(os.path.join(root, folder)) as entries:
                    found = sorted((entry.name, os.path.isdir(entry.path)) for entry in entries)
            except OSError as error:
                yield folder or ".", f"unreadable: {error.strerror}"
                return
            for name, is_folder in found:
                path = os.path.join(folder, name)
                if is_folder and not name.startswith("."):
                    yield from inside(path, above | {real})
                elif is_image(name) and not is_folder:
                    yield path, _fault_of_name(path, os.path.join(root, path), real_root)

    return inside("", frozenset())


def _is_within(real_path: str, real_root: str) -> bool:
    return real_path == real_root or real_path.startswith(os.path.join(real_root, ""))


def _fault_of_name(name: str, path: str, real_root: str) -> str:
    if name.splitlines() != [name]:
        return "bad name: it breaks the line of a list; rename it"
    if os.path.islink(path) and not _is_within(real := os.path.realpath(path), real_root):
        return f"outside the folder: it leads to {real!r}"
    return ""


def _inspected(
    root: str, names: list[tuple[str, str]], workers: int, pixel_limit: int
) -> Generator[tuple[Row, bytes | None], None, None]:
    """A row a name, in order, and the file's bytes where they are few; a bounded number is read ahead."""

    def inspect(name: str, fault: str) -> tuple[Row, bytes | None]:
        return (Row(name, fault=fault), None) if fault else _inspect(root, name, pixel_limit)

    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[tuple[Row, bytes | None]]] = deque()
    try:
        for name in names:
            ahead.append(pool.submit(inspect, *name))
            if len(ahead) > FILES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _inspect(root: str, name: str, pixel_limit: int) -> tuple[Row, bytes | None]:
    try:
        with _opened(os.path.join(root, name)) as file:
            contents = file.read(BYTES_KEPT + 1)
            size, digest = len(contents), hashlib.sha256(contents)
            while part := file.read(BYTES_KEPT):
                size += len(part)
                digest.update(part)
            whole = size == len(contents) and size <= BYTES_KEPT
            file.seek(0)
            header = header_of(io.BytesIO(contents) if whole else file, name, size, pixel_limit)
    except OSError as error:
        return Row(name, fault=f"unreadable: {error.strerror or error}"), None
    row = Row(
        name, size, digest.hexdigest(), header.width, header.height, header.channels, header.format, header.fault, header.notes
    )  # fmt: skip
    return row, contents if whole and not row.fault else None


def _opened(path: str) -> BinaryIO:
    """A regular file, opened to read; OSError for all else, a pipe without waiting for its other end."""
    # Opening some devices does something; a pipe put in the file's place meanwhile must still not be waited for.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


class _Decoding:
    """Gathers good headers into batches of few enough pixels and writes into their rows what the decoder says."""

    def __init__(self, threads: int) -> None:
        self.decoder = Decoder(threads, IMAGES_PER_BATCH)
        self.waiting: list[tuple[str, Row, bytes | None]] = []
        self.room_pixels = PIXELS_PER_BATCH

    def add(self, path: str, row: Row, contents: bytes | None) -> None:
        assert row.width is not None
        assert row.height is not None
        assert row.bytes is not None
        # Bytes count as well: an image of few pixels can be a large file.
        size = max(row.width * row.height, row.bytes)
        if size > self.room_pixels:
            self.flush()
        self.waiting.append((path, row, contents))
        self.room_pixels -= size
        if len(self.waiting) == IMAGES_PER_BATCH:
            self.flush()

    def flush(self) -> None:
        """Decode what waits."""
        batch, self.waiting, self.room_pixels = self.waiting, [], PIXELS_PER_BATCH
        readable: list[tuple[Row, bytes]] = []
        for path, row, contents in batch:
            try:
                readable.append((row, Path(path).read_bytes() if contents is None else contents))
            except OSError as error:
                row.fault = f"unreadable: {error.strerror}"
        verdicts = self.decoder.verdicts([contents for _, contents in readable])
        for (row, contents), verdict in zip(readable, verdicts, strict=True):
            if not verdict.decoded:
                row.fault = refusal(contents, verdict.told)
            elif verdict.damaged:
                row.notes += ("damaged but decoded",)

    def close(self) -> None:
        """End DALI; what waits is not decoded."""
        self.decoder.close()


def _note_duplicates(rows: list[Row]) -> None:
    """Note in every good file but the first of those with equal bytes, by path, where the first is."""
    first: dict[str, Row] = {}
    for row in rows:
        if row.fault:
            continue
        other = first.setdefault(row.sha256, row)
        if other is not row:
            row.notes += (f"{_kind_of_duplicate(row.path, other.path)}: {other.path}",)


def _kind_of_duplicate(path: str, other: str) -> str:
    splits = {next((part for part in name.split("/") if part in ("train", "val")), "") for name in (path, other)}
    if len(splits) > 1:
        return "duplicate in the other split"
    return "duplicate" if os.path.dirname(path) == os.path.dirname(other) else "duplicate in another class"


def _seen_by_runs(root: str, bad: list[str]) -> list[str]:
    """The bad files that a run would take for images: it refuses a list of names that it does not know."""
    can_be_listed = [name for name in bad if name.splitlines() == [name.strip()] and not name.startswith("#")]
    if not can_be_listed:
        return []
    try:
        images = open_source(root)
    except DataError:
        # What no run can open as it is must be mended first; the list is right afterwards.
        depth = 2 if os.path.isdir(os.path.join(root, "train")) else 1
        return [name for name in can_be_listed if name.count("/") == depth and os.path.isfile(os.path.join(root, name))]
    files = (*images.train.files, *(images.val.files if images.val else ()))
    known = {os.path.relpath(file, root) for file in files}
    return [name for name in can_be_listed if name in known]
