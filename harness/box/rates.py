"""What a machine's timed rates mean: GPU against GPU, link against link, the disk against what a decoder takes in. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from harness.doctor import NOTE, OK, WRONG, Finding

if TYPE_CHECKING:
    from harness.box.probes import Rate

# A GPU this far under the median of the others is named; copies of all at once share links and jitter more.
SLOWER_SHARE, SLOWER_LINK_SHARE = 0.03, 0.10
SLOW_PAIR_SHARE = 0.5
DROP_SHARE = 0.03
JPEG_BYTES = 110_000  # an ImageNet photograph, on average
LEAST_DISK_GB_PER_S = 0.2  # where no decoder was measured: what 1,800 photographs a second need


@dataclass(frozen=True)
class Series:
    """One rate, and what each of its devices did in every pass."""

    rate: Rate
    passes: tuple[tuple[float, ...], ...]

    def of(self, device: int) -> list[float]:
        return [values[device] for values in self.passes]

    def medians(self) -> dict[str, float]:
        """Device -> what it did, in the median of the passes."""
        return {name: statistics.median(self.of(device)) for device, name in enumerate(self.rate.devices)}


@dataclass
class Seen:
    """What the passes so far have seen, by the probe's name: its rates in order, or why there are none."""

    rates: dict[str, list[Rate]] = field(default_factory=dict)
    instead: dict[str, Finding] = field(default_factory=dict)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def judge_siblings(
    name: str,
    series: Series,
    models: Mapping[str, str],
    slower_share: float = SLOWER_SHARE,
    looked_at: str = "temperature and its power limit",
) -> list[Finding]:
    """Each GPU slower than the median of the others of its model; `models` by the devices' names."""
    medians, faults = series.medians(), []
    for device, value in medians.items():
        others = [other for at, other in medians.items() if at != device and models.get(at) == models.get(device)]
        if not others or value >= (1 - slower_share) * statistics.median(others):
            continue
        usual = statistics.median(others)
        found = f"{kind(name, series)}{device} {number(value)} {series.rate.unit}, {100 * (1 - value / usual):.0f} % below its siblings' {number(usual)}"
        faults.append(Finding(WRONG, name, found, f"all ranks wait for it: look at its {looked_at}"))
    return faults


def judge_pairs(name: str, series: Series) -> list[Finding]:
    """One line for the pairs far behind the best one."""
    medians = series.medians()
    best = max(medians.values())
    slow = [f"{pair} {number(value)}" for pair, value in medians.items() if value < SLOW_PAIR_SHARE * best]
    if not slow:
        return []
    listed = f"{', '.join(slow[:4])}{f' and {len(slow) - 4} more' if len(slow) > 4 else ''}"
    found = f"under half of the best pair's {number(best)} {series.rate.unit}: {listed}"
    return [Finding(WRONG, name, found, "gradients go at the pace of the slowest link: look at nvidia-smi topo -m")]


def judge_disk(name: str, series: Series, decoded_images_per_s: float | None) -> list[Finding]:
    """The disk against what one device's decoders take in."""
    ((folder, gb_per_s),) = series.medians().items()
    needed = decoded_images_per_s * JPEG_BYTES / 1e9 if decoded_images_per_s else LEAST_DISK_GB_PER_S
    if gb_per_s >= needed:
        return []
    limit = f"{number(gb_per_s * 1e9 / JPEG_BYTES)} images/s of {JPEG_BYTES / 1000:.0f} kB"
    against = f", and decoding takes in {number(decoded_images_per_s)}" if decoded_images_per_s else ""
    found = f"{number(gb_per_s)} GB/s from {folder}: it would hold training to {limit}{against}"
    todo = "keep the data in memory or on a faster disk, or make them smaller:"
    return [Finding(WRONG, name, found, todo, "python -m harness data prepare")]


def drop(values: Sequence[float]) -> float | None:
    """By which share the median fell from the first to the last third of the passes; None with fewer than three."""
    third = len(values) // 3
    if not third:
        return None
    return 1 - statistics.median(values[-third:]) / statistics.median(values[:third])


def judge_drops(name: str, series: Series) -> list[Finding]:
    """Whatever got slower while the soak went on: a GPU's fault; on the CPU and the disk others may have been at work."""
    findings = []
    for device, at in enumerate(series.rate.devices):
        fallen = drop(series.of(device))
        if fallen is not None and fallen > DROP_SHARE:
            found = f"{kind(name, series)}{at} is {100 * fallen:.0f} % slower in the last third of the soak than in the first"
            mark, todo = (WRONG, "it may be heat: look at its cooling") if at.startswith("GPU") else (NOTE, "")
            findings.append(Finding(mark, name, found, todo))
    return findings


def kind(name: str, series: Series) -> str:
    """What the rate's own name adds to the probe's, as "bf16: "."""
    own = series.rate.name.removeprefix(name).strip()
    return f"{own}: " if own else ""


def told(name: str, series: Series) -> Finding:
    """What was measured: of many devices the worst and the best, of many passes too."""
    unit, medians = series.rate.unit, series.medians()
    texts = {at: in_passes(median, series.of(device)) for device, (at, median) in enumerate(medians.items())}
    if len(texts) == 1:
        values = f"{next(iter(texts.values()))} {unit}"
    elif len(texts) <= 8:
        values = f"{', '.join(f'{at} {text}' for at, text in texts.items())} {unit}"
    else:
        worst, best = (choose(medians, key=medians.__getitem__) for choose in (min, max))
        values = f"{number(medians[worst])} ({worst}) to {number(medians[best])} {unit} ({best})"
    where = f" from {series.rate.devices[0]}" if name == "disk read" else ""
    detail = f" ({series.rate.detail})" if series.rate.detail else ""
    return Finding(OK, name, f"{kind(name, series)}{values}{where}{detail}")


def in_passes(median: float, values: Sequence[float]) -> str:
    return number(median) + (f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else "")


def series_of(rates: Iterable[Rate]) -> list[Series]:
    """The rates of all passes, those of one name and the same devices together."""
    passes: dict[tuple[str, tuple[str, ...]], list[Rate]] = {}
    for rate in rates:
        passes.setdefault((rate.name, rate.devices), []).append(rate)
    return [Series(each[-1], tuple(rate.values for rate in each)) for each in passes.values()]


def judge_found(products: Sequence[Rate], shown: int) -> list[Finding]:
    """A line only where torch ran on fewer GPUs than the driver shows."""
    used = min((sum(device.startswith("GPU") for device in rate.devices) for rate in products), default=shown)
    if used >= shown:
        return []
    found = f"torch can use {used} of the {shown} that the driver shows"
    return [Finding(WRONG, "GPUs", found, "the rates below are of what it can use", "nvidia-smi")]


def judge_seen(seen: Seen, models: Sequence[str]) -> list[Finding]:
    """Every finding about what was timed, in the order of the probes."""
    by_device = {f"GPU {index}": model for index, model in enumerate(models)}
    decoded = [max(series.medians().values()) for series in series_of(seen.rates.get("JPEG decode", ()))]
    judges: dict[str, Callable[[str, Series], list[Finding]]] = {
        "matrix product": partial(judge_siblings, models=by_device),
        "copy": partial(judge_siblings, models=by_device),
        "host to device": partial(
            judge_siblings, models=by_device, slower_share=SLOWER_LINK_SHARE, looked_at="slot and its NUMA node"
        ),
        "peer to peer": judge_pairs,
        "JPEG decode": partial(judge_siblings, models=by_device),
        "disk read": partial(judge_disk, decoded_images_per_s=max(decoded, default=None)),
    }
    findings = judge_found(seen.rates.get("matrix product", ()), len(models))
    for name in {**seen.rates, **seen.instead}:
        for series in series_of(seen.rates.get(name, ())):
            faults = [*(judges[name](name, series) if name in judges else []), *judge_drops(name, series)]
            findings += faults
            if not faults or max(len(series.passes), len(series.rate.devices)) > 1:
                findings.append(replace(told(name, series), mark=NOTE if faults else OK))
        findings += [seen.instead[name]] if name in seen.instead else []
    return findings
