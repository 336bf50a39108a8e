"""AlexNet against the numbers of the paper's sections 3 and 5, written out by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import models
from models.alexnet import multiply_adds
from models.lrn import reference

LAYERS = {  # parameters, forward multiply-adds an image, bias
    "conv1": (34_944, 105_415_200, 0.0),
    "conv2": (307_456, 223_948_800, 1.0),
    "conv3": (885_120, 149_520_384, 0.0),
    "conv4": (663_936, 112_140_288, 1.0),
    "conv5": (442_624, 74_760_192, 1.0),
    "fc6": (37_752_832, 37_748_736, 1.0),
    "fc7": (16_781_312, 16_777_216, 1.0),
    "fc8": (4_097_000, 4_096_000, 0.0),
}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return models.create("alexnet").eval()


def images(n: int) -> Tensor:
    """Like raw pixels minus a mean, smooth enough that activations have a photograph's size."""
    coarse = torch.randn(n, 3, 14, 14, generator=torch.Generator().manual_seed(2)) * 65
    return F.interpolate(coarse, size=224, mode="bilinear").contiguous(memory_format=torch.channels_last)


def test_every_layer_has_the_papers_number_of_parameters(network: nn.Module) -> None:
    counted = {name: sum(p.numel() for p in layer.parameters()) for name, layer in network.named_children()}
    assert counted == {name: parameters for name, (parameters, _, _) in LAYERS.items()}
    assert sum(p.numel() for p in network.parameters()) == 60_965_224


def test_every_layer_does_the_papers_multiply_adds(network: nn.Module) -> None:
    with FlopCounterMode(display=False) as counter:
        network(images(1))
    flops = counter.get_flop_counts()
    counted = {name: sum(flops[f"AlexNet.{name}"].values()) // 2 for name in LAYERS}
    assert counted == {name: work for name, (_, work, _) in LAYERS.items()}


def test_a_training_step_is_three_forwards_less_the_images_gradient(network: nn.Module) -> None:
    assert multiply_adds(network) == (724_406_816, 2_067_805_248)


def test_the_peers_multiply_adds_are_counted_too() -> None:
    assert multiply_adds(models.create("alexnet-torchvision")).forward == 714_188_480


def test_counting_leaves_the_network_as_it_was(network: nn.Module) -> None:
    before = network.state_dict()
    multiply_adds(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_maps_are_55_27_27_13_13_13_13_6_places_wide(network: nn.Module) -> None:
    seen: dict[str, tuple[int, int]] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _layer, inputs, output, name=name: seen.update({name: (inputs[0].shape[-1], output.shape[-1])})
        )
        for name in LAYERS
    ]
    network(images(1))
    for handle in handles:
        handle.remove()
    assert seen["conv1"] == (227, 55)
    assert [seen[name] for name in ("conv2", "conv3", "conv4", "conv5")] == [(27, 27), (13, 13), (13, 13), (13, 13)]
    assert seen["fc6"][0] == 256 * 6 * 6


def test_the_padding_is_three_zero_pixels_on_the_right_and_at_the_bottom(network: nn.Module) -> None:
    picture = images(1)
    padded: list[Tensor] = []
    handle = network.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: padded.append(inputs[0]))
    network(picture)
    handle.remove()
    assert torch.equal(padded[0][:, :, :224, :224], picture)
    assert padded[0][:, :, 224:].count_nonzero() == 0
    assert padded[0][:, :, :, 224:].count_nonzero() == 0


@pytest.mark.parametrize(("init", "middle"), [("paper", 0.01), ("code2012", 0.03)])
def test_weights_are_drawn_with_the_sources_deviation_and_biases_are_its_constants(init: str, middle: float) -> None:
    torch.manual_seed(3)
    for name, layer in models.create("alexnet", init=init).named_children():
        std = middle if name in ("conv3", "conv4", "conv5") else 0.01
        tolerance = 5 * std / layer.weight.numel() ** 0.5  # five standard errors of a mean
        assert abs(layer.weight.mean().item()) < tolerance, name
        assert layer.weight.std().item() == pytest.approx(std, abs=tolerance), name
        assert layer.bias.unique().tolist() == [LAYERS[name][2]], name


def test_equal_seeds_give_equal_networks() -> None:
    torch.manual_seed(4)
    one = models.create("alexnet", num_classes=2).state_dict()
    torch.manual_seed(4)
    two = models.create("alexnet", num_classes=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def two_columns(network: nn.Module, x: Tensor) -> Tensor:
    """The network as two stacks of half the maps that meet before conv3 and fc6 only, normalised one by one."""

    def conv(name: str, x: Tensor, column: int, **geometry: int) -> Tensor:
        layer = network.get_submodule(name)
        return F.relu(F.conv2d(x, layer.weight.chunk(2)[column], layer.bias.chunk(2)[column], **geometry))

    halves = []
    for column in (0, 1):
        h = conv("conv1", F.pad(x, (0, 3, 0, 3)), column, stride=4)
        h = F.max_pool2d(reference(h), 3, 2)
        h = conv("conv2", h, column, padding=2)
        halves.append(F.max_pool2d(reference(h), 3, 2))
    met = torch.cat(halves, 1)
    halves = []
    for column in (0, 1):
        h = conv("conv3", met, column, padding=1)
        h = conv("conv4", h, column, padding=1)
        halves.append(F.max_pool2d(conv("conv5", h, column, padding=1), 3, 2))
    x = torch.cat(halves, 1).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(network.get_submodule(name)(x))
    return network.get_submodule("fc8")(x)


def test_the_network_is_two_columns_that_meet_before_conv3_and_fc6(network: nn.Module) -> None:
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), two_columns(network, x), rtol=1e-4, atol=1e-5)


def as_the_source_ran(network: nn.Module, x: Tensor) -> Tensor:
    """code2012 as one straight line, with normalisations of its own: of one column's maps, then of a map's places."""

    def conv(name: str, x: Tensor, **geometry: int) -> Tensor:
        layer = network.get_submodule(name)
        return F.conv2d(x, layer.weight, layer.bias, **geometry)

    def across_maps(x: Tensor) -> Tensor:
        columns = []
        for column in x.chunk(2, 1):
            squares = F.pad(column.square(), (0, 0, 0, 0, 2, 2))
            total = sum(squares[:, i : i + column.shape[1]] for i in range(5))
            columns.append(column / (2 + 0.00002 * total) ** 0.75)
        return torch.cat(columns, 1)

    def within_maps(x: Tensor) -> Tensor:
        squares = F.pad(x.square(), (2, 2, 2, 2))
        side = x.shape[-1]
        total = sum(squares[:, :, i : i + side, j : j + side] for i in range(5) for j in range(5))
        return x / (1 + 0.00004 * total) ** 0.75

    x = conv("conv1", F.pad(x, (0, 3, 0, 3)), stride=4)
    x = F.relu(F.max_pool2d(across_maps(x), 3, 2))
    x = F.relu(conv("conv2", x, padding=2, groups=2))
    x = F.max_pool2d(within_maps(across_maps(x)), 3, 2)
    x = F.relu(conv("conv3", x, padding=1))
    x = F.relu(conv("conv4", x, padding=1, groups=2))
    x = F.max_pool2d(F.relu(conv("conv5", x, padding=1, groups=2)), 3, 2).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(network.get_submodule(name)(x))
    return network.get_submodule("fc8")(x)


def test_code2012_is_the_released_sources_network() -> None:
    torch.manual_seed(7)
    network = models.create("alexnet-code2012", num_classes=10).eval()
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), as_the_source_ran(network, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "alexnet-half"])
def test_the_fused_block_computes_what_separate_operations_do(name: str) -> None:
    networks = []
    for block in ("plain", "fused"):
        torch.manual_seed(8)
        networks.append(models.create(name, num_classes=10, block=block).eval())
    x = images(1)
    with torch.no_grad():
        torch.testing.assert_close(networks[1](x), networks[0](x), rtol=1e-4, atol=1e-5)


def test_dropout_follows_fc6_and_fc7_in_training_only() -> None:
    torch.manual_seed(5)
    network = models.create("alexnet", num_classes=10)
    inputs: dict[str, Tensor] = {}
    for name in ("fc6", "fc7", "fc8"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _layer, args, name=name: inputs.update({name: args[0]})
        )
    network(images(1))
    assert [(inputs[name] == 0).float().mean().item() > 0.45 for name in ("fc7", "fc8")] == [True, True]
    network.eval()
    assert torch.equal(network(images(1)), network(images(1)))


def gradients(network: nn.Module, function: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    loss = F.cross_entropy(function(x), torch.arange(len(x)))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in network.named_parameters()}


def test_compiled_in_one_graph_it_learns_as_eager_does() -> None:
    torch.manual_seed(6)
    network = models.create("alexnet", num_classes=10, init="code2012").eval()
    x = images(2)
    loss, expected = gradients(network, network, x)
    compiled_loss, found = gradients(network, torch.compile(network, fullgraph=True), x)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_under_autocast_normalisation_sees_and_returns_bfloat16_in_channels_last() -> None:
    seen: list[Tensor] = []

    def norm(x: Tensor) -> Tensor:
        seen.extend((x, models.alexnet.paper_norm(x)))
        return seen[-1]

    network = models.create("alexnet", num_classes=10, norm=norm).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(images(1)).dtype == torch.bfloat16
    assert [x.dtype for x in seen] == [torch.bfloat16] * 4
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet"}, r"no model is called 'resnet'; the models are alexnet, alexnet-code2012"),
        ({"name": "alexnet", "colour": 1}, r"takes no argument 'colour'; it takes num_classes, init"),
        ({"name": "alexnet", "init": "caffe"}, r"no init is called 'caffe'; the inits are code2012, paper"),
        ({"name": "alexnet", "num_classes": 0}, r"num_classes is 0; it must be at least 1"),
        ({"name": "alexnet", "dropout": 1.0}, r"dropout is 1.0; it must be at least 0 and under 1"),
        ({"name": "alexnet", "block": "C"}, r"block is 'C'; it must be plain or fused"),
        (
            {"name": "alexnet", "block": "fused", "norm": F.relu},
            r"block is 'fused'; this network has no ReLU, LRN and 3/2",
        ),
        ({"name": "alexnet-tanh", "block": "fused"}, r"alexnet-tanh has no ReLU, LRN .*: block must be 'plain'"),
        (
            {"name": "alexnet-tanh", "variant": "paper"},
            r"alexnet-tanh takes no argument 'variant'; it takes num_classes",
        ),
        ({"name": "alexnet-code2012", "init": "paper"}, r"alexnet-code2012 takes no argument 'init'"),
        ({"name": "alexnet-nodropout", "dropout": 0.5}, r"alexnet-nodropout takes no argument 'dropout'"),
    ],
)
def test_a_wrong_argument_is_named_with_the_right_ones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create(**arguments)


def test_images_of_another_size_are_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"images have shape \(1, 3, 227, 227\)"):
        network(torch.zeros(1, 3, 227, 227))


def test_without_torchvision_the_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[peer\]'"):
        models.create("alexnet-torchvision")
