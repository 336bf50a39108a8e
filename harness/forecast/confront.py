"""What real rows say, beside what `harness.forecast.roofline` says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.forecast.cards import CARDS, CPUS, Device, Interval
from harness.forecast.counts import BYTES, CLASSES, SCHEMES, exchanged_bytes
from harness.forecast.roofline import Prediction, memory_gib, predict, shared
from harness.rows import ranks_of
from harness.summary import counted, markdown, number

Line = dict[str, str]
RATES = {
    "model alone": "model_alone_images_per_s",
    "without exchange": "no_comm_images_per_s",
    "input alone": "input_alone_images_per_s",
    "trained": "images_per_s",
}
NVLINK = "NV"
CELL_ROUNDS = 1e-5  # a cell has six digits


def said(value: float) -> str:
    """Three significant digits at most, thousands separated."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def told(figure: Interval | None) -> str:
    if figure is None:
        return "-"
    if figure.low == figure.high:
        return f"{figure.middle:,g}"
    if said(figure.low) == said(figure.high):
        return said(figure.middle)
    return f"{said(figure.middle)} ({said(figure.low)} to {said(figure.high)})"


# --- which prediction a row is held against -----------------------------------------------------------------------


def device_of(row: dict[str, str]) -> Device | None:
    name = row["gpu_name"] or f"{row['cpu_name']}, {row['cpu_cores_usable']} cores"
    return next((device for device in (*CARDS, *CPUS) if name in device.names), None)


def scheme_of(row: dict[str, str]) -> str:
    return row["parallel"] or "data"


def is_like(row: dict[str, str], device: Device, scheme: str, ranks: int, images_per_gpu: int) -> bool:
    """A row of AlexNet in fp32, fed by DALI from JPEGs, of this shape on this device."""
    shape = ranks_of(row) == ranks and row["images_per_gpu"] == str(images_per_gpu)
    task = (row["model"], row["precision"], row["pipeline"]) == ("alexnet", "fp32", "dali") and route_of(
        row, device
    ) == "original JPEG, cpu"
    return shape and task and device_of(row) is device and (ranks == 1 or scheme_of(row) == scheme)


def route_of(row: dict[str, str], device: Device) -> str:
    """How the row's images came in, as `harness.forecast.roofline.ROUTES` names it."""
    form = {"prepared-jpeg": "prepared JPEG", "prepared-raw": "prepared raw"}.get(row["source_form"], "original JPEG")
    if form == "prepared raw":
        return form
    engine = (
        form == "original JPEG" and "mixed, hardware engine" in device.decode and number(row["hw_decoder_load"]) != 0
    )
    decode = "cpu" if row["decode"] != "mixed" else "mixed, hardware engine" if engine else "mixed"
    return f"{form}, {decode}"


def unpredictable(row: dict[str, str]) -> str:
    """Why there is no prediction for a row; empty where there is one."""
    device = device_of(row)
    if device is None:
        name = (
            row["gpu_name"] or f"{row['cpu_name'] or 'a CPU of unknown name'}, {row['cpu_cores_usable'] or '?'} cores"
        )
        return f"{name} is not among the devices of harness/forecast/cards.py"
    if row["model"] != "alexnet":
        return f"only AlexNet is predicted and it trained {row['model'] or 'a model of unknown name'}"
    if row["pipeline"] not in ("dali", "synthetic"):
        return f"--pipeline {row['pipeline']} is not predicted"
    if row["nodes"] not in ("", "1"):
        return f"it ran on {row['nodes']} machines, and rows of one are predicted"
    if scheme_of(row) not in SCHEMES:
        return f"--parallel {row['parallel']} is not predicted"
    if scheme_of(row) == "columns" and ranks_of(row) % 2:
        return f"columns come in pairs and it had {ranks_of(row)} ranks"
    if row["precision"] not in device.tflop_per_s:
        return f"no {row['precision'] or 'unknown precision'} rate of {device.name} is known"
    if not row["images_per_gpu"].isdecimal() or not int(row["images_per_gpu"]):
        return "it does not say how many images a rank a step"
    return ""


def expectation(row: dict[str, str], device: Device) -> Prediction:
    ranks = ranks_of(row)
    cores = number(row["cpu_cores_usable"])
    route = None if row["pipeline"] == "synthetic" else route_of(row, device)
    link = device.host_link if row["gpu_link"] and NVLINK not in row["gpu_link"] else None
    return predict(
        shared(device, ranks), scheme_of(row), ranks, int(row["images_per_gpu"]), row["precision"], route,
        cores=cores / ranks if cores and not device.is_cpu else None, link=link,
    )  # fmt: skip


# --- one against the other ----------------------------------------------------------------------------------------


def compared(row: dict[str, str], device: Device) -> Iterator[Line]:
    """A line for each quantity that the row holds."""
    expected = expectation(row, device)
    predicted = dict(
        zip(RATES, (expected.model_alone, expected.no_comm, expected.input_alone, expected.trained), strict=True)
    )
    for name, column in RATES.items():
        yield from line_of(f"{name}, images/s", predicted[name], row[column])
    if not device.is_cpu:
        needed = memory_gib(device, int(row["images_per_gpu"]), row["precision"])
        yield from line_of("GPU memory, GiB", needed, row["gpu_peak_process_gib"])
    if ranks_of(row) > 1:
        yield from line_of("exchanged a step, MiB", exchange_of(row), row.get("exchange_mib_per_step", ""))
    if row["bound_by"]:
        inside = row["bound_by"] in expected.bound_by.split(" or ")
        yield line("bound by", expected.bound_by, row["bound_by"], inside)


def exchange_of(row: dict[str, str]) -> Interval:
    """Counted, so nothing but the cell's rounding is left open."""
    classes = int(row["classes"]) if row["classes"].isdecimal() else CLASSES
    count = exchanged_bytes(scheme_of(row), ranks_of(row), int(row["images_per_gpu"]), BYTES[row["precision"]], classes)
    mib = count / 2**20
    return Interval(mib * (1 - CELL_ROUNDS), mib, mib * (1 + CELL_ROUNDS))


def line_of(name: str, predicted: Interval, cell: str) -> Iterator[Line]:
    value = number(cell)
    if value is not None and math.isfinite(predicted.high):
        yield line(name, told(predicted), said(value), predicted.low <= value <= predicted.high)


def line(name: str, predicted: str, measured: str, inside: bool) -> Line:
    return {"figure": name, "predicted": predicted, "measured": measured, "inside": "inside" if inside else "OUTSIDE"}


def confrontation(rows: Sequence[dict[str, str]]) -> str:
    """Markdown: each row's figures against the prediction for its device, and how many of all were inside."""
    parts, lines = [], []
    for row in rows:
        why, device = unpredictable(row), device_of(row)
        found = list(compared(row, device)) if device and not why else []
        lines += found
        parts.append(f"{title(row)}\n\n{markdown(found) if found else f'No prediction: {why or nothing(row)}.'}")
    inside = sum(each["inside"] == "inside" for each in lines)
    return "\n\n".join([*parts, f"{inside} of {counted(len(lines), 'figure')} inside what was predicted."])


def nothing(row: dict[str, str]) -> str:
    return f"the row ({row['status'] or 'without status'}) holds none of the predicted figures"


def title(row: dict[str, str]) -> str:
    on = row["gpu_name"] or row["cpu_name"] or "a device of unknown name"
    ranks = counted(ranks_of(row), "rank")
    return f"## {row['run_id']}: {on}, {ranks}, {scheme_of(row)}, {row['images_per_gpu']} images a rank, {row['precision']}"
