"""ReLU, local response normalisation and overlapping max-pooling in one pass: layers 1 and 2 of the paper (sections 3.1, 3.3, 3.4).

    max_pool2d(local_response_norm(relu(x), ...), kernel_size=3, stride=2)

models.lrn has the normalisation's formula. Separate operations read and write x's bytes again and again; here the forward
pass reads x once and writes the pooled activations and one byte for each: the winner's place in its window, 0 to 8 by
rows. The backward pass needs only those bytes, x and the gradient.

On CUDA the operators are Triton's kernels (models/block_triton.py), on a CPU block.cpp, which `build` compiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models import lrn

SOURCE = Path(__file__).with_name("block.cpp")
# The last two let square roots vectorise: nobody reads errno or floating-point traps here.
COMPILE_FLAGS = [
    "-shared",
    "-fPIC",
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
]
ON_CPU = (torch.float32, torch.bfloat16)


def relu_lrn_maxpool(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """The pooled activations (N, C, (H - 3) // 2 + 1, (W - 3) // 2 + 1) of a convolution's output x (N, C, H, W), as above.

    x is bfloat16 or float32, on CUDA also float16, where a column has at most models.block_triton.MAX_WIDTH channels; H
    and W are at least 3; other arguments as in `models.lrn.local_response_norm`. Sums and powers are in float32, and so
    are comparisons, but on CUDA those of 16-bit inputs see its upper 28 bits. Of equal activations in a window the first
    wins, as in `max_pool2d`. The result has x's dtype and device and is channels-last; another memory format is copied
    to it first. Differentiable once; x and the winners' places are kept for the backward pass.
    On a CPU, `build` compiles the operator first, which raises RuntimeError where there is no compiler.
    Raises ValueError for an argument that has no right answer.
    """
    lrn.check(x, size, alpha, beta, k, columns)
    if x.device.type == "cpu" and x.dtype not in ON_CPU:
        raise ValueError(f"x has dtype {x.dtype}; on cpu it must be one of {', '.join(map(str, ON_CPU))}")
    if min(x.shape[2:]) < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; its height and width must be at least 3, the pool's window")
    pooled, _ = forward(x, size, float(alpha), float(beta), float(k), columns)
    result: Tensor = pooled
    return result


def reference(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, columns: int = 1
) -> Tensor:
    """The same in plain torch, in x's dtype, for autograd to differentiate."""
    return F.max_pool2d(lrn.reference(F.relu(x), size, alpha, beta, k, columns), kernel_size=3, stride=2)


# --- the operators ------------------------------------------------------------------------------------------------


def empty_pooled(x: Tensor, dtype: torch.dtype) -> Tensor:
    n, channels, height, width = x.shape
    shape = (n, channels, (height - 3) // 2 + 1, (width - 3) // 2 + 1)
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def empty_slope(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("models::relu_lrn_maxpool", mutates_args=(), device_types=("cpu", "cuda"))
def forward(x: Tensor, size: int, alpha: float, beta: float, k: float, columns: int) -> tuple[Tensor, Tensor]:
    """(pooled activations, winners' places as uint8), both channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    pooled, winners = empty_pooled(x, x.dtype), empty_pooled(x, torch.uint8)
    if x.device.type == "cuda":
        from models import block_triton

        block_triton.forward(x, pooled, winners, size, alpha, beta, k, columns)
    else:
        call("forward", (x, pooled, winners), x, (size, columns), (alpha, beta, k))
    return pooled, winners


@torch.library.custom_op("models::relu_lrn_maxpool_backward", mutates_args=(), device_types=("cpu", "cuda"))
def backward(
    gradient: Tensor, x: Tensor, winners: Tensor, size: int, alpha: float, beta: float, k: float, columns: int
) -> Tensor:
    """dL/dx from gradient = dL/d(pooled), x and the winners' places; channels-last."""
    gradient, x, winners = (t.contiguous(memory_format=torch.channels_last) for t in (gradient, x, winners))
    slope = empty_slope(x)
    if x.device.type == "cuda":
        from models import block_triton

        block_triton.backward(gradient, x, winners, slope, size, alpha, beta, k, columns)
    else:
        call("backward", (gradient, x, winners, slope), x, (size, columns), (alpha, beta, k))
    return slope


@forward.register_fake
def forward_fake(x: Tensor, *constants: Any) -> tuple[Tensor, Tensor]:
    return empty_pooled(x, x.dtype), empty_pooled(x, torch.uint8)


@backward.register_fake
def backward_fake(gradient: Tensor, x: Tensor, *others: Any) -> Tensor:
    return empty_slope(x)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.constants = inputs
    _, winners = output
    ctx.save_for_backward(x, winners)
    ctx.mark_non_differentiable(winners)


def differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, winners = ctx.saved_tensors
    return backward(gradient, x, winners, *ctx.constants), None, None, None, None, None


forward.register_autograd(differentiate, setup_context=save_for_backward)


# --- the CPU's library --------------------------------------------------------------------------------------------


class Shape(ctypes.Structure):
    """block.cpp's `Shape`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "size", "columns")),
        *((name, ctypes.c_float) for name in ("alpha", "beta", "k")),
    ]


def call(
    direction: str, tensors: tuple[Tensor, ...], x: Tensor, whole: tuple[int, int], real: tuple[float, ...]
) -> None:
    """Run block.cpp on channels-last tensors, the last of which (forward: two) it fills."""
    n, channels, height, width = x.shape
    function = getattr(build(), f"{direction}_{str(x.dtype).removeprefix('torch.')}")
    shape = Shape(n, height, width, channels, *whole, *real)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    function(*pointers, ctypes.byref(shape), ctypes.c_int(torch.get_num_threads()))


@cache
def build() -> ctypes.CDLL:
    """Compile block.cpp for this CPU, unless another process has, and load it.

    Kept under TORCH_EXTENSIONS_DIR (else ~/.cache/torch_extensions) by source, flags, compiler and CPU.
    Raises RuntimeError, a sentence, where that fails.
    """
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    library = folder / f"models_block_{digest(compiler)}.so"
    if not library.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                new = Path(scratch) / library.name
                command = [*compiler, *COMPILE_FLAGS, str(SOURCE), "-o", str(new)]
                subprocess.run(command, check=True, capture_output=True, text=True)
                new.replace(library)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{compiler[0]} could not compile {SOURCE.name}: {error.stderr.strip()}") from None
        except OSError as error:
            raise RuntimeError(f"{SOURCE.name} could not be compiled by {compiler[0]} into {folder}: {error}") from None
    return ctypes.CDLL(str(library))


def digest(compiler: list[str]) -> str:
    """Of what the library depends on: a home folder may be shared by machines with different instructions."""
    with Path("/proc/cpuinfo").open() as lines:
        instructions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = (SOURCE.read_text(), *COMPILE_FLAGS, *compiler, platform.machine(), instructions)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
