"""How much arithmetic it did, and how much its device can do."""

from __future__ import annotations

from harness.metrics.numbers import rate, share_pct
from harness.metrics.speed import images_per_s
from harness.trial import Trial


def model_tflop_per_s(trial: Trial) -> float | None:
    """Floating-point operations of convolutions and products that training asks for, a multiply-add being two.

    Three times the forward pass, less the first layer's gradient by its input, which nobody needs; nothing that an
    implementation does beyond that counts.
    """
    each = trial.ranks[0].train_multiply_adds_per_image if trial.ranks else None
    speed = images_per_s(trial)
    return 2 * each * speed / 1e12 if each and speed else None


def peak_per_s(trial: Trial, name: str) -> float | None:
    """Work a second of all ranks together, side by side, each by its median lap."""
    peaks = [rank.peaks[name] for rank in trial.ranks if name in rank.peaks]
    if not peaks or len(peaks) < len(trial.ranks):
        return None
    if not all(peak.lap_s and all(peak.lap_s) for peak in peaks):
        return None
    return sum(rate(peak.work, peak.lap_s) for peak in peaks)


def gemm_peak_tflop_per_s(trial: Trial) -> float | None:
    """A large product of random matrices in the run's precision, on all ranks at once."""
    peak = peak_per_s(trial, "gemm")
    return peak / 1e12 if peak is not None else None


def mfu_pct(trial: Trial) -> float | None:
    """Model FLOPs utilisation against the matrix products that these devices were seen to do, not against a datasheet."""
    return share_pct(model_tflop_per_s(trial), gemm_peak_tflop_per_s(trial))


def copy_gb_per_s(trial: Trial) -> float | None:
    """Bytes read and written in a large copy, on all ranks at once."""
    peak = peak_per_s(trial, "copy")
    return peak / 1e9 if peak is not None else None
