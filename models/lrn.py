"""Local response normalisation: Krizhevsky, Sutskever, Hinton 2012, section 3.3.

    d_i = k + alpha * sum of x_j^2 over j in W(i)
    y_i = x_i * d_i^-beta

over the channels i. W(i) holds the channels from i - (size - 1) / 2 to i + (size - 1) / 2 that exist and lie in the
same column as i; `columns` equal parts of the channels play the paper's GPUs. With g = dL/dy, and as j is in W(i)
exactly when i is in W(j),

    dL/dx_i = g_i * d_i^-beta - 2 * alpha * beta * x_i * sum of g_j * x_j * d_j^(-beta - 1) over j in W(i)

alpha is the paper's: torch.nn.functional.local_response_norm divides its alpha by the window's size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DTYPES = {
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32),
    "meta": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
# How many channels a window may reach to each side: there, threads hold windows in registers.
CUDA_REACH = 16


def reference(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """The formula above in plain torch, in x's dtype, for autograd to differentiate. x and the result: (N, C, H, W)."""
    half = size // 2
    squares = x.square().unflatten(1, (columns, x.shape[1] // columns))
    width = squares.shape[2]
    padded = torch.nn.functional.pad(squares, (0, 0, 0, 0, half, half))
    total = torch.stack([padded[:, :, i : i + width] for i in range(size)]).sum(0)
    return x * (k + alpha * total.flatten(1, 2)) ** -beta


def local_response_norm(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """Normalise activations x (N, C, H, W) across channels by the formula above.

    x is float16, bfloat16 or float32, on the CPU also float64; sums and powers are in float32 or wider. The result has
    x's dtype, device and memory format (channels-last or contiguous; other strides are copied to contiguous). On CUDA a
    window reaches CUDA_REACH channels to each side at most.
    Differentiable once, in closed form; x alone is kept for the backward pass.
    Where an activation's square is infinite or NaN, the CPU's result is NaN in all of that column's channels.
    Raises ValueError for an argument that has no right answer.
    """
    check(x, size, alpha, beta, k, columns)
    # On the CPU the compiler fuses the formula with its neighbours, which it cannot do to an opaque operator.
    normalise = Formula.apply if x.device.type == "cpu" else forward
    result: Tensor = normalise(x, size, float(alpha), float(beta), float(k), columns)
    return result


def check(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> None:
    """Raise ValueError naming the first argument out of its range, its value and the rule."""
    if x.device.type not in DTYPES:
        raise ValueError(f"x is on {x.device}; local_response_norm takes CPU and CUDA tensors")
    if x.layout != torch.strided:
        raise ValueError(f"x has layout {x.layout}; local_response_norm takes dense tensors")
    if x.dtype not in DTYPES[x.device.type]:
        names = ", ".join(str(dtype) for dtype in DTYPES[x.device.type])
        raise ValueError(f"x has dtype {x.dtype}; on {x.device.type} it must be one of {names}")
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must have four dimensions: (N, C, H, W)")
    for name, value in (("size", size), ("columns", columns)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be an integer")
    for name, number in (("alpha", alpha), ("beta", beta), ("k", k)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise ValueError(f"{name} is {number!r}; it must be a number")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd and positive, for the window has a middle")
    if columns < 1 or x.shape[1] % columns != 0:
        raise ValueError(f"columns is {columns}; it must be positive and divide x's {x.shape[1]} channels")
    if x.device.type == "cuda" and min(size // 2, x.shape[1] // columns - 1) > CUDA_REACH:
        raise ValueError(f"size is {size}; on CUDA it must be {2 * CUDA_REACH + 1} at most")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha}; it must be finite and not negative, or the power gives NaN")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta is {beta}; it must be finite and not negative, or 0 times infinity gives NaN")
    if not 0 < k < math.inf or (beta + 1) * abs(math.log2(k)) > 120:
        raise ValueError(f"k is {k}; it must be positive and k ** -(beta + 1) a normal float32, or zeros give NaN")


def memory_format(x: Tensor) -> torch.memory_format:
    """The format in which x is computed and its result returned."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def rows(x: Tensor, columns: int) -> Tensor:
    """x (N, C, H, W) in float32 or wider as (N * H * W * columns, C / columns): a view of channels-last float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    n, channels, height, width = x.shape
    return wide.permute(0, 2, 3, 1).reshape(n * height * width * columns, channels // columns)


def maps(values: Tensor, x: Tensor) -> Tensor:
    """What `rows` undoes: values in the shape, dtype and memory format of x."""
    n, channels, height, width = x.shape
    result = torch.empty_like(x, memory_format=memory_format(x))
    return result.copy_(values.view(n, height, width, channels).permute(0, 3, 1, 2))


def sum_windows(values: Tensor, size: int) -> Tensor:
    """Sums over the window of each channel, for values (rows, channels of one column)."""
    channel = torch.arange(values.shape[1], device=values.device)
    band = (channel[:, None] - channel).abs() <= size // 2
    # A product with a band of ones: on a CPU cheaper than a pass over memory for each place of the window.
    # Autocast would make it one of bfloat16.
    with torch.autocast(values.device.type, enabled=False):
        return values @ band.to(values.dtype)


def inverse_power(denominator: Tensor, beta: float) -> Tensor:
    """denominator ** -beta."""
    if beta == 0.75:
        # Two square roots cost a CPU far less than a power.
        root = denominator.rsqrt()
        return root * root.sqrt()
    return denominator**-beta


def formula(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    """y of the formula above, in torch operations that a compiler can fuse."""
    wide = rows(x, columns)
    denominator = k + alpha * sum_windows(wide.square(), size)
    return maps(wide * inverse_power(denominator, beta), x)


def formula_gradient(
    gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int
) -> Tensor:
    """dL/dx of the formula above from gradient = dL/dy, in torch operations that a compiler can fuse."""
    wide = rows(x, columns)
    denominator = k + alpha * sum_windows(wide.square(), size)
    scaled = rows(gradient, columns) * inverse_power(denominator, beta)
    crossed = sum_windows(scaled * wide / denominator, size)
    return maps(scaled - 2 * alpha * beta * wide * crossed, x)


class Formula(torch.autograd.Function):
    """`formula` and its gradient, keeping x alone between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.constants = (size, alpha, beta, k, columns)
        return formula(x, size, alpha, beta, k, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return formula_gradient(gradient, x, *ctx.constants), None, None, None, None, None


@torch.library.custom_op("models::local_response_norm", mutates_args=(), device_types="cuda")
def forward(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    """The formula as one operator: Triton's kernel on CUDA."""
    from models import lrn_triton

    layout = memory_format(x)
    result = torch.empty_like(x, memory_format=layout)
    lrn_triton.forward(x.contiguous(memory_format=layout), result, size, alpha, beta, k, columns)
    return result


@torch.library.custom_op("models::local_response_norm_backward", mutates_args=(), device_types="cuda")
def backward(gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    """Its gradient as one operator, which computes the denominator again from x."""
    from models import lrn_triton

    layout = memory_format(x)
    result = torch.empty_like(x, memory_format=layout)
    gradient, x = gradient.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    lrn_triton.backward(gradient, x, result, size, alpha, beta, k, columns)
    return result


forward.register_kernel("cpu")(formula)
backward.register_kernel("cpu")(formula_gradient)


@forward.register_fake
def forward_fake(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@backward.register_fake
def backward_fake(gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.constants = inputs
    ctx.save_for_backward(x)


def differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return backward(gradient, x, *ctx.constants), None, None, None, None, None


forward.register_autograd(differentiate, setup_context=save_for_backward)
