"""Run the LRN kernels in Triton's interpreter, which has to be chosen before Triton is imported: python lrn_in_interpreter.py.

Hypothesis draws shapes, windows, constants, dtypes and layouts. Ends with 1, and the smallest case that it found, if one is
wrong; else prints how many cases were right.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import lrn_triton
from models.lrn import CUDA_REACH, reference

CANARIES = 64
CANARY = -12345.0
PAPER = (1e-4, 0.75, 2.0)
CONSTANTS = [PAPER, (1e-4, 0.5, 1.0), (2e-5, 0.75, 1.0), (0.0, 0.0, 1.0)]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# A result's rounding. The interpreter cuts float32 to bfloat16 where a GPU rounds; test_lrn_machine_code.py holds the rounding.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-11}
# The float32 in between, against the largest value: sums and differences cancel.
FLOAT32 = 2e-6

right = 0


def fenced(values: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """A copy of values in the middle of a buffer of canaries, and that buffer."""
    buffer = torch.full((values.numel() + 2 * CANARIES,), CANARY, dtype=values.dtype)
    strides = torch.empty_like(values, memory_format=LAYOUTS[layout]).stride()
    inside = buffer.as_strided(values.shape, strides, CANARIES)
    return inside.copy_(values), buffer


def assert_untouched(buffer: Tensor) -> None:
    """The canaries on both sides live."""
    canary = torch.tensor(CANARY, dtype=buffer.dtype)
    assert (buffer[:CANARIES] == canary).all(), "wrote before its tensor"
    assert (buffer[len(buffer) - CANARIES :] == canary).all(), "wrote past its tensor"


def assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    if not expected.numel():
        return
    allowed = ROUNDING[found.dtype] * expected.abs() + FLOAT32 * expected.abs().max()
    off = ((found.double() - expected).abs() / allowed).nan_to_num(nan=float("inf")).max().item()
    assert off <= 1, f"{name} is {off} tolerances off"


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 5), st.integers(1, 9)),
    columns=st.integers(1, 3),
    size=st.sampled_from([1, 3, 5, 9, 2 * CUDA_REACH + 1]),
    constants=st.sampled_from(CONSTANTS),
    dtype=st.sampled_from(sorted(ROUNDING, key=str)),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
# More rows than a program holds, and no multiple of them.
@example((1, 3, 41, 17), 2, 5, PAPER, torch.bfloat16, "channels_last")
@example((1, 3, 41, 17), 2, 5, PAPER, torch.bfloat16, "contiguous")
# Rows that are cut into tiles: the first is the widest that is not, the last reaches as far as it may.
@example((1, 256, 2, 1), 1, 5, PAPER, torch.float16, "channels_last")
@example((1, 257, 2, 1), 2, 5, PAPER, torch.float16, "channels_last")
@example((1, 1200, 1, 2), 1, 5, PAPER, torch.bfloat16, "channels_last")
@example((1, 301, 1, 2), 1, 2 * CUDA_REACH + 1, PAPER, torch.float32, "channels_last")
def check(
    shape: tuple[int, int, int, int],
    columns: int,
    size: int,
    constants: tuple[float, float, float],
    dtype: torch.dtype,
    layout: str,
) -> None:
    """Both kernels on random activations of shape (N, C / columns, H, W), against float64."""
    n, width, *places = shape
    shape = (n, width * columns, *places)
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator).mul(100).to(dtype) for _ in range(2))
    exact = x.double().requires_grad_()
    expected = reference(exact, size, *constants, columns)
    expected.backward(gradient.double())
    (x, x_buffer), (gradient, gradient_buffer) = fenced(x, layout), fenced(gradient, layout)
    unwritten = torch.full(shape, float("nan"), dtype=dtype)
    (y, y_buffer), (slope, slope_buffer) = fenced(unwritten, layout), fenced(unwritten, layout)
    lrn_triton.forward(x, y, size, *constants, columns)
    lrn_triton.backward(gradient, x, slope, size, *constants, columns)
    for buffer in (x_buffer, gradient_buffer, y_buffer, slope_buffer):
        assert_untouched(buffer)
    assert_close("forward", y, expected.detach())
    assert_close("backward", slope, exact.grad)
    global right
    right += 1


if __name__ == "__main__":
    check()
    print(right, "cases right")
