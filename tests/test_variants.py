"""Every network that a name stands for: its order, its geometry, its work by hand, and what is known of it without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import count_layers, operations, shapes_of, sides
from torch import Tensor, nn

import models
from models import alexnet, cifar
from models.alexnet import multiply_adds

NAMES = [
    "alexnet",
    "alexnet-code2012",
    "alexnet-conv6",
    "alexnet-half",
    "alexnet-no-conv3",
    "alexnet-no-conv4",
    "alexnet-no-conv5",
    "alexnet-nodropout",
    "alexnet-nogroups",
    "alexnet-nolrn",
    "alexnet-pool2x2",
    "alexnet-tanh",
    "alexnet-torchvision",
    "cifar-11pct",
    "cifar-13pct",
    "cifar-13pct-lrn",
    "cifar-18pct",
    "cifar-18pct-nonorm",
    "cifar-18pct-nonorm-tanh",
    "cifar-18pct-tanh",
]
OURS = [name for name in NAMES if name != "alexnet-torchvision"]
# Code2012's order, tanh, no LRN, 2/2 pools and pools that reach over the edge have no fused form.
FUSIBLE = [
    "alexnet",
    "alexnet-conv6",
    "alexnet-half",
    "alexnet-no-conv3",
    "alexnet-no-conv4",
    "alexnet-no-conv5",
    "alexnet-nodropout",
    "alexnet-nogroups",
]

LAYERS_1_AND_2 = "pad conv relu lrn max conv relu lrn max "
MIDDLE = "conv relu conv relu conv relu max "
END = "linear relu dropout linear relu dropout linear"
ORDERS = {
    "alexnet": LAYERS_1_AND_2 + MIDDLE + END,
    # pad and average: the sum over a map's places.
    "alexnet-code2012": "pad conv lrn max relu conv relu lrn pad average max " + MIDDLE + END,
    "alexnet-half": LAYERS_1_AND_2 + MIDDLE + END,
    "alexnet-nogroups": LAYERS_1_AND_2 + MIDDLE + END,
    "alexnet-nolrn": "pad conv relu max conv relu max " + MIDDLE + END,
    "alexnet-pool2x2": LAYERS_1_AND_2 + MIDDLE + END,
    "alexnet-tanh": (LAYERS_1_AND_2 + MIDDLE + END).replace("relu", "tanh"),
    "alexnet-nodropout": LAYERS_1_AND_2 + MIDDLE + "linear relu linear relu linear",
    "alexnet-no-conv3": LAYERS_1_AND_2 + "conv relu conv relu max " + END,
    "alexnet-no-conv4": LAYERS_1_AND_2 + "conv relu conv relu max " + END,
    "alexnet-no-conv5": LAYERS_1_AND_2 + "conv relu conv relu max " + END,
    "alexnet-conv6": LAYERS_1_AND_2 + MIDDLE + "conv relu " + END,
    "cifar-18pct": "conv max relu pad average conv relu average pad average conv relu average linear",
    "cifar-18pct-tanh": "conv max tanh pad average conv tanh average pad average conv tanh average linear",
    "cifar-18pct-nonorm": "conv max relu conv relu average conv relu average linear",
    "cifar-18pct-nonorm-tanh": "conv max tanh conv tanh average conv tanh average linear",
    "cifar-13pct": "conv relu max conv relu max local relu local relu linear",
    "cifar-13pct-lrn": "conv relu max lrn conv relu lrn max local relu local relu linear",
    "cifar-11pct": "conv relu max lrn conv relu lrn max local relu local relu linear",
}

# (parameters, forward multiply-adds an image) of the paper's layers, and of those that are others in a variant.
PAPER = {
    "conv1": (34_944, 105_415_200),
    "conv2": (307_456, 223_948_800),
    "conv3": (885_120, 149_520_384),
    "conv4": (663_936, 112_140_288),
    "conv5": (442_624, 74_760_192),
    "fc6": (37_752_832, 37_748_736),
    "fc7": (16_781_312, 16_777_216),
    "fc8": (4_097_000, 4_096_000),
}
CHANGES = {
    "alexnet-half": {
        "conv1": (17_472, 52_707_600),
        "conv2": (153_728, 111_974_400),
        "conv3": (221_376, 37_380_096),
        "conv4": (331_968, 56_070_144),
    },
    "alexnet-nogroups": {
        "conv2": (614_656, 447_897_600),
        "conv4": (1_327_488, 224_280_576),
        "conv5": (884_992, 149_520_384),
    },
    "alexnet-pool2x2": {"conv2": (307_456, 207_667_200), "conv5": (442_624, 53_526_528)},
    "alexnet-no-conv3": {"conv3": None, "conv4": (442_752, 74_760_192)},
    "alexnet-no-conv4": {"conv4": None},
    "alexnet-no-conv5": {"conv5": None, "fc6": (56_627_200, 56_623_104)},
    "alexnet-conv6": {"conv6": (295_168, 10_616_832)},
}
CIFAR_18 = {
    "conv1": (2_432, 2_457_600),
    "conv2": (25_632, 6_553_600),
    "conv3": (51_264, 3_276_800),
    "fc10": (10_250, 10_240),
}
CIFAR_13 = {
    "conv1": (4_864, 4_915_200),
    "conv2": (102_464, 26_214_400),
    "local3": (1_181_696, 1_179_648),
    "local4": (591_872, 589_824),
    "fc10": (20_490, 20_480),
}
CIFAR_11 = CIFAR_13 | {"local3": (2_363_392, 2_359_296), "local4": (1_181_696, 1_179_648)}
TOTALS = {  # parameters, forward multiply-adds: paper.md's table, the others by hand
    "alexnet": (60_965_224, 724_406_816),
    "alexnet-half": (59_798_312, 391_514_384),
    "alexnet-nogroups": (62_378_344, 1_135_256_096),
    "alexnet-torchvision": (61_100_840, 714_188_480),
    "alexnet-pool2x2": (60_965_224, 686_891_552),
    "alexnet-conv6": (61_260_392, 735_023_648),
    "cifar-18pct": (89_578, 12_298_240),
    "cifar-13pct": (1_901_386, 32_919_552),
    "cifar-11pct": (3_672_906, 34_689_024),
}


def expected_layers(name: str) -> dict[str, tuple[int, int]]:
    if name.startswith("cifar"):
        return {"18": CIFAR_18, "13": CIFAR_13, "11": CIFAR_11}[name.split("-")[1].removesuffix("pct")]
    return {layer: count for layer, count in (PAPER | CHANGES.get(name, {})).items() if count is not None}


def test_listing_the_models_imports_no_torch() -> None:
    code = (
        "import sys, models; print(*sorted(models.MODELS));"
        "[(models.image_size(name), models.can_fuse(name)) for name in models.MODELS]; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    listed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert listed.stdout.split() == NAMES


def test_every_variant_has_a_name_a_user_can_give() -> None:
    named = [(model.build, model.arguments.get("variant")) for model in models.MODELS.values()]
    for module in (alexnet, cifar):
        function = f"{module.__name__}:{module.__name__.split('.')[1]}"
        assert {variant for build, variant in named if build == function} == set(module.VARIANTS)


@pytest.mark.parametrize("name", OURS)
def test_layers_come_in_the_sources_order(name: str) -> None:
    assert operations(shapes_of(name)) == ORDERS[name]


@pytest.mark.parametrize("name", OURS)
def test_every_layer_has_the_parameters_and_multiply_adds_counted_by_hand(name: str) -> None:
    assert count_layers(shapes_of(name)) == expected_layers(name)


@pytest.mark.parametrize("name", TOTALS)
def test_the_whole_network_has_the_published_parameters_and_multiply_adds(name: str) -> None:
    network = shapes_of(name)
    assert (sum(p.numel() for p in network.parameters()), multiply_adds(network).forward) == TOTALS[name]


@pytest.mark.parametrize("name", OURS)
def test_a_training_step_is_three_forwards_less_the_first_layers_gradient_of_the_image(name: str) -> None:
    work = [multiply_adds for _, multiply_adds in expected_layers(name).values()]
    assert multiply_adds(shapes_of(name)) == (sum(work), 3 * sum(work) - work[0])


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("alexnet", "conv1 227-55, conv2 27-27, conv3 13-13, conv4 13-13, conv5 13-13"),
        ("alexnet-pool2x2", "conv1 227-55, conv2 28-26, conv3 13-13, conv4 13-13, conv5 13-11"),
        ("alexnet-conv6", "conv1 227-55, conv2 27-27, conv3 13-13, conv4 13-13, conv5 13-13, conv6 6-6"),
        ("cifar-18pct", "conv1 32-32, conv2 16-16, conv3 8-8"),
        ("cifar-11pct", "conv1 32-32, conv2 16-16, local3 8-8, local4 8-8"),
    ],
)
def test_maps_have_the_sources_width(name: str, widths: str) -> None:
    assert sides(shapes_of(name)) == widths


@pytest.mark.parametrize("name", NAMES)
def test_a_network_takes_its_size_of_image_and_gives_a_logit_a_class(name: str) -> None:
    side = models.image_size(name)
    assert shapes_of(name, num_classes=7)(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", FUSIBLE)
def test_the_fused_block_takes_the_place_of_relu_lrn_and_max_pool_in_layers_1_and_2(name: str) -> None:
    assert models.can_fuse(name)
    fused = ORDERS[name].replace("relu lrn max", "block")
    assert fused.count("block") == 2
    assert operations(shapes_of(name, block="fused")) == fused


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FUSIBLE])
def test_a_network_without_such_layers_takes_the_plain_block_only(name: str) -> None:
    assert not models.can_fuse(name)
    assert shapes_of(name, block="plain").training
    with pytest.raises(ValueError, match=f"model {name} has no ReLU, LRN and 3/2 max-pool"):
        models.create(name, block="fused")


@pytest.mark.parametrize("name", [name for name in OURS if name not in FUSIBLE])
def test_what_is_said_not_to_fuse_has_nothing_to_fuse(name: str) -> None:
    with pytest.raises(ValueError, match="block is 'fused'; this network has no ReLU, LRN"):
        alexnet.fused(shapes_of(name).layers)


@pytest.mark.parametrize("name", OURS)
def test_forward_and_backward_are_one_graph_each(name: str) -> None:
    torch.compiler.reset()
    network = shapes_of(name, block="fused" if models.can_fuse(name) else "plain")
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    compiled(torch.empty(2, *network.image_shape, device="meta")).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# --- columns ------------------------------------------------------------------------------------------------------


def reach(network: str, layer: str) -> Tensor:
    """[i, j]: whether what follows a layer lets column j of its output tell in column i of the result."""
    table = alexnet.VARIANTS[network][layer]
    x = torch.randn(1, table.outputs, 7, 7, generator=torch.Generator().manual_seed(9)).abs().requires_grad_()
    y = x
    for step in table.then:
        y = step(y)
    gradients = [torch.autograd.grad(half.sum(), x, retain_graph=True)[0] for half in y.chunk(2, 1)]
    return torch.tensor([[bool(half.any()) for half in gradient.chunk(2, 1)] for gradient in gradients])


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("variant", ["paper", "code2012", "pool2x2", "tanh"])
def test_normalisation_never_reaches_from_one_column_into_the_other(variant: str, layer: str) -> None:
    assert reach(variant, layer).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize("variant", ["half", "nogroups"])
def test_without_groups_there_is_one_column(variant: str, layer: str) -> None:
    assert reach(variant, layer).all()


# --- what the optimiser is told -----------------------------------------------------------------------------------


def groups_of(name: str) -> dict[tuple[float, float], list[str]]:
    """(learning rate, weight decay) -> parameters, for a run's 0.5 and 0.25."""
    network = shapes_of(name)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = models.parameter_groups(network, learning_rate=0.5, weight_decay=0.25)
    return {(group["lr"], group["weight_decay"]): [names[p] for p in group["params"]] for group in groups}


@pytest.mark.parametrize("name", ["alexnet", "alexnet-tanh", "alexnet-torchvision"])
def test_the_print_has_one_rate_and_one_decay(name: str) -> None:
    assert groups_of(name) == {(0.5, 0.25): [name for name, _ in shapes_of(name).named_parameters()]}


def test_biases_of_the_released_sources_learn_twice_as_fast_and_do_not_decay() -> None:
    layers = list(PAPER)
    assert groups_of("alexnet-code2012") == {
        (0.5, 0.25): [f"{name}.weight" for name in layers],
        (1.0, 0.0): [f"{name}.bias" for name in layers],
    }
    assert groups_of("cifar-18pct") == {
        (0.5, 0.25): ["conv1.weight", "conv2.weight", "conv3.weight"],
        (1.0, 0.0): ["conv1.bias", "conv2.bias", "conv3.bias", "fc10.bias"],
        (0.5, 62.5): ["fc10.weight"],
    }
    for name in ("cifar-13pct", "cifar-11pct"):
        assert groups_of(name) == {
            (0.5, 0.0): ["conv1.weight", "conv2.weight"],
            (1.0, 0.0): ["conv1.bias", "conv2.bias", "local3.bias", "local4.bias", "fc10.bias"],
            (0.5, 0.25): ["local3.weight", "local4.weight", "fc10.weight"],
        }


def test_groups_are_those_of_the_network_inside_a_wrapper() -> None:
    network = shapes_of("cifar-18pct")
    for wrapper in (nn.Sequential(network), torch.compile(network)):
        groups = models.parameter_groups(wrapper, learning_rate=0.5, weight_decay=0.25)
        assert [len(group["params"]) for group in groups] == [3, 4, 1]
