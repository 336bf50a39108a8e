"""What a person is told who asks for something that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import cli, environment
from harness.config import RunConfig
from harness.recipes import RECIPES


def asked(*words: str) -> list[RunConfig]:
    return cli.configs_of(cli.parser().parse_args(["run", *words]))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence on stderr of a command that ends with 2."""
    try:
        status = cli.main(list(words))
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder on a machine without GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


BAD = {
    "an unknown model lists the right ones": (["--model", "vgg"], ["vgg", "alexnet"]),
    "an unknown pipeline lists the right ones": (["--pipeline", "tfdata"], ["dali", "torch", "synthetic"]),
    "an unknown recipe lists the right ones": (["--recipe", "fast"], ["smoke", "throughput"]),
    "an unknown augmentation lists the right ones": (["--augment", "mixup"], ["rrc", "rrc+jitter", "paper"]),
    "an unknown precision lists the right ones": (["--precision", "fp8"], ["fp32", "bf16"]),
    "half precision, which no step here supports": (["--precision", "fp16"], ["fp32", "bf16"]),
    "a seed too large": (["--seed", "99999999999999999999"], ["seed"]),
    "no images": (["--images-per-gpu", "0"], ["images-per-gpu", "0"]),
    "fewer than no images": (["--images-per-gpu", "-4"], ["images-per-gpu", "-4"]),
    "no steps": (["--steps", "0"], ["steps", "0"]),
    "no launches": (["--launches", "0"], ["launches"]),
    "no time": (["--timed-seconds", "0"], ["timed-seconds"]),
    "time that is no number": (["--timed-seconds", "nan"], ["timed-seconds", "nan"]),
    "words where a number belongs": (["--steps", "many"], ["steps", "many"]),
    "no ranks": (["--cpus", "0"], ["cpus", "0"]),
    "no GPUs": (["--gpus", "1,0"], ["gpus", "1,0"]),
    "GPUs and CPUs at once": (["--gpus", "1", "--cpus", "1"], ["--gpus", "--cpus"]),
    "two lengths at once": (["--steps", "3", "--epochs", "2"], ["--steps", "--epochs"]),
    "more GPUs than there are": (["--gpus", "2"], ["--gpus 2", "0 GPUs were found", "--cpus 2"]),
    "no such folder": (["--data", "nowhere"], ["nowhere", "does not exist"]),
    "an init of a net that has its own": (["--model", "alexnet-torchvision", "--init", "paper"], ["--init"]),
    "a size that the network does not take": (
        ["--model", "alexnet", "--image-size", "32"],
        ["--image-size 32", "alexnet takes 224"],
    ),
    "a fused block of a net without one": (
        ["--model", "alexnet-tanh", "--block", "fused"],
        ["alexnet-tanh", "--block"],
    ),
    "pictures for a pipeline that reads none": (["--pipeline", "synthetic", "--data", "."], ["synthetic", "--data"]),
    "images to leave out of none": (["--exclude", "names.txt"], ["--exclude", "give --data too"]),
    "an end of noise where there is none": (
        ["--noise-epochs", "3"],
        ["--noise-epochs", "--augment rrc", "paper or code2012"],
    ),
    "seven views": (["--views", "7"], ["--views", "7", "1, 10"]),
    "ten views of what has one": (["--views", "10", "--augment", "none"], ["--views 10", "--augment none"]),
    "drops of a rate that is constant": (["--drops", "3"], ["--schedule constant", "--drops"]),
    "drops that are not named": (["--schedule", "epochs"], ["--schedule epochs", "without --drops"]),
    "drops that go back": (["--schedule", "steps", "--drops", "30,10"], ["30,10", "increasing"]),
    "patience with a rate that waits for nothing": (["--patience", "3"], ["--patience", "plateau"]),
    "a plateau that nobody looks for": (["--schedule", "plateau"], ["--evaluate-every"]),
    "an end by an error that nobody looks at": (["--target-train-error-pct", "25"], ["--evaluate-every"]),
    "a layer's rate without an epoch": (["--layer-rates", "conv1=0"], ["conv1=0", "conv1@67"]),
    "a time limit of a run that saves nothing": (["--time-limit", "60"], ["--time-limit", "--checkpoint-every"]),
    "restarts of a run that saves nothing": (["--max-restarts", "1"], ["--max-restarts", "--checkpoint-every"]),
    "launches that would share checkpoints": (
        ["--launches", "2", "--checkpoint-every", "64"],
        ["--launches", "--checkpoint-every"],
    ),
    "a checkpoint that is not there": (["--resume", "nowhere"], ["nowhere holds no checkpoint"]),
    "weights that are not there": (["--fine-tune-from", "nowhere"], ["nowhere holds no checkpoint"]),
    "a recipe that is not there": (["--recipe", "mine.toml"], ["mine.toml", "cannot be read"]),
    "images of a step that three ranks cannot share": (["--recipe", "paper", "--cpus", "3"], ["128", "3 ranks"]),
    "an abbreviated flag": (["--step", "3"], ["--step"]),
    "a flag that does not exist": (["--batch", "3"], ["--batch"]),
}


@pytest.mark.parametrize("case", BAD)
def test_run_answers_what_cannot_be_with_one_sentence(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = BAD[case]
    sentence = refused(capsys, "run", *words)
    assert [word for word in said if word not in sentence] == []
    assert list(here.iterdir()) == [], "nothing is left behind"


def test_a_folder_without_classes_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "flat").mkdir()
    (here / "flat" / "one.jpg").write_bytes(b"")
    assert "class folders" in refused(capsys, "run", "--data", "flat")
    assert not (here / "results").exists()


def test_a_gate_that_nothing_can_fail_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limit in ("nan", "0", "-1"):
        assert "fail-below" in refused(capsys, "compare", "a.csv", "b.csv", "--fail-below", limit)


def test_every_group_is_looked_at_before_the_first_one_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (here / "pets" / name).mkdir(parents=True)
        (here / "pets" / name / "one.jpg").write_bytes(b"x")
    assert "64 ranks" in refused(capsys, "run", "--data", "pets", "--cpus", "1,64", "--quiet")
    assert not (here / "results").exists()


def test_a_single_class_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pets" / "cat").mkdir(parents=True)
    (here / "pets" / "cat" / "one.jpg").write_bytes(b"x")
    assert "one class" in refused(capsys, "run", "--data", "pets")


def test_a_foreign_table_is_refused_before_anything_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "shopping.csv").write_text("milk,eggs\n2,12\n")
    assert "shopping.csv" in refused(capsys, "run", "--table", "shopping.csv")
    assert (here / "shopping.csv").read_text() == "milk,eggs\n2,12\n"


def test_a_table_below_a_file_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    refused(capsys, "run", "--table", "file/table.csv")


def test_a_missing_compiler_is_named_with_the_line_that_brings_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    sentence = refused(capsys, "run")
    assert "no-such-compiler" in sentence
    assert "apt-get install g++" in sentence


def test_a_fused_block_on_a_cpu_without_a_compiler_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    sentence = refused(capsys, "run", "--block", "fused", "--compile", "off")
    assert "--block fused was asked" in sentence
    assert "apt-get install g++" in sentence


def test_missing_headers_are_named_with_the_line_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: os.fspath(tmp_path))
    monkeypatch.setenv("CXX", "true")
    lacks = environment.what_compiling_lacks()
    assert lacks is not None
    assert f"no Python.h in {tmp_path}" in lacks
    assert "-dev" in lacks


def test_smoke_is_the_recipe_without_gpus_and_throughput_with_them() -> None:
    assert asked()[0].recipe == "smoke"
    assert asked("--cpus", "2")[0].recipe == "smoke"
    assert asked("--gpus", "1")[0].recipe == "throughput"
    assert asked("--gpus", "1", "--recipe", "smoke")[0].images_per_gpu == RECIPES["smoke"]["images_per_gpu"]


def test_a_typed_flag_beats_its_recipe_and_a_typed_length_replaces_the_recipes() -> None:
    config = asked("--gpus", "1", "--steps", "7", "--images-per-gpu", "32")[0]
    assert (config.steps, config.timed_seconds, config.images_per_gpu) == (7, None, 32)


def test_several_rank_counts_give_a_row_group_each() -> None:
    assert [config.gpus for config in asked("--gpus", "1,2,4")] == [1, 2, 4]
    assert [config.images_per_step for config in asked("--cpus", "1,2", "--images-per-gpu", "8")] == [8, 16]


def test_the_papers_images_a_step_are_shared_by_the_ranks_and_two_of_them_hold_its_columns() -> None:
    one, two, four = asked("--recipe", "paper", "--cpus", "1,2,4")
    assert [each.images_per_gpu for each in (one, two, four)] == [128, 64, 32]
    assert [each.parallel for each in (one, two, four)] == ["data", "columns", "data"]
    assert (one.schedule, one.patience, one.decay_form, one.epochs) == ("plateau", 5, "paper", 90)
    assert asked("--recipe", "paper", "--cpus", "2", "--model", "alexnet-half")[0].parallel == "data"
    assert asked("--recipe", "paper", "--images-per-gpu", "4")[0].images_per_gpu == 4


def test_a_typed_length_or_augmentation_puts_aside_what_the_recipe_says_of_it(tmp_path: Path) -> None:
    (config,) = asked("--recipe", "code2012", "--augment", "rrc", "--steps", "5")
    assert (config.noise_epochs, config.steps, config.epochs) == (None, 5, None)
    (tmp_path / "mine.toml").write_text("epochs = 3\n")
    assert asked("--recipe", str(tmp_path / "mine.toml"), "--steps", "7")[0].epochs is None


def test_an_error_to_end_at_needs_evaluations_typed_or_of_the_recipe() -> None:
    (config,) = asked("--recipe", "modern", "--target-train-error-pct", "25")
    assert (config.target_train_error_pct, config.evaluate_every) == (25, 1_281_167)


def test_the_sources_recipe_is_its_own_network_and_end_of_training() -> None:
    (config,) = asked("--recipe", "code2012")
    assert (config.model, config.init, config.augment) == ("alexnet-code2012", None, "code2012")
    assert (config.drops, config.layer_rates, config.noise_epochs) == ("25,51,79", "conv1@67=1e-05,conv1@72=0", 67)


def test_a_recipe_of_ones_own_fills_in_flags(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'model = "cifar-18pct"\nimages_per_step = 64\nepochs = 3\nschedule = "epochs"\ndrops = "1,2"\n'
    )
    (config,) = asked("--recipe", str(tmp_path / "mine.toml"), "--cpus", "2", "--learning-rate", "0.5")
    assert (config.recipe, config.model, config.image_size) == ("mine", "cifar-18pct", 32)
    assert (config.images_per_gpu, config.epochs, config.drops, config.learning_rate) == (32, 3, "1,2", 0.5)


def test_a_recipe_of_ones_own_keeps_every_digit(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("learning_rate = 0.0123456789\nsteps = 30.0\n")
    (config,) = asked("--recipe", str(tmp_path / "mine.toml"))
    assert (config.learning_rate, config.steps) == (0.0123456789, 30)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("learning_rat = 0.1", ["mine.toml", "learning_rat", "did you mean 'learning_rate'"]),
        ("colour = 1", ["mine.toml", "'colour'", "run --help"]),
        ("epochs = -1", ["mine.toml", "epochs = -1", "out of range"]),
        ('precision = "fp8"', ["mine.toml", "fp8", "fp32, bf16"]),
        ('model = "vgg"', ["mine.toml", "vgg", "alexnet"]),
        ("gpus = 2\nsteps = 3", ["mine.toml", "has gpus", "type it"]),
        ('resume = "nowhere"', ["mine.toml", "has resume", "type it"]),
        ('table = "mine.csv"', ["mine.toml", "has table", "type it"]),
        ('model = "alexnet"', ["mine.toml has no length"]),
        ("epochs = 2\nsteps = 3", ["--steps and --epochs", "one length"]),
        ('images_per_step = "many"\nsteps = 3', ["mine.toml", "images_per_step = 'many': give a whole number"]),
        ("images_per_step = 0\nsteps = 3", ["mine.toml", "images_per_step = 0", "out of range"]),
        ("columns_on_two = 1\nsteps = 3", ["mine.toml", "columns_on_two = 1: give a true or false"]),
        ("image_size = 100\nsteps = 3", ["--image-size 100", "224"]),
        ('model = "cifar-18pct"\ninit = "paper"\nsteps = 3', ["--init was asked"]),
        ("time_limit = 5\nsteps = 3", ["--time-limit", "--checkpoint-every"]),
        ("launches = 3\ncheckpoint_every = 64\nsteps = 3", ["--launches and --checkpoint-every"]),
        ("epochs", ["mine.toml", "cannot be read"]),
    ],
)
def test_a_recipe_that_no_run_could_follow_is_one_sentence(
    said: str, words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.toml").write_text(said)
    sentence = refused(capsys, "run", "--recipe", "mine.toml")
    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fills_fields_that_exist_with_one_length(recipe: str) -> None:
    config = asked("--recipe", recipe)[0]
    assert sum(length is not None for length in (config.steps, config.timed_seconds, config.epochs)) == 1
