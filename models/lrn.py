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

import torch
from torch import Tensor

DTYPES = {
    "cpu": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "cuda": (torch.float16, torch.bfloat16, torch.float32),
    "meta": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def reference(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """The formula above in plain torch, in x's dtype, for autograd to differentiate. x and the result: (N, C, H, W)."""
    half = size // 2
    squares = x.square().unflatten(1, (columns, -1))
    width = squares.shape[2]
    padded = torch.nn.functional.pad(squares, (0, 0, 0, 0, half, half))
    total = torch.stack([padded[:, :, i : i + width] for i in range(size)]).sum(0)
    return x * (k + alpha * total.flatten(1, 2)) ** -beta


def local_response_norm(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """Normalise activations x (N, C, H, W) across channels by the formula above.

    x is float16, bfloat16 or float32, on the CPU also float64; sums and powers are in float32 or wider. The result has
    x's dtype, device and memory format (channels-last or contiguous; other strides are copied to contiguous).
    Differentiable once, in closed form; x alone is kept for the backward pass.
    Raises ValueError for an argument that has no right answer.
    """
    check(x, size, alpha, beta, k, columns)
    result: Tensor = forward(x, size, float(alpha), float(beta), float(k), columns)
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
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd and positive, for the window has a middle")
    if columns < 1 or x.shape[1] % columns != 0:
        raise ValueError(f"columns is {columns}; it must be positive and divide x's {x.shape[1]} channels")
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


def sum_windows(values: Tensor, size: int) -> Tensor:
    """Sums over the windows of dimension 2 of values (outer, columns, width, inner), which are zero outside."""
    total = values.clone()
    for shift in range(1, min(size // 2, values.shape[2] - 1) + 1):
        total[:, :, shift:] += values[:, :, :-shift]
        total[:, :, :-shift] += values[:, :, shift:]
    return total


def inverse_power_(denominator: Tensor, beta: float) -> Tensor:
    """denominator ** -beta, in place."""
    if beta == 0.75:
        # Two square roots cost a CPU far less than a power.
        root = denominator.rsqrt_()
        return root.sqrt().mul_(root)
    return denominator.pow_(-beta)


def rows(x: Tensor, columns: int) -> Tensor:
    """x (N, C, H, W) seen as (outer, columns, width, inner) without a copy, whichever its memory format."""
    if memory_format(x) == torch.channels_last:
        return x.permute(0, 2, 3, 1).reshape(-1, columns, x.shape[1] // columns, 1)
    return x.reshape(x.shape[0], columns, x.shape[1] // columns, -1)


@torch.library.custom_op("models::local_response_norm", mutates_args=(), device_types="cuda")
def forward(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    from models import lrn_triton

    return lrn_triton.forward(x.contiguous(memory_format=memory_format(x)), size, alpha, beta, k, columns)


@torch.library.custom_op("models::local_response_norm_backward", mutates_args=(), device_types="cuda")
def backward(gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    from models import lrn_triton

    layout = memory_format(x)
    gradient, x = gradient.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    return lrn_triton.backward(gradient, x, size, alpha, beta, k, columns)


@forward.register_kernel("cpu")
def forward_cpu(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    x = x.contiguous(memory_format=memory_format(x))
    result = torch.empty_like(x)
    for source, target in zip(x.split(1), result.split(1), strict=True):
        wide = rows(source, columns).to(torch.promote_types(x.dtype, torch.float32))
        denominator = sum_windows(wide.square(), size).mul(alpha).add_(k)
        rows(target, columns).copy_(inverse_power_(denominator, beta).mul_(wide))
    return result


@backward.register_kernel("cpu")
def backward_cpu(gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    layout = memory_format(x)
    gradient, x = gradient.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
    result = torch.empty_like(x)
    for upstream, source, target in zip(gradient.split(1), x.split(1), result.split(1), strict=True):
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide, g = rows(source, columns).to(dtype), rows(upstream, columns).to(dtype)
        denominator = sum_windows(wide.square(), size).mul(alpha).add_(k)
        scaled = inverse_power_(denominator.clone(), beta).mul_(g)
        crossed = sum_windows((scaled / denominator).mul_(wide), size)
        rows(target, columns).copy_(scaled.sub_(crossed.mul_(wide), alpha=2 * alpha * beta))
    return result


@forward.register_fake
def forward_fake(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@backward.register_fake
def backward_fake(gradient: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def save_for_backward(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    x, *ctx.constants = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(x)  # type: ignore[attr-defined]


def differentiate(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return backward(gradient, x, *ctx.constants), None, None, None, None, None  # type: ignore[attr-defined]


forward.register_autograd(differentiate, setup_context=save_for_backward)
