"""One rank's run under way, and what it does at its pauses: evaluate, save itself, stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from harness.agree import Ranks
from harness.config import RunConfig
from harness.course import Course
from harness.measure import Interrupted
from harness.metrics.learning import errors_pct
from harness.progress import Teller
from harness.schedule import plateau_drops
from harness.seen import Seen, Signals
from harness.state import Keeper
from harness.trial import Evaluation
from harness.workload import Built, Rank


@dataclass
class Job:
    """One rank's run: what was asked and built, what has been seen, and what may save or end it."""

    config: RunConfig
    built: Built
    rank: Rank
    seen: Seen
    ranks: Ranks
    teller: Teller
    signals: Signals
    course: Course
    keeper: Keeper | None = None
    drops_taken: int = 0
    look_every: int = 1  # steps between looks at whether another rank was asked to stop

    @property
    def done(self) -> int:
        """Training steps so far, those of an earlier part of the run included."""
        return self.seen.recording.steps


def pause(job: Job) -> None:
    """What is to be done after the step that was just taken, outside any window: evaluate, save."""
    if job.course.evaluates(job.done):
        evaluate(job)
        if job.seen.windows and reached_its_target(job):
            job.course = replace(job.course, total_steps=job.done)
            job.seen.total_steps = job.done
    if job.course.saves(job.done):
        save(job)


def must_stop(job: Job, *, now: bool = False) -> bool:
    """Whether a signal or the time limit ends the run after this step; the same on all ranks of a run that saves itself.

    These ask each other every `look_every` steps, and always `now`.
    """
    asked = job.signals.asked
    if job.keeper is None or job.ranks.count == 1:
        return asked is not None
    if now or job.done % job.look_every == 0:
        # A signal may come while the ranks ask each other: then they agree on it when they ask again.
        if agreed := int(job.ranks.largest(asked or 0)):
            job.signals.asked = agreed
        return bool(agreed)
    return False


def stop(job: Job) -> None:
    """Save the run where it stands, if it is one that does, and leave."""
    save(job)
    raise Interrupted(job.signals.asked)


def save(job: Job) -> None:
    if job.keeper is not None:
        job.teller.tell("save")
        job.seen.beat("saving")
        job.keeper.save(job.built, job.seen, job.rank, job.ranks, job.built.input_state())


def evaluate(job: Job) -> None:
    """Count the right answers on the validation images, and what they mean for the learning rate."""
    built, seen = job.built, job.seen
    if built.evaluate is None:
        return
    job.teller.tell("evaluate")
    mine = built.evaluate(lambda: seen.beat("evaluating"))
    seen.evaluations.append(Evaluation(job.done, *mine))
    seen.job_evaluations.append(Evaluation(job.done, *(int(job.ranks.total(number)) for number in mine)))
    job.drops_taken = drops_taken(job.config, seen)


def drops_taken(config: RunConfig, seen: Seen) -> int:
    """How often the rate has dropped for what the evaluations said."""
    if config.schedule != "plateau":
        return 0
    assert config.patience is not None
    errors = [errors_pct(each)[0] for each in seen.job_evaluations]
    return len(plateau_drops([math.nan if error is None else error for error in errors], config.patience))


def reached_its_target(job: Job) -> bool:
    """Whether the training error from one evaluation to the next was as low as was asked."""
    target, period = job.config.target_train_error_pct, job.course.evaluate_steps
    if target is None or period is None or job.done % period:
        return False
    return train_error_pct(job, period) <= target


def train_error_pct(job: Job, steps: int) -> float:
    """Of the whole job over its newest steps, on the images as they were trained on."""
    job.seen.recording.fold()
    has_logits = job.built.scheme.column == 0
    right = sum(job.seen.recording.correct[-steps:]) if has_logits else 0
    images = steps * job.built.workload.images_per_step if has_logits else 0
    return 100 * (1 - job.ranks.total(right) / job.ranks.total(images))
