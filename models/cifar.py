"""The paper's CIFAR-10 nets: four layers, of which it gives no table (Figure 1, section 3.3).

They are those that cuda-convnet released under the names of their test errors. Its normalisations divide their scale by
the number of places or maps in the window, which the constants here do too. Its decays are multiples of a run's weight
decay of 0.004 and its learning rate is 0.001.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from models.lrn import local_response_norm
from models.network import Conv, Layers, Linear, Local, Network, changed, changed_in, swapped, with_classes
from models.within_map import within_map_norm

# The last window of a row or column may reach over the edge: 32 places become 16, 8, 4.
max_pool = partial(F.max_pool2d, kernel_size=3, stride=2, ceil_mode=True)


def average_pool(x: Tensor) -> Tensor:
    """Means over the same windows as max_pool's, of the places inside; x (N, C, H, W), H and W at least 3."""
    # By hand: compiled, torch's own average has a wrong gradient where windows reach over (pytorch issue 198119).
    sums = F.avg_pool2d(x, kernel_size=3, stride=2, ceil_mode=True, divisor_override=1)
    height, width = ((side - torch.arange(0, side - 1, 2, device=x.device)).clamp(max=3) for side in x.shape[2:])
    return sums / (height[:, None] * width)


within_map = partial(within_map_norm, size=3, scale=5e-5 / 9, power=0.75)
across_maps = partial(local_response_norm, size=9, alpha=1e-3 / 9, beta=0.75, k=1.0)


def source_biases(layers: Layers) -> Layers:
    return changed(layers, bias_rate=2.0, bias_decay=0.0)


PCT18: Layers = source_biases(
    {
        "conv1": Conv(32, 5, padding=2, std=1e-4, then=(max_pool, F.relu, within_map)),
        "conv2": Conv(32, 5, padding=2, then=(F.relu, average_pool, within_map)),
        "conv3": Conv(64, 5, padding=2, then=(F.relu, average_pool)),
        "fc10": Linear(10, side=4, decay=250.0),
    }
)
PCT13: Layers = source_biases(
    {
        "conv1": Conv(64, 5, padding=2, std=1e-4, decay=0.0, then=(F.relu, max_pool)),
        "conv2": Conv(64, 5, padding=2, decay=0.0, then=(F.relu, max_pool)),
        "local3": Local(32, 3, padding=1, side=8, std=0.04, then=(F.relu,)),
        "local4": Local(32, 3, padding=1, side=8, std=0.04, then=(F.relu,)),
        "fc10": Linear(10, side=8),
    }
)


def with_lrn(layers: Layers) -> Layers:
    """Normalisation across maps after the first pool and before the second."""
    layers = changed_in(layers, "conv1", then=(F.relu, max_pool, across_maps))
    return changed_in(layers, "conv2", then=(F.relu, across_maps, max_pool))


# Figure 1 says "no regularization": our reading is 18pct-nonorm against 18pct-nonorm-tanh, with a weight decay of 0.
# Section 3.3's 13 % and 11 % nets differ in more than normalisation: 13pct against 13pct-lrn changes it alone.
VARIANTS: dict[str, Layers] = {
    "18pct": PCT18,
    "18pct-tanh": swapped(PCT18, F.relu, torch.tanh),
    "18pct-nonorm": swapped(PCT18, within_map_norm),
    "18pct-nonorm-tanh": swapped(swapped(PCT18, within_map_norm), F.relu, torch.tanh),
    "13pct": PCT13,
    "13pct-lrn": with_lrn(PCT13),
    "11pct": changed_in(with_lrn(PCT13), "local3", outputs=64),
}


class CifarNet(Network):
    """A network of VARIANTS."""

    image_shape = (3, 32, 32)


def cifar(num_classes: int = 10, *, variant: str) -> CifarNet:
    """A network of VARIANTS with its own initial weights, channels-last.

    Raises ValueError for an argument out of range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant is called {variant!r}; the variants are {', '.join(sorted(VARIANTS))}")
    return CifarNet(with_classes(VARIANTS[variant], num_classes)).to(memory_format=torch.channels_last)
