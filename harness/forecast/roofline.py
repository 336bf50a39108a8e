"""What AlexNet's training should cost on a device that nobody has run it on: figures in, intervals out.

A roofline by layer: each takes the longer of its arithmetic and its bytes; what lies between layers, the optimiser and
the gaps between kernels come on top. Nothing here is measured; `harness.forecast.confront` holds it to rows that are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.forecast.cards import INFINIBAND_400G, Device, Figure, Interval, Link
from harness.forecast.counts import ALEXNET, BYTES, PARAMETERS, Layer, parameters_held, parts, ring_bytes_a_rank, sent

GIB = 2**30
NODE = 8  # ranks that share a node's links

# --- from figures to intervals ------------------------------------------------------------------------------------


class At:
    """Reads every figure at its middle, but one at an end; keeps which were read."""

    def __init__(self, moved: Figure | None = None, end: str = "middle"):
        self.moved, self.end = moved, end
        self.read: dict[int, Figure] = {}

    def __call__(self, figure: Figure) -> float:
        self.read[id(figure)] = figure
        return float(getattr(figure, self.end)) if figure is self.moved else figure.middle


def spread(quantities: Callable[[At], dict[str, float]]) -> dict[str, Interval]:
    """Each quantity with its range. Figures are moved to their ends one at a time, as if each erred on its own.

    A range's end is as far from the middle, as a factor, as the root of the summed squares of what single figures do.
    """
    at = At()
    middles = quantities(at)
    ends = [quantities(At(f, end)) for f in at.read.values() if f.low < f.high for end in ("low", "high")]
    return {name: around(middle, [each[name] for each in ends]) for name, middle in middles.items()}


def around(middle: float, moved: list[float]) -> Interval:
    """`moved` holds two values a figure, which may both lie on one side of the middle."""
    if middle == 0 or math.isinf(middle):
        return Interval(middle, middle, middle)
    pairs = [tuple(math.log(value / middle) for value in moved[place : place + 2]) for place in range(0, len(moved), 2)]
    down, up = (math.sqrt(sum(max(0.0, *(sign * x for x in pair)) ** 2 for pair in pairs)) for sign in (-1, 1))
    return Interval(middle * math.exp(-down), middle, middle * math.exp(up))


# --- one rank's step ----------------------------------------------------------------------------------------------


def shared(device: Device, ranks: int) -> Device:
    """What each of `ranks` ranks has of the device: a GPU each, or its part of a CPU."""
    if not device.is_cpu:
        return device
    cores, memory = (
        replace(x, low=x.low / ranks, middle=x.middle / ranks, high=x.high / ranks)
        for x in (device.cores, device.memory_gb_per_s)
    )
    return replace(device, cores=cores, memory_gb_per_s=memory)


def bandwidth(at: At, device: Device) -> float:
    """Bytes a second of a rank that pass through its memory."""
    return at(device.memory_gb_per_s) * at(device.assumed["share of memory bandwidth"]) * 1e9


def arithmetic(at: At, device: Device, layer: Layer, precision: str) -> float:
    """FLOP a second of a rank in one layer."""
    cores = at(device.cores) if device.is_cpu else 1
    return at(device.tflop_per_s[precision]) * at(device.assumed[f"{layer.kind}, share of the peak"]) * cores * 1e12


def layer_s(at: At, device: Device, layer: Layer, images: int, precision: str, split: int = 1) -> float:
    """Forward and backward through one layer, of which a rank holds one part in `split`, on `images` images."""
    word, products = BYTES[precision], layer.products
    inputs = layer.inputs / (split if layer.own_column else 1)
    outputs = layer.outputs / split
    in_product = products * word * (images * (inputs + outputs) + layer.parameters / split)
    flop = 2 * products * layer.macs * images / split
    product_s = max(flop / arithmetic(at, device, layer, precision), in_product / bandwidth(at, device))
    beside = "conv1's and conv2's outputs beside the convolutions" if layer.normalised else "other layers' outputs"
    return product_s + at(device.assumed[f"passes over {beside}"]) * word * images * outputs / bandwidth(at, device)


def compute_s(at: At, device: Device, images_per_gpu: int, precision: str, scheme: str = "data", ranks: int = 1) -> float:  # fmt: skip
    """A rank's step without any exchange."""
    seconds = (
        at(device.assumed["optimiser, bytes a parameter"]) * parameters_held(scheme, ranks) / bandwidth(at, device)
    )
    for layer in ALEXNET:
        images, split = parts(scheme, ranks, images_per_gpu, layer)
        seconds += layer_s(at, device, layer, images, precision, split)
    if device.is_cpu:
        return seconds
    gaps = at(device.assumed["kernels a step"]) * at(device.assumed["microseconds lost a kernel"]) * 1e-6
    return seconds + gaps + images_per_gpu * ALEXNET[0].inputs * (4 + BYTES[precision]) / bandwidth(at, device)


# --- several ranks ------------------------------------------------------------------------------------------------


def reached(at: At, link: Link) -> float:
    return at(link.gb_per_s) * at(link.share) * 1e9


def bytes_per_s(at: At, link: Link, ranks: int, members_a_node: int) -> float:
    """What a rank's collectives reach: inside a node its link, between nodes at most its group's network adapters."""
    inside = reached(at, link)
    return inside if ranks <= NODE else min(inside, reached(at, INFINIBAND_400G) * members_a_node)


def start_s(at: At, link: Link, ranks: int) -> float:
    between = at(INFINIBAND_400G.collective_us) * math.log2(ranks / NODE) if ranks > NODE else 0.0
    return (at(link.collective_us) + between) * 1e-6


def exchange_s(at: At, scheme: str, ranks: int, images_per_gpu: int, precision: str, link: Link) -> tuple[float, float]:
    """Seconds a step of gradients and of activations, were nothing hidden."""
    one = sent(scheme, ranks, images_per_gpu, BYTES[precision])
    pairs = scheme == "columns"
    gradients = one.gradient_bytes / bytes_per_s(at, link, ranks, NODE // 2 if pairs else NODE)
    # A pair of columns never lies across two nodes.
    reach = 1 if pairs else ranks
    activations = one.activation_bytes / bytes_per_s(at, link, reach, NODE)
    return (
        gradients + start_s(at, link, ranks) * one.gradient_collectives,
        activations + start_s(at, link, reach) * one.activation_collectives,
    )


def exposed_s(at: At, device: Device, compute: float, gradients: float, activations: float) -> float:
    """What a step waits for its exchange."""
    seen = gradients * at(device.assumed["share of gradients' transfer that is seen anyway"])
    if not device.is_cpu:
        room = compute * at(device.assumed["share of the step that gradients may hide under"])
        seen = max(seen, gradients - room)
    return seen + activations * at(device.assumed["share of activations' transfer that is seen"])


def readers(scheme: str, ranks: int) -> int:
    """Ranks that each decode the same images: both columns see all of a pair's."""
    return 2 if scheme == "columns" and ranks > 1 else 1


def together(at: At, device: Device, source: float, model: float) -> float:
    """Trained images/s of what input and model can do alone; on a CPU they take turns on the same cores."""
    if math.isinf(source):
        return model
    if device.is_cpu:
        return 1 / (1 / source + 1 / model)
    return min(source, model) * at(device.assumed["speed left where input and model run together"])


# --- a prediction -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Images/s of a whole job; `scaling` is model alone over what as many ranks would give that never waited."""

    no_comm: Interval
    model_alone: Interval
    input_alone: Interval
    trained: Interval
    exposed_ms: Interval
    scaling: Interval
    bound_by: str


def predict(
    device: Device,
    scheme: str,
    ranks: int,
    images_per_gpu: int,
    precision: str,
    route: str | None,
    *,
    cores: float | None = None,
    link: Link | None = None,
) -> Prediction:
    """Of a `shared` device. Without a route images cost nothing; `cores` a rank where they are known."""

    def quantities(at: At) -> dict[str, float]:
        compute = compute_s(at, device, images_per_gpu, precision, scheme, ranks)
        exchange = exchange_s(at, scheme, ranks, images_per_gpu, precision, link or device.link)
        exposed = exposed_s(at, device, compute, *exchange)
        remains = 1 - at(device.assumed["speed lost to stragglers a doubling of ranks"]) * math.log2(ranks)
        scaling = compute / (compute + exposed) * remains
        no_comm = ranks * images_per_gpu / compute
        a_rank = input_alone_a_rank(at, device, route, cores) if route else math.inf
        source = a_rank * ranks / readers(scheme, ranks)
        model = no_comm * scaling
        return {
            "no_comm": no_comm,
            "model_alone": model,
            "input_alone": source,
            "trained": together(at, device, source, model),
            "exposed_ms": exposed * 1000,
            "scaling": scaling,
            "input_over_model": source / model,
        }

    found = spread(quantities)
    ratio = found.pop("input_over_model")
    return Prediction(**found, bound_by=bound_by(ratio, found["scaling"]))


def bound_by(input_over_model: Interval, scaling: Interval) -> str:
    """As a row says it, from the middles; `or` what it may be instead within the ranges."""

    def verdict(ratio: float, efficiency: float) -> str:
        return "input" if ratio < 1 else "communication" if efficiency < 1 / 1.05 else "model"

    ratios = (input_over_model.middle, input_over_model.low, input_over_model.high)
    efficiencies = (scaling.middle, scaling.low, min(scaling.high, 1.0))
    return " or ".join(dict.fromkeys(verdict(ratio, efficiency) for ratio in ratios for efficiency in efficiencies))


# --- input and memory ---------------------------------------------------------------------------------------------

ROUTES = (
    "original JPEG, cpu",
    "original JPEG, mixed",
    "original JPEG, mixed, hardware engine",
    "prepared JPEG, cpu",
    "prepared JPEG, mixed",
    "prepared raw",
)


def has_route(device: Device, route: str) -> bool:
    decode = route.partition(", ")[2]
    return decode in ("", "cpu") or decode in device.decode


def input_alone_a_rank(at: At, device: Device, route: str, cores: float | None = None) -> float:
    """Images/s of one rank by one route that the device has."""
    form, _, decode = route.partition(", ")
    if decode in device.decode:
        smaller = device.assumed["prepared JPEG against original, decoded by the GPU"]
        return at(device.decode[decode]) * (at(smaller) if form == "prepared JPEG" else 1)
    known = device.images_per_s_a_core if form == "original JPEG" else None
    rate = at(known or device.assumed[f"{form}, images/s a host core"]) * (cores or at(device.cores))
    if device.host_link is None:
        return rate
    # What the CPU has prepared crosses to the card: float pixels of a crop, bytes of a raw square.
    bytes_an_image = 256 * 256 * 3 if form == "prepared raw" else 224 * 224 * 3 * 4
    return min(rate, reached(at, device.host_link) / bytes_an_image)


def input_alone(device: Device, route: str) -> Interval | None:
    """Images/s of one rank; None where the device has no such route."""
    if not has_route(device, route):
        return None
    return spread(lambda at: {"rate": input_alone_a_rank(at, device, route)})["rate"]


def memory_gib(device: Device, images_per_gpu: int, precision: str) -> Interval:
    """A GPU's memory at one rank, all processes: parameters, what is kept for the backward pass, DALI, libraries."""
    word = BYTES[precision]
    pooled = 27 * 27 * 96 + 13 * 13 * 256 + 6 * 6 * 256
    kept = word * (ALEXNET[0].inputs + pooled + sum(layer.outputs for layer in ALEXNET)) + pooled
    crop, original = 4 * ALEXNET[0].inputs, 500 * 375 * 3
    parameters = PARAMETERS * (3 * 4 + (word if word < 4 else 0))

    def quantities(at: At) -> dict[str, float]:
        tensors = at(device.assumed["kept for the backward pass, times the least"]) * images_per_gpu * kept
        dali = at(device.assumed["batches held by DALI"]) * images_per_gpu * (crop + original)
        return {"gib": (tensors + dali + parameters) / GIB + at(device.assumed["GiB beside tensors"])}

    return spread(quantities)["gib"]


def all_reduce_ms(link: Link, ranks: int) -> Interval:
    """Of the whole network's gradients, alone on the link."""
    sends = ring_bytes_a_rank(PARAMETERS, ranks)
    return spread(lambda at: {"ms": (sends / reached(at, link) + at(link.collective_us) * 1e-6) * 1000})["ms"]
