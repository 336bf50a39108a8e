"""What `compare` says of two tables, what it refuses to say, and its exit status."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import launch_of, rank_of, record_of, trial_of, window_of

from harness.compare import compare
from harness.config import AskedWrongly
from harness.pairs import Floor, Ratio, ratio_of, side_of
from harness.results import TableError, csv_text, verify
from harness.rows import COLUMNS, IDENTITIES, identities, row_of
from harness.summary import table

SPREAD = (1.0, 1.004, 0.997)
OTHER_GPU = {"gpu_name": "Other GPU"}
OTHER_TORCH = {"torch": "2.15.0"}


def launches(tag: str, speed: float, count: int = 3, **changes) -> list[dict[str, str]]:
    """Rows of so many launches around a speed, a few parts in a thousand apart."""
    speeds = [speed * SPREAD[launch % 3] for launch in range(count)]
    return [
        row_of(launch_of(s, run_id=f"{tag}{n}", group_id=tag, launch=n + 1, **changes)) for n, s in enumerate(speeds)
    ]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text(csv_text(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]), encoding="utf-8")
    return path


@pytest.fixture
def compared(tmp_path):
    """compared(rows of A, rows of B, ...) -> text, exit status."""
    return lambda a, b, **asked: compare(write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b), **asked)


A = launches("a", 200.0)


def last_line(text: str) -> str:
    return text.splitlines()[-1]


# --- the table of cases -------------------------------------------------------------------------------------------


def test_of_the_same_thing_run_twice_nothing_differs_and_it_is_as_fast(compared):
    text, status = compared(A, launches("b", 200.0))
    assert status == 0
    assert "nothing differs" in text
    assert last_line(text) == "A and B are equally fast within the noise floor: B/A is 1.000 (0.992 to 1.008)."


def test_settings_are_judged_by_a_test_on_launches(compared):
    text, status = compared(A, launches("b", 220.0, asked={"compile": "off"}))
    assert status == 0
    assert "setting (compile: on -> off)" in text
    assert " p |" in text
    assert "B is faster" in text
    assert "1.100 (1.091 to 1.109) times as fast" in last_line(text)


def test_software_is_headed_by_the_versions_that_changed(compared):
    text, status = compared(A, launches("b", 180.0, machine=OTHER_TORCH))
    assert status == 0
    assert text.index("software (torch: 2.14.1 -> 2.15.0)") < text.index("B/A")
    assert " p |" in text
    assert "B is slower" in text


def test_hardware_gives_a_ratio_with_its_interval_and_a_verdict(compared):
    text, status = compared(A, launches("b", 300.0, machine=OTHER_GPU))
    assert status == 0
    assert "hardware (gpu_name: Example GPU -> Other GPU)" in text
    assert last_line(text) == (
        "B (Other GPU) trains 1.500 (1.488 to 1.512) times as fast as A (Example GPU): 300.1 against 200.1 images/s."
    )


def test_hardware_and_software_at_once_are_confounded(compared):
    text, status = compared(A, launches("b", 300.0, machine={**OTHER_GPU, **OTHER_TORCH}))
    assert status == 0
    assert "confounded" in text
    assert "B is faster" not in text
    assert "cannot be said" in last_line(text)


def test_another_number_of_ranks_gives_scaling_efficiency_and_no_verdict(compared):
    text, status = compared(A, launches("b", 360.0, asked={"gpus": 2}))
    assert status == 0
    assert "no verdict" in text
    assert "scaling efficiency" in text
    assert " 90.0 |" in text
    assert "B is faster" not in text
    assert last_line(text).startswith("No verdict")


def test_scaling_efficiency_is_not_told_of_different_hardware(compared):
    text, _ = compared(A, launches("b", 360.0, asked={"gpus": 2}, machine=OTHER_GPU))
    assert "scaling efficiency" not in text
    assert "images/s a rank" in text


def test_scaling_efficiency_is_told_of_the_equal_batch_a_rank(compared):
    a = [*A, *launches("a64", 300.0, asked={"images_per_gpu": 64})]
    text, _ = compared(a, launches("b", 360.0, asked={"gpus": 2}))
    assert " 90.0 |" in text
    text, _ = compared(A, launches("b", 360.0, asked={"gpus": 2, "images_per_gpu": 64}))
    assert "scaling efficiency" not in text


def test_another_task_is_refused_with_its_fields(compared):
    text, status = compared(A, launches("b", 300.0, asked={"precision": "bf16", "augment": "paper"}))
    assert status == 3
    assert "augment: rrc -> paper, precision: fp32 -> bf16" in last_line(text)
    assert "B/A" not in text


def test_another_data_set_is_another_task(compared):
    text, status = compared(A, launches("b", 300.0, dataset={"dataset_id": "0123456789ab"}))
    assert status == 3
    assert "dataset_id: embedded-v1 -> 0123456789ab" in last_line(text)


def test_across_lifts_one_field_and_no_other(compared):
    b = launches("b", 300.0, asked={"precision": "bf16"})
    text, status = compared(A, b, across=["precision"])
    assert status == 0
    assert "lifted (precision: fp32 -> bf16)" in text
    assert "1.500" in last_line(text)
    b = launches("b", 300.0, asked={"precision": "bf16", "augment": "paper"})
    text, status = compared(A, b, across=["precision"])
    assert status == 3
    assert "augment: rrc -> paper" in text


@pytest.mark.parametrize("name", ["compile", "images_per_s", "speed", ""])
def test_across_what_is_no_field_of_the_task_lists_those_that_are(compared, name):
    with pytest.raises(AskedWrongly) as raised:
        compared(A, A, across=[name])
    assert all(field in str(raised.value) for field in IDENTITIES["task_id"])


# --- identities are recomputed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDENTITIES["task_id"])
def test_an_edited_task_field_is_refused_by_name_though_the_stored_id_is_as_it_was(compared, name):
    text, status = compared(A, [{**row, name: "edited"} for row in A])
    assert status == 3
    assert f"{name}: {A[0][name] or 'unknown'} -> edited" in last_line(text)
    assert "task_id is stored as" in text


def test_one_edited_row_among_honest_ones_is_refused_too(compared):
    b = launches("b", 200.0)
    text, status = compared(A, [*b, {**b[0], "run_id": "b9", "precision": "bf16"}])
    assert status == 3
    assert "b9" in text
    assert "precision: fp32 -> bf16" in last_line(text)


def test_a_copy_edited_to_play_another_machine_is_compared_as_one_and_its_stale_ids_are_told(compared):
    text, status = compared(A, [{**row, "cpu_name": "Another 1"} for row in A])
    assert status == 0
    assert "hardware_id is stored as" in text
    assert "hardware (cpu_name: Example 9000 -> Another 1)" in text


def test_stored_ids_that_all_agree_are_told_of_nothing(compared):
    text, _ = compared(A, launches("b", 200.0, machine=OTHER_GPU))
    assert "is stored as" not in text
    assert "Errors" not in text


# --- what counts --------------------------------------------------------------------------------------------------


def test_fewer_than_three_launches_a_side_give_a_ratio_and_no_verdict(compared):
    text, status = compared(A, launches("b", 300.0, count=2))
    assert status == 0
    assert "ratio only" in text
    assert "interval" not in text
    assert "an indication" in last_line(text)


@pytest.mark.parametrize("status", ["throttled", "contaminated", "invalid", "failed", "a status of the future", ""])
def test_a_row_that_is_not_ok_is_listed_with_its_reason_and_not_ranked(compared, status):
    slow = {**launches("slow", 1.0, count=1)[0], "status": status, "status_reason": "it was hot"}
    text, exit_status = compared(A, [*launches("b", 200.0), slow])
    assert exit_status == 0
    assert f"B slow0: {status or 'no status'}: it was hot" in text
    assert last_line(text).startswith("A and B are equally fast")


def test_a_run_that_was_profiled_is_not_ranked():
    side = side_of("A", [{**A[0], "profile": "20"}, {**A[1], "profile": ""}])
    assert side.unranked == ["A a0: it was profiled (--profile 20), which costs time"]
    assert [row["run_id"] for condition in side.conditions for row in condition.rows] == ["a1"]


def test_where_no_row_counts_nothing_is_compared(compared):
    failed = row_of(record_of(trial_of(failure="lost"), run_id="b"))
    text, status = compared(A, [failed])
    assert status == 3
    assert "failed: lost" in text
    assert "B has no row that counts" in last_line(text)


@pytest.mark.parametrize("cell", ["", "0", "-5", "nan", "inf", "fast"])
def test_an_ok_row_without_a_speed_is_not_ranked(compared, cell):
    odd = {**A[0], "run_id": "odd", "images_per_s": cell}
    text, status = compared([*A, odd], launches("b", 200.0))
    assert status == 0
    assert "A odd: images_per_s is" in text


def test_a_run_pasted_into_a_table_twice_counts_once(compared):
    one = launches("b", 300.0, count=1)
    text, _ = compared(A, one * 3)
    assert "ratio only" in text


def test_a_run_bound_by_its_input_is_told_as_such_to_the_buyer(compared):
    starved = trial_of(rank_of(windows=(window_of(wait_ms=50.0),)))
    b = [row_of(record_of(starved, run_id=f"b{n}", machine=OTHER_GPU)) for n in range(3)]
    assert last_line(compared(A, b)[0]).endswith("bound by its input: B.")


@pytest.mark.parametrize("part", ["input", "storage", "decode", "augment"])
def test_what_bounds_it_may_be_a_part_of_the_input(compared, part):
    b = [{**row, "bound_by": part} for row in launches("b", 300.0, machine=OTHER_GPU)]
    assert last_line(compared(A, b)[0]).endswith("; bound by its input: B.")


@pytest.mark.parametrize("part", ["model", "communication", "host", ""])
def test_what_is_not_bound_by_its_input_is_not_said_to_be(compared, part):
    b = [{**row, "bound_by": part} for row in launches("b", 300.0, machine=OTHER_GPU)]
    assert "bound by its input" not in compared(A, b)[0]


# --- which is compared with which ---------------------------------------------------------------------------------


def test_each_condition_is_compared_with_the_one_most_like_it(compared):
    a = [*launches("a1", 100.0, asked={"gpus": 1}), *launches("a2", 190.0, asked={"gpus": 2})]
    b = [*launches("b2", 380.0, asked={"gpus": 2}), *launches("b1", 200.0, asked={"gpus": 1})]
    text, status = compared(a, b, fail_below=1.9)
    assert status == 0
    assert last_line(text).startswith("In 2 comparisons with A, B is faster in 2")
    assert text.count("2.000") >= 2


def test_equal_batch_is_compared_first_and_best_batch_on_request(compared):
    a = [*launches("a32", 100.0), *launches("a64", 120.0, asked={"images_per_gpu": 64})]
    b = [*launches("b32", 110.0), *launches("b128", 180.0, asked={"images_per_gpu": 128})]
    plain, _ = compared(a, b)
    assert "1.100" in plain
    assert "1.500" not in plain
    best, status = compared(a, b, best_batch=True, fail_below=1.05)
    assert status == 0
    assert compared(a, b, fail_below=1.05)[1] == 3
    assert best.index("Equal batch") < best.index("best batch")
    assert "64 -> 128" in best
    assert "1.500" in best


def test_a_task_that_only_b_ran_is_listed_beside_what_can_be_compared(compared):
    b = [*launches("b", 200.0), *launches("half", 400.0, asked={"precision": "bf16"})]
    text, status = compared(A, b)
    assert status == 0
    assert "Not compared" in text
    assert "precision: fp32 -> bf16" in text


def test_one_table_is_compared_within_itself(tmp_path):
    rows = [*A, *launches("off", 100.0, asked={"compile": "off"}), *launches("two", 360.0, asked={"gpus": 2})]
    path = write(tmp_path / "t.csv", rows)
    text, status = compare(path, path)
    assert status == 0
    assert "compile: on -> off" in text
    assert "0.500" in last_line(text)
    assert " 90.0 |" in text


def test_one_table_of_one_condition_has_nothing_to_compare(tmp_path):
    path = write(tmp_path / "t.csv", A)
    text, status = compare(path, path)
    assert status == 3
    assert "one condition" in last_line(text)


# --- the gate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "expected"), [(0.88, 0), (0.9, 1), (0.95, 1)])
def test_fail_below_judges_by_the_lower_end_of_the_interval(compared, threshold, expected):
    text, status = compared(A, launches("b", 180.0), fail_below=threshold)
    assert "0.893 to 0.907" in text
    assert status == expected


def test_fail_below_judges_by_the_ratio_where_there_is_no_interval(compared):
    assert compared(A, launches("b", 180.0, count=1), fail_below=0.89)[1] == 0
    assert compared(A, launches("b", 180.0, count=1), fail_below=0.91)[1] == 1


def test_fail_below_needs_allow_software_where_hardware_and_software_differ(compared):
    b = launches("b", 300.0, machine={**OTHER_GPU, **OTHER_TORCH})
    text, status = compared(A, b, fail_below=1.2)
    assert status == 3
    assert "--allow-software" in text
    assert compared(A, b, fail_below=1.2, allow_software=True)[1] == 0
    assert compared(A, b, fail_below=1.6, allow_software=True)[1] == 1


def test_fail_below_does_not_pass_what_it_could_not_judge(compared):
    other_shape = launches("two", 400.0, asked={"gpus": 2})
    other_task = launches("half", 400.0, asked={"precision": "bf16"})
    failed = [row_of(record_of(trial_of(failure="lost"), run_id="lost", asked={"compile": "off"}))]
    assert compared(A, [*launches("b", 200.0), *other_shape], fail_below=0.9, best_batch=True)[1] == 3
    for extra in (other_shape, other_task):
        assert compared(A, [*launches("b", 200.0), *extra], fail_below=0.9)[1] == 3
    assert compared(A, [*launches("b", 200.0), *failed], fail_below=0.9)[1] == 3


# --- the noise floor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0201, 1.08, "B is faster"),
        (1.02, 1.08, "not told apart"),
        (0.9804, 1.02, "the same"),
        (0.9804, 1.0201, "not told apart"),
        (0.98, 1.02, "not told apart"),
        (0.9, 0.9804, "not told apart"),
        (0.9, 0.98, "B is slower"),
    ],
)
def test_verdicts_at_the_border_of_a_floor_of_two_per_cent(low, high, verdict):
    """1 / 1.02 is 0.98039."""
    assert Ratio(math.sqrt(low * high), low, high, 0.01, floor_pct=2.0).verdict == verdict


def test_the_verdict_of_the_same_interval_changes_with_the_floor():
    assert [Ratio(1.03, 1.02, 1.04, 0.01, floor).verdict for floor in (0.0, 1.0, 2.5, 4.0)] == [
        "B is faster",
        "B is faster",
        "not told apart",
        "the same",
    ]


@pytest.mark.parametrize(
    ("floor", "pct", "said"),
    [
        (Floor(), 1.0, "1 % (assumed: `python -m harness doctor --noise` measures it)"),
        (Floor(1.8, 0.7), 1.8, "1.8 % (measured on A and B)"),
        (Floor(0.04, 0.6), 0.6, "0.6 % (measured on A and B)"),
        (Floor(0.0, 0.0), 0.0, "0 % (measured on A and B)"),
        (Floor(2.1, None), 2.1, "2.1 % (A measured, B assumed 1 %)"),
        (Floor(0.3, None), 1.0, "1 % (A measured, B assumed 1 %)"),
        (Floor(None, 12.4), 12.4, "12 % (A assumed 1 %, B measured)"),
    ],
)
def test_the_floor_is_the_larger_of_both_sides_and_says_what_was_measured(floor, pct, said):
    assert floor.pct == pct
    assert str(floor) == f"noise floor {said}"


# --- the statistics -----------------------------------------------------------------------------------------------

SPEEDS = st.lists(st.floats(1, 1e6), min_size=3, max_size=6)


def test_the_interval_is_welchs():
    ratio = ratio_of([math.exp(x) for x in (1.0, 2.0, 3.0)], [math.exp(x) for x in (2.0, 4.0, 6.0, 8.0)])
    # scipy.stats.ttest_ind(b, a, equal_var=False) of these logarithms: p, and its confidence_interval(0.95).
    assert ratio.p == pytest.approx(0.0999129, abs=1e-6)
    assert math.log(ratio.low) == pytest.approx(-0.8979755, abs=1e-6)
    assert math.log(ratio.high) == pytest.approx(6.8979755, abs=1e-6)


@given(SPEEDS, SPEEDS)
def test_b_over_a_is_one_over_a_over_b(a, b):
    there, back = ratio_of(a, b), ratio_of(b, a)
    assert there.value == pytest.approx(1 / back.value)
    assert there.p == pytest.approx(back.p, abs=1e-9)
    assert there.low <= there.value * 1.000001
    assert there.high >= there.value * 0.999999


@given(st.floats(1, 1e6), st.integers(3, 6))
def test_launches_that_agree_to_the_last_digit_do_not_divide_by_zero(speed, count):
    ratio = ratio_of([speed] * count, [speed] * count)
    assert (ratio.low, ratio.value, ratio.high, ratio.p) == (1, 1, 1, 1)


# --- what a person can do wrong, and how long it takes ------------------------------------------------------------


def test_a_table_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(TableError, match="there is no table"):
        compare(write(tmp_path / "a.csv", A), tmp_path / "b.csv")


@settings(max_examples=50)
@given(
    st.sampled_from(COLUMNS), st.sampled_from(["nan", "-1", "1e999", "two", "=1+1", "a|b", "\N{SNOWMAN}", "\n", "0"])
)
def test_whatever_stands_in_a_cell_there_is_an_answer_or_a_sentence(tmp_path_factory, column, cell):
    folder = tmp_path_factory.mktemp("odd")
    honest = write(folder / "a.csv", A)
    odd = write(folder / "b.csv", [*launches("b", 300.0)[:2], {**A[0], column: cell}])
    refusable = [TableError] if column == "schema_version" else []
    for use in (lambda: compare(honest, odd), lambda: compare(odd, odd), lambda: table([odd]), lambda: verify(odd)):
        with contextlib.suppress(*refusable):
            assert use() is not None


def test_every_line_of_the_text_is_whole_and_the_last_is_a_sentence(compared):
    for b in (launches("b", 200.0), launches("b", 300.0, machine=OTHER_GPU), launches("b", 9.0, asked={"gpus": 2})):
        text, _ = compared(A, b)
        assert last_line(text)[0].isupper()
        assert last_line(text).endswith(".")
        assert "None" not in text
        assert "nan" not in text


def many(side: str, count: int) -> list[dict[str, str]]:
    """Rows of a hundred conditions."""
    rows = []
    for n in range(count):
        speed = f"{200 + n % 7}"
        row = {
            **A[0],
            "run_id": f"{side}{n}",
            "images_per_gpu": str(n % 100 + 1),
            "images_per_s": speed,
            "cpu_name": side,
        }
        rows.append({**row, **identities(row)})
    return rows


def test_comparing_needs_no_torch_dali_or_pandas(tmp_path):
    paths = [str(write(tmp_path / f"{side}.csv", many(side, 50))) for side in "AB"]
    code = (
        "import sys; from harness.compare import compare; text, status = compare(*sys.argv[1:])\n"
        "assert status == 0 and not {'torch', 'nvidia', 'triton', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
