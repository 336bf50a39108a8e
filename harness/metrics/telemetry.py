"""What the machine did in the windows: clocks, power and heat, other processes, disks, and memory over many steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

from harness.metrics.numbers import GIB, MIB, percentile, share_pct
from harness.metrics.speed import images_counted, timed_s
from harness.trial import RankTrial, Sample, Trial, Window

# NVML's bits of why a clock is not at its highest.
CLOCK_EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
}
# The power cap of the software is the normal state of a busy card: told, but no slow-down.
POWER_CAP = frozenset({"sw_power_cap"})
SLOWDOWNS = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"})
THROTTLED_ABOVE_PCT = 5.0
CONTAMINATED_ABOVE_PCT = 5.0
COLD_ABOVE_PCT = 50.0
WARM_BELOW_PCT = 5.0
LEAK_MIB_PER_1000_STEPS = 100
GROWTH_NEEDS_STEPS = 200
RECORDED_BYTES_PER_IMAGE = 16  # its label and its index, kept until the end
GROWTH_NEEDS_SAMPLES = 10
# A slope takes every pair of samples: of a long run, so many that are spread evenly will do.
GROWTH_SAMPLES_MAX = 300


# --- samples ------------------------------------------------------------------------------------------------------


def samples_in_windows(rank: RankTrial) -> list[Sample]:
    """Those taken while a window of this rank was open, its two ends included."""
    windows = sorted((window.start_s, window.stop_s) for window in rank.windows)
    starts = [start_s for start_s, _ in windows]

    def inside(at_s: float) -> bool:
        place = bisect_right(starts, at_s) - 1
        return place >= 0 and at_s <= windows[place][1]

    return [sample for sample in rank.samples if inside(sample.at_s)]


def seen_by(rank: RankTrial, name: str) -> list[Any]:
    """What is known of one field of a rank's samples in its windows."""
    values = (getattr(sample, name) for sample in samples_in_windows(rank))
    return [value for value in values if value is not None]


def seen(trial: Trial, name: str) -> list[Any]:
    return [value for rank in trial.ranks for value in seen_by(rank, name)]


def mean_seen(trial: Trial, name: str) -> float | None:
    values = seen(trial, name)
    return fmean(values) if values else None


def gpu_utilisation_pct(trial: Trial) -> float | None:
    return mean_seen(trial, "gpu_utilisation_pct")


def jpeg_utilisation_pct(trial: Trial) -> float | None:
    """Of the GPUs' JPEG decoders."""
    return mean_seen(trial, "jpeg_utilisation_pct")


def sm_clock_mhz_p50(trial: Trial) -> float | None:
    return percentile(seen(trial, "sm_clock_mhz"), 0.50)


def power_w(trial: Trial) -> float | None:
    """Of all the job's GPUs together; None where one does not tell it."""
    ranks = [seen_by(rank, "power_w") for rank in trial.ranks]
    return sum(map(fmean, ranks)) if ranks and all(ranks) else None


def temperature_c_max(trial: Trial) -> float | None:
    return max(seen(trial, "temperature_c"), default=None)


def host_load(trial: Trial) -> float | None:
    """Processes that ran or waited to on a machine of the job, on average."""
    return mean_seen(trial, "host_load")


# --- what slows a GPU down ----------------------------------------------------------------------------------------


def names_of(reasons: int) -> set[str]:
    """Names of the bits that are set; bits without a name have none."""
    return {name for bit, name in CLOCK_EVENT_REASONS.items() if reasons & bit}


def pct_with(reasons: Sequence[int], names: frozenset[str]) -> float | None:
    """Share of samples with at least one of these reasons."""
    return share_pct(sum(bool(names_of(bits) & names) for bits in reasons), len(reasons))


def power_capped_pct(trial: Trial) -> float | None:
    return pct_with(seen(trial, "clock_event_reasons"), POWER_CAP)


def throttled_by_rank(trial: Trial) -> dict[int, float]:
    """Share of a rank's samples in which heat, hardware or a power brake slowed its GPU, of the ranks that tell."""
    shares = {rank.rank: pct_with(seen_by(rank, "clock_event_reasons"), SLOWDOWNS) for rank in trial.ranks}
    return {rank: pct for rank, pct in shares.items() if pct is not None}


def throttled_pct(trial: Trial) -> float | None:
    """The worst rank's."""
    return max(throttled_by_rank(trial).values(), default=None)


def throttle_reasons(trial: Trial) -> str | None:
    """Slow-downs and power caps that any sample has seen, joined by `+`."""
    names = set().union(*map(names_of, set(seen(trial, "clock_event_reasons")))) & (SLOWDOWNS | POWER_CAP)
    return "+".join(name for name in CLOCK_EVENT_REASONS.values() if name in names) or None


def throttled(trial: Trial) -> str:
    """Why the speed is a throttled card's; "" where it is not, or not known to be."""
    rank, pct = worst(throttled_by_rank(trial))
    if pct <= THROTTLED_ABOVE_PCT:
        return ""
    (slowed,) = (each for each in trial.ranks if each.rank == rank)
    names = set().union(*map(names_of, seen_by(slowed, "clock_event_reasons"))) & SLOWDOWNS
    return f"rank {rank}'s GPU was slowed down in {pct:.3g} % of the samples ({', '.join(sorted(names))}): look at its cooling and power supply"


# --- who else was there -------------------------------------------------------------------------------------------


def others_by_rank(trial: Trial) -> dict[int, float]:
    """What other processes used of a rank's GPU, of the ranks that tell."""
    used = {rank.rank: seen_by(rank, "other_process_utilisation_pct") for rank in trial.ranks}
    return {rank: fmean(pct) for rank, pct in used.items() if pct}


def other_process_utilisation_pct(trial: Trial) -> float | None:
    """The worst rank's."""
    return max(others_by_rank(trial).values(), default=None)


def contaminated(trial: Trial) -> str:
    """Why the speed is not of this run alone; "" where it is, or is not known not to be."""
    rank, pct = worst(others_by_rank(trial))
    if pct <= CONTAMINATED_ABOVE_PCT:
        return ""
    return f"other processes used {pct:.3g} % of rank {rank}'s GPU: run again where nobody else computes"


def worst(by_rank: dict[int, float]) -> tuple[int, float]:
    return max(by_rank.items(), key=lambda each: each[1], default=(0, 0.0))


# --- energy and disks ---------------------------------------------------------------------------------------------


def metered(rank: RankTrial, name: str) -> list[float | None]:
    """What a meter counted in each of a rank's windows; None where it was not read at both ends or began again."""

    def counted(window: Window) -> float | None:
        opened, closed = (getattr(meters, name, None) for meters in (window.opened, window.closed))
        return None if opened is None or closed is None or closed < opened else closed - opened

    return [counted(window) for window in rank.windows]


def metered_together(ranks: Sequence[RankTrial], name: str) -> float | None:
    """Over all these ranks and their windows; None where any of it is unknown."""
    counted = [each for rank in ranks for each in metered(rank, name) or [None]]
    known = [each for each in counted if each is not None]
    return sum(known) if known and len(known) == len(counted) else None


def energy_meters(trial: Trial) -> list[RankTrial]:
    """The ranks that have to tell energy: each on GPUs; on CPUs one a machine, which tells the machine's load too."""
    if any(rank.gpu_total_bytes is not None or rank.gpu_peak_reserved_bytes is not None for rank in trial.ranks):
        return list(trial.ranks)

    def of_a_machine(rank: RankTrial) -> bool:
        told = any(meters and meters.energy_j is not None for w in rank.windows for meters in (w.opened, w.closed))
        return told or any(sample.host_load is not None for sample in rank.samples)

    return list(filter(of_a_machine, trial.ranks))


def energy_j_per_image(trial: Trial) -> float | None:
    """Of all GPUs of the job, or of all CPUs of its machines, in the windows."""
    joules, images = metered_together(energy_meters(trial), "energy_j"), images_counted(trial)
    return joules / images if joules is not None and images else None


def disk_read_gb_per_s(trial: Trial) -> float | None:
    """All ranks together, in the windows."""
    read, seconds = metered_together(trial.ranks, "disk_read_bytes"), timed_s(trial)
    return read / 1e9 / seconds if read is not None and seconds else None


def page_cache(trial: Trial) -> str | None:
    """`cold` where over half of the images' bytes came from disks, `warm` where under 5 % did, else `partly cold`."""
    images = images_counted(trial)
    if images is None or trial.image_bytes is None:
        return None
    pct = share_pct(metered_together(trial.ranks, "disk_read_bytes"), trial.image_bytes * images)
    if pct is None:
        return None
    return "cold" if pct > COLD_ABOVE_PCT else "warm" if pct < WARM_BELOW_PCT else "partly cold"


# --- memory -------------------------------------------------------------------------------------------------------


def gpu_peak_process_gib(trial: Trial) -> float | None:
    """The fullest rank's process by all accounts: torch, DALI, NCCL and the context."""
    return max((each / GIB for each in seen(trial, "gpu_process_bytes")), default=None)


def gpu_peak_other_gib(trial: Trial) -> float | None:
    """What a process had beside torch's reserve, where that was most; None where no sample saw the reserve at its peak."""
    beside = [
        max(process) - rank.gpu_peak_reserved_bytes
        for rank in trial.ranks
        if (process := seen_by(rank, "gpu_process_bytes")) and rank.gpu_peak_reserved_bytes is not None
    ]
    return max((each / GIB for each in beside if each >= 0), default=None)


def memory_points(rank: RankTrial) -> list[tuple[int, float]]:
    """(steps, MiB) of a rank's samples in its windows: host, and GPU where every sample tells it; empty where the host is not told."""
    samples = samples_in_windows(rank)
    on_gpu = all(sample.gpu_process_bytes is not None for sample in samples)
    points: list[tuple[int, float]] = []
    for sample in samples:
        if sample.host_rss_bytes is not None:
            gpu_bytes = (sample.gpu_process_bytes or 0) if on_gpu else 0
            points.append((sample.steps, (sample.host_rss_bytes + gpu_bytes) / MIB))
    return points


def spread_evenly(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[place * (len(points) - 1) // (most - 1)] for place in range(most)]


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """The median of the slopes of all pairs (Theil and Sen); None where no two points are steps apart."""
    slopes = [(b - a) / (later - steps) for (steps, a), (later, b) in combinations(points, 2) if later != steps]
    return median(slopes) if slopes else None


def growth(points: Sequence[tuple[int, float]]) -> float | None:
    """MiB a step: the slope of the whole, or the median of its thirds' slopes, whichever is nearer to none.

    A jump in the middle moves the slope of the whole, and noise those of the thirds; a leak moves both.
    """
    size = len(points)
    thirds = (slope(points[part * size // 3 : (part + 1) * size // 3]) for part in range(3))
    known = [each for each in thirds if each is not None]
    whole = slope(points)
    return min(whole, median(known), key=abs) if whole is not None and known else None


def growths(trial: Trial) -> Iterator[float]:
    """MiB a step of every rank that was watched for long enough to tell, less what our own record grows by."""
    for rank in trial.ranks:
        points = memory_points(rank)
        if len(points) >= GROWTH_NEEDS_SAMPLES and points[-1][0] - points[0][0] >= GROWTH_NEEDS_STEPS:
            each = growth(spread_evenly(points, GROWTH_SAMPLES_MAX))
            if each is not None:
                recorded = RECORDED_BYTES_PER_IMAGE * rank.images_per_step / MIB
                yield each - min(max(each, 0), recorded)


def memory_growth_mib_per_1000_steps(trial: Trial) -> float | None:
    """Of the rank that grew most, host and GPU together."""
    return max((1000 * each for each in growths(trial)), default=None)


def is_leak(mib_per_1000_steps: float | None) -> bool:
    return mib_per_1000_steps is not None and mib_per_1000_steps > LEAK_MIB_PER_1000_STEPS
