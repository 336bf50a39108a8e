"""Figures 3 and 4: what is drawn and told of a checkpoint's kernels, its answers, and the images that lie nearest."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import draw_pictures
from safetensors.torch import save_file

import models
from harness.checkpoint import WEIGHTS, begin, seal
from harness.cli import main
from harness.config import RunConfig
from harness.images import open_images
from harness.paper.hidden import activations, last_layer, nearest
from harness.paper.kernels import colour_selectivity, columns_of, quartiles, scaled, sheet
from harness.paper.neighbours import likeliest_of, spread
from harness.workload import as_shown
from pipelines import Batch

GREY = np.ones((3, 11, 11), np.float32)
OPPONENT = GREY * np.array([1, -1, 0], np.float32)[:, None, None]


def saved(
    run: Path, weights: dict[str, torch.Tensor], config: RunConfig, dataset: dict[str, Any], classes: Iterable[str]
) -> Path:
    """A checkpoint of a run in this folder."""
    folder = begin(run, 12)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    about = {
        "run_id": run.name, "step": 12, "images_seen": 24, "epochs_done": 1.0, "asked": config.columns(), "classes": list(classes),
        "dataset": dataset, "val_images": None, "val_top1_error_pct": None, "val_top5_error_pct": None,
    }  # fmt: skip
    return seal(folder, about).folder


def checkpoint_of(pictures: Path, run: Path, **changes: Any) -> Path:
    """A checkpoint of cifar-18pct that knows the classes of these pictures; each keyword changes its config."""
    asked = {"model": "cifar-18pct", "init": None, "image_size": 32, "augment": "rrc", "data": str(pictures), **changes}
    images = open_images(RunConfig(data=str(pictures)))
    torch.manual_seed(1)
    weights = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in network(len(images.classes)).items()}
    return saved(
        run, weights, RunConfig(**asked), {"dataset_id": images.dataset_id, "statistics_id": None}, images.classes
    )


def network(classes: int) -> dict[str, torch.Tensor]:
    return dict(models.create("cifar-18pct", num_classes=classes).state_dict())


def with_kernels(run: Path, kernels: torch.Tensor, model: str = "alexnet") -> Path:
    """A checkpoint that holds nothing but conv1's kernels."""
    return saved(run, {"conv1.weight": kernels}, RunConfig(model=model), {"dataset_id": "a-set"}, ("a", "b"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; the second validation image of red is one of its training images."""
    root = draw_pictures(tmp_path_factory.mktemp("pictures"))
    shutil.copy(root / "train" / "red" / "3.jpg", root / "val" / "red" / "1.jpg")
    return root


@pytest.fixture(scope="module")
def checkpoint(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(pictures, tmp_path_factory.mktemp("run"))


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which these words are refused."""
    assert main(["paper", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    (sentence,) = [line for line in error.splitlines() if line.startswith("error: ")]
    return sentence


# --- figure 3, on literals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "share"),
    [
        (GREY, 0),
        (-3 * GREY, 0),
        (OPPONENT, 1),
        (GREY * np.array([1, 0, 0])[:, None, None], 2 / 3),
        (GREY + OPPONENT, 2 / 5),
    ],
)
def test_colour_selectivity_is_the_share_of_a_kernels_energy_that_is_not_grey(kernel: Any, share: float) -> None:
    assert colour_selectivity(kernel) == pytest.approx(share, abs=1e-12)


def test_a_kernel_that_is_grey_in_every_place_has_no_colour_whatever_its_pattern() -> None:
    pattern = np.random.default_rng(1).normal(size=(11, 11))
    assert colour_selectivity(np.stack([pattern] * 3)) == pytest.approx(0, abs=1e-12)


def test_kernels_that_were_never_trained_have_two_thirds() -> None:
    kernels = np.random.default_rng(1).normal(size=(500, 3, 11, 11))
    assert np.mean([colour_selectivity(kernel) for kernel in kernels]) == pytest.approx(2 / 3, abs=0.01)


def test_of_a_kernel_of_zeros_no_share_is_known() -> None:
    assert colour_selectivity(np.zeros((3, 5, 5))) is None
    assert quartiles([None, None]) == (None, None, None)
    assert quartiles([None, 0.5]) == (0.5, 0.5, 0.5)
    assert quartiles([0.0, None, 0.2, 0.4, 0.6, 1.0]) == (0.2, 0.4, 0.6)


def test_each_kernel_is_scaled_on_its_own() -> None:
    kernel = np.array([[[-1.0]], [[0.0]], [[3.0]]])
    assert scaled(kernel).tolist() == scaled(kernel / 1000).tolist() == [[[0, 64, 255]]]
    assert scaled(np.full((3, 1, 1), 0.7)).tolist() == [[[128, 128, 128]]]


def test_96_kernels_are_six_lines_of_sixteen_in_their_order() -> None:
    kernels = np.zeros((96, 3, 11, 11), np.float32)
    kernels[17, 0] = 1  # the second kernel of the second line is red
    page = sheet(kernels, 16)
    assert page.shape == (6 * 12 - 1, 16 * 12 - 1, 3)
    assert (page[12:23, 12:23] == [255, 0, 0]).all()
    assert (page[11] == 255).all()
    assert (page[:, 11] == 255).all()


def test_the_first_half_of_the_kernels_is_gpu_1s() -> None:
    kernels = np.concatenate([np.stack([GREY] * 48), np.stack([OPPONENT] * 48)])
    first, second = columns_of(kernels, in_columns=True)
    assert (first.name, second.name) == ("GPU 1", "GPU 2")
    assert first.colour == [pytest.approx(0)] * 48
    assert second.colour == [pytest.approx(1)] * 48
    (both,) = columns_of(kernels, in_columns=False)
    assert len(both.kernels) == 96


# --- figure 3, from a checkpoint ----------------------------------------------------------------------------------


def test_figure3_tells_the_median_colour_of_each_column_and_draws_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels = torch.from_numpy(np.concatenate([np.stack([GREY] * 48), np.stack([OPPONENT] * 48)]))
    place = with_kernels(tmp_path / "run", kernels + 0.0)
    assert main(["paper", "figure3", str(place), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "| GPU 1  |      48 |" in told
    assert "in every run" in told
    found = {line["column"]: line for line in lines(tmp_path / "out" / "figure3.csv")}
    assert [float(found[name]["colour_selectivity_median"]) for name in ("GPU 1", "GPU 2")] == [0, 1]
    each = lines(tmp_path / "out" / "figure3-kernels.csv")
    assert [line["column"] for line in each] == ["GPU 1"] * 48 + ["GPU 2"] * 48
    with Image.open(tmp_path / "out" / "figure3.png") as picture:
        assert picture.width > picture.height
    assert (tmp_path / "out" / "figure3.svg").read_text().count("<image") == 2


@pytest.mark.parametrize(("model", "count"), [("cifar-18pct", 32), ("alexnet-nogroups", 96)])
def test_a_network_without_columns_has_one_sheet(model: str, count: int, tmp_path: Path) -> None:
    place = with_kernels(tmp_path / "run", torch.randn(count, 3, 5, 5), model)
    assert main(["paper", "figure3", str(place), "--out", str(tmp_path)]) == 0
    ((column, kernels),) = [(line["column"], line["kernels"]) for line in lines(tmp_path / "figure3.csv")]
    assert (column, kernels) == ("all", str(count))


def test_figure3_refuses_what_is_no_checkpoint_or_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no checkpoint" in refused(capsys, "figure3", str(tmp_path))
    place = with_kernels(tmp_path / "run", torch.randn(96, 3, 11, 11))
    contents = bytearray((place / WEIGHTS).read_bytes())
    contents[-1] ^= 1
    (place / WEIGHTS).write_bytes(contents)
    assert "is damaged (weights.safetensors" in refused(capsys, "figure3", str(place), "--out", str(tmp_path))


def test_figure3_refuses_kernels_of_a_run_that_diverged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = with_kernels(tmp_path / "run", torch.full((96, 3, 11, 11), float("nan")))
    assert "not finite" in refused(capsys, "figure3", str(place), "--out", str(tmp_path / "out"))


def test_a_network_without_kernels_over_colours_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = with_kernels(tmp_path / "run", torch.randn(8, 1, 5, 5))
    assert "no conv1" in refused(capsys, "figure3", str(place), "--out", str(tmp_path))


# --- figure 4, on literals ----------------------------------------------------------------------------------------


def test_the_nearest_are_those_of_all_distances_however_the_stream_is_cut() -> None:
    draws = np.random.default_rng(1)
    queries, vectors = draws.normal(size=(4, 9)).astype(np.float32), draws.normal(size=(50, 9)).astype(np.float32)
    all_of_them = np.linalg.norm(queries[:, None].astype(float) - vectors, axis=2)
    expected = all_of_them.argsort(axis=1)[:, :6]
    for part in (1, 7, 50):
        stream = (
            (np.arange(start, min(start + part, 50)), vectors[start : start + part]) for start in range(0, 50, part)
        )
        found = nearest(queries, stream, 6)
        assert found.places.tolist() == expected.tolist()
        assert found.distances == pytest.approx(np.take_along_axis(all_of_them, expected, axis=1))


def test_of_equally_near_images_the_first_comes_first() -> None:
    stream = [
        (np.array([5, 3]), np.array([[1.0, 0.0], [0.0, 1.0]])),
        (np.array([2, 9]), np.array([[0.0, -1.0], [0.0, 0.0]])),
    ]
    found = nearest(np.zeros((1, 2)), stream, 3)
    assert found.places.tolist() == [[9, 2, 3]]
    assert found.distances.tolist() == [[0, 1, 1]]


def test_of_a_short_stream_all_are_given() -> None:
    found = nearest(np.zeros((2, 1)), [(np.array([0, 1]), np.array([[3.0], [-2.0]]))], 6)
    assert found.places.tolist() == [[1, 0], [1, 0]]
    assert found.distances.tolist() == [[2, 3], [2, 3]]


def test_the_images_shown_lie_evenly_over_the_set() -> None:
    assert spread(8, 5000) == [312, 937, 1562, 2187, 2812, 3437, 4062, 4687]
    assert spread(3, 3) == spread(8, 3) == [0, 1, 2]
    assert spread(1, 7) == [3]


def test_the_likeliest_classes_are_five_and_of_equals_the_first() -> None:
    assert [place for place, _ in likeliest_of(np.array([0.1, 0.2, 0.1, 0.2, 0.1, 0.1, 0.2]))] == [1, 3, 6, 0, 2]
    assert likeliest_of(np.array([0.25, 0.75])) == [(1, 0.75), (0, 0.25)]


def test_alexnets_distances_are_of_fc7s_activations_after_relu() -> None:
    alexnet = models.create("alexnet", num_classes=10, init="code2012").eval()
    batch = Batch(60 * torch.randn(2, 3, 224, 224), torch.zeros(2).long(), torch.tensor([4, -1]))
    ((places, hidden, logits),) = activations(alexnet, [batch])
    assert last_layer(alexnet)[0] == "fc8"
    assert places.tolist() == [4]
    assert hidden.shape == (1, 4096)
    assert hidden.min() == 0 < hidden.max()
    fc8 = alexnet.get_submodule("fc8")
    with torch.no_grad():
        torch.testing.assert_close(fc8(torch.from_numpy(hidden)), logits)


# --- figure 4, from a checkpoint ----------------------------------------------------------------------------------


def test_a_test_image_that_was_trained_on_is_its_own_nearest(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", "figure4", str(checkpoint), "--data", str(pictures), "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "nearest among all 24 training images" in told
    assert "nearest training images are of their test image's class" in told
    of_image = [line for line in lines(tmp_path / "figure4.csv") if line["test_image"] == "val/red/1.jpg"]
    assert [line["rank"] for line in of_image] == ["1", "2", "3", "4", "5", "6"]
    assert (of_image[0]["training_image"], of_image[0]["distance"]) == ("train/red/3.jpg", "0")
    distances = [float(line["distance"]) for line in of_image]
    assert distances == sorted(distances)
    assert distances[1] > 0


def test_every_test_image_has_its_classes_and_a_line_of_the_picture(
    pictures: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ["paper", "figure4", str(checkpoint), "--data", str(pictures)]
    assert main([*words, "--images", "3", "--out", str(tmp_path / "three")]) == 0
    assert main([*words, "--images", "6", "--out", str(tmp_path / "six")]) == 0
    likeliest = lines(tmp_path / "three" / "figure4-classes.csv")
    assert [line["test_image"] for line in likeliest[::3]] == ["val/blue/1.jpg", "val/green/1.jpg", "val/red/1.jpg"]
    for at in (0, 3, 6):
        shares = [float(line["probability"]) for line in likeliest[at : at + 3]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-4)
    heights = []
    for name in ("three", "six"):
        with Image.open(tmp_path / name / "figure4.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 1.5 * heights[0]
    assert (tmp_path / "three" / "figure4.svg").read_text().count("<image") == 3 * 7


def test_the_same_checkpoint_gives_the_same_files(pictures: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        words = ["--images", "2", "--train-images", "6", "--out", str(tmp_path / name)]
        assert main(["paper", "figure4", str(checkpoint), "--data", str(pictures), *words]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["figure4-classes.csv", "figure4.csv", "figure4.png", "figure4.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_limited_search_says_so_and_meets_every_class(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(pictures), "--train-images", "3", "--out", str(tmp_path)]
    assert main(["paper", "figure4", str(checkpoint), *words]) == 0
    assert "nearest among 3, evenly spread, of 24 training images" in capsys.readouterr().out
    near = {line["training_image"] for line in lines(tmp_path / "figure4.csv")}
    assert near == {"train/blue/4.jpg", "train/green/4.jpg", "train/red/4.jpg"}


def test_pictures_are_drawn_as_the_network_sees_them(tmp_path: Path) -> None:
    """Without augmentation a square picture of the network's own size is shown pixel by pixel."""
    drawn = []
    for split, number in (("train", 0), ("train", 1), ("val", 0)):
        for name in ("a", "b"):
            picture = Image.effect_noise((32, 32), 90 + number).convert("RGB")
            path = tmp_path / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            drawn.append((path, np.asarray(picture)))
    config = RunConfig(
        model="cifar-18pct", image_size=32, augment="none", dali_threads=1, prefetch=1, data=str(tmp_path)
    )
    train = open_images(config).train
    shown = as_shown(config, train).numpy()
    by_path = {str(path): pixels for path, pixels in drawn}
    assert shown.shape == (4, 32, 32, 3)
    for place, file in enumerate(train.files):
        assert (shown[place] == by_path[file]).all()


def test_figure4_refuses_images_of_other_classes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = draw_pictures(tmp_path)
    for split in ("train", "val"):
        (others / split / "blue").rename(others / split / "black")
    sentence = refused(capsys, "figure4", str(checkpoint), "--data", str(others), "--out", str(tmp_path / "out"))
    assert "blue" in sentence
    assert "black" in sentence


def test_figure4_refuses_a_set_without_validation_images(
    pictures: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("blue", "green", "red"):
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(pictures / "train" / name / "0.jpg", tmp_path / "set" / name)
    sentence = refused(
        capsys, "figure4", str(checkpoint), "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")
    )
    assert "no validation images" in sentence


def test_figure4_refuses_a_network_that_diverged(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = open_images(RunConfig(data=str(pictures))).classes
    weights = {name: torch.full_like(tensor, float("nan")) for name, tensor in network(3).items()}
    config = RunConfig(model="cifar-18pct", init=None, image_size=32)
    place = saved(tmp_path / "run", weights, config, {"dataset_id": "", "statistics_id": None}, classes)
    sentence = refused(capsys, "figure4", str(place), "--data", str(pictures), "--out", str(tmp_path / "out"))
    assert "not finite" in sentence
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("figure", ["figure3", "figure4"])
def test_a_place_that_takes_no_files_is_refused_before_anything_is_read(
    figure: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert f"--out {taken} cannot be written to" in refused(capsys, figure, str(checkpoint), "--out", str(taken))


@pytest.mark.parametrize("figure", ["figure3", "figure4"])
def test_without_a_checkpoint_the_papers_claim_and_the_commands_are_told(
    figure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", figure]) == 0
    told = capsys.readouterr().out
    assert "the paper (6.1, Figure" in told
    assert f"python -m harness paper {figure} RUN" in told
