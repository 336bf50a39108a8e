"""What was learned."""

from __future__ import annotations

import math
from statistics import fmean

from harness.metrics.numbers import entropy, one_a_shard
from harness.trial import Evaluation, Trial

LEARNING_NEEDS_STEPS = 200
LEARNING_LOSS_SHARE = 0.95


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


def errors_pct(evaluation: Evaluation) -> tuple[float, float] | tuple[None, None]:
    """Top-1 and top-5; None where no image was evaluated."""
    if not evaluation.images:
        return None, None
    top1, top5 = (100 * (1 - n / evaluation.images) for n in (evaluation.top1_correct, evaluation.top5_correct))
    return top1, top5


def val_top1_error_pct(trial: Trial) -> float | None:
    points = evaluation_points(trial)
    return errors_pct(points[-1])[0] if points else None


def val_top5_error_pct(trial: Trial) -> float | None:
    points = evaluation_points(trial)
    return errors_pct(points[-1])[1] if points else None
