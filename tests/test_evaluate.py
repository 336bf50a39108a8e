"""`evaluate`: saved networks shown ten views of real files, averaged, compared, and refused where they do not belong."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import harness, rows
from safetensors.torch import save_file
from torch import Tensor, nn

import models
from harness import checkpoint
from harness.answers import answered, wrong
from harness.checkpoint import Checkpoint
from harness.cli import main
from harness.config import AskedWrongly, RunConfig
from harness.predictions import Evaluation, mcnemar_p, paired, read_evaluation
from pipelines import Batch
from pipelines.augment import CHANNEL_MEANS, centre_square
from pipelines.dataset.statistics import Sums, save
from pipelines.sources import open_source

MODEL = "cifar-18pct-nonorm"
CLASSES = tuple("abcdefg")
# The paper's proportion for images of 32 pixels: 256 / 224 of that, to whole pixels.
CUT, SIDE = 32, 37
VIEWS = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]


def draw(root: Path, sizes: Sequence[tuple[int, int]] = ((SIDE, SIDE),), classes: Sequence[str] = CLASSES) -> Path:
    """A picture of each class for training and four for validation, each of its own colours that change slowly."""
    draws = np.random.default_rng(3)
    for number, name in enumerate(classes):
        for split, count in (("train", 1), ("val", 4)):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                coarse = Image.fromarray(draws.integers(0, 256, (5, 5, 3), dtype=np.uint8))
                size = sizes[(number + image) % len(sizes)]
                coarse.resize(size, Image.Resampling.BICUBIC).save(root / split / name / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that need no resizing."""
    return draw(tmp_path_factory.mktemp("drawn"))


def network_of(seed: int, model: str = MODEL, classes: int = len(CLASSES)) -> nn.Module:
    """A network that was never trained, whose answers differ from picture to picture all the same."""
    torch.manual_seed(seed)
    network = models.create(model, num_classes=classes).eval()
    *_, weight, bias = network.parameters()
    pictures = nn.functional.interpolate(torch.rand(32, 3, 5, 5) * 255 - 128, models.image_size(model), mode="bicubic")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
        next(network.parameters()).div_(100)
        logits = network(pictures)
        bias.sub_(logits.mean(dim=0))
        for parameter in (weight, bias):
            parameter.div_(logits.std(dim=0).mean())
    return network


def saved(run: Path, seed: int = 1, *, classes: Sequence[str] = CLASSES, spoil: bool = False, **changes: Any) -> Path:
    """A run's folder with one checkpoint, of `network_of(seed)`; `changes` are of its RunConfig or its statistics."""
    statistics_id = changes.pop("statistics_id", None)
    config = RunConfig(**{"model": MODEL, "image_size": CUT, "init": None, "augment": "paper", "seed": seed, **changes})
    weights = {
        name: value.contiguous() for name, value in network_of(seed, config.model, len(classes)).state_dict().items()
    }
    if spoil:
        next(iter(weights.values())).fill_(math.nan)
    folder = checkpoint.begin(run, 1200)
    save_file(weights, folder / checkpoint.WEIGHTS)
    about = {
        "run_id": run.name, "step": 1200, "images_seen": 2400, "epochs_done": 2.5, "asked": config.columns(),
        "classes": list(classes), "dataset": {"dataset_id": "0123", "statistics_id": statistics_id},
        "val_images": None, "val_top1_error_pct": None, "val_top5_error_pct": None,
    }  # fmt: skip
    checkpoint.seal(folder, about)
    return run


def newest(run: Path) -> Checkpoint:
    return checkpoint.open_checkpoint(run)


def evaluated(out: Path, *words: str | Path) -> Evaluation:
    """The evaluation that the command leaves alone in a folder."""
    assert main(["evaluate", *map(str, words), "--out", str(out), "--quiet"]) == 0
    (folder,) = out.iterdir()
    return read_evaluation(folder)


# --- ten views of pictures, beside Pillow -------------------------------------------------------------------------


def crops(path: Path, tops_and_lefts: Sequence[tuple[int, int]], *, mirrored: bool) -> Tensor:
    """(V, 3, 32, 32) of a picture minus ImageNet's means, cut by Pillow from its centre square of 37 pixels."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    square = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=centre_square(*picture.size, SIDE))
    shown = [square.crop((left, top, left + CUT, top + CUT)) for top, left in tops_and_lefts]
    if mirrored:
        shown += [crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for crop in shown]
    return torch.from_numpy(
        np.stack([np.asarray(crop, np.float32) - np.float32(CHANNEL_MEANS) for crop in shown])
    ).permute(0, 3, 1, 2)


def by_pillow(network: nn.Module, root: Path, views: int) -> Tensor:
    """(N, classes): the softmax outputs over each validation picture's views, averaged."""
    places = VIEWS if views == 10 else VIEWS[-1:]
    files = sorted((root / "val").rglob("*.png"))
    with torch.inference_mode():
        each = [
            network(crops(file, places, mirrored=views == 10)).double().softmax(dim=1).mean(dim=0) for file in files
        ]
    return torch.stack(each)


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_those_of_views_cut_by_pillow(drawn: Path, tmp_path: Path, views: int) -> None:
    done = evaluated(
        tmp_path / "out", saved(tmp_path / "run"), "--data", drawn, "--views", str(views), "--precision", "fp32"
    )
    wanted = by_pillow(network_of(1), drawn, views)
    found = done.predictions()
    assert [each.label for each in found] == [label for label in range(7) for _ in range(4)]
    assert [each.image for each in found] == [f"val/{name}/{image}.png" for name in CLASSES for image in range(4)]
    assert [each.best for each in found] == [tuple(row.argsort(descending=True)[:5].tolist()) for row in wanted]
    np.testing.assert_allclose(
        [each.p_label for each in found],
        [float(row[each.label]) for each, row in zip(found, wanted, strict=True)],
        rtol=1e-3,
    )
    assert len({each.best[0] for each in found}) > 2, "this network knows more answers than two"


def test_ten_views_of_pictures_of_any_size_are_those_of_pillow_s_resized_square(tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", sizes=[(90, 61), (50, 120), (37, 200), (300, 222)])
    done = evaluated(tmp_path / "out", saved(tmp_path / "run"), "--data", pictures)
    wanted = by_pillow(network_of(1), pictures, 10)
    found = np.array([each.p_label for each in done.predictions()])
    expected = [float(row[number // 4]) for number, row in enumerate(wanted)]
    # Two libraries round a resized pixel to whole steps of 0 to 255 each in its own way.
    np.testing.assert_allclose(found, expected, atol=0.005)


def test_ten_views_are_shown_unless_asked_otherwise_and_one_of_the_whole_square(drawn: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    assert evaluated(tmp_path / "ten", run, "--data", drawn).about["views"] == 10
    assert evaluated(tmp_path / "one", run, "--data", drawn, "--views", "1").about["views"] == 1
    whole = saved(tmp_path / "whole", augment="none")
    done = evaluated(tmp_path / "none", whole, "--data", drawn)
    assert done.about["views"] == 1
    with torch.inference_mode():
        for each in done.predictions():
            with Image.open(drawn / each.image) as file:
                square = file.convert("RGB").resize((CUT, CUT), Image.Resampling.BILINEAR)
            shown = torch.from_numpy(np.asarray(square, np.float32) - np.float32(CHANNEL_MEANS)).permute(2, 0, 1)
            probability = network_of(1)(shown[None]).double().softmax(dim=1)[0, each.label]
            assert each.p_label == pytest.approx(float(probability), abs=0.005)


def test_batches_of_any_size_give_the_same_answers(drawn: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "run")
    whole, parts = (
        evaluated(tmp_path / size, run, "--data", drawn, "--images-per-batch", size) for size in ("28", "5")
    )
    assert [each.best for each in whole.predictions()] == [each.best for each in parts.predictions()]


# --- averaging, on literals ---------------------------------------------------------------------------------------


class Says(nn.Module):
    """A network whose logits are written in its images: the first pixels of the channels, in this order of classes."""

    def __init__(self, *order: int):
        super().__init__()
        self.order = order or slice(None)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0][:, self.order]


def batch(logits: list[list[float]], labels: list[int], indices: list[int]) -> Batch:
    return Batch(torch.tensor(logits)[:, :, None, None], torch.tensor(labels), torch.tensor(indices))


def logs(*probabilities: float) -> list[float]:
    return [math.log(each) for each in probabilities]


def config(views: int = 1) -> RunConfig:
    return RunConfig(precision="fp32", views=views)


def test_views_and_networks_average_probabilities_and_not_logits() -> None:
    # Of two views 0.9 and 0.2 the mean is 0.55; of their logits it would be sqrt(.9 x .2) / (that + sqrt(.1 x .8)) = 0.6.
    one = batch([logs(0.9, 0.1), logs(0.2, 0.8)], [0], [0])
    assert answered([Says()], config(views=2), [one], 1).p_label == pytest.approx(0.55)
    # Of three networks 0.9, 0.9 and 0.1 the mean is 1.9 / 3; of their logits, log 9 / 3, it would be 0.675.
    two = batch([logs(0.9, 0.1)], [0], [0])
    found = answered([Says(), Says(), Says(1, 0)], config(), [two], 1)
    assert found.p_label[:, 0] == pytest.approx([0.9, 0.9, 0.1, 1.9 / 3])


def test_an_average_may_be_right_where_each_network_is_wrong() -> None:
    # 0.5, 0.4, 0.1 and 0.1, 0.4, 0.5 are 0.3, 0.4, 0.3 on average.
    found = answered([Says(), Says(2, 1, 0)], config(), [batch([logs(0.5, 0.4, 0.1)], [1], [0])], 1)
    assert found.best[:2, 0].tolist() == [[0, 1, 2], [2, 1, 0]]
    assert found.best[2, 0, 0] == 1
    assert wrong(found, [1], 1)[:, 0].tolist() == [True, True, False]
    assert wrong(found, [1], 2)[:, 0].tolist() == [False, False, False]


def test_of_equal_classes_the_lower_number_comes_first_and_five_are_kept() -> None:
    found = answered([Says()], config(), [batch([[0, 0, 1, 0, 0, 0, 0]], [6], [0])], 1)
    assert found.best[0, 0].tolist() == [2, 0, 1, 3, 4]


def test_answers_come_in_the_split_s_order_and_padding_is_no_image() -> None:
    shown = [
        batch([logs(0.3, 0.7), logs(0.6, 0.4)], [1, 0], [2, 0]),
        batch([logs(0.2, 0.8), logs(0.5, 0.5)], [0, 0], [1, -1]),
    ]
    done: list[int] = []
    found = answered([Says()], config(), shown, 3, done.append)
    assert found.p_label[0] == pytest.approx([0.6, 0.2, 0.7])
    assert wrong(found, [0, 0, 1], 1)[0].tolist() == [False, True, False]
    assert done == [2, 3]


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        ([0, -1], "of 2 images 1 were not evaluated and 0 were more than once"),
        ([0, 0], "of 2 images 1 were not evaluated and 1 were more than once"),
    ],
)
def test_an_image_missed_or_counted_twice_ends_the_evaluation(indices: list[int], sentence: str) -> None:
    with pytest.raises(AskedWrongly, match=sentence):
        answered([Says()], config(), [batch([logs(0.3, 0.7)] * 2, [0, 0], indices)], 2)


# --- several checkpoints, and an earlier evaluation ---------------------------------------------------------------


def test_several_checkpoints_are_averaged_and_each_s_own_error_stays_what_it_is_alone(
    drawn: Path, tmp_path: Path
) -> None:
    runs = [saved(tmp_path / "one", 1), saved(tmp_path / "two", 2), saved(tmp_path / "three", 3)]
    data = ("--data", drawn)
    together = evaluated(tmp_path / "together", *runs, *data)
    alone = [evaluated(tmp_path / f"alone-{run.name}", run, *data) for run in runs]
    for name in ("top1_wrong", "top5_wrong"):
        assert [each[name] for each in together.about["checkpoints"]] == [each.about[name] for each in alone]
    assert [each["run_id"] for each in together.about["checkpoints"]] == ["one", "two", "three"]
    assert [each["seed"] for each in together.about["checkpoints"]] == [1, 2, 3]
    tables = [each.predictions() for each in alone]
    for averaged, *each in zip(together.predictions(), *tables, strict=True):
        assert averaged.p_label == pytest.approx(sum(one.p_label for one in each) / 3, rel=1e-4)
    assert len({one.about["top1_wrong"] for one in alone}) > 1, "these networks differ"


def test_the_report_counts_what_the_predictions_hold(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [saved(tmp_path / "one", 1), saved(tmp_path / "two", 2)]
    first, second = (evaluated(tmp_path / f"alone-{run.name}", run, "--data", drawn) for run in runs)
    assert main(["evaluate", *map(str, runs), "--data", str(drawn), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "28 images, each counted once, 10 views, fp32" in said
    wrong_of_first = first.about["top1_wrong"]
    assert re.search(rf"net 1: top-1 error {100 * wrong_of_first / 28:.2f} % \(95 %: ", said)
    assert "average of 2: top-1 error" in said
    pairs = paired(*([each.wrong(1) for each in done.predictions()] for done in (first, second)))
    line = next(line for line in said.splitlines() if line.startswith("top-1: net 1 wrong and net 2 right"))
    assert f"on {pairs.a_wrong_b_right}, net 2 wrong and net 1 right on {pairs.b_wrong_a_right} of 28: " in line
    assert line.endswith(f"p = {mcnemar_p(pairs):.3g}")


def test_how_far_it_is_is_shown_unless_it_is_to_be_quiet(
    drawn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(saved(tmp_path / "run")), "--data", str(drawn), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "evaluating" in capfd.readouterr().err
    assert main([*words, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_an_earlier_evaluation_is_compared_on_the_same_images(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", str(drawn))
    earlier = evaluated(tmp_path / "earlier", saved(tmp_path / "one", 1), *data)
    words = ["evaluate", str(saved(tmp_path / "two", 2)), *data, "--out", str(tmp_path / "out")]
    assert main([*words, "--against", str(earlier.folder)]) == 0
    said = capsys.readouterr().out
    (now,) = (tmp_path / "out").iterdir()
    found = read_evaluation(now)
    both = ([each.wrong(1) for each in done.predictions()] for done in (earlier, found))
    pairs = paired(*both)
    assert f"against {earlier.evaluation_id} (10 views, fp32)" in said
    assert f"top-1: that wrong and this right on {pairs.a_wrong_b_right}, " in said
    assert said.splitlines()[-1] == str(now)


def test_a_run_s_checkpoint_has_the_errors_that_the_run_measured(drawn: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    asked = (
        "--cpus", "1", "--model", MODEL, "--augment", "paper", "--precision", "fp32", "--compile", "off", "--data", str(drawn),
        "--images-per-gpu", "7", "--steps", "10", "--views", "10", "--evaluate-every", "70", "--checkpoint-every", "70",
    )  # fmt: skip
    done = harness("run", *asked, "--table", str(table), "--quiet")
    assert done.returncode == 0, done.stderr
    (row,) = rows(table)
    about = evaluated(tmp_path / "out", tmp_path / "runs" / row["run_id"], "--data", drawn).about
    for among in (1, 5):
        assert f"{100 * about[f'top{among}_wrong'] / 28:.6g}" == row[f"val_top{among}_error_pct"]


def test_evaluation_json_says_what_was_evaluated_on_what_and_where(drawn: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", 5)
    done = evaluated(tmp_path / "out", run, "--data", drawn)
    about = json.loads((done.folder / "evaluation.json").read_text())
    assert about["schema_version"] == 1
    assert about["evaluation_id"] == done.folder.name
    assert about["images"] == about["dataset"]["val_images"] == 28
    assert about["dataset"]["dataset_id"] == open_source(drawn).dataset_id
    (net,) = about["checkpoints"]
    assert {name: net[name] for name in ("run_id", "step", "epochs_done", "model", "seed", "fine_tune_from")} == {
        "run_id": "run", "step": 1200, "epochs_done": 2.5, "model": MODEL, "seed": 5, "fine_tune_from": None
    }  # fmt: skip
    manifest = json.loads((newest(run).folder / "manifest.json").read_text())
    assert net["manifest_sha256"] == manifest["manifest_sha256"]
    assert (net["top1_wrong"], net["top5_wrong"]) == (about["top1_wrong"], about["top5_wrong"])
    assert set(about["machine"]) == {"cpu_name", "gpu_name", "torch", "dali", "harness", "git_commit"}


def test_a_network_is_shown_the_mean_image_that_it_was_trained_with(drawn: Path, tmp_path: Path) -> None:
    sums = Sums(SIDE)
    sums.add(np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8))
    statistics = save(sums.statistics(), tmp_path)
    name = statistics.stem.removeprefix("statistics-")
    run = saved(tmp_path / "run", statistics_id=name)
    done = evaluated(tmp_path / "out", run, "--data", drawn, "--statistics", statistics, "--views", "1")
    assert done.about["dataset"]["statistics_id"] == name
    mean = sums.statistics().mean_image[2:34, 2:34] - np.array(CHANNEL_MEANS)
    with torch.inference_mode():
        for each in done.predictions():
            shown = crops(drawn / each.image, [(2, 2)], mirrored=False).double() - torch.from_numpy(mean).permute(
                2, 0, 1
            )
            probability = network_of(1)(shown.float()).double().softmax(dim=1)[0, each.label]
            assert each.p_label == pytest.approx(float(probability), rel=1e-3)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The one sentence in which the command refuses; it leaves nothing behind."""

    def ask(*words: str | Path) -> str:
        assert main(["evaluate", "--out", str(tmp_path / "out"), "--quiet", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1
        assert not said.out
        return said.err

    yield ask
    assert not list((tmp_path / "out").glob("*"))


def test_other_classes_than_the_data_s_are_refused_by_the_first_difference(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused(saved(tmp_path / "run", classes=tuple("abXdefg")), "--data", drawn)
    assert "they differ first at number 2 (X and c)" in said
    said = refused(saved(tmp_path / "more", classes=tuple("abcdefgh")), "--data", drawn)
    assert "has 8 classes and --data" in said
    assert "first at number 7 (h and none)" in said


def test_checkpoints_of_other_classes_are_not_averaged(tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused(saved(tmp_path / "one"), saved(tmp_path / "two", classes=tuple("abcdefh")))
    assert "they differ first at number 6 (g and h)" in said


def test_checkpoints_of_other_networks_are_averaged_where_both_take_the_same_images(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    one = saved(tmp_path / "one")
    done = evaluated(tmp_path / "both", one, saved(tmp_path / "tanh", model="cifar-18pct-tanh"), "--data", drawn)
    assert [each["model"] for each in done.about["checkpoints"]] == [MODEL, "cifar-18pct-tanh"]
    assert "takes images of 32 pixels and" in refused(one, saved(tmp_path / "large", model="alexnet", image_size=224))
    assert "none shows another square" in refused(one, saved(tmp_path / "none", augment="none"))
    assert "was trained in fp32 and" in refused(one, saved(tmp_path / "bf16", precision="bf16"))


def test_ten_views_of_the_whole_square_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused(saved(tmp_path / "run", augment="none"), "--views", "10")
    assert "--views 10 was asked and the network was trained with --augment none" in said


def test_seven_views_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(tmp_path), "--views", "7"])
    assert "--views: invalid choice: 7" in capsys.readouterr().err


def shorten(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])


def flip(weights: Path) -> None:
    whole = bytearray(weights.read_bytes())
    whole[-100] ^= 1
    weights.write_bytes(whole)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (shorten, "does not hold the bytes that were saved"),
        (flip, "does not hold the bytes"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_its_file(
    drawn: Path, tmp_path: Path, refused: Callable[..., str], harm: Callable[[Path], None], sentence: str
) -> None:
    run = saved(tmp_path / "run")
    harm(newest(run).folder / checkpoint.WEIGHTS)
    said = refused(run, "--data", drawn)
    assert f"{checkpoint.WEIGHTS} {sentence}" in said


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "holds no checkpoint" in refused(tmp_path / "nothing")
    assert "holds no checkpoint" in refused(tmp_path)


def test_an_unknown_network_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    run = saved(tmp_path / "run")
    manifest = newest(run).folder / "manifest.json"
    about = json.loads(manifest.read_text())
    del about["manifest_sha256"]
    about["asked"]["model"] = "alexnet-2031"
    about["manifest_sha256"] = checkpoint.digest_of(about)
    manifest.write_text(json.dumps(about))
    assert "is of alexnet-2031, which this harness does not know" in refused(run)


def test_weights_of_another_network_than_the_one_named_are_refused(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = saved(tmp_path / "run")
    about = {**newest(run).manifest, "step": 1300}
    about["asked"] = {**about["asked"], "model": "cifar-13pct"}
    folder = checkpoint.begin(run, 1300)
    (folder / checkpoint.WEIGHTS).write_bytes((newest(run).folder / checkpoint.WEIGHTS).read_bytes())
    checkpoint.seal(folder, {name: value for name, value in about.items() if name not in ("format", "files")})
    assert "the weights are of another network than cifar-13pct with 7 classes" in refused(run, "--data", drawn)


def test_a_network_that_had_diverged_is_refused_by_its_number(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused(saved(tmp_path / "one"), saved(tmp_path / "two", spoil=True), "--data", drawn)
    assert "the outputs of checkpoint 2 are not finite" in said


def test_a_set_without_validation_images_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    alone = draw(tmp_path / "pictures") / "train"
    assert f"--data {alone} has no validation images" in refused(saved(tmp_path / "run"), "--data", alone)


def test_another_mean_image_than_the_one_trained_with_is_refused_by_name(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    sums = Sums(SIDE)
    sums.add(np.full((1, SIDE, SIDE, 3), 9, np.uint8))
    given = save(sums.statistics(), tmp_path)
    plain, own = saved(tmp_path / "plain"), saved(tmp_path / "own", statistics_id="0123456789ab")
    data = ("--data", drawn)
    assert "--statistics was left out: give --statistics statistics-0123456789ab.npz" in refused(own, *data)
    assert f"({given.name}) was given: give --statistics statistics-0123456789ab.npz" in refused(
        own, *data, "--statistics", given
    )
    assert "was trained without --statistics and" in refused(plain, *data, "--statistics", given)


def test_images_left_out_of_the_embedded_set_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "give --data too" in refused(saved(tmp_path / "run"), "--exclude", tmp_path / "exclude.txt")


def test_a_folder_that_takes_no_evaluation_is_refused_before_the_work(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    said = refused(saved(tmp_path / "run"), "--data", drawn, "--out", "/proc/no")
    assert "--out /proc/no cannot be written to" in said


def test_an_evaluation_of_other_images_is_refused(drawn: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = saved(tmp_path / "run")
    earlier = evaluated(tmp_path / "earlier", run, "--data", drawn).folder
    others = draw(tmp_path / "others", sizes=[(40, 40)])
    assert "is of other images (dataset" in refused(run, "--data", others, "--against", earlier)
    assert "holds no evaluation" in refused(run, "--data", drawn, "--against", tmp_path)


def test_an_earlier_evaluation_that_does_not_say_of_which_images_it_is_is_refused(
    drawn: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = saved(tmp_path / "run")
    about = evaluated(tmp_path / "earlier", run, "--data", drawn).folder / "evaluation.json"
    found = json.loads(about.read_text())
    for dataset in ({"classes": 7}, None):
        about.write_text(json.dumps({**found, "dataset": dataset}))
        said = refused(run, "--data", drawn, "--against", about.parent)
        assert f"{about} lacks dataset_id: restore it, or evaluate the checkpoint again" in said


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    pictures = draw(tmp_path / "pictures")
    bad = pictures / "val" / "c" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    assert "val/c/2.png" in refused(saved(tmp_path / "run"), "--data", pictures)
