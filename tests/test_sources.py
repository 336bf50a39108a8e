"""Class folders on a disk become one and the same set wherever they lie; what is no such folder is told in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import DataError
from pipelines.sources import open_folder

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes small files that only bear an image's name: `root/a/0.jpg root/b/0.jpg` and so on."""

    def write(names: str) -> Path:
        for number, name in enumerate(names.split()):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (number + 1))
        return tmp_path / "root"

    return write


def test_classes_and_files_are_sorted_by_name(make: Make) -> None:
    root = make(
        "root/train/zebra/1.JPEG root/train/ant/2.jpg root/train/ant/1.png root/val/ant/9.webp root/val/zebra/8.bmp"
    )
    images = open_folder(root)
    assert images.classes == ("ant", "zebra")
    assert [Path(path).relative_to(root).as_posix() for path in images.train.files] == [
        "train/ant/1.png",
        "train/ant/2.jpg",
        "train/zebra/1.JPEG",
    ]
    assert images.train.labels == (0, 0, 1)
    assert images.val is not None
    assert images.val.labels == (0, 1)
    assert images.train.num_classes == images.val.num_classes == 2


def test_paths_are_absolute_even_for_a_relative_root(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make("root/a/1.jpg root/b/1.jpg").parent)
    assert all(Path(path).is_absolute() and Path(path).exists() for path in open_folder("root").train.files)


def test_without_a_val_folder_each_class_holds_out_a_tenth_chosen_by_name_alone(make: Make) -> None:
    root = make(" ".join(f"root/{name}/{number}.jpg" for name in "ab" for number in range(20)))
    images = open_folder(root)
    assert images.val is not None
    assert len(images.val) == 4
    assert images.val.labels == (0, 0, 1, 1)
    assert not set(images.val.files) & set(images.train.files)
    assert len(images.train) + len(images.val) == 40
    for path in images.train.files:
        Path(path).write_bytes(b"other contents")
    assert open_folder(root).val == images.val


def test_classes_of_one_image_leave_no_validation_set(make: Make) -> None:
    images = open_folder(make("root/a/1.jpg root/b/1.jpg"))
    assert images.val is None
    assert len(images.train) == 2


def test_train_without_val_has_no_validation_set(make: Make) -> None:
    assert open_folder(make("root/train/a/1.jpg root/train/a/2.jpg root/train/b/1.jpg")).val is None


def test_a_copy_elsewhere_is_the_same_set_and_a_changed_size_or_name_another(make: Make, tmp_path: Path) -> None:
    root = make("root/train/a/1.jpg root/train/b/1.jpg root/val/a/1.jpg")
    first = open_folder(root).dataset_id
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert open_folder(copy).dataset_id == first
    (copy / "val/a/1.jpg").rename(copy / "val/a/2.jpg")
    assert open_folder(copy).dataset_id != first
    (root / "train/a/1.jpg").write_bytes(b"a longer file")
    assert open_folder(root).dataset_id != first


def test_files_that_are_no_images_are_left_out(make: Make) -> None:
    images = open_folder(make("root/a/1.jpg root/a/notes.txt root/a/.hidden.jpg root/b/1.JPG root/README.md"))
    assert [Path(path).name for path in images.train.files] == ["1.jpg", "1.JPG"]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("other/a/1.jpg", "does not exist"),
        ("root", "is a file"),
        ("root/readme.txt", "has no class folders"),
        ("root/1.jpg root/2.jpg", "has no class folders"),
        ("root/a/1.jpg", "has one class only"),
        ("root/train/a/1.jpg root/val/a/1.jpg", "has one class only"),
        ("root/a/1.txt root/b/1.txt", "hold no images"),
        ("root/a/1.jpg root/b/1.txt", "without images"),
        ("root/train/a/1.jpg root/train/b/1.jpg root/val/c/1.jpg", "classes that train/ lacks"),
    ],
)
def test_a_folder_that_is_no_image_set_is_told_in_one_sentence(make: Make, names: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as told:
        open_folder(make(names))
    assert "\n" not in str(told.value)
    assert "root" in str(told.value)
