"""Rows, tables and run folders: what a launch leaves behind, and whether it still agrees with itself.

A *record* is everything needed to rebuild a row (`trial.json`); a *row* is a dict of cells, all text, "" where unknown.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import json
import math
import operator
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from statistics import fmean, median
from typing import Any

from harness.config import AskedWrongly, RunConfig, names
from harness.metrics import METRICS, Trial, evaluation_points, from_json, images_a_step, job_losses

SCHEMA_VERSION = 1
STATUSES = ("failed", "interrupted", "oom", "diverged", "invalid", "throttled", "contaminated", "ok")
CELL_CHARACTERS_MAX = 1000


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = words(
    "status label gpu_name gpus images_per_gpu precision images_per_s input_alone_images_per_s model_alone_images_per_s "
    "bound_by pct_of_model_alone step_ms_p50 step_ms_p99 gpu_peak_process_gib gpu_memory_gib energy_j_per_image"
)
WHO = words(
    "schema_version run_id group_id launch started_at status_reason task_id shape_id setting_id software_id hardware_id"
)
DATASET = words("dataset_id source_form classes train_images val_images")
MACHINE = words(
    "cpu_name cpu_cores_usable ram_gib os container numa_nodes gpu_uuids gpu_link gpu_power_limit_w "
    "gpu_power_limit_default_w gpu_max_sm_clock_mhz pcie_gen_width driver_version torch torch_cuda dali dali_cuda triton "
    "cudnn nccl python harness git_commit data_filesystem"
)
SEEN = words(
    "timed_steps timed_s images_counted within_launch_ci_low_images_per_s within_launch_ci_high_images_per_s step_ms_p95 "
    "settled warmup_steps drift_pct_per_min compile_s first_batch_s rank_skew_pct "
    "no_comm_images_per_s input_while_training_images_per_s limit_images_per_s pct_of_limit data_wait_pct exposed_comm_pct "
    "model_tflop_per_s gemm_peak_tflop_per_s mfu_pct copy_gb_per_s "
    "gpu_peak_allocated_gib gpu_peak_reserved_gib gpu_peak_other_gib host_peak_rss_gib memory_growth_mib_per_1000_steps "
    "gpu_utilisation_pct sm_clock_mhz_p50 power_w temperature_c_max power_capped_pct throttled_pct throttle_reasons "
    "other_process_utilisation_pct disk_read_gb_per_s page_cache "
    "epochs_done images_seen loss_first loss_last loss_at_100k_images loss_at_1m_images learning train_top1_error_pct "
    "val_top1_error_pct val_top5_error_pct"
)
# A dict keeps the first place of a name that is listed twice.
COLUMNS = tuple(dict.fromkeys([*FIRST, *WHO, *(item.name for item in fields(RunConfig)), *DATASET, *MACHINE, *SEEN]))

IDENTITIES = {
    "task_id": (*names("task"), "classes", "dataset_id", "source_form"),
    "shape_id": names("shape"),
    "setting_id": names("setting"),
    "software_id": words("torch torch_cuda dali dali_cuda triton cudnn nccl driver_version python harness git_commit"),
    "hardware_id": words(
        "gpu_name gpu_memory_gib gpu_power_limit_w gpu_link pcie_gen_width cpu_name cpu_cores_usable ram_gib numa_nodes"
    ),
}
# Two tables for columns added after schema 1. IMPLIED: the cell that rows without the column implied, which therefore
# enters no digest. SINCE: the schema_version that first filled a column; `verify` lets older rows leave it empty.
IMPLIED: dict[str, str] = {}
SINCE: dict[str, int] = {}


class TableError(AskedWrongly):
    """A table or record that cannot be read, or cannot take a row."""


# --- cells and identities -----------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """One line of text: "" for None, true or false, whole numbers exactly, others to six significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number_cell(value)
    text = " ".join(str(value).split()).encode("utf-8", "replace").decode()
    return text if len(text) <= CELL_CHARACTERS_MAX else text[: CELL_CHARACTERS_MAX - 3] + "..."


def number_cell(value: float) -> str:
    short = f"{value + 0.0:.6g}"  # adding zero makes minus zero zero
    return f"{Decimal(short):f}" if "e" in short and 1e-9 <= abs(value) < 1e15 else short


def identities(row: dict[str, str]) -> dict[str, str]:
    """The five digests, of nothing but the row's cells; "" for one of which no cell is known."""
    return dict(zip(IDENTITIES, digests_of(identity_cells(row)), strict=True))


identity_cells = operator.itemgetter(*(name for columns in IDENTITIES.values() for name in columns))


@functools.lru_cache(maxsize=100_000)
def digests_of(cells: tuple[str, ...]) -> tuple[str, ...]:
    left = iter(cells)
    return tuple(digest_of(kind, tuple(itertools.islice(left, len(columns)))) for kind, columns in IDENTITIES.items())


@functools.lru_cache(maxsize=100_000)
def digest_of(kind: str, cells: tuple[str, ...]) -> str:
    """Of the cells of a kind's columns, in order. What older rows implied enters none, as if the column were not there."""
    known = zip(IDENTITIES[kind], cells, strict=True)
    parts = sorted(f"{name}={value}" for name, value in known if value and value != IMPLIED.get(name))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12] if parts else ""


def row_of(record: dict[str, Any]) -> dict[str, str]:
    """Every column's cell. What a record holds beyond the columns stays in the record."""
    trial = from_json(Trial, record["trial"])
    told = {name: metric(trial) for name, metric in METRICS.items()}
    values = {**record, **record["asked"], **record["dataset"], **record["machine"], **told}
    row = {name: cell(values.get(name)) for name in COLUMNS}
    return {**row, **identities(row)}


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
    """`value` as JSON has it: lists, and "nan", "inf" or "-inf" for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


EPOCHS = words("step images_seen seconds joules loss top1_error_pct top5_error_pct")


def error_curve(trial: Trial) -> list[list[str]]:
    """A line an evaluation; `loss` is the training loss's mean since the one before."""
    losses, before, lines = job_losses(trial), 0, []
    for point in evaluation_points(trial):
        since, before = losses[before : point.step], point.step
        errors = [
            100 * (1 - n / point.images) if point.images else None for n in (point.top1_correct, point.top5_correct)
        ]
        loss = fmean(since) if since else None
        lines.append([cell(x) for x in (point.step, point.step * images_a_step(trial), None, None, loss, *errors)])
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


def write_whole(path: Path, text: str) -> None:
    """The file holds all of `text` or what it held before, whenever the power goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".harness-{os.getpid()}.tmp"
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
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
    run_ids = [row["run_id"] for row in rows]
    twice = sorted({run_id for run_id in run_ids if run_ids.count(run_id) > 1})
    findings = [f"{run_id} is in the table {run_ids.count(run_id)} times" for run_id in twice]
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


# --- the table as people read it ----------------------------------------------------------------------------------

HEADINGS = {
    "gpu_name": "ran on",
    "gpus": "ranks",
    "images_per_gpu": "images a rank",
    "images_per_s": "images/s",
    "input_alone_images_per_s": "input alone, images/s",
    "model_alone_images_per_s": "model alone, images/s",
    "pct_of_model_alone": "% of model alone",
    "step_ms_p50": "step p50, ms",
    "step_ms_p99": "step p99, ms",
    "gpu_peak_process_gib": "GPU peak, GiB",
    "gpu_memory_gib": "GPU has, GiB",
    "energy_j_per_image": "J/image",
    "bound_by": "bound by",
}
# Rows that differ in these would look alike in the first columns.
SHOWN_WHERE_THEY_DIFFER = ("model", "data", "augment", "pipeline")


def table(paths: Sequence[Path | str]) -> str:
    """Markdown with a line a group of launches: medians over its launches, and its worst status."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in (row for path in paths for row in read_table(path)):
        groups.setdefault(row["group_id"] or row["run_id"], []).append(as_read(row))
    lines = [line_of(rows) for rows in groups.values()]
    hidden = {name for name in SHOWN_WHERE_THEY_DIFFER if len({line[HEADINGS.get(name, name)] for line in lines}) < 2}
    shown = [{name: text for name, text in line.items() if name not in hidden} for line in lines]
    return markdown(
        sorted(shown, key=lambda line: [natural(line[name]) for name in ("ran on", "ranks", "images a rank")])
    )


def as_read(row: dict[str, str]) -> dict[str, str]:
    """A row whose GPU columns tell of the CPU where it ran on none, and whose data always has a name."""
    device, ranks = row["gpu_name"] or row["cpu_name"], row["gpus"] or row["cpus"]
    return {**row, "gpu_name": device, "gpus": ranks, "data": row["data"] or row["dataset_id"]}


def line_of(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    place = FIRST.index("precision") + 1
    line = {"status": worst(row["status"] for row in rows), "launches": str(len(rows))}
    for name in (*FIRST[1:place], *SHOWN_WHERE_THEY_DIFFER, *FIRST[place:]):
        line[HEADINGS.get(name, name)] = together([row[name] for row in rows], is_number=name in HEADINGS)
    return line


def worst(statuses: Iterable[str]) -> str:
    return min(statuses, key=lambda status: STATUSES.index(status) if status in STATUSES else -1)


def together(cells: Sequence[str], *, is_number: bool) -> str:
    """One cell of several: what they share, the median of numbers, or every text."""
    known = list(dict.fromkeys(text for text in cells if text))
    values = [value for text in cells if (value := number(text)) is not None]
    if is_number and values:
        return rounded(median(values))
    return " / ".join(known)


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def rounded(value: float) -> str:
    """Three significant digits, and none of the whole ones lost."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def natural(text: str) -> tuple[float, str]:
    """Sorts 2 before 10, and numbers before words."""
    value = number(text)
    return (math.inf, text) if value is None else (value, "")


def markdown(lines: Sequence[dict[str, str]]) -> str:
    """Aligned for a terminal too; the first line's keys are the headings; a column empty in every line is left out."""
    if not lines:
        return "(no rows)"
    names = [name for name in lines[0] if any(line[name] for line in lines)]
    columns = [[name, *(line[name].replace("|", "\\|") for line in lines)] for name in names]
    widths = [max(3, *map(len, column)) for column in columns]
    right = [all(not text or number(text) is not None for text in column[1:]) for column in columns]
    rule = [
        "-" * (width - 1) + ":" if is_number else "-" * width for width, is_number in zip(widths, right, strict=True)
    ]
    padded = [
        [text.rjust(width) if is_number else text.ljust(width) for text in column]
        for column, width, is_number in zip(columns, widths, right, strict=True)
    ]
    heads, *body = zip(*padded, strict=True)
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *body])
