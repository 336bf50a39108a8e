"""However ranks share a network, it is the one that a single process trains: outputs, loss, gradients, and ten steps of training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import models
from harness.config import RunConfig
from harness.schemes import Scheme
from models import shares
from models.exchange import Group, Sends, counted, silenced

ROOT = Path(__file__).parents[1]
MODES = ("float64", "float32", "compiled")
FLOAT64 = 1e-9
# Sums of up to 9,216 products, rounded in another order: 2^-24 x sqrt(9216) of their norm, and four times that for the layers above.
FLOAT32 = 4 * 2**-24 * 96


def run_ranks(folder: Path, ranks: int, parallel: str, modes: Sequence[str]) -> list[dict[str, Any]]:
    """What each rank found, by mode."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    program = [str(ROOT / "tests" / "schemes_in_ranks.py"), parallel, str(folder / "found"), *modes]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(Path.home())}
    done = subprocess.run([*torchrun, *program], capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(
    scope="module",
    params=[("data", 2), ("columns", 2), ("hybrid", 2), ("columns", 4), ("hybrid", 4)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the ranks of a scheme found; four of them in float64 alone, for the mesh and not for the arithmetic."""
    parallel, ranks = request.param
    return run_ranks(tmp_path_factory.mktemp("ranks"), ranks, parallel, MODES if ranks == 2 else MODES[:1])


def test_outputs_and_losses_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    for mode in found[0]:
        bound = FLOAT64 if mode == "float64" else FLOAT32
        outputs = [rank[mode]["outputs"] for rank in found if rank[mode]["outputs"] is not None]
        losses = [rank[mode]["loss"] for rank in found if rank[mode]["loss"] is not None]
        assert max(outputs) < bound
        assert fmean(losses) == pytest.approx(found[0][mode]["one_loss"], rel=bound)


def test_every_parameters_gradient_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    for mode in found[0]:
        bound = FLOAT64 if mode == "float64" else FLOAT32
        assert max(rank[mode]["gradients"] for rank in found) < bound


def test_ten_steps_of_training_end_at_the_weights_of_one_process(found: list[dict[str, Any]]) -> None:
    """In float32 as one vector: a rounding may choose another winner of a pool, which moves a bias near zero by much of its size."""
    assert max(rank["float64"]["trained"] for rank in found) < FLOAT64
    for mode in found[0]:
        assert max(rank[mode]["trained_together"] for rank in found) < FLOAT32


# --- weights between schemes --------------------------------------------------------------------------------------


def parts_of(scheme: str, ranks: int, model: str = "alexnet", **asked: Any) -> list[torch.nn.Module]:
    """The networks of all ranks of a scheme, in this process; nothing is exchanged until one is called."""
    networks = []
    for rank in range(ranks):
        torch.manual_seed(1)
        networks.append(models.create_part(model, scheme, Group("nobody", ranks, rank), num_classes=10, **asked))
    return networks


def whole(model: str = "alexnet", seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.create(model, num_classes=10)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("scheme", "ranks"), [("columns", 2), ("hybrid", 2), ("hybrid", 4)])
def test_every_scheme_starts_from_the_weights_of_one_process(scheme: str, ranks: int) -> None:
    states = [network.state_dict() for network in parts_of(scheme, ranks)]
    assert same(shares.whole_of(states, whole().state_dict()), whole().state_dict())


def test_weights_move_between_columns_data_and_hybrid_bit_for_bit() -> None:
    trained = whole(seed=7).state_dict()
    columns = [n.state_dict() for n in parts_of("columns", 2)]
    hybrid = [n.state_dict() for n in parts_of("hybrid", 4)]
    by_column = [shares.part_of(trained, part, rank) for rank, part in enumerate(columns)]
    for rank, (network, values) in enumerate(zip(parts_of("columns", 2), by_column, strict=True)):
        assert not same(columns[rank], values)
        network.load_state_dict(values)
    by_units = [shares.part_of(shares.whole_of(by_column, trained), part, rank) for rank, part in enumerate(hybrid)]
    assert same(shares.whole_of(by_units, trained), trained)


# --- the parts ----------------------------------------------------------------------------------------------------


def numbers(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_columns_hold_the_parameters_that_the_paper_counts() -> None:
    networks = [models.create_part("alexnet", "columns", Group("nobody", 2, rank)) for rank in range(2)]
    assert list(map(numbers, networks)) == [32_531_112, 28_434_112]


def test_hybrid_ranks_hold_all_convolutions_and_an_equal_share_of_the_rest() -> None:
    convolutions, connected, bias = 2_334_080, 58_631_144, 10 * 100
    parts = [models.create_part("alexnet", "hybrid", Group("nobody", 4, rank)) for rank in range(4)]
    assert set(map(numbers, parts)) == {convolutions + (connected - bias) // 4 + bias}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_says_by_which_schemes_it_can_be_held_in_parts(name: str) -> None:
    images = torch.empty(2, 3, 224, 224, device="meta")
    for scheme in models.SCHEMES:
        if scheme not in models.schemes(name):
            with pytest.raises(ValueError, match=f"model {name} cannot be held in parts by '{scheme}'"):
                models.create_part(name, scheme, Group("nobody", 2, 0))
            continue
        first, second = (models.create_part(name, scheme, Group("nobody", 2, rank), num_classes=7) for rank in range(2))
        assert first.to("meta")(images).shape == (2, 7)
        assert len(second.to("meta")(images)) == (0 if scheme == "columns" else 2)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_network_has_two_columns_and_no_other_number(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"the group has {ranks} ranks; the network has 2 columns"):
        models.create_part("alexnet", "columns", Group("nobody", ranks, 0))


def test_units_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="fc6 has 4096 units; 3 ranks cannot share them equally"):
        models.create_part("alexnet", "hybrid", Group("nobody", 3, 0))


# --- what is sent -------------------------------------------------------------------------------------------------


def sends(scheme: str, ranks: int, images: int) -> list[Sends]:
    groups = [Group("nobody", ranks, rank) for rank in range(ranks)]
    return [counted(models.create_part("alexnet", scheme, group), group, (images, 3, 224, 224)) for group in groups]


def test_the_columns_exchange_58624_numbers_an_image_forward_and_as_many_backward() -> None:
    first, second = sends("columns", 2, images=3)
    assert first.forward + second.forward == 3 * 58_624
    assert first.backward + second.backward == 3 * 58_624
    assert first.parameters == second.parameters == 0
    assert second.forward - first.forward == 3 * 2_048, "the second hands fc8 its units"


def test_hybrid_sends_activations_and_the_gradients_of_the_convolutions_alone() -> None:
    ranks, images = 4, 3
    others = ranks - 1
    activations = images * others * (9_216 + 4_096 // ranks * ranks) + images * others * 1_000
    for rank in sends("hybrid", ranks, images):
        assert rank.forward == rank.backward == activations
        assert rank.parameters == round(2 * others / ranks * (2_334_080 + 1_000))


def test_without_communication_the_shapes_stay_and_nothing_is_sent() -> None:
    for scheme in models.SCHEMES:
        group = Group("nobody", 2, 1)
        network = models.create_part("alexnet", scheme, group)
        with silenced():
            assert counted(network, group, (2, 3, 224, 224)) == Sends(0, 0, 0)
        assert counted(network, group, (2, 3, 224, 224)).forward > 0


def test_what_averaging_sends_is_told_by_the_parameters() -> None:
    class TwoReplicas:
        def size(self) -> int:
            return 2

    scheme = Scheme(shard=0, column=0, parts=None, replicas=TwoReplicas(), loss_divisor=1)  # type: ignore[arg-type]
    assert scheme.sent_bytes_per_step(models.create("alexnet"), RunConfig(cpus=2)) == 60_965_224 * 4
