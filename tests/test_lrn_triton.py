"""The LRN kernels' source, run by Triton's interpreter, and their launches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.lrn import CUDA_REACH
from models.lrn_triton import choose_lines, choose_walk

TESTS = Path(__file__).parent
# One more than any index that 32 bits hold.
TOO_MANY = 2**31


def test_in_the_interpreter_drawn_shapes_dtypes_and_layouts_agree_with_float64_and_no_canary_dies() -> None:
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(TESTS / "lrn_in_interpreter.py")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-400:] + run.stderr[-2000:]
    right, *words = run.stdout.split()
    assert words == ["cases", "right"]
    assert int(right) >= 60


@pytest.mark.parametrize("width", [1, 3, 48, 96, 128, 256])
def test_a_warp_takes_as_many_whole_rows_as_it_holds(width: int) -> None:
    launch = choose_lines(10**6, width, 5, 2)
    assert (launch.VECTOR, launch.HALO) == (8, 0)
    assert launch.STEP - 8 < width <= launch.STEP == launch.GROUPS * 8
    rows_a_program = 4 * (32 // launch.GROUPS)
    assert launch.programs(rows_a_program) == 1
    assert launch.programs(rows_a_program + 1) == 2


@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("size", [1, 3, 5, 2 * CUDA_REACH + 1])
def test_a_longer_row_is_cut_into_tiles_whose_halo_holds_two_windows(size: int, item_bytes: int) -> None:
    launch = choose_lines(10**6, 5000, size, item_bytes)
    vector, halo, step = launch.VECTOR, launch.HALO, launch.STEP
    assert halo >= 2 * (size // 2)
    assert halo % vector == step % vector == 0
    assert step + 2 * halo == 32 * vector == 32 * 16 // item_bytes
    assert launch.programs(rows=4) == -(-5000 // step)  # a program takes four tiles


@pytest.mark.parametrize("choose", [lambda numel: choose_lines(numel, 48, 5, 2), lambda numel: choose_walk(numel, 48)])
def test_offsets_are_64_bits_wide_only_where_32_could_overflow(choose) -> None:
    assert not choose(128 * 96 * 55 * 55).WIDE
    # What a last program counts past the end must fit too.
    assert choose(TOO_MANY - 4 * 32 * 8).WIDE
    assert choose(TOO_MANY).WIDE


def test_a_launch_has_programs_for_every_row_however_many() -> None:
    assert choose_lines(48 * 2**33, 48, 5, 2).programs(2**33) == -(-(2**33) // 20)
    assert choose_walk(48 * 2**33, 48).programs(2**33) == 2**25
