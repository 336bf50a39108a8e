"""Run the fused block's kernels in Triton's interpreter, which has to be chosen before Triton is imported: python block_in_interpreter.py.

Hypothesis draws shapes, columns, constants, dtypes and kinds of values. Ends with 1, and the smallest case that it found, if
one is wrong; else prints how many cases were right.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models import block_triton
from models.lrn import reference

CANARIES = 64
CONSTANTS = [(5, 1e-4, 0.75, 2.0), (3, 1e-4, 0.5, 1.0), (9, 2e-5, 0.75, 1.0), (1, 0.0, 0.75, 1.0)]
# A result's rounding. The interpreter cuts float32 to bfloat16 where a GPU rounds; test_block_machine_code.py holds the rounding.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}
# The float32 in between, against the largest value: sums and differences cancel.
FLOAT32 = 4e-6

right = 0


class Fenced:
    """A channels-last copy of values in the middle of a buffer of canaries."""

    def __init__(self, values: Tensor) -> None:
        self.buffer = torch.full((values.numel() + 2 * CANARIES,), 77, dtype=values.dtype)
        strides = torch.empty(values.shape, memory_format=torch.channels_last).stride()
        self.values = self.buffer.as_strided(values.shape, strides, CANARIES).copy_(values)

    def check(self) -> None:
        assert (self.buffer[:CANARIES] == 77).all(), "wrote before its tensor"
        assert (self.buffer[len(self.buffer) - CANARIES :] == 77).all(), "wrote past its tensor"


def draw(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Activations before their ReLU: all different, or with many equal ones, or with NaNs and infinities among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 100
    if kind == "ties":
        # One value in all channels of a place: equal places have equal windows.
        x = (torch.randint(-2, 3, (shape[0], 1, *shape[2:]), generator=generator) * 16.0).expand(shape)
    x = x.to(dtype)
    if kind == "special":
        chance = torch.rand(shape, generator=generator)
        x = x.masked_fill(chance < 0.1, float("nan")).masked_fill(chance > 0.97, float("inf"))
        x = x.masked_fill((chance > 0.9) & (chance < 0.93), -float("nan"))
    return x


def assert_close(name: str, found: Tensor, expected: Tensor) -> None:
    if not expected.numel():
        return
    assert (found.isnan() == expected.isnan()).all(), f"{name}: NaNs at other places"
    found, expected, rounding = found.double().nan_to_num(), expected.nan_to_num(), ROUNDING[found.dtype]
    allowed = rounding * expected.abs() + FLOAT32 * expected.abs().max() + torch.finfo(torch.float16).tiny
    off = ((found - expected).abs() / allowed).max().item()
    assert off <= 1, f"{name} is {off} tolerances off"


@settings(max_examples=36, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 20), st.integers(3, 14), st.integers(3, 18)),
    columns=st.integers(1, 3),
    constants=st.sampled_from(CONSTANTS),
    dtype=st.sampled_from(list(ROUNDING)),
    kind=st.sampled_from(["different", "ties", "special"]),
)
@example((1, 48, 9, 55), 2, CONSTANTS[0], torch.bfloat16, "ties")
@example((1, 130, 5, 40), 1, CONSTANTS[0], torch.bfloat16, "special")  # a row takes three tiles
@example((1, block_triton.MAX_WIDTH, 3, 9), 1, CONSTANTS[2], torch.float32, "different")
@example((1, 1, 4, 530), 1, CONSTANTS[0], torch.float16, "ties")
def main(shape: tuple[int, int, int, int], columns: int, constants: tuple, dtype: torch.dtype, kind: str) -> None:
    global right
    n, width, height, places = shape
    x = draw(kind, (n, width * columns, height, places), dtype)
    exact = x.double().requires_grad_()
    expected, indices = F.max_pool2d(reference(F.relu(exact), *constants, columns), 3, 2, return_indices=True)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected.backward(gradient.double())

    unwritten = torch.full(expected.shape, 55, dtype=dtype)
    x, gradient, slope = Fenced(x), Fenced(gradient), Fenced(torch.full(x.shape, 55, dtype=dtype))
    pooled, winners = Fenced(unwritten), Fenced(unwritten.to(torch.uint8))
    block_triton.forward(x.values, pooled.values, winners.values, *constants, columns)
    block_triton.backward(gradient.values, x.values, winners.values, slope.values, *constants, columns)
    for tensor in (x, gradient, pooled, winners, slope):
        tensor.check()

    rows, runs = torch.arange(expected.shape[2])[:, None], torch.arange(expected.shape[3])
    won = winners.values.long()
    found = (2 * rows + won // 3) * places + 2 * runs + won % 3
    assert (found == indices).all(), "other winners than max_pool2d's"
    assert_close("pooled", pooled.values, expected.detach())
    assert_close("slope", slope.values, exact.grad)
    right += 1


if __name__ == "__main__":
    main()
    print(f"{right} cases are right")
