"""The course of a run: the training steps, counted from its first, after which it evaluates, saves itself and ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.config import RunConfig
from harness.schedule import first_step

NEVER = 2**62


@dataclass(frozen=True)
class Course:
    """`None`: no evaluations but the last, nothing saved, or an end that is known only once the run has settled."""

    evaluate_steps: int | None = None
    checkpoint_steps: int | None = None
    total_steps: int | None = None

    @classmethod
    def of(cls, config: RunConfig, train_images: int, total_steps: int | None = None) -> Course:
        """What `config` asks; `total_steps` is what an earlier part of the same run found its end to be."""
        if config.epochs is not None:
            total_steps = max(2, first_step(config.epochs, train_images / config.images_per_step))
        return cls(steps_of(config.evaluate_every, config), steps_of(config.checkpoint_every, config), total_steps)

    def room(self, done: int) -> int:
        """Steps from here to the next at which something is to be done; NEVER where nothing is."""
        periods = (self.evaluate_steps, self.checkpoint_steps)
        to_come = [period - done % period for period in periods if period]
        if self.total_steps is not None:
            to_come.append(max(0, self.total_steps - done))
        return min(to_come, default=NEVER)

    def evaluates(self, done: int) -> bool:
        return done == self.total_steps or bool(self.evaluate_steps and done % self.evaluate_steps == 0)

    def saves(self, done: int) -> bool:
        """After every so many steps, and at the end."""
        return bool(self.checkpoint_steps) and (done == self.total_steps or done % (self.checkpoint_steps or 1) == 0)


def steps_of(images: int | None, config: RunConfig) -> int | None:
    """So many images as steps of the whole job, at least one."""
    return max(1, round(images / config.images_per_step)) if images else None


def total_steps(config: RunConfig, step_s: float, done: int) -> int:
    """Where a run ends that has settled to steps of `step_s` seconds after `done` of them: timed steps follow."""
    if config.steps is not None:
        return done + config.steps
    assert config.timed_seconds is not None
    return done + max(1, math.ceil(config.timed_seconds / step_s))
