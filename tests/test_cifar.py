"""The CIFAR-10 nets against plain loops and straight lines, and the within-map norm against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models.cifar import average_pool, max_pool
from models.network import LocallyConnected
from models.within_map import within_map_norm


def images(n: int) -> Tensor:
    """Like raw pixels minus a mean, in channels-last."""
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 65
    return x.contiguous(memory_format=torch.channels_last)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


# --- within-map normalisation -------------------------------------------------------------------------------------


def by_the_formula(x: Tensor, size: int, scale: float, power: float) -> Tensor:
    """One place at a time, over the neighbours that exist."""
    y = torch.empty_like(x)
    r = size // 2
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = x[:, :, max(0, i - r) : i + r + 1, max(0, j - r) : j + r + 1]
            y[:, :, i, j] = x[:, :, i, j] / (1 + scale * window.square().sum((2, 3))) ** power
    return y


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 1, 1, 1), (1, 2, 2, 9), (0, 2, 4, 4)])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_place_is_normalised_by_the_squares_around_it_in_its_map(
    shape: tuple[int, ...], size: int, layout: torch.memory_format
) -> None:
    x = random(*shape).contiguous(memory_format=layout)
    torch.testing.assert_close(within_map_norm(x, size, 0.3, 0.75), by_the_formula(x, size, 0.3, 0.75))


def test_the_within_map_norm_has_the_formulas_gradient() -> None:
    x = random(1, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: within_map_norm(x, 3, 0.3, 0.75), x)


def test_half_precision_is_squared_in_float32() -> None:
    x = torch.full((1, 1, 3, 3), 1000.0, dtype=torch.float16)
    y = within_map_norm(x, 3, 1e-6, 0.75)
    assert y.dtype == torch.float16
    assert y[0, 0, 1, 1].item() == pytest.approx(1000 / 10**0.75, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 2}, "size is 2; it must be odd and positive"),
        ({"size": -1}, "size is -1; it must be odd and positive"),
        ({"scale": -1.0}, "scale is -1.0; it must be finite and not negative"),
        ({"scale": math.nan}, "scale is nan"),
        ({"power": math.inf}, "power is inf; it must be finite"),
        ({"x": torch.zeros(2, 4, 4)}, r"x has shape \(2, 4, 4\) and dtype torch.float32"),
        ({"x": torch.zeros(1, 2, 4, 4, dtype=torch.int32)}, "dtype torch.int32; it must be floats"),
    ],
)
def test_an_argument_without_a_right_answer_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.zeros(1, 2, 4, 4), "size": 3, "scale": 1.0, "power": 0.75} | change
    with pytest.raises(ValueError, match=message):
        within_map_norm(**arguments)


# --- layers -------------------------------------------------------------------------------------------------------


def test_a_locally_connected_layer_has_kernels_and_biases_of_its_own_at_every_place() -> None:
    layer = LocallyConnected(channels=2, kernels=3, size=3, padding=1, side=4).double()
    with torch.no_grad():
        layer.weight.copy_(random(*layer.weight.shape))
        layer.bias.copy_(random(*layer.bias.shape))
    x = random(2, 2, 4, 4)
    padded = F.pad(x, (1, 1, 1, 1))
    y = layer(x)
    assert y.shape == (2, 3, 4, 4)
    for i in range(4):
        for j in range(4):
            kernels = layer.weight[4 * i + j].T.view(3, 2, 3, 3)
            place = F.conv2d(padded[:, :, i : i + 3, j : j + 3], kernels, layer.bias[4 * i + j])
            torch.testing.assert_close(y[:, :, i, j], place[:, :, 0, 0])


def test_with_one_kernel_everywhere_it_is_a_convolution() -> None:
    layer = LocallyConnected(channels=4, kernels=5, size=3, padding=1, side=8).double()
    kernel, bias = random(5, 4, 3, 3), random(5)
    with torch.no_grad():
        layer.weight.copy_(kernel.flatten(1).T.expand_as(layer.weight))
        layer.bias.copy_(bias.expand_as(layer.bias))
    x = random(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, bias, padding=1))


@pytest.mark.parametrize(("side", "pooled"), [(32, 16), (16, 8), (8, 4), (7, 3)])
def test_pools_reach_over_the_edge_and_count_the_places_inside(side: int, pooled: int) -> None:
    x = random(1, 2, side, side)
    windows = [
        [x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for j in range(pooled)] for i in range(pooled)
    ]  # a slice ends at the edge
    for pool, value in ((average_pool, lambda w: w.mean((2, 3))), (max_pool, lambda w: w.amax((2, 3)))):
        expected = torch.stack([torch.stack([value(window) for window in row], -1) for row in windows], -2)
        torch.testing.assert_close(pool(x), expected)


def test_a_compiled_average_has_eagers_gradient_at_the_edge_too() -> None:
    x, weights = random(1, 2, 8, 8).requires_grad_(), random(1, 2, 4, 4)
    (expected,) = torch.autograd.grad((average_pool(x) * weights).sum(), x)
    (found,) = torch.autograd.grad((torch.compile(average_pool, fullgraph=True)(x) * weights).sum(), x)
    torch.testing.assert_close(found, expected)


# --- networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "deviations"),
    [
        ("cifar-18pct", {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01}),
        ("cifar-13pct", {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}),
        ("cifar-11pct", {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}),
    ],
)
def test_weights_are_drawn_with_the_sources_deviation_and_biases_are_zero(
    name: str, deviations: dict[str, float]
) -> None:
    torch.manual_seed(3)
    network = models.create(name)
    assert [name for name, _ in network.named_children()] == list(deviations)
    for layer, std in deviations.items():
        weight = network.get_parameter(f"{layer}.weight")
        tolerance = 5 * std / weight.numel() ** 0.5  # five standard errors of a mean
        assert abs(weight.mean().item()) < tolerance, layer
        assert weight.std().item() == pytest.approx(std, abs=tolerance), layer
        assert network.get_parameter(f"{layer}.bias").count_nonzero() == 0, layer


def at_working_size(name: str) -> nn.Module:
    """The network with weights at which its activations, and so its normalisations, are far from nothing."""
    torch.manual_seed(4)
    network = models.create(name).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def conv(network: nn.Module, name: str, x: Tensor) -> Tensor:
    layer = network.get_submodule(name)
    return F.conv2d(x, layer.weight, layer.bias, padding=2)


def average(x: Tensor) -> Tensor:
    """3/2 with the edge's windows cut: sums of what is inside over counts of it."""
    x, inside = (F.pad(t, (0, 1, 0, 1)) for t in (x, torch.ones_like(x)))
    return F.avg_pool2d(x, 3, 2) / F.avg_pool2d(inside, 3, 2)


def maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)


@pytest.mark.parametrize(("activation", "suffix"), [(torch.relu, ""), (torch.tanh, "-tanh")])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_18_percent_net_is_the_sources(activation: torch.nn.Module, suffix: str, normalised: bool) -> None:
    network = at_working_size("cifar-18pct" + ("" if normalised else "-nonorm") + suffix)

    def norm(x: Tensor) -> Tensor:
        return by_the_formula(x, 3, 0.00005 / 9, 0.75) if normalised else x

    x = images(2).double()
    h = norm(activation(maximum(conv(network, "conv1", x))))
    h = norm(average(activation(conv(network, "conv2", h))))
    h = average(activation(conv(network, "conv3", h)))
    torch.testing.assert_close(network(x), network.get_submodule("fc10")(h.flatten(1)))


@pytest.mark.parametrize(("name", "lrn"), [("cifar-13pct", False), ("cifar-13pct-lrn", True), ("cifar-11pct", True)])
def test_the_13_and_11_percent_nets_are_the_sources(name: str, lrn: bool) -> None:
    network = at_working_size(name)

    def norm(x: Tensor) -> Tensor:
        # torch divides its alpha by the window's size, as the source does.
        return F.local_response_norm(x, 9, alpha=0.001, beta=0.75, k=1.0) if lrn else x

    x = images(2).double()
    h = norm(maximum(F.relu(conv(network, "conv1", x))))
    h = maximum(norm(F.relu(conv(network, "conv2", h))))
    for layer in ("local3", "local4"):
        h = F.relu(network.get_submodule(layer)(h))
    torch.testing.assert_close(network(x), network.get_submodule("fc10")(h.flatten(1)))


def test_normalisation_changes_what_the_network_says() -> None:
    x = images(2).double()
    for one, other in (("cifar-18pct", "cifar-18pct-nonorm"), ("cifar-13pct", "cifar-13pct-lrn")):
        a, b = at_working_size(one)(x), at_working_size(other)(x)
        assert ((a - b).norm() / a.norm()) > 0.01, one


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images have shape \(1, 3, 28, 28\); CifarNet takes \(N, 3, 32, 32\)"):
        models.create("cifar-13pct")(torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "paper"}, "cifar-13pct takes no argument 'init'; it takes num_classes"),
        ({"dropout": 0.5}, "cifar-13pct takes no argument 'dropout'"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"block": "fused"}, "cifar-13pct has no ReLU, LRN and 3/2 max-pool in this order"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create("cifar-13pct", **arguments)
