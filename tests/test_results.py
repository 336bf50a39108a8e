"""Cells, identities, records and tables: what is written is what comes back, and nothing foreign is touched."""

from __future__ import annotations

import csv
import io
import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import MACHINE, launch_of, rank_of, record_of, trial_of, window_of

from harness import rows
from harness.config import AskedWrongly, RunConfig, names
from harness.metrics import METRICS
from harness.results import TableError, append, check_table, read_record, read_table, run_folder, write_record
from harness.rows import COLUMNS, FIRST, IDENTITIES, cell, identities, row_of
from harness.summary import table
from harness.trial import Evaluation

ROW = row_of(record_of())


def rewrite(path: Path, header: list[str], *lines: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *lines])
    path.write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()


# --- columns and cells --------------------------------------------------------------------------------------------


def test_every_metric_and_every_flag_has_a_column():
    assert {*METRICS, *(field.name for field in fields(RunConfig))} <= set(COLUMNS)


def test_a_column_is_there_once_and_those_a_person_reads_come_first():
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert COLUMNS[: len(FIRST)] == FIRST


def test_every_row_has_the_columns_in_the_same_order():
    assert tuple(ROW) == COLUMNS
    assert tuple(row_of(record_of(machine=dict(reversed(MACHINE.items()))))) == COLUMNS


def test_a_row_says_what_was_asked_what_it_ran_on_and_what_was_seen():
    told = {name: ROW[name] for name in ("precision", "gpu_name", "images_per_s", "status", "classes", "settled")}
    assert told == {
        "precision": "fp32",
        "gpu_name": "Example GPU",
        "images_per_s": "320",
        "status": "ok",
        "classes": "10",
        "settled": "true",
    }


def test_a_failed_launch_is_a_row_too():
    row = row_of(record_of(trial_of(failure="no\ndevice")))
    assert (row["status"], row["status_reason"]) == ("failed", "no device")


CELLS = [
    (None, ""),
    (True, "true"),
    (False, "false"),
    (0, "0"),
    (60_965_224, "60965224"),
    (123_456_789_012, "123456789012"),
    (20.0, "20"),
    (1 / 3, "0.333333"),
    (4123.4567, "4123.46"),
    (12345678.0, "12345700"),
    (0.0000125, "0.0000125"),
    (1e-30, "1e-30"),
    (-0.0, "0"),
    (math.nan, "nan"),
    (math.inf, "inf"),
    ("one\r\ntwo\tthree", "one two three"),
    ("caf\udce9", "caf?"),
    ("x" * 5000, "x" * 997 + "..."),
]


@pytest.mark.parametrize(("value", "text"), CELLS)
def test_a_cell_is_plain_text(value, text):
    assert cell(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_six_significant_digits(value):
    assert float(cell(value)) == pytest.approx(value, rel=1e-5)


@given(st.text())
def test_a_text_is_one_line_and_its_cell_is_its_own(text):
    assert len(cell(text).splitlines()) <= 1
    assert cell(cell(text)) == cell(text)


# --- identities ---------------------------------------------------------------------------------------------------


def test_every_flag_that_changes_a_number_is_in_one_identity_and_bookkeeping_in_none():
    identified = [name for columns in IDENTITIES.values() for name in columns]
    assert len(identified) == len(set(identified))
    assert {*names("task"), *names("shape"), *names("setting")} <= set(identified)
    assert not {*names("bookkeeping"), "gpu_uuids", "run_id", "os"} & set(identified)
    assert set(identified) <= set(COLUMNS)


@pytest.mark.parametrize(("kind", "column"), [(kind, name) for kind, columns in IDENTITIES.items() for name in columns])
def test_a_cell_changes_its_own_identity_and_no_other(kind, column):
    before, after = identities(ROW), identities({**ROW, column: "another"})
    assert {name for name in before if before[name] != after[name]} == {kind}


@pytest.mark.parametrize(
    "column", ["label", "seed", "steps", "timed_seconds", "launches", "started_at", "images_per_s"]
)
def test_what_identifies_nothing_changes_no_identity(column):
    assert identities({**ROW, column: "another"}) == identities(ROW)


def test_an_identity_is_the_same_from_a_table_as_from_a_record(tmp_path):
    append(tmp_path / "t.csv", ROW)
    assert identities(read_table(tmp_path / "t.csv")[0]) == {kind: ROW[kind] for kind in IDENTITIES}


def test_a_field_added_later_enters_no_identity_where_it_is_what_older_rows_implied(monkeypatch):
    older, newer, other = ({**ROW, "block": cell} for cell in ("", "plain", "triton"))
    monkeypatch.setitem(rows.IMPLIED, "block", "plain")
    rows.digest_of.cache_clear()
    rows.digests_of.cache_clear()
    ids = [identities(row)["setting_id"] for row in (older, newer, other)]
    rows.digest_of.cache_clear()
    rows.digests_of.cache_clear()
    assert ids[0] == ids[1] != ids[2]


def test_of_a_machine_that_is_unknown_the_identity_is_unknown():
    row = row_of(record_of(machine=dict.fromkeys(MACHINE)))
    assert (row["hardware_id"], row["software_id"]) == ("", "")


# --- run folders --------------------------------------------------------------------------------------------------


def test_a_record_comes_back_and_gives_the_same_row(tmp_path):
    record = record_of(trial_of(rank_of(losses=(2.3, math.nan, -math.inf), correct=(1, 2, 3))))
    write_record(tmp_path, record)
    assert row_of(read_record(tmp_path)) == row_of(record)
    assert read_record(tmp_path)["trial"]["ranks"][0]["losses"] == [2.3, "nan", "-inf"]


def test_a_record_is_strict_json(tmp_path):
    write_record(tmp_path, record_of(trial_of(rank_of(losses=(math.nan,) * 15, first_batch_s=math.inf))))
    json.loads((tmp_path / "trial.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))


def test_a_run_folder_holds_the_record_the_row_and_the_error_curve_and_nothing_else(tmp_path):
    write_record(tmp_path / "runs" / "a", record_of())
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == ["epochs.csv", "row.csv", "trial.json"]
    assert read_table(tmp_path / "runs" / "a" / "row.csv") == [ROW]


def test_the_error_curve_has_a_line_an_evaluation_with_the_loss_between(tmp_path):
    points = (Evaluation(2, 100, 10, 40), Evaluation(5, 100, 30, 80))
    timed = (window_of(steps=2), window_of(steps=3, start_s=60.0))
    trial = trial_of(rank_of(losses=(3.0, 2.0, 1.5, 1.0, 0.5), evaluations=points, windows=timed))
    write_record(tmp_path, record_of(trial))
    assert (tmp_path / "epochs.csv").read_text().splitlines() == [
        "step,images_seen,seconds,joules,loss,top1_error_pct,top5_error_pct",
        "2,64,0.2,,2.5,90,60",
        "5,160,0.5,,1,70,20",
    ]


BROKEN_RECORDS = {
    "is not there": None,
    "was cut short": '{"schema_version": 1, "run',
    "is not JSON": "<html>",
    "is a list": "[]",
    "has no version": "{}",
    "has NaN in it": '{"schema_version": 1, "launch": NaN}',
    "is of a newer harness": '{"schema_version": 5}',
    "is nested too deeply": "[" * 100_000,
}


@pytest.mark.parametrize("text", BROKEN_RECORDS.values(), ids=BROKEN_RECORDS)
def test_a_broken_record_is_one_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "trial.json").write_text(text)
    with pytest.raises(TableError, match=r"trial\.json") as raised:
        read_record(tmp_path)
    assert "\n" not in str(raised.value)


# --- tables -------------------------------------------------------------------------------------------------------

# What is printable somewhere: anything but what `cell` takes out.
TEXTS = st.text(st.characters(blacklist_categories=["Cs"])).map(cell)


@settings(max_examples=30)
@given(
    st.lists(st.fixed_dictionaries({"label": TEXTS, "status_reason": TEXTS, "gpu_name": TEXTS}), min_size=1, max_size=4)
)
def test_rows_come_back_from_a_table_as_they_were(tmp_path_factory, several):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    rows = [{**ROW, **cells} for cells in several]
    for row in rows:
        append(path, row)
    assert read_table(path) == rows


def test_an_older_table_gains_the_columns_it_lacks_and_loses_nothing(tmp_path):
    older = ["run_id", "status", "schema_version", "label"]
    rewrite(tmp_path / "t.csv", older, ["old-1", "ok", "1", 'the, old "box"'])
    append(tmp_path / "t.csv", ROW)
    first, second = read_table(tmp_path / "t.csv")
    assert {name: text for name, text in first.items() if text} == {
        "run_id": "old-1", "status": "ok", "schema_version": "1", "label": 'the, old "box"',
    }  # fmt: skip
    assert second == ROW
    assert (tmp_path / "t.csv").read_text().startswith(",".join(COLUMNS) + "\n")


def test_an_empty_file_takes_a_first_row(tmp_path):
    (tmp_path / "t.csv").touch()
    check_table(tmp_path / "t.csv")
    append(tmp_path / "t.csv", ROW)
    assert read_table(tmp_path / "t.csv") == [ROW]


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    append(tmp_path / "t.csv", ROW)
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert read_table(tmp_path / "t.csv") == [ROW]


def test_a_link_to_a_table_stays_a_link_and_permissions_stay(tmp_path):
    append(tmp_path / "real.csv", ROW)
    (tmp_path / "real.csv").chmod(0o640)
    (tmp_path / "link.csv").symlink_to("real.csv")
    append(tmp_path / "link.csv", ROW)
    assert (tmp_path / "link.csv").is_symlink()
    assert len(read_table(tmp_path / "real.csv")) == 2
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o640


def append_ten(path: Path, who: int) -> None:
    for launch in range(10):
        append(path, {**ROW, "run_id": f"{who}-{launch}"})


def test_two_processes_lose_no_row_of_each_other(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(append_ten, [tmp_path / "t.csv"] * 2, range(2)))
    found = sorted(row["run_id"] for row in read_table(tmp_path / "t.csv"))
    assert found == sorted(f"{who}-{launch}" for who in range(2) for launch in range(10))


def unreadable(folder: Path, what: str) -> Path:
    """A table that cannot take a row."""
    path = folder / "t.csv"
    good = [ROW[name] for name in COLUMNS]
    if what == "foreign":
        rewrite(path, ["name", "images_per_s"], ["resnet", "1"])
    elif what == "unknown column":
        rewrite(path, [*COLUMNS, "colour"], [*good, "red"])
    elif what == "column twice":
        rewrite(path, [*COLUMNS, "status"], [*good, "ok"])
    elif what == "newer":
        rewrite(path, [*COLUMNS, "colour"], [*({**ROW, "schema_version": "5"}[name] for name in COLUMNS), "red"])
    elif what == "no version":
        rewrite(path, list(COLUMNS), [({**ROW, "schema_version": ""}[name]) for name in COLUMNS])
    elif what == "line cut short":
        rewrite(path, list(COLUMNS), good, good[:-3])
    elif what == "quote left open":
        path.write_text(rewrite(path, list(COLUMNS), good) + '"ok')
    elif what == "not UTF-8":
        path.write_bytes(rewrite(path, list(COLUMNS), good).encode("utf-16"))
    elif what == "folder":
        path.mkdir()
    return path


UNREADABLE = {
    "foreign": "not a table of this harness",
    "unknown column": "'colour'",
    "column twice": "there twice",
    "newer": "schema_version 5 and this harness knows 4",
    "no version": "not a whole number",
    "line cut short": f"line 3 of the table .* has {len(COLUMNS) - 3} cells where its header has {len(COLUMNS)}",
    "quote left open": "no whole CSV",
    "not UTF-8": "not UTF-8",
    "folder": "t.csv",
}


@pytest.mark.parametrize(
    "use", [check_table, lambda path: append(path, ROW), read_table], ids=["check", "append", "read"]
)
@pytest.mark.parametrize("what", UNREADABLE)
def test_a_table_that_is_not_ours_is_refused_in_a_sentence_and_not_touched(tmp_path, what, use):
    path = unreadable(tmp_path, what)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(TableError, match=UNREADABLE[what]) as raised:
        use(path)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, AskedWrongly)
    assert (path.read_bytes() if path.is_file() else b"") == before


@pytest.mark.parametrize("use", [check_table, lambda path: append(path, ROW)], ids=["check", "append"])
@pytest.mark.parametrize("place", ["file/t.csv", "file/deeper/t.csv", "x" * 300, "/dev/null"])
def test_a_place_that_takes_no_table_is_refused_in_a_sentence(tmp_path, place, use):
    (tmp_path / "file").touch()
    with pytest.raises(TableError):
        use(tmp_path / place)
    assert Path("/dev/null").is_char_device()


def test_a_folder_that_takes_no_files_is_refused_even_where_its_permissions_allow_them():
    with pytest.raises(TableError):
        check_table("/proc/t.csv")


def test_a_place_whose_run_folders_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(TableError):
        check_table(tmp_path / "t.csv")


def test_looking_whether_a_table_can_be_written_leaves_nothing_behind(tmp_path):
    check_table(tmp_path / "new" / "folder" / "t.csv")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_nobody_may_write_is_refused():
    # Root may write anywhere but in the kernel's own folder.
    with pytest.raises(TableError, match="no table can be written at /proc"):
        check_table("/proc/t.csv")


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_a_table_with_nothing_in_it_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    with pytest.raises(TableError, match="harness run"):
        read_table(tmp_path / "t.csv")


# --- the table as people read it ----------------------------------------------------------------------------------


def table_of(folder: Path, *records) -> list[dict[str, str]]:
    """The printed table, taken apart again."""
    for record in records:
        append(folder / "t.csv", row_of(record))
    heads, _, *lines = [
        [text.strip() for text in line.strip("|").split(" | ")] for line in table([folder / "t.csv"]).splitlines()
    ]
    return [dict(zip(heads, line, strict=True)) for line in lines]


def test_a_group_of_launches_is_one_line_with_their_median(tmp_path):
    (line,) = table_of(tmp_path, *(launch_of(speed, run_id=str(speed)) for speed in (300, 1000, 310)))
    assert (line["status"], line["launches"], line["images/s"]) == ("ok", "3", "310")


def test_the_spread_of_launches_is_of_their_median_and_empty_for_one(tmp_path):
    (line,) = table_of(tmp_path, *(launch_of(speed, run_id=str(speed)) for speed in (300, 310, 331)))
    assert line["spread of launches, %"] == "10"
    (tmp_path / "one").mkdir()
    (line,) = table_of(tmp_path / "one", launch_of(300))
    assert "spread of launches, %" not in line


def test_the_worst_status_of_a_group_is_shown_and_comes_first(tmp_path):
    failed = record_of(trial_of(failure="lost"), run_id="b")
    (line,) = table_of(tmp_path, launch_of(300, run_id="a"), failed)
    assert next(iter(line.items())) == ("status", "failed")


def test_a_column_that_nobody_fills_is_left_out(tmp_path):
    (line,) = table_of(tmp_path, record_of())
    assert "J/image" not in line
    assert all(line.values())


def test_runs_that_differ_in_their_data_do_not_look_alike(tmp_path):
    photographs = record_of(group_id="g2", run_id="b", asked={"data": "photographs"}, dataset={"dataset_id": "1234"})
    lines = table_of(tmp_path, record_of(), photographs)
    assert [line["data"] for line in lines] == ["embedded-v1", "photographs"]


def test_more_ranks_come_after_fewer_and_a_processor_is_named_where_there_is_no_gpu(tmp_path):
    on_cpu = {"gpu_name": None, "gpu_memory_gib": None}
    records = [
        record_of(run_id=str(n), group_id=str(n), asked={"gpus": 0, "cpus": n}, machine=on_cpu) for n in (10, 2, 1)
    ]
    assert [(line["ran on"], line["ranks"]) for line in table_of(tmp_path, *records)] == [
        ("Example 9000", "1"), ("Example 9000", "2"), ("Example 9000", "10"),
    ]  # fmt: skip


def test_a_bar_in_a_label_does_not_break_the_table(tmp_path):
    append(tmp_path / "t.csv", row_of(record_of(asked={"label": "a|b"})))
    assert r"a\|b" in table([tmp_path / "t.csv"])


def test_the_lines_of_the_table_are_as_long_as_each_other(tmp_path):
    append(tmp_path / "t.csv", row_of(launch_of(12345.678)))
    assert len({len(line) for line in table([tmp_path / "t.csv"]).splitlines()}) == 1


def test_the_folder_of_a_run_is_beside_its_table():
    assert run_folder("results/box.csv", "r1") == Path("results/runs/r1")
