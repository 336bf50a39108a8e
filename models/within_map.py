"""Response normalisation within a map: neighbours in space, where models.lrn's are neighbours across channels.

    y = x / (1 + scale * s) ** power

s at a place is the sum of x^2 over the size x size places of the same map around it, those that exist: no padding is
counted and nothing is divided by their number. It is `code2012`'s second normalisation of layer 2 and a normalisation
of the CIFAR nets; the print has none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def within_map_norm(x: Tensor, size: int, scale: float, power: float) -> Tensor:
    """Normalise activations x (N, C, H, W) within each map by the formula above.

    The sums and powers are in float32 or wider, and the result has x's dtype. Differentiable by torch's own operations.
    Raises ValueError for an argument that has no right answer.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}; it must be floats in four dimensions")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be odd and positive, for the window has a middle")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"scale is {scale}; it must be finite and not negative, or the power gives NaN")
    if not 0 <= power < float("inf"):
        raise ValueError(f"power is {power}; it must be finite and not negative, or 0 times infinity gives NaN")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # Padded by hand: torch's own padding has had wrong gradients here in channels-last on CUDA (pytorch issue 188344).
    squares = F.pad(wide.square(), (size // 2,) * 4)
    sums = F.avg_pool2d(squares, size, stride=1, divisor_override=1)
    return (wide * (1 + scale * sums) ** -power).to(x.dtype)
