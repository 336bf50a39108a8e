"""ImageNet as it is distributed: validation labels come from the ground truth, and a truth that does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipelines import DataError
from pipelines.sources import ImageSet, described, open_source

# Sorted by name; the devkit numbers them otherwise, as the real ones do.
SYNSETS = ["n01440764", "n01443537", "n02119789", "n02124075"]
NUMBERS = {"n02119789": 1, "n02124075": 2, "n01443537": 3, "n01440764": 4, "n00001740": 5}
TRUTH = ["n02124075", "n01440764", "n02119789", "n02119789", "n01443537"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images a synset and five flat validation images; no truth yet."""
    return distributed(tmp_path / "root")


def distributed(root: Path, year: int = 2012) -> Path:
    for synset in SYNSETS:
        for number in range(2):
            write(root / "train" / synset / f"{synset}_{number}.JPEG", "x" * 3)
    for number in range(1, len(TRUTH) + 1):
        write(root / "val" / f"ILSVRC{year}_val_{number:08}.JPEG", "x" * number)
    return root


def write(path: Path, contents: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(contents)
    return path


def devkit(folder: Path, year: int = 2012, truth: list[Any] | None = None, numbers: dict[str, int] = NUMBERS) -> Path:
    """The two files of a devkit that tell what a validation image shows."""
    told = truth if truth is not None else [numbers[synset] for synset in TRUTH]
    write(folder / f"ILSVRC{year}_validation_ground_truth.txt", "".join(f"{number}\n" for number in told))
    table = np.zeros((len(numbers), 1), [(f"ILSVRC{year}_ID", object), ("WNID", object), ("words", object)])
    for row, (synset, number) in zip(table[:, 0], numbers.items(), strict=True):
        row[f"ILSVRC{year}_ID"], row["WNID"], row["words"] = float(number), synset, "a word, another"
    savemat(folder / "meta.mat", {"synsets": table})
    return folder


def kaggle(folder: Path, truth: list[str] = TRUTH) -> Path:
    rows = [
        f"ILSVRC2012_val_{number:08},{synset} 111 108 230 366 {synset} 1 2 3 4 "
        for number, synset in enumerate(truth, 1)
    ]
    return write(folder / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def told(images: ImageSet) -> list[str]:
    assert images.val is not None
    return [images.classes[label] for label in images.val.labels]


@pytest.mark.parametrize("year", [2010, 2012])
@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", ".", "devkit", "val"])
def test_the_devkits_numbers_become_places_among_the_sorted_synsets(tmp_path: Path, year: int, place: str) -> None:
    root = distributed(tmp_path / "root", year)
    devkit(root / place, year)
    images = open_source(root)
    assert images.source_form == "imagenet"
    assert images.classes == tuple(SYNSETS)
    assert told(images) == TRUTH
    assert images.val is not None
    assert images.val.labels == (3, 0, 2, 2, 1)
    assert [number - 1 for number in map(NUMBERS.get, TRUTH)] != list(images.val.labels)
    assert [Path(file).name for file in images.val.files] == [f"ILSVRC{year}_val_{n:08}.JPEG" for n in range(1, 6)]
    assert images.train.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert "in ImageNet's own folders" in described(images)


def test_kaggles_table_is_read_by_name_in_any_order(root: Path) -> None:
    kaggle(root)
    assert told(open_source(root)) == TRUTH


def test_kaggles_nested_folders_are_the_same_set(root: Path, tmp_path: Path) -> None:
    kaggle(root)
    nested = tmp_path / "nested"
    distributed(nested / "ILSVRC/Data/CLS-LOC")
    kaggle(nested)
    assert told(open_source(nested)) == TRUTH
    assert open_source(nested).dataset_id == open_source(root).dataset_id
    exclude = write(tmp_path / "exclude.txt", "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG\n")
    assert told(open_source(nested, exclude)) == TRUTH[:1] + TRUTH[2:]


def test_a_text_of_names_and_synsets_is_read_and_one_of_other_things_is_not(root: Path) -> None:
    write(root / "validation_notes.txt", "how these were made\n")
    write(
        root / "lists/val.txt", "".join(f"ILSVRC2012_val_{n:08}.JPEG {synset}\n" for n, synset in enumerate(TRUTH, 1))
    )
    assert told(open_source(root)) == TRUTH


def test_truths_that_agree_are_one(root: Path) -> None:
    kaggle(root)
    first = open_source(root)
    devkit(root / "devkit/data")
    assert open_source(root) == first


def test_another_truth_is_another_set(root: Path) -> None:
    kaggle(root)
    first = open_source(root).dataset_id
    kaggle(root, TRUTH[::-1])
    assert open_source(root).dataset_id != first


def test_images_left_out_take_their_truth_with_them(root: Path, tmp_path: Path) -> None:
    devkit(root)
    whole = open_source(root)
    exclude = write(tmp_path / "exclude.txt", "val/ILSVRC2012_val_00000002.JPEG\ntrain/n01440764/n01440764_1.JPEG\n")
    images = open_source(root, exclude)
    assert told(images) == TRUTH[:1] + TRUTH[2:]
    assert images.train.labels == (0, 1, 1, 2, 2, 3, 3)
    assert images.excluded == 2
    assert images.dataset_id != whole.dataset_id


def no_truth(_root: Path) -> None:
    pass


def too_short(root: Path) -> None:
    devkit(root, truth=[1, 2, 3])


def no_number(root: Path) -> None:
    devkit(root, truth=[1, 2, 3, 4, "x"])


def too_high(root: Path) -> None:
    devkit(root, truth=[1, 2, 3, 4, 9])


def not_trained(root: Path) -> None:
    devkit(root, truth=[1, 2, 3, 4, 5])


def no_meta(root: Path) -> None:
    devkit(root)
    (root / "meta.mat").unlink()


def damaged_meta(root: Path) -> None:
    devkit(root)
    (root / "meta.mat").write_bytes((root / "meta.mat").read_bytes()[:300])


def another_years_meta(root: Path) -> None:
    devkit(root, 2010)
    (root / "ILSVRC2010_validation_ground_truth.txt").rename(root / "ILSVRC2012_validation_ground_truth.txt")


def contradiction(root: Path) -> None:
    devkit(root / "devkit")
    kaggle(root, TRUTH[::-1])


def short_table(root: Path) -> None:
    kaggle(root, TRUTH[:-1])


def other_names(root: Path) -> None:
    path = kaggle(root)
    path.write_text(path.read_text().replace("val_00000003", "val_00000099"))


def mended_by_hand(root: Path) -> None:
    write(root / "val.txt", f"ILSVRC2012_val_00000001.JPEG {TRUTH[0]}\nILSVRC2012_val_00000002.JPEG 7\n")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_truth, r"5 images outside class folders and .*root has no ground truth .*LOC_val_solution\.csv there"),
        (too_short, "tells 3 images and .*val has 5"),
        (no_number, r"1 numbers that meta\.mat gives no synset \(x\)"),
        (too_high, r"1 numbers that meta\.mat gives no synset \(9\)"),
        (not_trained, r"names 1 synsets that train/ lacks \(n00001740\)"),
        (no_meta, r"meta\.mat is missing"),
        (damaged_meta, r"meta\.mat has no table"),
        (another_years_meta, r"meta\.mat has no table `synsets` with ILSVRC2012_ID"),
        (contradiction, r"LOC_val_solution\.csv and .*ground_truth\.txt tell different classes"),
        (short_table, "tells 4 images and .*val has 5"),
        (other_names, r"lacks 1 of the validation images \(ILSVRC2012_val_00000003\)"),
        (mended_by_hand, r"val\.txt has lines that are no"),
    ],
)
def test_a_truth_that_does_not_fit_is_told_in_one_sentence(root: Path, spoil: Any, sentence: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=sentence) as told:
        open_source(root)
    assert "\n" not in str(told.value)
