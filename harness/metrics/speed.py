"""How fast it was, and how sure that is."""

from __future__ import annotations

from statistics import fmean, median

from harness.metrics.numbers import one_a_shard, percentile, seconds_between, share_pct
from harness.trial import Trial


def timed_steps(trial: Trial) -> int | None:
    return min((sum(len(w.step_ms) for w in rank.windows) for rank in trial.ranks), default=None)


def warmup_steps(trial: Trial) -> int | None:
    return trial.ranks[0].warmup_steps if trial.ranks else None


def restarts(trial: Trial) -> int | None:
    return max((rank.restarts for rank in trial.ranks), default=None)


def settled(trial: Trial) -> bool | None:
    return all(rank.settled for rank in trial.ranks) if trial.ranks else None


def images_counted(trial: Trial) -> int | None:
    """Images that reached the ranks in the windows; ranks that received the same images count once."""
    if not trial.ranks:
        return None
    return sum({rank.indices_digest: rank.indices_count for rank in one_a_shard(trial)}.values())


def timed_s(trial: Trial, windows: int | None = None) -> float | None:
    """Seconds from the first rank's start to the last rank's end, summed over the windows, or over the first few of them.

    None unless every rank has as many windows as the others.
    """
    if len({len(rank.windows) for rank in trial.ranks}) != 1 or not trial.ranks[0].windows:
        return None
    seconds = 0.0
    ahead = [rank.clock_ahead_s for rank in trial.ranks]
    for window in zip(*(rank.windows[:windows] for rank in trial.ranks), strict=True):
        seconds += seconds_between(window, ahead)
    return seconds


def windows_done(trial: Trial, step: int, number: int) -> int:
    """How many windows had ended after `step` training steps; `number` in records that do not say: a window an evaluation."""
    windows = trial.ranks[0].windows if trial.ranks else ()
    ends = [w.steps_before + len(w.step_ms) for w in windows if w.steps_before is not None]
    return sum(end <= step for end in ends) if len(ends) == len(windows) else number


def images_per_s(trial: Trial) -> float | None:
    """Images of the whole job a second; None where some rank did not finish its windows."""
    if len(trial.ranks) < trial.ranks_asked:
        return None
    seconds, images = timed_s(trial), images_counted(trial)
    return images / seconds if images and seconds else None


def job_step_ms(trial: Trial) -> list[float]:
    """Milliseconds of every timed step: the slowest rank's."""
    each_rank = [[ms for window in rank.windows for ms in window.step_ms] for rank in trial.ranks]
    return [max(step) for step in zip(*each_rank, strict=False)]


def step_ms_p50(trial: Trial) -> float | None:
    return percentile(job_step_ms(trial), 0.50)


def step_ms_p95(trial: Trial) -> float | None:
    return percentile(job_step_ms(trial), 0.95)


def step_ms_p99(trial: Trial) -> float | None:
    return percentile(job_step_ms(trial), 0.99)


def within_launch_ci_images_per_s(trial: Trial) -> tuple[float, float] | None:
    """Where the launch's speed would lie, 95 times in 100, were its steps drawn again: of this launch alone, and no more.

    Launches differ by more than their steps do, so that two launches are never compared by it.
    """
    from harness.metrics.intervals import mean_interval  # with numpy, which only rebuilding a row needs

    steps, speed = job_step_ms(trial), images_per_s(trial)
    interval = mean_interval(steps) if speed else None
    if not speed or interval is None or not interval[0] > 0:
        return None
    return speed * fmean(steps) / interval[1], speed * fmean(steps) / interval[0]


def within_launch_ci_low_images_per_s(trial: Trial) -> float | None:
    interval = within_launch_ci_images_per_s(trial)
    return interval[0] if interval else None


def within_launch_ci_high_images_per_s(trial: Trial) -> float | None:
    interval = within_launch_ci_images_per_s(trial)
    return interval[1] if interval else None


def effective_steps(trial: Trial) -> float | None:
    """As many independent steps would tell as much as the timed ones, each of which is like the one before."""
    from harness.metrics.intervals import effective_samples

    return effective_samples(job_step_ms(trial))


def outlier_steps(trial: Trial) -> int | None:
    """Timed steps that took far longer than the others; they are counted here and left out nowhere."""
    from harness.metrics.intervals import outliers

    steps = job_step_ms(trial)
    return outliers(steps) if steps else None


def drift_pct_per_min(trial: Trial) -> float | None:
    """By how much of itself a step grows in a minute."""
    from harness.metrics.intervals import drift_pct_per_min as drift

    return drift(job_step_ms(trial))


def compile_s(trial: Trial) -> float | None:
    """Host seconds of the first step, which compiles; the slowest rank's."""
    return max((r.compile_s for r in trial.ranks if r.compile_s is not None), default=None)


def block_build_s(trial: Trial) -> float | None:
    """Seconds until the slowest rank had the CPU's fused block compiled, or found it so; None where it uses none."""
    return max((r.block_build_s for r in trial.ranks if r.block_build_s is not None), default=None)


def first_batch_s(trial: Trial) -> float | None:
    return max((r.first_batch_s for r in trial.ranks if r.first_batch_s is not None), default=None)


def rank_skew_pct(trial: Trial) -> float | None:
    """Spread of the ranks' own median step times, as a share of the slowest."""
    medians = [median(ms) for r in trial.ranks if (ms := [x for w in r.windows for x in w.step_ms])]
    return share_pct(max(medians) - min(medians), max(medians)) if len(medians) > 1 else None
