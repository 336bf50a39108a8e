"""A run may start from the weights of another, but for its last layer's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness import checkpoint
from harness.checkpoint import Checkpoint
from harness.config import AskedWrongly, RunConfig
from harness.schemes import Scheme
from harness.workload import Rank, build_network, check_layers, last_layer_name, take_over, whole_shapes

ALONE = Scheme(0, 0, None, None, 1)
CONFIG = RunConfig(model="cifar-18pct", init=None, image_size=32, cpus=1, gpus=0, compile="off", block="plain", seed=1)


def network(classes: int, **changes: object) -> torch.nn.Module:
    return build_network(CONFIG.with_(**changes), classes, Rank(0, 1, torch.device("cpu")), ALONE)


def saved(folder: Path, of: torch.nn.Module) -> Checkpoint:
    unfinished = checkpoint.begin(folder, 7)
    save_file({name: tensor.contiguous() for name, tensor in of.state_dict().items()}, unfinished / checkpoint.WEIGHTS)
    return checkpoint.seal(unfinished, {"step": 7, "asked": CONFIG.columns(), "classes": ["a", "b", "c"]})


@pytest.mark.parametrize("model", ["cifar-18pct", "cifar-13pct"])
def test_every_layer_but_the_last_is_taken_over_whatever_the_classes(model: str, tmp_path: Path) -> None:
    teacher, pupil, untaught = (network(n, seed=s, model=model) for n, s in ((3, 1), (5, 2), (5, 2)))
    take_over(pupil, saved(tmp_path, teacher), whole_shapes(CONFIG.with_(model=model), 5), ALONE)
    for name, tensor in pupil.state_dict().items():
        from_whom = untaught if name.startswith("fc10.") else teacher
        assert torch.equal(tensor, from_whom.state_dict()[name]), name


def test_the_last_layer_is_drawn_anew_for_equal_classes_too(tmp_path: Path) -> None:
    teacher, pupil = network(3, seed=1), network(3, seed=2)
    take_over(pupil, saved(tmp_path, teacher), whole_shapes(CONFIG, 3), ALONE)
    assert not torch.equal(pupil.state_dict()["fc10.weight"], teacher.state_dict()["fc10.weight"])


@pytest.mark.parametrize(("model", "last"), [("alexnet", "fc8"), ("alexnet-conv6", "fc8"), ("cifar-11pct", "fc10")])
def test_the_last_layer_is_the_one_over_the_classes(model: str, last: str) -> None:
    shapes = whole_shapes(CONFIG.with_(model=model), 7)
    assert last_layer_name(shapes) == last
    assert shapes[f"{last}.weight"].shape[0] == 7


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = str(saved(tmp_path, network(3)).folder)
    check_layers(CONFIG.with_(fine_tune_from=folder), 5)
    with pytest.raises(
        AskedWrongly, match="is a checkpoint of cifar-18pct, whose layers below the last are not those of cifar-13pct"
    ):
        check_layers(CONFIG.with_(fine_tune_from=folder, model="cifar-13pct"), 3)


def test_a_layer_that_the_network_has_not_is_refused() -> None:
    check_layers(CONFIG.with_(layer_rates="conv1@3=0"), 3)
    with pytest.raises(
        AskedWrongly, match="--layer-rates names conv7, of which cifar-18pct has no parameter: its layers are conv1"
    ):
        check_layers(CONFIG.with_(layer_rates="conv7@3=0"), 3)
