"""Tables and run folders: what a launch leaves behind, and whether it still agrees with itself."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.config import AskedWrongly
from harness.metrics.learning import errors_pct, evaluation_points, images_a_step, job_losses
from harness.metrics.speed import timed_s, windows_done
from harness.rows import COLUMNS, SCHEMA_VERSION, SINCE, cell, identities, row_of, words
from harness.trial import Trial, from_json


class TableError(AskedWrongly):
    """A table or record that cannot be read, or cannot take a row."""


# --- run folders --------------------------------------------------------------------------------------------------


def run_folder(table_path: Path | str, run_id: str) -> Path:
    return Path(table_path).parent / "runs" / run_id


def write_record(folder: Path | str, record: dict[str, Any]) -> None:
    """trial.json, then epochs.csv and row.csv, each whole or not there. A number that is not finite is kept as text."""
    lines = (f"{json.dumps(key)}: {json.dumps(strict(value), allow_nan=False)}" for key, value in record.items())
    write_whole(Path(folder) / "trial.json", "{\n" + ",\n".join(lines) + "\n}\n")
    write_whole(Path(folder) / "epochs.csv", csv_text(EPOCHS, error_curve(from_json(Trial, strict(record["trial"])))))
    row = row_of(record)
    write_whole(Path(folder) / "row.csv", csv_text(COLUMNS, [row.values()]))


def strict(value: Any) -> Any:
    """`value` as JSON has it: lists, and "nan", "inf" or "-inf" for what JSON cannot say; of samples, only what a sensor told."""
    if isinstance(value, dict):
        sampled = "at_s" in value
        return {key: strict(item) for key, item in value.items() if not sampled or item is not None}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


EPOCHS = words("step images_seen seconds joules loss top1_error_pct top5_error_pct")


def error_curve(trial: Trial) -> list[list[str]]:
    """A line an evaluation: `seconds` of timed windows so far; `loss` is the training loss's mean since the line before."""
    losses, before = job_losses(trial), 0
    lines: list[list[str]] = []
    for point in evaluation_points(trial):
        since, before = losses[before : point.step], point.step
        loss = fmean(since) if since else None
        seconds = timed_s(trial, windows=windows_done(trial, point.step, len(lines) + 1))
        lines.append(
            [cell(x) for x in (point.step, point.step * images_a_step(trial), seconds, None, loss, *errors_pct(point))]
        )
    return lines


def read_record(folder: Path | str) -> dict[str, Any]:
    path = Path(folder) / "trial.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=not_strict)
    except FileNotFoundError:
        raise TableError(f"there is no record {path}: copy it from where the run was made") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(
            f"the record {path} cannot be read ({error}): restore it from where the run was made"
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("schema_version"), int):
        raise TableError(f"the record {path} has no schema_version: restore it from where the run was made")
    if record["schema_version"] > SCHEMA_VERSION:
        raise TableError(newer(f"the record {path}", record["schema_version"]))
    return record


def not_strict(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def newer(what: str, version: object) -> str:
    return f"{what} has schema_version {version} and this harness knows {SCHEMA_VERSION}: update the harness"


def write_whole(path: Path, contents: str | bytes) -> None:
    """The file holds all of `contents` or what it held before, whenever the power goes; text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".harness-{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def csv_text(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


# --- tables -------------------------------------------------------------------------------------------------------


def append(table_path: Path | str, row: dict[str, str]) -> None:
    """Adds a row under a lock; the table is whole at every moment. An older table gains our columns, empty."""
    from filelock import FileLock, Timeout  # 40 ms that `compare` need not pay

    path = Path(os.path.realpath(table_path))  # a link to a table stays a link
    assert row.keys() <= set(COLUMNS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".harness.lock", timeout=60):
            rows = rows_before(path)
            write_whole(path, csv_text(COLUMNS, ([each.get(name, "") for name in COLUMNS] for each in [*rows, row])))
    except Timeout:
        raise TableError(
            f"another run has held {path.parent}/.harness.lock for 60 s: end it, then append again"
        ) from None
    except OSError as error:
        raise TableError(
            f"the table {path} cannot be written ({error.strerror}): the row is in its run folder"
        ) from None


def check_table(table_path: Path | str) -> None:
    """Raises what `append` and `write_record` would raise, before a run is started; leaves nothing behind."""
    path = Path(os.path.realpath(table_path))
    try:
        rows_before(path)
        for folder in (path.parent, path.parent / "runs"):
            while not folder.exists():
                folder = folder.parent
            with tempfile.TemporaryFile(dir=folder):
                pass
        if path.exists() and not os.access(path, os.W_OK):
            raise TableError(f"the table {path} may not be written: change its permissions or give another --table")
    except OSError as error:
        raise TableError(f"no table can be written at {path} ({error.strerror}): give another --table") from None


def rows_before(path: Path) -> list[dict[str, str]]:
    """The rows of the table to append to: none where there is no file, or an empty one."""
    there = path.exists()
    if there and not path.is_file():
        raise TableError(f"{path} is not a file: give --table the name of a .csv file")
    return read_table(path) if there and path.stat().st_size else []


def read_table(table_path: Path | str) -> list[dict[str, str]]:
    """Its rows in order, each with all our columns."""
    path = Path(table_path)
    try:
        lines = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True))
    except FileNotFoundError:
        raise TableError(f"there is no table {path}: `python -m harness run` makes one") from None
    except UnicodeDecodeError as error:
        raise TableError(f"the table {path} is not UTF-8 (byte {error.start}): save it as UTF-8 CSV") from None
    except OSError as error:
        raise TableError(f"the table {path} cannot be read ({error.strerror}): give the name of a .csv file") from None
    except csv.Error as error:
        raise TableError(f"the table {path} is no whole CSV ({error}): restore it, or give another") from None
    if not lines:
        raise TableError(f"the table {path} is empty: `python -m harness run --table {path}` fills it")
    header, blank = lines[0], dict.fromkeys(COLUMNS, "")
    for number, line in enumerate(lines[1:], 2):
        if line and len(line) != len(header):
            raise TableError(
                f"line {number} of the table {path} has {len(line)} cells where its header has {len(header)}: restore the line"
            )
    rows = [dict(zip(header, line, strict=True)) for line in lines[1:] if line]
    refuse_what_is_not_ours(path, header, rows)
    return rows if tuple(header) == COLUMNS else [{**blank, **row} for row in rows]


def refuse_what_is_not_ours(path: Path, header: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    missing = [name for name in ("schema_version", "run_id", "status") if name not in header]
    if missing or len(set(header)) != len(header):
        lacks = f"it has no column {missing[0]}" if missing else "a column is there twice"
        raise TableError(f"{path} is not a table of this harness ({lacks}): give another --table")
    for version in {row["schema_version"] for row in rows}:
        if not (version.isascii() and version.isdigit()):
            raise TableError(f"the table {path} has schema_version {version!r}, not a whole number: restore it")
        if int(version) > SCHEMA_VERSION:
            raise TableError(newer(f"the table {path}", version))
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        known = f"the {len(COLUMNS)} columns of schema {SCHEMA_VERSION}"
        raise TableError(f"{path} has a column {unknown[0]!r} that is not of {known}: give another table")


# --- verify -------------------------------------------------------------------------------------------------------


def verify(table_path: Path | str) -> list[str]:
    """A sentence for everything in the table that its rows' records do not bear out; empty when they agree."""
    rows = read_table(table_path)
    counts = Counter(row["run_id"] for row in rows)
    findings = [f"{run_id} is in the table {count} times" for run_id, count in sorted(counts.items()) if count > 1]
    for number, row in enumerate(rows, 1):
        findings += [
            f"row {number}, {row['run_id'] or 'without run_id'}: {text}" for text in row_findings(table_path, row)
        ]
    return findings


def row_findings(table_path: Path | str, row: dict[str, str]) -> list[str]:
    findings = stale_identities(row)
    if row["run_id"] in ("", ".", "..") or Path(row["run_id"]).name != row["run_id"]:
        return [*findings, "its run_id names no run folder"]
    try:
        rebuilt = row_of(read_record(run_folder(table_path, row["run_id"])))
    except TableError as error:
        return [*findings, str(error)]
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return [*findings, f"its record cannot be rebuilt into a row ({type(error).__name__}: {error})"]
    for name in COLUMNS:
        later = not row[name] and SINCE.get(name, 0) > int(row["schema_version"])
        if row[name] != rebuilt[name] and not later:
            return [*findings, f"{name} is {row[name]!r} in the table and {rebuilt[name]!r} from its record"]
    return findings


def stale_identities(row: dict[str, str]) -> list[str]:
    """A sentence for every stored digest that its own row does not give."""
    return [
        f"{kind} is stored as {row[kind] or 'nothing'} and the row's own cells give {true or 'nothing'}"
        for kind, true in identities(row).items()
        if row[kind] != true
    ]
