"""The fused block's kernels' source, run by Triton's interpreter, and their launches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.block_triton import MAX_ROW, MAX_WIDTH, choose_launch

TESTS = Path(__file__).parent


def test_in_the_interpreter_every_shape_and_dtype_agrees_with_float64_and_no_canary_dies() -> None:
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(TESTS / "block_in_interpreter.py")]
    run = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-400:] + run.stderr[-2000:]
    assert int(run.stdout.split()[0]) >= 36


@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("width", [3, 4, 27, 55, 1000])
@pytest.mark.parametrize("channels", [1, 3, 48, 128, MAX_WIDTH])
def test_a_thread_holds_one_wide_load_of_a_tile(channels: int, width: int, item_bytes: int) -> None:
    launch = choose_launch(channels, 2, width, item_bytes)
    assert channels <= launch.BLOCK_C
    assert launch.BLOCK_Q >= 4  # one place of a tile is shared with the next
    assert launch.num_warps <= 16
    elements = 32 * launch.num_warps * launch.GROUP
    assert launch.GROUP * item_bytes == 16
    assert elements == max(launch.BLOCK_C * launch.BLOCK_Q, 32 * launch.GROUP)


def test_a_row_of_the_paper_s_layers_fits_one_tile() -> None:
    assert choose_launch(48, 2, 55, 2)[1:3] == (64, 32)
    assert choose_launch(128, 2, 27, 2)[1:3] == (128, 16)


def test_a_column_too_wide_for_one_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x has 513 channels in a column; on CUDA the fused block takes at most 512"):
        choose_launch(MAX_WIDTH + 1, 1, 55, 2)


def test_a_row_too_long_for_32_bit_offsets_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"x has {MAX_ROW + 512} values in a row .* takes at most {MAX_ROW}"):
        choose_launch(512, 1, MAX_ROW // 512 + 1, 2)
