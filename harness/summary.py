"""Rows as people read them: the table of the README, and the closing lines of a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from harness.advice import bound, figure, next_step
from harness.metrics.telemetry import is_leak
from harness.progress import OPERATORS, TRACE
from harness.results import read_table
from harness.rows import FIRST, STATUSES, ranks_of

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
SHOWN_WHERE_THEY_DIFFER = ("parallel", "nodes", "model", "data", "augment", "pipeline")


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
    device = row["gpu_name"] or row["cpu_name"]
    return {**row, "gpu_name": device, "gpus": str(ranks_of(row)), "data": row["data"] or row["dataset_id"]}


def line_of(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    place = FIRST.index("precision") + 1
    line = {"status": worst(row["status"] for row in rows), "launches": str(len(rows))}
    for name in (*FIRST[1:place], *SHOWN_WHERE_THEY_DIFFER, *FIRST[place:]):
        line[HEADINGS.get(name, name)] = together([row[name] for row in rows], is_number=name in HEADINGS)
        if name == "images_per_s":
            line["spread of launches, %"] = spread_pct([row[name] for row in rows])
    return line


def spread_pct(cells: Sequence[str]) -> str:
    """The fastest launch less the slowest, of the median one; "" for fewer than two."""
    speeds = [speed for cell in cells if (speed := number(cell)) is not None]
    return rounded(100 * (max(speeds) - min(speeds)) / median(speeds)) if len(speeds) > 1 and median(speeds) else ""


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


# --- the end of a run ---------------------------------------------------------------------------------------------


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def where(row: dict[str, str]) -> str:
    if int(row["gpus"] or 0):
        return f"{row['gpus']} x {row['gpu_name'] or 'GPU of unknown name'}"
    count = ranks_of(row)
    ranks = counted(count, "CPU rank")
    return (
        f"{ranks} x {counted(int(row['torch_threads'] or 1), 'thread')} on {row['cpu_name'] or 'a CPU of unknown name'}"
    )


def speeds(row: dict[str, str]) -> str:
    """The three figures that stand together, and each for one rank where there are more."""
    names = ("images_per_s", "input_alone_images_per_s", "model_alone_images_per_s")
    cells = [row[name] for name in names]
    line = "trained {} | input alone {} | model alone {}  images/s".format(*map(figure, cells))
    ranks = ranks_of(row)
    if ranks > 1:
        each = (figure(str(float(cell) / ranks)) if cell else "-" for cell in cells)
        line += "   (a rank: {} | {} | {})".format(*each)
    return line


def shares(row: dict[str, str]) -> str:
    """How near the limit it came, and where a step's time went."""
    of_limit = (
        f"{figure(row['pct_of_model_alone'])} % of model alone, {figure(row['pct_of_limit'])} % of the limit of both; "
        if row["pct_of_limit"]
        else ""
    )
    phases = {
        "waiting for data": row["data_wait_pct"],
        "gradients": row["compute_pct"],
        "optimiser": row["optimiser_pct"],
        "host": row["host_gap_pct"],
    }
    return of_limit + ", ".join(f"{name} {figure(share)} %" for name, share in phases.items() if share)


def exchange(row: dict[str, str]) -> str:
    """How ranks share the network, what that has them send, and what of a step waits for it."""
    nodes = f" on {row['nodes']} nodes" if row["nodes"] not in ("", "1") else ""
    waits = f"; {figure(row['exposed_comm_pct'])} % of a step waits for it" if row["exposed_comm_pct"] else ""
    sent = f"{figure(row['exchange_mib_per_step'])} MiB a step, {figure(row['exchange_kib_per_image'])} KiB an image"
    return f"{row['parallel']}{nodes}: {sent}{waits}"


def memory(row: dict[str, str]) -> str:
    gpu = figure(row["gpu_peak_allocated_gib"])
    process = f" ({figure(row['gpu_peak_process_gib'])} GiB in all)" if row["gpu_peak_process_gib"] else ""
    on_gpu = f"{gpu} GiB of {figure(row['gpu_memory_gib'])} GiB GPU memory in torch{process}, " if gpu != "-" else ""
    growth = row["memory_growth_mib_per_1000_steps"]
    leak = f"; it grows by {figure(growth)} MiB in 1,000 steps: a leak" if is_leak(number(growth)) else ""
    return f"{on_gpu}{figure(row['host_peak_rss_gib'])} GiB of the host{leak}"


def sensors(row: dict[str, str]) -> str:
    """What the machine's sensors saw; "" where it has none."""
    told = {
        "busy {} %": row["gpu_utilisation_pct"],
        "JPEG engine {} %": row["jpeg_utilisation_pct"],
        "{} MHz": row["sm_clock_mhz_p50"],
        "{} W": row["power_w"],
        "{} J an image": row["energy_j_per_image"],
        "at most {} degrees": row["temperature_c_max"],
        "power-capped {} % of the time": row["power_capped_pct"],
        "slowed {} % of the time": row["throttled_pct"],
        "others use {} % of it": row["other_process_utilisation_pct"],
    }
    return ", ".join(text.format(figure(value)) for text, value in told.items() if value)


def errors(row: dict[str, str]) -> str:
    if not row["val_top1_error_pct"]:
        return "no validation set (its error columns stay empty)" if row["val_images"] == "0" else "not evaluated"
    return f"validation error top-1 {figure(row['val_top1_error_pct'])} %, top-5 {figure(row['val_top5_error_pct'])} % on {row['val_images']} images"


def summary(row: dict[str, str], table: str) -> str:
    """The closing lines of one launch."""
    counts = f"status {row['status']}" + (f": {row['status_reason']}" if row["status_reason"] else "")
    steps = f"p50 {figure(row['step_ms_p50'])} ms, p99 {figure(row['step_ms_p99'])} ms"
    low, high = row["within_launch_ci_low_images_per_s"], row["within_launch_ci_high_images_per_s"]
    interval = f"; within this launch {figure(low)} to {figure(high)} images/s" if low else ""
    learned = f"loss {figure(row['loss_first'])} -> {figure(row['loss_last'])} in {figure(row['images_seen'])} images; learning: {row['learning'] or 'unknown'}"
    seen = sensors(row)
    lines = {
        "ran": f"{row['model']}, {row['precision']}, {row['images_per_gpu']} images a rank, {row['pipeline']} {row['augment']} on {row['dataset_id']} ({row['train_images']} images, {row['classes']} classes)",
        "on": where(row),
        "speed": speeds(row),
        "limit": bound(row),
        "time": shares(row),
        **({"exchange": exchange(row)} if ranks_of(row) > 1 else {}),
        "step": f"{steps} ({row['timed_steps'] or 0} timed after {row['warmup_steps'] or 0} to warm up{'' if row['settled'] == 'true' else ', not settled'}){interval}",
        "memory": memory(row),
        **({"sensors": seen} if seen else {}),
        "learning": learned,
        "error": errors(row),
        "row": f"{counts}; {row['run_id']} in {table}",
        "next": next_step(row),
    }
    return "\n".join(f"{name + ':':<10}{line}" for name, line in lines.items())


def profile(folder: Path) -> str:
    """Where a profiled launch's trace lies, and its heaviest operators."""
    with (folder / OPERATORS).open(newline="") as file:
        operators = [{**line, "operator": line["operator"][:60]} for line in csv.DictReader(file)]
    return f"profile:  {folder / TRACE}, for ui.perfetto.dev; the heaviest operators:\n\n{markdown(operators)}"
