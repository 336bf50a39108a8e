"""A run that goes on from a checkpoint is the run that was never stopped, bit for bit: one rank, in this process."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import Fault, each_step
from saved_runs import Kept, curve, differences, kept, process_group_of_one

from harness.config import AskedWrongly, RunConfig
from harness.progress import Teller
from harness.results import verify
from harness.resume import words_to_go_on
from harness.workload import Built

MIDDLE = 9  # a step in the middle of the second epoch, after which a checkpoint is saved
PLATEAU = {"schedule": "plateau", "patience": 1, "evaluate_every": 8}
DROPS = {"schedule": "epochs", "drops": "1.25,2,5", "warmup_epochs": 0.5}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with process_group_of_one():
        yield


def told_in_step(step: int, number: signal.Signals = signal.SIGTERM) -> Fault:
    """The signal comes while this training step is computed, counted from 0 in this part of the run."""

    def gradients(at: int, whole: Any, batch: Any) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return whole(batch)

    return each_step(gradients)


def told_while(part: str, time: int) -> Fault:
    """SIGTERM comes while this function of what was built is called for the so-manieth time."""

    def fault(built: Built) -> Built:
        calls, whole = iter(range(1, 10**6)), getattr(built, part)

        def called(*words: Any) -> Any:
            if next(calls) == time:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*words)

        return replace(built, **{part: called})

    return fault


# --- in one process -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"augment": "rrc"},
        {"augment": "rrc+jitter", "jitter": "0.4,0.3,0.2,0.1", **PLATEAU, "decay_form": "paper"},
        {"augment": "paper", "noise_epochs": 1.75, **DROPS, "decay_form": "paper"},
        {"augment": "code2012", **DROPS, "layer_rates": "conv1@1.2=0.0001,conv2@2=0,fc10.bias@3=0.001"},
        {"augment": "none", "precision": "bf16", "schedule": "steps", "drops": "10,30"},
        {"compile": "on", **DROPS, "decay_form": "paper"},
    ],
    ids=lambda asked: " ".join(str(value) for value in asked.values()),
)
def test_a_run_that_goes_on_in_the_middle_of_an_epoch_is_the_one_that_was_never_stopped(
    pictures: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    whole = kept(pictures, tmp_path / "whole", **asked)
    rest = kept(pictures, tmp_path / "rest", resume=whole.at(MIDDLE))
    assert (whole.status, rest.status, rest.newest.step) == (0, 0, 48)
    assert differences(rest.folder, whole.folder) == []
    assert rest.order[: 48 - MIDDLE] == whole.order[MIDDLE:48]
    assert len(curve(whole.folder)) >= 8


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A run that was never stopped, whose rate follows the validation error."""
    return kept(pictures, tmp_path_factory.mktemp("whole"), **PLATEAU)


@pytest.mark.parametrize(
    ("number", "at_step"),
    [
        pytest.param(signal.SIGTERM, 19, id="between two pauses"),
        pytest.param(signal.SIGTERM, 17, id="before an evaluation and a save"),
        pytest.param(signal.SIGINT, 20, id="by a person"),
        pytest.param(signal.SIGALRM, 24, id="by its time limit"),
    ],
)
def test_a_run_told_to_stop_saves_itself_at_that_step_and_goes_on_from_there(
    pictures: Path, tmp_path: Path, whole: Kept, number: signal.Signals, at_step: int
) -> None:
    begun = kept(pictures, tmp_path / "begun", told_in_step(at_step, number), **PLATEAU)
    assert begun.status == (0 if number == signal.SIGALRM else 128 + number)
    assert begun.row["status"] == "interrupted"
    assert begun.newest.step == at_step + 1
    rest = kept(pictures, tmp_path / "rest", resume=begun.folder)
    assert differences(rest.folder, whole.folder) == []


@pytest.mark.parametrize(
    ("fault", "saved"),
    [
        pytest.param(told_in_step(3), range(4, 10), id="settling"),
        pytest.param(told_while("evaluate", 9), [19], id="evaluating"),
        pytest.param(told_while("input_state", 6), [19], id="saving"),
    ],
)
def test_a_run_told_to_stop_outside_a_window_ends_what_it_does_and_then_saves_itself(
    pictures: Path, tmp_path: Path, whole: Kept, fault: Fault, saved: Sequence[int]
) -> None:
    begun = kept(pictures, tmp_path / "begun", fault, **PLATEAU)
    assert (begun.status, begun.row["status"]) == (143, "interrupted")
    assert begun.newest.step in saved
    rest = kept(pictures, tmp_path / "rest", resume=begun.folder)
    assert differences(rest.folder, whole.folder) == []


def test_a_run_told_to_stop_in_its_last_step_is_whole_and_nobody_is_told_to_go_on(
    pictures: Path, tmp_path: Path, whole: Kept
) -> None:
    ended = kept(pictures, tmp_path, told_in_step(47), **PLATEAU)
    assert (ended.status, ended.row["status"]) == (143, "interrupted")
    assert differences(ended.folder, whole.folder) == []
    assert words_to_go_on(ended.folder, RunConfig(), tmp_path / "table.csv") == ""


def test_a_run_that_was_stopped_twice_goes_on_from_what_it_saved_last(
    pictures: Path, tmp_path: Path, whole: Kept
) -> None:
    first = kept(pictures, tmp_path / "first", told_in_step(12), **PLATEAU)
    # In its first step, which compiles, nothing has been gained.
    nothing = kept(pictures, tmp_path / "nothing", told_in_step(0), resume=first.folder)
    assert nothing.checkpoints == []
    table = tmp_path / "a table.csv"
    words = words_to_go_on(nothing.folder, RunConfig(resume=str(first.newest.folder), data="my pictures"), table)
    assert words == (f"python -m harness run --resume {first.newest.folder} --data 'my pictures' --table '{table}'")
    second = kept(pictures, tmp_path / "second", told_in_step(10), resume=first.folder)
    assert second.newest.step == 24
    rest = kept(pictures, tmp_path / "rest", resume=second.folder)
    assert differences(rest.folder, whole.folder) == []


def test_seconds_of_training_go_on_where_they_stood(pictures: Path, tmp_path: Path, whole: Kept) -> None:
    rest = kept(pictures, tmp_path, resume=whole.at(MIDDLE))
    with (rest.folder / "epochs.csv").open(newline="") as file:
        seconds = [float(line["seconds"] or 0) for line in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(float(rest.row["timed_s"]), abs=1e-3)
    assert int(rest.row["timed_steps"]) + int(rest.row["warmup_steps"]) == 48
    assert verify(tmp_path / "table.csv") == []


def test_a_full_disk_leaves_the_checkpoint_before_and_a_run_that_goes_on(
    pictures: Path, tmp_path: Path, whole: Kept
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_disk(at: int, gradients: Any, batch: Any) -> Any:
        if at == 16:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return gradients(batch)

    try:
        begun = kept(pictures, tmp_path / "begun", each_step(full_disk), **PLATEAU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (begun.status, begun.row["status"]) == (1, "failed")
    reason = begun.row["status_reason"]
    assert reason.startswith(f"step 18 could not be saved in {begun.folder / 'checkpoints'} (")
    assert reason.endswith("): make room there and go on with --resume, for what was saved before is whole")
    assert sorted(os.listdir(begun.folder / "checkpoints")) == [whole.at(step).name for step in (3, 6, 9, 12, 15)]
    rest = kept(pictures, tmp_path / "rest", resume=begun.folder)
    assert differences(rest.folder, whole.folder) == []


def test_lines_for_a_person_that_find_no_room_end_no_run() -> None:
    teller = Teller(Path("/dev/full"))
    teller.tell("settle")
    teller.tell("timed")
    teller.close()


def test_a_longer_run_goes_on_where_a_shorter_one_had_ended(pictures: Path, tmp_path: Path) -> None:
    long = kept(pictures, tmp_path / "long", epochs=6.0, **DROPS)
    short = kept(pictures, tmp_path / "short", epochs=3.0, **DROPS)
    longer = kept(pictures, tmp_path / "longer", resume=short.folder, epochs=6.0)
    assert differences(longer.folder, long.folder) == []


def test_a_run_of_so_many_timed_steps_ends_where_it_was_to_end(pictures: Path, tmp_path: Path) -> None:
    asked = {"epochs": None, "steps": 10}
    whole = kept(pictures, tmp_path / "whole", **asked)
    middle = next(each for each in whole.checkpoints if each.step > int(whole.row["warmup_steps"]))
    rest = kept(pictures, tmp_path / "rest", resume=middle.folder)
    assert differences(rest.folder, whole.folder) == []
    assert rest.newest.at_its_end


def test_a_run_ends_at_the_error_that_was_asked_wherever_it_was_stopped(pictures: Path, tmp_path: Path) -> None:
    asked = {"epochs": 40.0, "target_train_error_pct": 30.0}
    whole = kept(pictures, tmp_path / "whole", **asked)
    assert whole.newest.at_its_end
    assert 6 < whole.newest.step < 240
    assert whole.newest.step % 6 == 0
    rest = kept(pictures, tmp_path / "rest", resume=whole.checkpoints[-3].folder)
    assert differences(rest.folder, whole.folder) == []
    with pytest.raises(AskedWrongly, match="has reached its end at step"):
        kept(pictures, tmp_path / "rest", resume=whole.folder)


def test_a_run_that_began_with_anothers_weights_goes_on_without_them(pictures: Path, tmp_path: Path) -> None:
    other = kept(pictures, tmp_path / "other", epochs=1.0, seed=7)
    asked = {"epochs": 3.0, "fine_tune_from": str(other.folder)}
    whole = kept(pictures, tmp_path / "whole", **asked)
    name = f"{other.folder.name}/{other.newest.folder.name}"
    shutil.rmtree(other.folder)
    rest = kept(pictures, tmp_path / "rest", resume=whole.at(MIDDLE))
    assert differences(rest.folder, whole.folder) == []
    assert rest.newest.asked["fine_tune_from"] == name
