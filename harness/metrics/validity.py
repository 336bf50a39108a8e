"""Whether it counts."""

from __future__ import annotations

import math

from harness.metrics.learning import job_losses, loss_first
from harness.metrics.memory import images_per_gpu_expected_to_fit
from harness.metrics.numbers import GIB
from harness.metrics.speed import images_per_s, timed_steps
from harness.metrics.telemetry import contaminated, throttled
from harness.trial import RankTrial, Trial

# Share of disagreement between two observers of the same thing above which neither is believed.
OBSERVERS_AGREE_WITHIN = 0.01
# How far a seeded step's gradient may be from eager float32's, of its norm. Two orders of one float32 sum of K products
# differ by about sqrt(K) units of 2^-24; the network has eight layers, forward and backward, and the longest sum is fc6's
# 9,216. bfloat16 turns so many ReLUs and winners of pools that a third of a gradient may be another: what is seen there is
# a wrong operation, not a rounding.
SEEDED_STEP_MOST = {"fp32": 2 * 8 * math.sqrt(9216) * 2.0**-24, "bf16": 0.5}


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
        found += [f"rank {rank.rank}: {doubt}" for doubt in (*rank_doubts(rank), *step_doubts(rank, trial.precision))]
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
    unadjusted_s = sum(w.unadjusted_s if w.unadjusted_s is not None else w.stop_s - w.start_s for w in rank.windows)
    if abs(unadjusted_s - clock_s) > OBSERVERS_AGREE_WITHIN * clock_s:
        found.append(f"a second clock saw {unadjusted_s:.4g} s pass where the first says {clock_s:.4g} s")
    return found


def seeded_step_distance(trial: Trial) -> float | None:
    """The farthest rank's seeded step from eager float32, as a share of the gradient's norm."""
    seen = [rank.seeded_step_distance for rank in trial.ranks if rank.seeded_step_distance is not None]
    return next((each for each in seen if math.isnan(each)), max(seen, default=None))


def step_doubts(rank: RankTrial, precision: str) -> list[str]:
    """Why not to believe what was computed, by the seeded step."""
    distance, most = rank.seeded_step_distance, SEEDED_STEP_MOST.get(precision)
    if distance is None or most is None or distance <= most:
        return []
    return [f"a seeded step's gradient is {distance:.2g} of its norm from eager float32's, where {most:.2g} is allowed"]


def status_and_reason(trial: Trial) -> tuple[str, str]:
    """The worst that is true of the trial, and the sentence that says why; ("ok", "") when nothing is."""
    if trial.failure:
        return "failed", trial.failure
    if any(rank.interrupted for rank in trial.ranks):
        return "interrupted", f"stopped by a signal or its time limit after {timed_steps(trial)} timed steps"
    if any(rank.out_of_memory for rank in trial.ranks):
        return "oom", oom_reason(trial)
    losses = job_losses(trial)
    wrong = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if wrong == 0:
        return "invalid", "the first loss was not finite"
    if wrong is not None:
        return "diverged", f"the loss was {losses[wrong]} at step {wrong}"
    found = doubts(trial)
    if found:
        return "invalid", "; ".join(found)
    for name, why in (("throttled", throttled(trial)), ("contaminated", contaminated(trial))):
        if why:
            return name, why
    return "ok", ""


def oom_reason(trial: Trial) -> str:
    """What was asked, of what card, and what should fit."""
    ranks = [rank for rank in trial.ranks if rank.out_of_memory]
    card = f" of a card of {ranks[0].gpu_total_bytes / GIB:.1f} GiB" if ranks[0].gpu_total_bytes else ""
    fits = images_per_gpu_expected_to_fit(trial)
    return f"out of GPU memory at {ranks[0].images_per_step} images a rank{card}" + (
        f"; about {fits} should fit" if fits else ""
    )


def status(trial: Trial) -> str:
    return status_and_reason(trial)[0]


def status_reason(trial: Trial) -> str:
    return status_and_reason(trial)[1]
