"""A machine against itself: the floor that its launches give, where `compare` finds it, and the launches themselves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from literals import launch_of
from runs import Started, finished, rows, verified, wait_for

from harness.compare import compare
from harness.noise import config_of, floor_pct, measured_beside, plan, told
from harness.results import csv_text
from harness.rows import COLUMNS, row_of

Row = dict[str, str]
OTHER_GPU = {"gpu_name": "Other GPU"}
HONEST = row_of(launch_of(200.0))
OTHER = row_of(launch_of(200.0, machine=OTHER_GPU))
HARDWARE, OTHER_HARDWARE = HONEST["hardware_id"], OTHER["hardware_id"]
# Twelve launches whose sets of three differ by 2 % and by 5 % at most.
TWO_PCT = [100.0] * 6 + [102.0] * 6
FIVE_PCT = [100.0] * 6 + [105.0] * 6


def launches(tag: str, speeds: list[float], like: Row = HONEST) -> list[Row]:
    return [{**like, "run_id": f"{tag}{n}", "images_per_s": str(speed)} for n, speed in enumerate(speeds)]


def write(path: Path, *groups: list[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(csv_text(COLUMNS, [[row[name] for name in COLUMNS] for group in groups for row in group]))
    return path


# --- the floor ----------------------------------------------------------------------------------------------------


def test_the_floor_is_the_most_by_which_two_sets_of_three_launches_differ() -> None:
    assert floor_pct([100.0] * 3 + [110.0] * 3 + [100.0] * 6) == pytest.approx(10)
    assert floor_pct([110.0] * 3 + [100.0] * 9) == pytest.approx(10)


def test_one_odd_launch_counts_as_much_as_it_moves_the_geometric_mean_of_three() -> None:
    assert floor_pct([100.0] * 5 + [133.1] + [100.0] * 6) == pytest.approx(10)


def test_sets_that_share_a_launch_are_not_set_against_each_other() -> None:
    """The fastest three are launches 5 to 7 and the slowest 7 to 9: 10 % above and below all others."""
    powers = [0, 0, 0, 0, 0, 0, 3, -3, -3, 6, -3, -3]
    assert floor_pct([100 * 1.1**power for power in powers]) == pytest.approx(10)


def test_a_machine_that_drifts_has_a_higher_floor_than_one_that_hops_between_the_same_speeds() -> None:
    drifts = [100 * 1.01**launch for launch in range(12)]
    hops = [speed for pair in zip(drifts[:6], reversed(drifts[6:]), strict=True) for speed in pair]
    assert floor_pct(drifts) == pytest.approx(100 * (1.01**9 - 1))
    assert floor_pct(hops) == pytest.approx(100 * (1.01**3 - 1))


def test_launches_that_agree_to_the_last_digit_have_a_floor_of_zero() -> None:
    assert floor_pct([24.0422] * 12) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 11])
def test_of_fewer_than_four_sets_of_three_there_is_no_floor(count: int) -> None:
    assert floor_pct([100.0] * count) is None


@given(st.lists(st.floats(1, 1e6), min_size=12, max_size=30), st.floats(0.001, 1000))
def test_the_floor_is_of_ratios_and_knows_neither_the_unit_nor_which_came_first(speeds: list[float], by: float) -> None:
    floor = floor_pct(speeds)
    assert floor is not None
    assert floor >= 0
    assert floor_pct([by * speed for speed in speeds]) == pytest.approx(floor, rel=1e-6, abs=1e-6)
    assert floor_pct(speeds[::-1]) == pytest.approx(floor, rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(1, 1e6), min_size=12, max_size=30), st.floats(1, 1e6))
def test_one_launch_more_never_lowers_the_floor(speeds: list[float], another: float) -> None:
    before, after = floor_pct(speeds), floor_pct([*speeds, another])
    assert before is not None
    assert after is not None
    assert after >= before


# --- where it is found --------------------------------------------------------------------------------------------


def test_a_noise_table_beside_a_table_gives_its_hardware_a_floor(tmp_path: Path) -> None:
    write(tmp_path / "box-noise.csv", launches("n", TWO_PCT))
    floors_pct, unread = measured_beside([tmp_path / "a.csv"])
    assert floors_pct == {HARDWARE: pytest.approx(2)}
    assert unread == []


def test_only_the_folders_of_the_two_tables_and_only_noise_tables_are_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "box-noise.csv", launches("n", TWO_PCT))
    write(tmp_path / "box.csv", launches("n", TWO_PCT))
    assert measured_beside([tmp_path / "a.csv", tmp_path / "b.csv"]) == ({}, [])


def test_of_several_conditions_and_tables_the_largest_floor_counts(tmp_path: Path) -> None:
    compiled = launches("c", FIVE_PCT, row_of(launch_of(200.0, asked={"compile": "off"})))
    write(tmp_path / "one-noise.csv", launches("n", TWO_PCT), compiled)
    write(tmp_path / "two" / "two-noise.csv", launches("m", [100.0] * 12))
    tables = [tmp_path / "a.csv", tmp_path / "two" / "b.csv"]
    assert measured_beside(tables)[0] == {HARDWARE: pytest.approx(5)}


def test_launches_of_two_conditions_are_not_one_set_against_another(tmp_path: Path) -> None:
    faster = launches("f", [300.0] * 6, row_of(launch_of(200.0, asked={"compile": "off"})))
    write(tmp_path / "box-noise.csv", launches("n", [100.0] * 6), faster)
    assert measured_beside([tmp_path / "a.csv"]) == ({}, [])


@pytest.mark.parametrize(
    "change", [{"status": "throttled"}, {"status": "contaminated"}, {"status": "interrupted"}, {"images_per_s": ""}]
)
def test_a_launch_that_does_not_count_is_none_of_the_twelve(tmp_path: Path, change: Row) -> None:
    twelve = launches("n", TWO_PCT)
    write(tmp_path / "box-noise.csv", [*twelve[:11], {**twelve[11], **change}])
    assert measured_beside([tmp_path / "a.csv"]) == ({}, [])


def test_the_hardware_is_what_the_rows_cells_say_and_not_the_stored_id(tmp_path: Path) -> None:
    write(tmp_path / "box-noise.csv", [{**row, "hardware_id": HARDWARE} for row in launches("n", TWO_PCT, OTHER)])
    assert set(measured_beside([tmp_path / "a.csv"])[0]) == {OTHER_HARDWARE}


def test_rows_that_tell_of_no_hardware_give_no_floor(tmp_path: Path) -> None:
    unknown = dict.fromkeys(COLUMNS, "") | {"schema_version": "2", "status": "ok"}
    write(tmp_path / "box-noise.csv", launches("n", TWO_PCT, unknown))
    assert measured_beside([tmp_path / "a.csv"]) == ({}, [])


# --- what compare says of it --------------------------------------------------------------------------------------


@pytest.fixture
def text_of(tmp_path: Path) -> Callable[[float, Row], str]:
    """text_of(speed of B, the row B's launches are like): A runs at 200 images/s, and each in a folder of its own."""

    def text(speed: float, like: Row = HONEST) -> str:
        spread = (1.0, 1.004, 0.997)
        a = write(tmp_path / "a" / "a.csv", launches("a", [200 * part for part in spread]))
        b = write(tmp_path / "b" / "b.csv", launches("b", [speed * part for part in spread], like))
        return compare(a, b)[0]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return text


def test_without_noise_tables_one_per_cent_is_assumed_and_said_to_be(text_of: Callable[..., str]) -> None:
    text = text_of(205.0)
    assert "noise floor 1 % (assumed: `python -m harness doctor --noise` measures it). From A to B:" in text
    assert "B is faster" in text


def test_a_measured_floor_decides_in_place_of_the_assumed_one(tmp_path: Path, text_of: Callable[..., str]) -> None:
    """B/A is 1.025, from 1.017 to 1.033."""
    write(tmp_path / "a" / "box-noise.csv", launches("n", FIVE_PCT))
    text = text_of(205.0)
    assert "noise floor 5 % (measured on A and B)" in text
    assert text.splitlines()[-1].startswith("A and B are equally fast within the noise floor: B/A is 1.025")


def test_a_floor_within_the_interval_tells_nothing_apart(tmp_path: Path, text_of: Callable[..., str]) -> None:
    write(tmp_path / "b" / "box-noise.csv", launches("n", TWO_PCT))
    text = text_of(205.0)
    assert "noise floor 2 % (measured on A and B)" in text
    assert "cannot be told apart: B/A is 1.025 (1.017 to 1.033)" in text


def test_a_floor_measured_below_the_assumed_one_is_used_as_measured(
    tmp_path: Path, text_of: Callable[..., str]
) -> None:
    write(tmp_path / "a" / "box-noise.csv", launches("n", [100.0] * 6 + [100.2] * 6))
    assert "not told apart" not in text_of(203.0)
    assert "noise floor 0.2 % (measured on A and B)" in text_of(203.0)
    (tmp_path / "a" / "box-noise.csv").unlink()
    assert "not told apart" in text_of(203.0)


@pytest.mark.parametrize(
    ("speeds", "floor"),
    [
        ([100.0] * 6 + [102.1] * 6, "noise floor 2.1 % (A measured, B assumed 1 %)"),
        ([100.0] * 12, "noise floor 1 % (A measured, B assumed 1 %)"),
    ],
)
def test_the_noise_of_other_hardware_is_not_bs(
    tmp_path: Path, text_of: Callable[..., str], speeds: list[float], floor: str
) -> None:
    write(tmp_path / "b" / "box-noise.csv", launches("n", speeds))
    assert floor in text_of(300.0, OTHER)


def test_the_larger_of_two_measured_floors_counts(tmp_path: Path, text_of: Callable[..., str]) -> None:
    write(tmp_path / "a" / "box-noise.csv", launches("n", TWO_PCT))
    write(tmp_path / "b" / "other-noise.csv", launches("n", FIVE_PCT, OTHER))
    assert "noise floor 5 % (measured on A and B)" in text_of(300.0, OTHER)


def test_a_side_without_its_own_is_named_whichever_it_is(tmp_path: Path, text_of: Callable[..., str]) -> None:
    write(tmp_path / "b" / "other-noise.csv", launches("n", FIVE_PCT, OTHER))
    assert "noise floor 5 % (A assumed 1 %, B measured)" in text_of(300.0, OTHER)


def test_comparisons_with_different_floors_each_say_theirs(tmp_path: Path) -> None:
    write(tmp_path / "box-noise.csv", launches("n", TWO_PCT))
    off = {"asked": {"compile": "off"}, "machine": OTHER_GPU}
    a = write(
        tmp_path / "a.csv", launches("a", [200.0] * 3), launches("ao", [100.0] * 3, row_of(launch_of(1.0, **off)))
    )
    b = write(
        tmp_path / "b.csv", launches("b", [200.0] * 3), launches("bo", [100.0] * 3, row_of(launch_of(1.0, **off)))
    )
    text, _ = compare(a, b)
    assert "1. nothing differs; noise floor 2 % (measured on A and B)" in text
    assert "2. nothing differs; noise floor 1 % (assumed: " in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "box-noise.csv is empty"),
        (b"a,b\n1,2\n", "box-noise.csv is not a table of this harness"),
        (b"\xff\xfe", "box-noise.csv is not UTF-8"),
        (b'status,"run_id', "box-noise.csv is no whole CSV"),
    ],
)
def test_a_torn_noise_table_is_a_sentence_and_its_floor_assumed(
    tmp_path: Path, text_of: Callable[..., str], content: bytes, sentence: str
) -> None:
    (tmp_path / "a" / "box-noise.csv").write_bytes(content)
    text = text_of(205.0)
    assert "Noise tables that cannot be read:\n- " in text
    assert sentence in text
    assert "noise floor 1 % (assumed" in text
    assert "B is faster" in text


def test_a_folder_that_is_called_a_noise_table_is_a_sentence_too(tmp_path: Path, text_of: Callable[..., str]) -> None:
    (tmp_path / "b" / "box-noise.csv").mkdir()
    assert "box-noise.csv cannot be read" in text_of(205.0)


@pytest.mark.parametrize("column", ["images_per_s", "status", "run_id", "gpus", "hardware_id", "launch"])
@pytest.mark.parametrize("cell", ["nan", "-1", "1e999", "two", "\N{SNOWMAN}", "\n", "0", ""])
def test_whatever_stands_in_a_noise_tables_cell_there_is_an_answer(
    tmp_path: Path, text_of: Callable[..., str], column: str, cell: str
) -> None:
    twelve = launches("n", TWO_PCT)
    write(tmp_path / "a" / "box-noise.csv", [*twelve, {**twelve[0], "run_id": "odd", column: cell}])
    assert "noise floor 2 % (measured on A and B)" in text_of(205.0)


# --- the launches -------------------------------------------------------------------------------------------------


def test_a_machine_with_gpus_runs_on_all_of_them_and_one_without_on_its_cpu() -> None:
    assert (config_of(4).gpus, config_of(4).recipe) == (4, "throughput")
    assert (config_of(0).gpus, config_of(0).recipe) == (None, "smoke")


def test_how_long_it_will_take_is_told_of_all_launches() -> None:
    table = Path("results") / "box-noise.csv"
    assert "20 launches of one and the same run, about 20 minutes on two cores" in plan(
        config_of(0).with_(launches=20), table
    )
    assert "6 launches of one and the same run, about 8 minutes." in plan(config_of(1).with_(launches=6), table)


def test_at_the_end_the_floor_of_the_run_that_was_made_last_is_told(tmp_path: Path) -> None:
    older = launches("o", FIVE_PCT, row_of(launch_of(200.0, machine={"torch": "2.13.0"})))
    table = write(tmp_path / "box-noise.csv", older, launches("n", TWO_PCT))
    assert told(table).startswith("Noise floor 2 %, the most by which 3 launches differ from 3 others among 12; ")
    write(table, older, launches("n", TWO_PCT[:11]))
    assert told(table) == (
        f"No noise floor yet: it takes 12 launches that count, and {table} has 11 of this run; the same command adds more."
    )


def words(pictures: Path, folder: Path, launches: int, data: str = "") -> list[str]:
    """Python's words for so many launches on a few images."""
    asked = {"data": data or str(pictures), "images_per_gpu": 2, "steps": 2, "model": "cifar-18pct", "compile": "off"}
    asked |= {"image_size": 32, "init": None, "cpus": 1}
    code = (
        "import sys; from pathlib import Path; from harness import noise; from harness.config import RunConfig\n"
        f"sys.exit(noise.main(int(sys.argv[1]), Path(sys.argv[2]), RunConfig(**{asked!r})))"
    )
    return ["-c", code, str(launches), str(folder)]


def noise_rows(folder: Path) -> list[Row]:
    (table,) = folder.glob("*-noise.csv")
    assert verified(table)
    return rows(table)


@pytest.fixture(scope="module")
def stopped(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """(folder, exit status, what was said) of launches of which the second was stopped by Ctrl-C."""
    folder = tmp_path_factory.mktemp("noise")
    run = Started(folder / "any.csv", *words(pictures, folder, 20))

    def second_launch_is_under_way() -> bool:
        return len(list(folder.glob("runs/*"))) == 2 and any(folder.glob("runs/*/progress.jsonl"))

    try:
        assert wait_for(second_launch_is_under_way, 120), run.output.read_text()
        run.process.send_signal(signal.SIGINT)
        return folder, *run.ends_with()
    finally:
        run.clear_away()


def test_ctrl_c_keeps_the_rows_made_so_far(stopped: tuple[Path, int, str]) -> None:
    folder, status, output = stopped
    assert status == 130, output
    assert "Traceback" not in output
    assert "A against A: 20 launches of one and the same run, about 20 minutes" in output
    assert "No noise floor yet: it takes 12 launches that count, and" in output
    assert noise_rows(folder)[0]["status"] == "ok"


def test_a_second_time_adds_rows_to_the_same_table_and_a_launch_that_fails_is_the_last(
    pictures: Path, tmp_path: Path, stopped: tuple[Path, int, str]
) -> None:
    for colour in ("red", "green"):
        (tmp_path / colour).mkdir()
        (tmp_path / colour / "whole.jpg").write_bytes((pictures / "train" / colour / "0.jpg").read_bytes())
    (tmp_path / "green" / "broken.jpg").write_bytes((pictures / "train" / "green" / "1.jpg").read_bytes()[:200])
    before = noise_rows(stopped[0])
    done = finished(*words(pictures, stopped[0], 20, data=str(tmp_path)))
    assert done.returncode == 1, done.stdout
    assert "broken.jpg" in done.stderr
    after = noise_rows(stopped[0])
    assert after[:-1] == before
    assert after[-1]["status"] == "failed"
