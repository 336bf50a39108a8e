"""Class folders become one and the same set wherever they lie; the form is detected; what is no set is told in a sentence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import DataError
from pipelines.sources import described, name_of, open_folder, open_source
from pipelines.sources.imageset import Exclusions
from pipelines.sources.s3 import from_listing

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


def test_class_folders_opened_by_their_form_are_the_same_set(make: Make) -> None:
    root = make(" ".join(f"root/{name}/{number}.jpg" for name in "ab" for number in range(20)) + " root/notes.txt")
    assert open_source(root) == open_folder(root)
    assert name_of(open_source(root).train, 0) == open_folder(root).train.files[0]


LAYOUTS = [
    "root/train/a/1.jpg root/train/a/2.jpg root/train/b/1.jpg root/val/a/1.jpg root/val/b/1.jpg root/val/b/2.png",
    " ".join(f"root/{name}/{number}.jpg" for name in "ab" for number in range(20)),
]


@pytest.mark.parametrize("names", LAYOUTS)
def test_leaving_images_out_is_the_set_without_their_files(make: Make, tmp_path: Path, names: str) -> None:
    root = make(names)
    gone = [str(Path(name).relative_to("root")) for name in (names.split()[1], names.split()[-1])]
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("# found bad\n\n" + "\n".join(gone) + "\n")
    images = open_source(root, exclude)
    assert images.excluded == 2
    for name in gone:
        (root / name).unlink()
    rest = open_source(root)
    assert (images.train, images.val, images.dataset_id) == (rest.train, rest.val, rest.dataset_id)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("train/a/9.jpg\na/1.jpg\n../x\n/y", r"names 4 images that the set lacks \(\.\./x, /y, a/1\.jpg\)"),
        ("train/b/1.jpg", r"leaves 1 classes without an image \(b\)"),
        (None, "cannot be read"),
    ],
)
def test_a_list_of_images_to_leave_out_must_fit_the_set(
    make: Make, tmp_path: Path, lines: str | None, sentence: str
) -> None:
    exclude = tmp_path / "exclude.txt"
    if lines is not None:
        exclude.write_text(lines)
    with pytest.raises(DataError, match=sentence) as told:
        open_source(make("root/train/a/1.jpg root/train/a/2.jpg root/train/b/1.jpg"), exclude)
    assert "\n" not in str(told.value)
    assert "exclude.txt" in str(told.value)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("root/a/1.jpg root/b/1.jpg root/train.tar", "tar files and class folders"),
        ("root/train/a/1.jpg root/train/b/1.jpg root/train/c.tar", "tar files and class folders"),
        ("root/a/1.jpg root/b/1.jpg root/x-00000-of-00002", "TFRecord files and class folders"),
        ("root/a.tar root/val/b.tfrecord", "tar files and TFRecord files"),
        ("root/set.json root/a/1.jpg root/b/1.jpg", "a prepared set and class folders"),
        ("root/train/a/1.jpg root/train/b/1.jpg root/val/a/1.jpg root/val/2.jpg", "and validation images outside them"),
    ],
)
def test_a_folder_of_several_forms_is_refused_and_told_which(make: Make, names: str, found: str) -> None:
    with pytest.raises(DataError, match=f"root holds .*{found}: keep one form") as told:
        open_source(make(names))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "names",
    ["other/a/1.jpg", "root", "root/readme.txt", "root/1.jpg", "root/a/1.jpg", "root/a/1.txt", "root/train/x.txt"],
)
def test_what_is_no_set_is_told_in_one_sentence(make: Make, names: str) -> None:
    with pytest.raises(DataError, match="root") as told:
        open_source(make(names))
    assert "\n" not in str(told.value)


def test_a_set_is_described_in_a_sentence(make: Make, tmp_path: Path) -> None:
    images = open_source(make("root/train/a/1.jpg root/train/a/2.jpg root/train/b/1.jpg root/val/a/1.jpg"))
    assert described(images) == (
        f"3 training and 1 validation images of 2 classes in class folders (dataset {images.dataset_id})"
    )
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("train/a/2.jpg")
    assert "2 training and 1 validation images" in described(open_source(tmp_path / "root", exclude))
    assert described(open_source(tmp_path / "root", exclude)).endswith(", 1 left out)")


@pytest.mark.parametrize("names", LAYOUTS)
@pytest.mark.parametrize(("address", "prefix"), [("s3://bucket/some/root", "some/root/"), ("s3://bucket/", "")])
def test_class_folders_in_a_bucket_are_the_same_set_as_on_a_disk(
    make: Make, names: str, address: str, prefix: str
) -> None:
    root = make(names)
    on_disk = open_source(root)
    keys = [
        (prefix + path.relative_to(root).as_posix(), path.stat().st_size) for path in root.rglob("*") if path.is_file()
    ]
    images = from_listing(address, [*keys, (f"{prefix}a/", 0), (f"{prefix}README.md", 5)], Exclusions())
    assert (images.dataset_id, images.classes) == (on_disk.dataset_id, on_disk.classes)
    for here, there in ((on_disk.train, images.train), (on_disk.val, images.val)):
        assert here is not None
        assert there is not None
        assert there.labels == here.labels
        start = f"s3://bucket/{prefix}"
        assert [path.removeprefix(start) for path in there.files] == [
            Path(path).relative_to(root).as_posix() for path in here.files
        ]


def test_images_of_a_bucket_are_left_out_by_name() -> None:
    keys = [("x/a/1.jpg", 1), ("x/a/2.jpg", 2), ("x/b/1.jpg", 3), ("xy/c/1.jpg", 4)]
    images = from_listing("s3://bucket/x", keys, Exclusions(["a/2.jpg"], "list"))
    assert images.train.files == ("s3://bucket/x/a/1.jpg", "s3://bucket/x/b/1.jpg")
    assert images.excluded == 1


@pytest.mark.parametrize(
    ("address", "keys", "sentence"),
    [
        ("s3://bucket/x", "y/a/1.jpg", "holds nothing"),
        ("s3://bucket/x", "x/train-0.tar", r"holds tar files \(train-0\.tar\), .* copy them to a disk"),
        ("s3://bucket/x", "x/train/a.tfrecord", "holds TFRecord files"),
        ("s3://bucket/x", "x/train-00000-of-00002", "holds TFRecord files"),
        ("s3://bucket/x", "x/train/a/1.jpg x/train/b/1.jpg x/val/1.jpg", "1 files directly in val/"),
        ("s3://bucket/x", "x/train/a/1.jpg x/train/b/1.jpg x/val/c/1.jpg", "classes that train/ lacks"),
        ("s3://bucket/x", "x/a/1.jpg", "has one class only"),
        ("s3://bucket/x", "x/1.jpg", "has no class folders"),
        ("s3://", "x/1.jpg", "names no bucket"),
    ],
)
def test_a_bucket_that_holds_no_class_folders_is_told_in_one_sentence(address: str, keys: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as told:
        from_listing(address, [(key, 1) for key in keys.split()], Exclusions())
    assert "\n" not in str(told.value)


def test_a_bucket_without_boto3_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(DataError, match=r"s3://bucket/x needs boto3 .* python -m pip install -e '.\[s3\]'"):
        open_source("s3://bucket/x")
