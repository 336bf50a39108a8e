"""The LRN kernels' source, run by Triton's interpreter, and their launches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.lrn_triton import MAX_WIDTH, choose_launch

TESTS = Path(__file__).parent


def test_in_the_interpreter_every_shape_dtype_and_layout_agrees_with_float64_and_no_canary_dies() -> None:
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(TESTS / "lrn_in_interpreter.py")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-400:] + run.stderr[-2000:]
    lines = run.stdout.splitlines()
    assert len(lines) == 8 * 4 * 3 * 2  # shapes, constants, dtypes, layouts
    assert all(line.endswith(" right") for line in lines)


@pytest.mark.parametrize("width", [1, 3, 48, 128, 1000, MAX_WIDTH])
def test_a_program_covers_whole_rows_in_powers_of_two(width: int) -> None:
    launch = choose_launch(10**6, width)
    assert launch.BLOCK // 2 < width <= launch.BLOCK
    assert launch.ROWS & (launch.ROWS - 1) == 0
    assert launch.ROWS * launch.BLOCK == 2048


def test_offsets_are_64_bits_wide_only_where_32_could_overflow() -> None:
    assert not choose_launch(128 * 96 * 55 * 55, 48).WIDE
    assert choose_launch(2**31, 48).WIDE
    assert choose_launch(2**31 - 1, 48).WIDE


def test_a_column_too_wide_for_one_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x has 1025 channels in a column; on CUDA a column holds at most 1024"):
        choose_launch(10**6, MAX_WIDTH + 1)
