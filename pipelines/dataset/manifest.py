"""What `data check` found: a row a file, and the two files that hold it, the exclusion list and the manifest."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import DataError
from pipelines.dataset.whole import write_whole
from pipelines.sources.imageset import StrPath

EXCLUSIONS, MANIFEST = "exclude.txt", "manifest.csv"
BAD_TOLD = 10  # bad files named in the summary
COLUMNS = ("path", "bytes", "sha256", "width", "height", "channels", "format", "fault", "notes")


@dataclass(slots=True)
class Row:
    """One file, or a folder that cannot be entered. Unknown is None or empty."""

    path: str  # relative to the root, with /
    bytes: int | None = None
    sha256: str = ""
    width: int | None = None
    height: int | None = None
    channels: int | None = None
    format: str = ""
    fault: str = ""  # "kind: more", or empty: the image is good
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found: a row a file, sorted by path."""

    rows: tuple[Row, ...]
    seen_by_runs: frozenset[str] = field(default=frozenset(), repr=False)  # bad ones that a run would take for images

    @property
    def total(self) -> int:
        return len(self.rows)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """Path and reason of every file that no run should meet."""
        return [(row.path, row.fault) for row in self.rows if row.fault]

    @property
    def faults(self) -> dict[str, int]:
        """Bad files by kind, most first."""
        return _counted(row.fault for row in self.rows if row.fault)

    @property
    def notes(self) -> dict[str, int]:
        """Good files by kind of note, most first."""
        return _counted(note for row in self.rows if not row.fault for note in row.notes)


def write(report: Report, folder: StrPath) -> tuple[Path, Path]:
    """The exclusion list and the manifest, each whole or not at all; their paths."""
    excluded, manifest = Path(folder, EXCLUSIONS), Path(folder, MANIFEST)
    try:
        excluded.parent.mkdir(parents=True, exist_ok=True)
        write_whole(excluded, _exclusions(report).encode(errors="surrogateescape"))
        write_whole(manifest, _manifest(report).encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(
            f"the check's lists cannot be written to {folder} ({error.strerror or error}): name another folder"
        ) from error
    return excluded, manifest


def told(report: Report, folder: StrPath) -> str:
    """The report as a person reads it, with where `write` put its files. A name that is no text is shown escaped."""
    bad = report.bad
    lines = [f"{report.total:,} files: {report.total - len(bad):,} good, {len(bad):,} bad"]
    lines += [f"{count:8,}  bad: {kind}" for kind, count in report.faults.items()]
    lines += [f"{count:8,}  noted: {kind}" for kind, count in report.notes.items()]
    lines += [f"{path!r}: {reason}" for path, reason in bad[:BAD_TOLD]]
    if len(bad) > BAD_TOLD:
        lines.append(f"and {len(bad) - BAD_TOLD:,} more bad ones")
    lines.append(f"all of it: {Path(folder, MANIFEST)}")
    if report.seen_by_runs:
        lines.append(f"to run without the bad ones: --exclude {Path(folder, EXCLUSIONS)}")
    if by_hand := len(bad) - len(report.seen_by_runs):
        lines.append(f"{by_hand:,} are no images to a run, or have names that no list can hold: mend them by hand")
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def read_manifest(path: StrPath) -> list[Row]:
    """The rows that `write` wrote; `DataError` for a file that is no such manifest."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, strict=True)
            if tuple(next(lines, ())) != COLUMNS:
                raise ValueError("its columns are others")
            return [_row(*line) for line in lines]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path} is no manifest ({error}): make it with `data check`") from error


def _exclusions(report: Report) -> str:
    bad = report.bad
    by_hand = [(path, reason) for path, reason in bad if path not in report.seen_by_runs]
    lines = [
        f"# Left out: {len(bad) - len(by_hand)} of {report.total} files, bad by `data check`; reasons in {MANIFEST}."
    ]
    lines += [f"# To be mended by hand: {path!r} ({reason})" for path, reason in by_hand]
    lines += sorted(report.seen_by_runs)
    return "\n".join(lines) + "\n"


def _manifest(report: Report) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in report.rows:
        cells = [getattr(row, column) for column in COLUMNS[:-1]]
        table.writerow([*cells, "; ".join(row.notes)])
    return text.getvalue()


def _row(path: str, *cells: str) -> Row:
    size, digest, width, height, channels, file_format, fault, notes = cells
    kept = tuple(notes.split("; ")) if notes else ()
    return Row(
        path, _number(size), digest, _number(width), _number(height), _number(channels), file_format, fault, kept
    )


def _number(cell: str) -> int | None:
    return int(cell) if cell else None


def _counted(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(text.partition(":")[0] for text in texts).most_common())
