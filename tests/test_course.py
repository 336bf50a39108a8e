"""The steps at which a run evaluates, saves itself and ends."""

from __future__ import annotations

from harness.config import RunConfig
from harness.course import NEVER, Course, total_steps

ASKED = RunConfig(cpus=2, images_per_gpu=8, evaluate_every=64, checkpoint_every=100, epochs=1.5)


def test_pauses_are_counted_in_steps_of_the_whole_job_from_the_runs_first() -> None:
    assert Course.of(ASKED, train_images=100) == Course(evaluate_steps=4, checkpoint_steps=6, total_steps=10)
    assert Course.of(ASKED.with_(evaluate_every=1, checkpoint_every=None), 100) == Course(1, None, 10)


def test_there_is_room_until_the_next_pause() -> None:
    course = Course(evaluate_steps=4, checkpoint_steps=6, total_steps=10)
    assert [course.room(done) for done in range(11)] == [4, 3, 2, 1, 2, 1, 2, 1, 2, 1, 0]
    assert Course().room(123) == NEVER


def test_the_end_is_evaluated_and_saved_wherever_it_is() -> None:
    course = Course(evaluate_steps=4, checkpoint_steps=6, total_steps=10)
    assert [done for done in range(1, 11) if course.evaluates(done)] == [4, 8, 10]
    assert [done for done in range(1, 11) if course.saves(done)] == [6, 10]
    assert not Course(total_steps=10).saves(10)


def test_an_epoch_that_is_no_whole_number_of_steps_is_rounded_up_and_one_step_is_always_timed() -> None:
    assert Course.of(ASKED.with_(epochs=1.0), train_images=100).total_steps == 7
    assert Course.of(ASKED.with_(epochs=0.01), train_images=100).total_steps == 2


def test_a_run_of_steps_or_seconds_ends_so_many_after_it_has_settled_and_where_it_was_to_end_when_it_goes_on() -> None:
    by_steps, by_time = RunConfig(steps=20), RunConfig(timed_seconds=3.0)
    assert Course.of(by_steps, 100).total_steps is None
    assert Course.of(by_steps, 100, total_steps=57).total_steps == 57
    assert total_steps(by_steps, step_s=0.5, done=7) == 27
    assert total_steps(by_time, step_s=0.5, done=7) == 13
    assert total_steps(by_time, step_s=60.0, done=7) == 8
