"""Run the LRN kernels in Triton's interpreter, which has to be chosen before Triton is imported: python lrn_in_interpreter.py.

Prints one line a case and ends with 1 at the first that is wrong.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import itertools

import torch
from torch import Tensor

from models import lrn_triton
from models.lrn import reference

CANARIES = 64
CANARY = -12345.0
# The interpreter cuts float32 to bfloat16 where a GPU rounds; test_lrn_machine_code.py holds the rounding.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}
SHAPES = [  # (N, C, H, W), columns
    ((2, 6, 3, 5), 2),
    ((1, 3, 2, 2), 1),  # fewer channels than the window
    ((3, 1, 2, 1), 1),
    ((2, 10, 5, 3), 5),
    ((1, 96, 2, 3), 2),
    ((1, 6, 41, 17), 2),  # more rows than a program holds, and no multiple of them
    ((0, 4, 2, 2), 1),
    ((2, 4, 0, 3), 2),
]
CONSTANTS = [(5, 1e-4, 0.75, 2.0), (1, 1e-3, 0.5, 1.0), (9, 2e-5, 0.75, 1.0), (3, 0.0, 0.0, 1.0)]


def fenced(values: Tensor, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    """A copy of values in the middle of a buffer of canaries, and that buffer."""
    buffer = torch.full((values.numel() + 2 * CANARIES,), CANARY, dtype=values.dtype)
    strides = torch.empty_like(values, memory_format=memory_format).stride()
    inside = buffer.as_strided(values.shape, strides, CANARIES)
    return inside.copy_(values), buffer


def untouched(buffer: Tensor) -> bool:
    """Whether the canaries on both sides live."""
    canary = torch.tensor(CANARY, dtype=buffer.dtype)
    return bool((buffer[:CANARIES] == canary).all() and (buffer[len(buffer) - CANARIES :] == canary).all())


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest expected value's rounding in found's dtype."""
    if not expected.numel():
        return 0.0
    scale = TOLERANCE[found.dtype] * expected.abs().max().item()
    return (found.double() - expected).abs().max().item() / scale


def case(
    shape: tuple[int, ...], columns: int, constants: tuple, dtype: torch.dtype, layout: torch.memory_format
) -> str | None:
    """What is wrong with one case, or None."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator).mul(100).to(dtype) for _ in range(2))
    exact = x.double().requires_grad_()
    expected = reference(exact, *constants, columns)
    expected.backward(gradient.double())
    (x, x_buffer), (gradient, gradient_buffer) = fenced(x, layout), fenced(gradient, layout)
    unwritten = torch.full(shape, float("nan"), dtype=dtype)
    (y, y_buffer), (slope, slope_buffer) = fenced(unwritten, layout), fenced(unwritten, layout)
    lrn_triton.forward(x, y, *constants, columns)
    lrn_triton.backward(gradient, x, slope, *constants, columns)
    if not all(map(untouched, (x_buffer, gradient_buffer, y_buffer, slope_buffer))):
        return "wrote outside its tensor"
    errors = error(y, expected.detach()), error(slope, exact.grad)
    return None if max(errors) <= 1 else f"forward and backward are {errors} tolerances off"


def main() -> None:
    layouts = (torch.channels_last, torch.contiguous_format)
    cases = itertools.product(SHAPES, CONSTANTS, TOLERANCE, layouts)
    for (shape, columns), constants, dtype, layout in cases:
        wrong = case(shape, columns, constants, dtype, layout)
        print(shape, columns, constants, dtype, layout, wrong or "right", flush=True)
        if wrong:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
