"""`verify` believes no row: each is rebuilt from its record, and each digest from the cells."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from literals import launch_of, rank_of, record_of, trial_of

from harness import rows
from harness.results import TableError, append, csv_text, read_table, run_folder, verify, write_record
from harness.rows import COLUMNS, row_of


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of three launches and their run folders, as runs leave them."""
    path = tmp_path / "box.csv"
    for launch in (1, 2, 3):
        record = launch_of(300 + launch, run_id=f"run-{launch}", launch=launch)
        write_record(run_folder(path, record["run_id"]), record)
        append(path, row_of(record))
    return path


def edit(table: Path, of_run: str, **cells: str) -> None:
    rows = [{**row, **(cells if row["run_id"] == of_run else {})} for row in read_table(table)]
    table.write_text(csv_text(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]))


def test_a_table_whose_records_bear_it_out_has_no_findings(table):
    assert verify(table) == []


def test_a_row_without_figures_is_borne_out_too(table):
    record = record_of(trial_of(rank_of(losses=(float("nan"),) * 15)), run_id="bad")
    write_record(run_folder(table, "bad"), record)
    append(table, row_of(record))
    failed = record_of(trial_of(failure="no device"), run_id="worse")
    write_record(run_folder(table, "worse"), failed)
    append(table, row_of(failed))
    assert verify(table) == []


def test_an_edit_of_any_cell_is_found_and_named_with_both_values(table):
    honest = table.read_text()
    before = read_table(table)[1]
    for column in (name for name in COLUMNS if name not in ("run_id", "schema_version")):
        edit(table, "run-2", **{column: "31337"})
        findings = verify(table)
        assert f"row 2, run-2: {column} is '31337' in the table and {before[column]!r} from its record" in findings
        assert all(finding.startswith("row 2, run-2: ") for finding in findings)
        table.write_text(honest)


def test_an_edit_that_keeps_the_stored_digest_is_found_by_the_digest_as_well(table):
    stored = read_table(table)[0]["task_id"]
    edit(table, "run-1", precision="bf16")
    digest, cell = verify(table)
    assert f"task_id is stored as {stored} and the row's own cells give" in digest
    assert "precision is 'bf16' in the table and 'fp32' from its record" in cell


def test_a_speed_edited_in_table_and_record_alike_is_found(table):
    path = run_folder(table, "run-1") / "trial.json"
    record = json.loads(path.read_text())
    record["trial"]["ranks"][0]["indices_count"] *= 2
    path.write_text(json.dumps(record))
    edit(table, "run-1", images_per_s=row_of(record)["images_per_s"])
    (finding,) = verify(table)
    assert "row 1, run-1: status is 'ok' in the table and 'invalid' from its record" in finding


def test_a_missing_record_is_named(table):
    shutil.rmtree(run_folder(table, "run-2"))
    (finding,) = verify(table)
    assert finding.startswith("row 2, run-2: there is no record")


BROKEN = {
    "cut short": lambda text: text[:-20],
    "without a trial": lambda text: json.dumps({**json.loads(text), "trial": None}),
    "without what was asked": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "asked"}),
    "with an unknown observation": lambda text: text.replace('"classes"', '"colours"'),
    "with text for a number": lambda text: text.replace('"indices_count": 320', '"indices_count": "many"'),
    "with a rank of another kind": lambda text: text.replace('"ranks": [', '"ranks": ["one", '),
    "of a newer harness": lambda text: text.replace('"schema_version": 4', '"schema_version": 5'),
    "of no version": lambda text: text.replace('"schema_version": 4', '"schema_version": null'),
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN)
def test_a_broken_record_is_a_finding_of_one_line_and_no_traceback(table, breaking):
    path = run_folder(table, "run-3") / "trial.json"
    broken = breaking(path.read_text())
    assert broken != path.read_text()
    path.write_text(broken)
    (finding,) = verify(table)
    assert finding.startswith("row 3, run-3: ")
    assert "record" in finding
    assert "\n" not in finding


def test_a_record_newer_than_the_harness_is_told_as_such(table):
    path = run_folder(table, "run-1") / "trial.json"
    path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 5'))
    assert "has schema_version 5 and this harness knows 4: update the harness" in verify(table)[0]


def test_the_record_of_another_run_does_not_bear_a_row_out(table):
    shutil.copytree(run_folder(table, "run-1"), run_folder(table, "run-2"), dirs_exist_ok=True)
    (finding,) = verify(table)
    assert finding.startswith("row 2, run-2: ")


def test_a_run_that_is_there_twice_is_named(table):
    append(table, read_table(table)[0])
    assert verify(table) == ["run-1 is in the table 2 times"]


@pytest.mark.parametrize("run_id", ["", "..", "../runs/run-1", "/etc"])
def test_a_run_id_cannot_lead_out_of_the_run_folders(table, run_id):
    edit(table, "run-2", run_id=run_id)
    (finding,) = verify(table)
    assert finding.endswith("its run_id names no run folder")


def test_a_column_that_came_later_may_be_empty_in_older_rows_and_in_no_newer_one(table, monkeypatch):
    edit(table, "run-1", label="", data_wait_pct="")
    assert len(verify(table)) == 1
    monkeypatch.setitem(rows.SINCE, "data_wait_pct", rows.SCHEMA_VERSION + 1)
    assert verify(table) == []
    monkeypatch.setitem(rows.SINCE, "data_wait_pct", 1)
    assert len(verify(table)) == 1


def test_a_table_that_cannot_be_read_is_an_error_rather_than_a_finding(tmp_path):
    with pytest.raises(TableError, match="there is no table"):
        verify(tmp_path / "nowhere.csv")
