"""What memory it took."""

from __future__ import annotations

from harness.metrics.numbers import GIB
from harness.trial import Trial


def gpu_peak_allocated_gib(trial: Trial) -> float | None:
    """The fullest rank's peak inside torch's allocator."""
    return max((r.gpu_peak_allocated_bytes / GIB for r in trial.ranks if r.gpu_peak_allocated_bytes), default=None)


def gpu_peak_reserved_gib(trial: Trial) -> float | None:
    return max((r.gpu_peak_reserved_bytes / GIB for r in trial.ranks if r.gpu_peak_reserved_bytes), default=None)


def host_peak_rss_gib(trial: Trial) -> float | None:
    """Peak resident memory summed over the ranks' processes."""
    seen = [r.host_peak_rss_bytes for r in trial.ranks if r.host_peak_rss_bytes is not None]
    return sum(seen) / GIB if seen and len(seen) == len(trial.ranks) else None


def images_per_gpu_expected_to_fit(trial: Trial) -> int | None:
    """After a launch that ran out of memory: the images a rank that should fit, by a line through what two smaller steps took.

    None where memory was enough, or the smaller steps could not be taken.
    """
    for rank in trial.ranks:
        if rank.out_of_memory and rank.gpu_total_bytes and len(rank.memory_points) == 2:
            few, more = rank.memory_points
            an_image = (more.peak_bytes - few.peak_bytes) / max(1, more.images - few.images)
            if an_image <= 0:
                return None
            fits = few.images + int((rank.gpu_total_bytes - few.peak_bytes) / an_image)
            fits = min(fits, rank.images_per_step - 1)
            return max(1, fits // 8 * 8 if fits >= 8 else fits)
    return None
