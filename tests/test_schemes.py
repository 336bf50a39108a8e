"""However ranks share a network, it is the one that a single process trains: outputs, loss, gradients, and ten steps of training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image

import models
from harness import workload
from harness.config import PARALLEL, RunConfig
from harness.forecast import counts
from harness.schemes import Scheme
from models import alexnet, shares
from models.exchange import Group, Sends, counted, silenced
from pipelines.sources.imageset import Split

ROOT = Path(__file__).parents[1]
MODES = ("float64", "float32", "compiled")
FLOAT64 = 1e-9
# Sums of up to 9,216 products, rounded in another order: 2^-24 x sqrt(9216) of their norm, and four times that for the layers above.
FLOAT32 = 4 * 2**-24 * 96
# After ten steps, all weights as one vector: one rounding that chooses another winner of a pool changes a gradient by far more.
FLOAT32_TRAINED = 1e-3


PROGRAM = str(ROOT / "tests" / "schemes_in_ranks.py")


def run(command: Sequence[str]) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(Path.home())}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Holds what one process computed, a gigabyte or two: not to be kept as pytest keeps its folders."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def one_process(folder: Path) -> None:
    """What one process computes on the images of two ranks, and of four: these in float64 alone, for the mesh and not the rounding."""
    run([PROGRAM, "one", "2", str(folder), *MODES])
    run([PROGRAM, "one", "4", str(folder), *MODES[:1]])


SCHEMES = [("data", 2), ("columns", 2), ("hybrid", 2), ("columns", 4), ("hybrid", 4)]


@pytest.fixture(scope="module", params=SCHEMES, ids=lambda param: f"{param[0]}-{param[1]}")
def found(request: pytest.FixtureRequest, folder: Path, one_process: None) -> list[dict[str, Any]]:
    """What each rank of a scheme found, by mode."""
    parallel, ranks = request.param
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    run([*torchrun, PROGRAM, parallel, str(ranks), str(folder), *(MODES if ranks == 2 else MODES[:1])])
    return [json.loads((folder / f"{parallel}-{rank}.json").read_text()) for rank in range(ranks)]


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
    assert max(rank["float64"]["trained"] for rank in found) < FLOAT64
    for mode in found[0]:
        assert max(rank[mode]["trained_together"] for rank in found) < FLOAT32_TRAINED


# --- weights between schemes --------------------------------------------------------------------------------------


def parts_of(scheme: str, ranks: int) -> list[torch.nn.Module]:
    """The networks of all ranks of a scheme, in this process; nothing is exchanged until one is called."""
    networks = []
    for rank in range(ranks):
        torch.manual_seed(1)
        networks.append(models.create_part("alexnet", scheme, Group("nobody", ranks, rank), num_classes=10))
    return networks


def whole(seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.create("alexnet", num_classes=10)


def shape_of_part(scheme: str, ranks: int, rank: int, model: str = "alexnet", classes: int = 1000) -> torch.nn.Module:
    """The network of one rank, its weights no numbers."""
    with torch.device("meta"):
        return models.create_part(model, scheme, Group("nobody", ranks, rank), num_classes=classes)


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
    assert [numbers(shape_of_part("columns", 2, rank)) for rank in range(2)] == [32_531_112, 28_434_112]


def test_hybrid_ranks_hold_all_convolutions_and_an_equal_share_of_the_rest() -> None:
    convolutions, connected, last_biases = 2_334_080, 58_631_144, 1_000
    assert convolutions + connected == 60_965_224
    parts = {numbers(shape_of_part("hybrid", 4, rank)) for rank in range(4)}
    assert parts == {convolutions + (connected - last_biases) // 4 + last_biases}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_says_by_which_schemes_it_can_be_held_in_parts(name: str) -> None:
    images = torch.empty(2, 3, 224, 224, device="meta")
    for scheme in models.SCHEMES:
        if scheme not in models.schemes(name):
            with pytest.raises(ValueError, match=f"model {name} cannot be held in parts by '{scheme}'"):
                models.create_part(name, scheme, Group("nobody", 2, 0))
            continue
        first, second = (shape_of_part(scheme, 2, rank, name, classes=7) for rank in range(2))
        assert first(images).shape == (2, 7)
        assert len(second(images)) == (0 if scheme == "columns" else 2)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_a_network_has_two_columns_and_no_other_number(ranks: int) -> None:
    with pytest.raises(ValueError, match=f"the group has {ranks} ranks; the network has 2 columns"):
        models.create_part("alexnet", "columns", Group("nobody", ranks, 0))


def test_what_parallel_offers_is_data_and_every_scheme_of_parts() -> None:
    assert ("data", *models.SCHEMES) == PARALLEL


def test_the_units_that_ranks_share_are_those_of_the_table() -> None:
    assert {alexnet.PAPER[name].outputs for name in ("fc6", "fc7")} == {models.HYBRID_UNITS}


def test_units_that_cannot_be_shared_equally_are_refused() -> None:
    with pytest.raises(ValueError, match="fc6 has 4096 units; 3 ranks cannot share them equally"):
        models.create_part("alexnet", "hybrid", Group("nobody", 3, 0))


# --- what is sent -------------------------------------------------------------------------------------------------


def sends(scheme: str, ranks: int, images: int) -> list[Sends]:
    groups = [Group("nobody", ranks, rank) for rank in range(ranks)]
    networks = [shape_of_part(scheme, ranks, rank) for rank in range(ranks)]
    return [counted(network, group, (images, 3, 224, 224)) for network, group in zip(networks, groups, strict=True)]


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
        network = shape_of_part(scheme, 2, 1)
        with silenced():
            assert counted(network, group, (2, 3, 224, 224)) == Sends(0, 0, 0)
        assert counted(network, group, (2, 3, 224, 224)).forward > 0


def test_what_averaging_sends_is_told_by_the_parameters() -> None:
    class TwoReplicas:
        def size(self) -> int:
            return 2

    scheme = Scheme(shard=0, column=0, parts=None, replicas=TwoReplicas(), loss_divisor=1)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = models.create("alexnet")
    assert scheme.sent_bytes_per_step(network, RunConfig(cpus=2)) == 60_965_224 * 4


def test_the_predictions_count_what_the_graph_exchanges() -> None:
    for scheme, ranks in (("columns", 2), ("hybrid", 2), ("hybrid", 4)):
        images_a_rank = 6 if scheme == "columns" else 3
        sent = [s.forward + s.backward + s.parameters for s in sends(scheme, ranks, images_a_rank)]
        assert sum(sent) * 4 == pytest.approx(counts.exchanged_bytes(scheme, ranks, 3, 4))


# --- the images ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Split:
    files = []
    for number in range(16):
        files.append(str(tmp_path / f"{number}.jpg"))
        Image.new("RGB", (40, 30), (number * 15, 90, 200 - number * 9)).save(files[-1])
    return Split(files=tuple(files), labels=(0, 1) * 8, num_classes=2)


@pytest.mark.parametrize(("parallel", "ranks"), [("data", 2), ("hybrid", 2), ("columns", 2), ("columns", 4)])
def test_every_image_is_seen_exactly_once_an_epoch(pictures: Split, parallel: str, ranks: int) -> None:
    """By each column of a network where it has two, and by one rank alone where it has not."""
    asked = RunConfig(cpus=ranks, parallel=parallel, images_per_gpu=2, dali_threads=1, prefetch=1, decode="cpu")
    seen: dict[int, list[int]] = {column: [] for column in range(asked.network_columns)}
    for rank in range(ranks):
        shard, column = divmod(rank, asked.network_columns)
        scheme = Scheme(shard, column, None, None, 1)
        place = workload.Rank(rank, ranks, torch.device("cpu"))
        batches = workload.create_batches(asked, pictures, rank=place, scheme=scheme, training=True)
        for _ in range(len(pictures) // asked.images_per_step):
            seen[column] += next(batches).indices.tolist()
        batches.close()
    assert [sorted(indices) for indices in seen.values()] == [list(range(16))] * asked.network_columns
    assert len({tuple(indices) for indices in seen.values()}) == 1, "columns see the same batches in the same order"
