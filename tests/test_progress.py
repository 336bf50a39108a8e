"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from harness.progress import REFRESH_S, Display, Teller, last_phase, sentence


def test_a_phase_is_told_at_once_and_then_only_now_and_then(tmp_path: Path) -> None:
    teller = Teller(tmp_path / "progress.jsonl")
    for step in range(1000):
        teller.tell("timed", step=step, steps=1000)
    teller.tell("evaluate")
    teller.close()
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert events[0] == {"phase": "timed", "step": 0, "steps": 1000}
    assert events[-1] == {"phase": "evaluate"}
    assert len(events) < 20


def test_other_ranks_tell_nothing() -> None:
    teller = Teller(None)
    teller.tell("timed", step=1)
    assert not teller.due()


def test_a_sentence_holds_phase_step_speed_loss_and_time_left() -> None:
    event = {"phase": "timed", "step": 10, "steps": 40, "images_per_s": 1234.5, "loss": 1.2345}
    assert sentence(event, in_phase_s=5) == "timed              step 10/40   1,234 images/s   loss 1.234   15 s left"


def test_a_long_wait_is_told_in_minutes() -> None:
    assert sentence({"phase": "timed", "step": 1, "steps": 11}, in_phase_s=60).endswith("10 min left")


def test_the_time_left_counts_from_where_the_phase_began() -> None:
    event = {"phase": "timed", "step": 30, "steps": 40}
    assert sentence(event, in_phase_s=10, before=0.5).endswith("10 s left")


def test_a_window_after_an_evaluation_knows_its_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display(quiet=False, stream=stream)
    for at_s, event in ((100, {"phase": "evaluate"}), (150, {"step": 20}), (180, {"step": 30})):
        now[0] = float(at_s)
        display.show({"phase": "timed", "steps": 40, **event} if "step" in event else event)
    assert stream.getvalue().splitlines()[-1].endswith("30 s left")


@pytest.mark.parametrize("text", ["", "not json\n"])
def test_a_run_that_told_nothing_died_while_starting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(text)
    assert last_phase(path) == "start"


def test_where_there_is_no_terminal_each_phase_is_one_plain_line(tmp_path: Path) -> None:
    path, stream = tmp_path / "progress.jsonl", io.StringIO()
    with Display(quiet=False, stream=stream) as display:
        display.follow(path)
        teller = Teller(path)
        for phase in ("compile", "settle", "timed", "timed", "done"):
            teller.tell(phase)
        teller.close()
        time.sleep(4 * REFRESH_S)
    phases = [line.split("  ")[0] for line in stream.getvalue().splitlines()]
    assert phases == ["starting ranks", "compiling", "settling", "timed", "done"]
    assert "\x1b" not in stream.getvalue()


def test_quiet_shows_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Display(quiet=True, stream=stream) as display:
        display.follow(tmp_path / "progress.jsonl")
        display.show({"phase": "data", "share": 0.5})
    assert stream.getvalue() == ""
