"""Every number told of a Trial: pure functions of raw observations.

A metric that cannot be known from a trial is None, which becomes an empty cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

from harness.trial import Alone, Evaluation, RankTrial, Trial, Window

GIB = 2**30
MIB = 2**20
# Share of disagreement between two observers of the same thing above which neither is believed.
OBSERVERS_AGREE_WITHIN = 0.01
INPUT_BOUND_WAIT_PCT = 5.0
COMMUNICATION_BOUND_RATIO = 1.05
LEARNING_NEEDS_STEPS = 200
LEARNING_LOSS_SHARE = 0.95


# --- small arithmetic ---------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float | None:
    """Linear between the closest ranks; `share` in 0..1; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_of_last(step_ms: Sequence[float], blocks: int = 3) -> float:
    """(max - min) / median of the last `blocks` values; infinite while there are fewer."""
    last = step_ms[-blocks:]
    return math.inf if len(last) < blocks else (max(last) - min(last)) / median(last)


def one_a_shard(trial: Trial) -> list[RankTrial]:
    """The ranks that have logits and losses: all, or with columns the first of each shard."""
    return [rank for rank in trial.ranks if rank.column == 0]


def entropy(counts: Sequence[int]) -> float:
    """Nats of a histogram: the loss of a network that has learned the labels' frequencies and nothing else."""
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n) if total else 0.0


# --- speed --------------------------------------------------------------------------------------------------------


def timed_steps(trial: Trial) -> int | None:
    return min((sum(len(w.step_ms) for w in rank.windows) for rank in trial.ranks), default=None)


def warmup_steps(trial: Trial) -> int | None:
    return trial.ranks[0].warmup_steps if trial.ranks else None


def settled(trial: Trial) -> bool | None:
    return all(rank.settled for rank in trial.ranks) if trial.ranks else None


def images_counted(trial: Trial) -> int | None:
    """Images that reached the ranks in the windows; ranks that received the same images count once."""
    if not trial.ranks:
        return None
    return sum({rank.indices_digest: rank.indices_count for rank in one_a_shard(trial)}.values())


def timed_s(trial: Trial, windows: int | None = None) -> float | None:
    """Seconds from the first rank's start to the last rank's end, summed over the windows, or over the first few.

    None unless every rank has as many windows as the others.
    """
    if len({len(rank.windows) for rank in trial.ranks}) != 1 or not trial.ranks[0].windows:
        return None
    seconds = 0.0
    ahead = [rank.clock_ahead_s for rank in trial.ranks]
    for window in zip(*(rank.windows[:windows] for rank in trial.ranks), strict=True):
        seconds += seconds_between(window, ahead)
    return seconds


def seconds_between(spans: Sequence[Window | Alone], ahead_s: Sequence[float]) -> float:
    """From the first start to the last stop of the ranks' spans, whose clocks are so far ahead of rank 0's."""
    stops = [span.stop_s - ahead for span, ahead in zip(spans, ahead_s, strict=True)]
    return max(stops) - min(span.start_s - ahead for span, ahead in zip(spans, ahead_s, strict=True))


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


# --- limit --------------------------------------------------------------------------------------------------------


def alone_images_per_s(trial: Trial, part: str) -> float | None:
    """Images of the whole job a second through a part; those that several columns see count once."""
    laps = [rank.alone[part] for rank in trial.ranks if part in rank.alone]
    if not laps or len(laps) < len(trial.ranks):
        return None
    seconds = seconds_between(laps, [rank.clock_ahead_s for rank in trial.ranks])
    return sum(rank.alone[part].images for rank in one_a_shard(trial)) / seconds if seconds else None


def input_alone_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "input")


def model_alone_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "model")


def no_comm_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "no_comm")


def limit_images_per_s(trial: Trial) -> float | None:
    """What input and model allow together: the slower, or, where they take turns on the same cores, their series."""
    source, model = input_alone_images_per_s(trial), model_alone_images_per_s(trial)
    if not source or not model:
        return None
    return 1 / (1 / source + 1 / model) if trial.ranks_share_cores_with_input else min(source, model)


def share_pct(part: float | None, whole: float | None) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def exposed_comm_pct(trial: Trial) -> float | None:
    """Share of a step that the model alone spends on communication that nothing hides: its time less that without any."""
    model, no_comm = model_alone_images_per_s(trial), no_comm_images_per_s(trial)
    return 100 * (1 - model / no_comm) if model and no_comm else None


def exchange_mib_per_step(trial: Trial) -> float | None:
    """What all ranks together send each other in a training step."""
    sent = [rank.sent_bytes_per_step for rank in trial.ranks if rank.sent_bytes_per_step is not None]
    return sum(sent) / MIB if sent and len(sent) == trial.ranks_asked else None


def exchange_kib_per_image(trial: Trial) -> float | None:
    mib = exchange_mib_per_step(trial)
    return 1024 * mib / images_a_step(trial) if mib is not None else None


def pct_of_limit(trial: Trial) -> float | None:
    return share_pct(images_per_s(trial), limit_images_per_s(trial))


def pct_of_model_alone(trial: Trial) -> float | None:
    return share_pct(images_per_s(trial), model_alone_images_per_s(trial))


def data_wait_pct(trial: Trial) -> float | None:
    """Share of the windows in which there was no batch to train on; the mean over ranks."""
    shares = [
        100 * sum(ms for w in rank.windows for ms in w.wait_ms) / 1000 / seconds
        for rank in trial.ranks
        if (seconds := sum(w.stop_s - w.start_s for w in rank.windows))
    ]
    return fmean(shares) if shares else None


def bound_by(trial: Trial) -> str | None:
    """input, communication or model (input where the wait for data is over 5 %); None where it was not measured."""
    wait, model, no_comm = data_wait_pct(trial), model_alone_images_per_s(trial), no_comm_images_per_s(trial)
    if wait is not None and wait > INPUT_BOUND_WAIT_PCT:
        return "input"
    if wait is None or model is None:
        return None
    if len(trial.ranks) == 1:
        return "model"
    if no_comm is None:
        return None
    return "communication" if no_comm > COMMUNICATION_BOUND_RATIO * model else "model"


# --- memory -------------------------------------------------------------------------------------------------------


def gpu_peak_allocated_gib(trial: Trial) -> float | None:
    """The fullest rank's peak inside torch's allocator."""
    return max((r.gpu_peak_allocated_bytes / GIB for r in trial.ranks if r.gpu_peak_allocated_bytes), default=None)


def gpu_peak_reserved_gib(trial: Trial) -> float | None:
    return max((r.gpu_peak_reserved_bytes / GIB for r in trial.ranks if r.gpu_peak_reserved_bytes), default=None)


def host_peak_rss_gib(trial: Trial) -> float | None:
    """Peak resident memory summed over the ranks' processes."""
    seen = [r.host_peak_rss_bytes for r in trial.ranks if r.host_peak_rss_bytes is not None]
    return sum(seen) / GIB if seen and len(seen) == len(trial.ranks) else None


# --- learning -----------------------------------------------------------------------------------------------------


def job_losses(trial: Trial) -> list[float]:
    """Loss of every training step, the mean over ranks of equal batches."""
    return [fmean(step) for step in zip(*(rank.losses for rank in one_a_shard(trial)), strict=False)]


def images_a_step(trial: Trial) -> int:
    return sum(rank.images_per_step for rank in one_a_shard(trial))


def images_seen(trial: Trial) -> int | None:
    return len(job_losses(trial)) * images_a_step(trial) if trial.ranks else None


def epochs_done(trial: Trial) -> float | None:
    seen = images_seen(trial)
    return seen / trial.train_images if seen is not None and trial.train_images else None


def loss_first(trial: Trial) -> float | None:
    losses = job_losses(trial)
    return losses[0] if losses else None


def loss_last(trial: Trial) -> float | None:
    losses = job_losses(trial)
    return losses[-1] if losses else None


def loss_at_images(trial: Trial, images: int) -> float | None:
    """Mean loss of the ten steps that end where this many images had been trained on."""
    losses = job_losses(trial)
    steps = math.ceil(images / images_a_step(trial)) if losses else 0
    return fmean(losses[max(0, steps - 10) : steps]) if losses and steps <= len(losses) else None


def loss_at_100k_images(trial: Trial) -> float | None:
    return loss_at_images(trial, 100_000)


def loss_at_1m_images(trial: Trial) -> float | None:
    return loss_at_images(trial, 1_000_000)


def last_tenth(steps: int) -> int:
    return max(1, steps // 10)


def learning(trial: Trial) -> str | None:
    """`seen` if the last tenth's mean loss is under 0.95 of the labels' entropy, else `flat`; `too short` under 200 steps."""
    losses = job_losses(trial)
    if not losses:
        return None
    if len(losses) < LEARNING_NEEDS_STEPS:
        return "too short"
    counts = [sum(each) for each in zip(*(rank.label_counts for rank in one_a_shard(trial)), strict=True)]
    late = fmean(losses[-last_tenth(len(losses)) :])
    return "seen" if late < LEARNING_LOSS_SHARE * entropy(counts) else "flat"


def train_top1_error_pct(trial: Trial) -> float | None:
    """Over the last tenth of the training steps, on the augmented images as they were trained on."""
    steps = len(job_losses(trial))
    if not steps:
        return None
    last = last_tenth(steps)
    right = sum(sum(rank.correct[steps - last : steps]) for rank in one_a_shard(trial))
    return 100 * (1 - right / (last * images_a_step(trial)))


def evaluation_points(trial: Trial) -> list[Evaluation]:
    """The ranks' sums added up, in order of step."""
    points = []
    for each in zip(*(rank.evaluations for rank in one_a_shard(trial)), strict=False):
        sums = (sum(getattr(e, name) for e in each) for name in ("images", "top1_correct", "top5_correct"))
        points.append(Evaluation(each[0].step, *sums))
    return points


def val_top1_error_pct(trial: Trial) -> float | None:
    points = evaluation_points(trial)
    return 100 * (1 - points[-1].top1_correct / points[-1].images) if points and points[-1].images else None


def val_top5_error_pct(trial: Trial) -> float | None:
    points = evaluation_points(trial)
    return 100 * (1 - points[-1].top5_correct / points[-1].images) if points and points[-1].images else None


# --- whether it counts --------------------------------------------------------------------------------------------


def doubts(trial: Trial) -> list[str]:
    """Every reason not to believe this trial's speed as far as one trial can tell; empty when it may be believed."""
    found = [] if images_per_s(trial) else ["no timed window was finished by every rank"]
    first = loss_first(trial)
    low, high = 0.5 * math.log(trial.classes), 3 * math.log(trial.classes)
    if first is not None and math.isfinite(first) and not low <= first <= high:
        found.append(f"the first loss was {first:.3g}, outside {low:.3g} to {high:.3g}")
    digests = [digests_of_a_shard(trial, shard) for shard in sorted(set(map(shard_of, trial.ranks)))]
    if any(len(shard) > 1 for shard in digests):
        found.append("ranks received different images where the scheme gives them the same")
    if len(set().union(*digests)) < len(digests):
        found.append("ranks received the same images where the scheme gives each its own")
    for rank in trial.ranks:
        found += [f"rank {rank.rank}: {doubt}" for doubt in rank_doubts(rank)]
    if len({len(rank.losses) for rank in trial.ranks}) > 1:
        found.append("the ranks took different numbers of steps")
    return found


def shard_of(rank: RankTrial) -> int:
    return rank.rank if rank.shard is None else rank.shard


def digests_of_a_shard(trial: Trial, shard: int) -> set[str]:
    return {rank.indices_digest for rank in trial.ranks if shard_of(rank) == shard}


def rank_doubts(rank: RankTrial) -> list[str]:
    found = []
    still = sorted(name for name, change in rank.parameter_change_max.items() if not change > 0)
    if still:
        found.append(f"{len(still)} of {len(rank.parameter_change_max)} parameters did not move ({still[0]})")
    if sum(1 for count in rank.label_counts if count) < 2:
        found.append("all labels were the same")
    if rank.pixel_min is not None and rank.pixel_min == rank.pixel_max:
        found.append("all pixels were the same")
    asked = sum(len(w.step_ms) for w in rank.windows) * rank.images_per_step
    if abs(rank.indices_count - asked) > OBSERVERS_AGREE_WITHIN * asked:
        found.append(f"{rank.indices_count} images came in where steps x batch is {asked}")
    if rank.shard_images and rank.index_repeats_max > math.ceil(rank.indices_count / rank.shard_images) + 1:
        found.append(f"one image came {rank.index_repeats_max} times in {rank.indices_count} from {rank.shard_images}")
    events_s = sum(ms for w in rank.windows for ms in w.step_ms) / 1000
    clock_s = sum(w.stop_s - w.start_s for w in rank.windows)
    if abs(events_s - clock_s) > OBSERVERS_AGREE_WITHIN * clock_s:
        found.append(f"step times add up to {events_s:.4g} s where the clock says {clock_s:.4g} s")
    return found


def status_and_reason(trial: Trial) -> tuple[str, str]:
    """The worst that is true of the trial, and the sentence that says why; ("ok", "") when nothing is."""
    if trial.failure:
        return "failed", trial.failure
    if any(rank.interrupted for rank in trial.ranks):
        return "interrupted", f"stopped by a signal after {timed_steps(trial)} timed steps"
    if any(rank.out_of_memory for rank in trial.ranks):
        return "oom", f"out of GPU memory at {trial.ranks[0].images_per_step} images a rank"
    losses = job_losses(trial)
    wrong = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if wrong == 0:
        return "invalid", "the first loss was not finite"
    if wrong is not None:
        return "diverged", f"the loss was {losses[wrong]} at step {wrong}"
    found = doubts(trial)
    return ("invalid", "; ".join(found)) if found else ("ok", "")


def status(trial: Trial) -> str:
    return status_and_reason(trial)[0]


def status_reason(trial: Trial) -> str:
    return status_and_reason(trial)[1]


METRICS: dict[str, Callable[[Trial], Any]] = {
    metric.__name__: metric
    for metric in (
        status, status_reason, images_per_s, input_alone_images_per_s, model_alone_images_per_s, bound_by,
        pct_of_model_alone, step_ms_p50, step_ms_p95, step_ms_p99, timed_steps, timed_s, images_counted, settled,
        warmup_steps, compile_s, block_build_s, first_batch_s, rank_skew_pct, no_comm_images_per_s, limit_images_per_s, pct_of_limit,
        data_wait_pct, exposed_comm_pct, exchange_mib_per_step, exchange_kib_per_image, gpu_peak_allocated_gib, gpu_peak_reserved_gib, host_peak_rss_gib, epochs_done, images_seen,
        loss_first, loss_last, loss_at_100k_images, loss_at_1m_images, learning, train_top1_error_pct,
        val_top1_error_pct, val_top5_error_pct,
    )
}  # fmt: skip
