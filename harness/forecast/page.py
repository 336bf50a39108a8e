"""The page of predictions, `docs/predictions.md`: the model's figures, what was measured beside them, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from harness.forecast.cards import (
    CARDS,
    CPUS,
    EVERYWHERE,
    INFINIBAND_400G,
    LINKS,
    ON_CPU,
    ON_GPU,
    Device,
    Figure,
    Interval,
    Link,
)
from harness.forecast.confront import Line, is_like, said, told
from harness.forecast.counts import (
    BYTES,
    SCHEMES,
    columns_numbers_an_image,
    exchanged_bytes,
    gathered_bytes,
    hybrid_numbers_an_image,
    parameters_held,
    training_macs,
)
from harness.forecast.roofline import GIB, ROUTES, all_reduce_ms, has_route, input_alone, memory_gib, predict, shared
from harness.summary import markdown, number

IMAGES_PER_GPU = 1024
CPU_IMAGES = 32
HOW = """A layer takes the longer of FLOP over (its share x the peak) and bytes over (share x memory bandwidth), forward and backward; to that come what passes between layers, the optimiser,
and the gaps between kernels. Gradients of data parallelism hide under the backward pass as far as there is room; activations are waited for. A job trains at the slower of
input and model, less what they lose to each other; on a CPU they take turns."""


def page(rows: Sequence[dict[str, str]], tables: str) -> str:
    sections = (
        head(tables),
        markdown(glance()),
        "*Originals* are ImageNet's JPEGs by the card's best decoder, *raw* is a set of `data prepare --form raw` in memory. With columns both ranks read, and decode, all\nimages of the pair: input gives half. *Bound by* is told of the middles; after `or` stands what else it may be within the ranges.",
        "## Input alone, images/s a GPU\n\n" + markdown(input_lines()),
        "Random-resized crops. Decoding on a host counts its cores; what it has prepared crosses PCIe, 602 kB an image, or 197 kB raw. Two GPUs take in twice as much, but for columns.",
        "## GPU memory, GiB a GPU\n\n" + markdown(memory_lines()),
        "One GPU or data parallel, bf16, DALI included; columns need about as much. *yes*: the most that is predicted fits; *likely*: the middle does; *no*: the middle does not.",
        "## The exchange\n\n" + markdown(exchange_lines()),
        "Bytes that all ranks send in a training step of two ranks, 1,024 images each, bf16. Gradients are fp32, activations in the compute precision.",
        markdown(link_lines()),
        "All-reduce of the whole network's gradients (244 MB), alone on the link.",
        "## Two CPU ranks, beside what was measured\n\n" + markdown(cpu_lines(rows)),
        f"fp32, 32 images a rank, originals, images/s of the job. {beside(rows, tables)}",
        "## 8, 64 and 1,024 H100\n\n" + markdown(many_lines()),
        many_words(),
        "## Assumptions\n\n" + HOW + "\n\n" + markdown(assumption_lines()),
        "## Cards and links\n\n" + markdown(figure_lines()),
    )  # fmt: skip
    return "\n\n".join(sections)


def head(tables: str) -> str:
    return f"""# What it should cost, before it is seen

Printed by `python -m harness predict{" " + tables if tables else ""}`: no figure of a GPU on this page was measured by us. AlexNet of two columns, {training_macs():,} multiply-adds a training image, {IMAGES_PER_GPU:,} images a
GPU, bf16, TF32 off, fused blocks, compiled. Figures are *middle (low to high)*: every assumption is moved to its ends on its own, and the root of
the summed squares of what each does is the range, which should hold nine times out of ten. `python -m harness predict --confront
TABLE.csv` holds any real row against them.

## Images/s of the job"""


def best_route(device: Device) -> str:
    return [route for route in ROUTES[:3] if has_route(device, route)][-1]


def configurations() -> Iterable[tuple[int, str]]:
    return [(1, "data"), *((2, scheme) for scheme in SCHEMES)]


def glance() -> list[Line]:
    return [glance_line(device, ranks, scheme) for device in CARDS for ranks, scheme in configurations()]


def glance_line(device: Device, ranks: int, scheme: str) -> Line:
    originals, raw = (
        predict(device, scheme, ranks, IMAGES_PER_GPU, "bf16", route) for route in (best_route(device), "prepared raw")
    )
    return {
        "card": f"{ranks} x {device.name}",
        "scheme": scheme if ranks > 1 else "one GPU",
        "trained, originals": told(originals.trained),
        "bound by": originals.bound_by,
        "trained, raw": told(raw.trained),
        "bound by, raw": raw.bound_by,
        "model alone": told(raw.model_alone),
        "exchange waited for, ms": told(raw.exposed_ms) if ranks > 1 else "",
    }


def input_lines() -> list[Line]:
    return [
        {"card": device.name, "host cores a GPU": told(device.cores)}
        | {route: told(input_alone(device, route)) for route in ROUTES}
        for device in CARDS
    ]


def memory_lines() -> list[Line]:
    return [
        {"images a GPU": f"{images:,}", "GiB": told(memory_gib(CARDS[0], images, "bf16"))}
        | {f"{device.name}: fits": fits(device, memory_gib(device, images, "bf16")) for device in CARDS}
        for images in (128, 256, 512, 1024, 2048, 4096)
    ]


def fits(device: Device, needed: Interval) -> str:
    assert device.memory_gib is not None
    usable = device.memory_gib.middle * device.assumed["usable share of the memory"].low
    return "yes" if needed.high < usable else "likely" if needed.middle < usable else "no"


def exchange_lines() -> list[Line]:
    def line(scheme: str) -> Line:
        a_step = exchanged_bytes(scheme, 2, IMAGES_PER_GPU, BYTES["bf16"])
        numbers = {"columns": columns_numbers_an_image(), "hybrid": hybrid_numbers_an_image(2)}
        return {
            "scheme": scheme,
            "activations an image, forward": f"{numbers.get(scheme, 0):,}",
            "MB a step": said(a_step / 1e6),
            "kB an image": said(a_step / 1e3 / (2 * IMAGES_PER_GPU)),
            "grows with": {"data": "parameters", "columns": "images", "hybrid": "images, and convolutions' parameters"}[scheme],
            "millions of parameters a rank": said(parameters_held(scheme, 2) / 1e6),
        }  # fmt: skip

    return [line(scheme) for scheme in SCHEMES]


def link_lines() -> list[Line]:
    def line(link: Link) -> Line:
        times = {f"{ranks} ranks, ms": told(all_reduce_ms(link, ranks)) for ranks in (2, 8)}
        return {"link": link.name, "GB/s each way": told(link.gb_per_s), "share reached": told(link.share)} | times

    return [line(link) for link in LINKS]


# --- CPU ranks ----------------------------------------------------------------------------------------------------


def cpu_lines(rows: Sequence[dict[str, str]]) -> list[Line]:
    return [cpu_line(device, ranks, scheme, rows) for device in CPUS for ranks, scheme in configurations()]


def cpu_line(device: Device, ranks: int, scheme: str, rows: Sequence[dict[str, str]]) -> Line:
    part = shared(device, ranks)
    expected = predict(part, scheme, ranks, CPU_IMAGES, "fp32", "original JPEG, cpu")
    seen = [row for row in rows if is_like(row, device, scheme, ranks, CPU_IMAGES)]
    line = {"CPU": device.name, "ranks": str(ranks), "scheme": scheme if ranks > 1 else "one rank"}
    for column, figure in (
        ("model_alone_images_per_s", expected.model_alone),
        ("input_alone_images_per_s", expected.input_alone),
        ("images_per_s", expected.trained),
    ):
        heading = {"images_per_s": "trained"}.get(column, column.replace("_images_per_s", "").replace("_", " "))
        line |= {heading: told(figure), f"{heading}, measured": middle_of(seen, column)}
    bound = ", ".join(dict.fromkeys(row["bound_by"] for row in seen if row["bound_by"]))
    return line | {"bound by": expected.bound_by, "bound by, measured": bound or "-", "rows": str(len(seen))}


def middle_of(rows: Sequence[dict[str, str]], column: str) -> str:
    values = [value for row in rows if (value := number(row[column])) is not None]
    return said(median(values)) if values else "-"


def beside(rows: Sequence[dict[str, str]], tables: str) -> str:
    return (
        f"Measured: medians of rows of {tables}." if rows else "Measured columns fill from tables given to the command."
    )


# --- many GPUs ----------------------------------------------------------------------------------------------------


def h100() -> Device:
    return next(device for device in CARDS if device.name == "H100 SXM")


def many_lines() -> list[Line]:
    return [many_line(ranks, scheme) for ranks in (8, 64, 1024) for scheme in SCHEMES]


def many_line(ranks: int, scheme: str) -> Line:
    model = predict(h100(), scheme, ranks, IMAGES_PER_GPU, "bf16", None)
    originals = predict(h100(), scheme, ranks, IMAGES_PER_GPU, "bf16", best_route(h100()))
    return {
        "GPUs": f"{ranks:,}",
        "scheme": "columns x data" if scheme == "columns" else scheme,
        "global batch": f"{ranks * IMAGES_PER_GPU:,}",
        "model alone, images/s": told(model.model_alone),
        "scaling efficiency, %": told(model.scaling.times(100)),
        "bound by": model.bound_by,
        "trained from originals": told(originals.trained),
    }


def many_words() -> str:
    return (
        f"Nodes of eight on NVLink 4, {INFINIBAND_400G.name} between them; pairs of columns lie inside a node; hybrid splits the fully connected layers over all ranks. *Scaling efficiency*: a rank's speed without any\n"
        "exchange or waiting is 100 %; images are taken to cost nothing there. The last column has them decoded from originals. Hybrid gathers every rank's activations on every rank, so its exchange and its memory grow\n"
        f"with the ranks: {said(gathered_bytes(1024, IMAGES_PER_GPU, BYTES['bf16']) / GIB)} GiB a rank at 1,024. Nothing here says that so large a batch still learns: the paper's was 128."
    )


# --- where figures are from ---------------------------------------------------------------------------------------


def assumption_line(name: str, figure: Figure) -> Line:
    return {"figure": name, "value": told(figure), "is": figure.kind, "from": figure.source}


def assumption_lines() -> list[Line]:
    groups = {
        "": EVERYWHERE,
        "GPU: ": {name: figure for name, figure in ON_GPU.items() if name not in EVERYWHERE},
        "CPU: ": {name: figure for name, figure in ON_CPU.items() if name not in EVERYWHERE},
    }
    return [assumption_line(side + name, figure) for side, group in groups.items() for name, figure in group.items()]


def figure_lines() -> list[Line]:
    lines = []
    for device in (*CARDS, *CPUS):
        unit = "TFLOP/s a core" if device.is_cpu else "dense TFLOP/s"
        named = {f"{precision}, {unit}": figure for precision, figure in device.tflop_per_s.items()}
        named |= {"memory, GB/s": device.memory_gb_per_s, "host cores a rank": device.cores}
        named |= {f"decode {route}, images/s": figure for route, figure in device.decode.items()}
        named |= {"memory, GB": device.memory_gib} if device.memory_gib else {}
        named |= {"decode, images/s a core": device.images_per_s_a_core} if device.images_per_s_a_core else {}
        lines += [assumption_line(f"{device.name}: {name}", figure) for name, figure in named.items()]
    for link in (*LINKS, *(device.link for device in CPUS)):
        named = {"GB/s each way": link.gb_per_s, "share reached": link.share, "start, microseconds": link.collective_us}
        lines += [assumption_line(f"{link.name}: {name}", figure) for name, figure in named.items()]
    return lines
