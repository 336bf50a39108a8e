"""ImageNet as it is distributed: `train/<synset>/`, and validation images in one folder with their truth elsewhere."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines import DataError
from pipelines.sources.folders import Listed, assembled, images_of, kept, listing, prefix_length, scan
from pipelines.sources.imageset import Exclusions, ImageSet, Split, digest, three, unreadable

NESTED = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # where Kaggle's copy has train/ and val/
DEVKIT = re.compile(r"ILSVRC(2010|2012)_validation_ground_truth\.txt")
KAGGLE = "LOC_val_solution.csv"
TEXT_LINE = re.compile(r"(\S+\.JPEG)\s+(n\d{8})", re.IGNORECASE)
LEVELS = 2  # of folders below the root, in which a ground truth is looked for
SEEN_APART = ("train", "val", "test")
WANTED = "ILSVRC2012_validation_ground_truth.txt with its meta.mat, or LOC_val_solution.csv"


def base_of(root: Path) -> Path:
    """The folder that has `train/`: the root, or one inside as in Kaggle's copy."""
    if (root / "train").is_dir():
        return root
    return next((root / nested for nested in NESTED if (root / nested / "train").is_dir()), root)


def open_imagenet(root: Path, exclusions: Exclusions) -> ImageSet:
    """ImageNet of 2010 or 2012 in `root`. Classes are the sorted synsets of `train/`, whatever a devkit numbers."""
    base, start = base_of(root), prefix_length(root)
    train = scan(base / "train")
    try:
        val = images_of(base / "val")
        synsets = ground_truth(root, base / "val", val)
    except OSError as error:
        raise unreadable(error) from error
    if unknown := sorted(set(synsets) - set(train)):
        raise DataError(
            f"the ground truth of {base / 'val'} names {len(unknown)} synsets that train/ lacks ({three(unknown)}): "
            "give the whole of train/"
        )
    pairs = [pair for pair in zip(val, synsets, strict=True) if not exclusions.leaves_out(pair[0].path[start:])]
    train = kept(train, start, exclusions)
    images = assembled(train, {}, str(base), exclusions)
    numbers = {synset: number for number, synset in enumerate(images.classes)}
    evaluated = Split(
        tuple(image.path for image, _ in pairs), tuple(numbers[synset] for _, synset in pairs), len(numbers)
    )
    entries = listing([*train.values(), [image for image, _ in pairs]], prefix_length(base))
    truth = hashlib.sha256("\n".join(synset for _, synset in pairs).encode()).hexdigest()
    return replace(
        images,
        val=evaluated if pairs else None,
        # Another truth is another task on the same files.
        dataset_id=digest([*entries, (f"ground truth {truth}".encode(), len(pairs))]),
        source_form="imagenet",
    )


def ground_truth(root: Path, val: Path, images: Sequence[Listed]) -> list[str]:
    """The synset of each validation image; `DataError` where none is told, or two are."""
    told: dict[Path, list[str]] = {}
    for path in _files(root, val):
        read = _reader(path)
        if read is not None:
            told[path] = read(path, images)
    if not told:
        raise DataError(
            f"{val} has {len(images)} images outside class folders and {root} has no ground truth for them: "
            f"put {WANTED} there"
        )
    (first, synsets), *others = told.items()
    for path, other in others:
        if other != synsets:
            raise DataError(f"{first} and {path} tell different classes: keep the one that belongs to {val}")
    return synsets


def _files(root: Path, val: Path) -> Iterator[Path]:
    """The files in `val`, in the root and in the folders below it that may bring a ground truth."""
    folders = [root]
    for _ in range(LEVELS + 1):
        below: list[Path] = []
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_file():
                        yield Path(entry.path)
                    elif entry.is_dir() and entry.name not in SEEN_APART and not entry.name.startswith("."):
                        below.append(Path(entry.path))
        folders = below
    with os.scandir(val) as entries:
        yield from sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith((".txt", ".csv")))


def _reader(path: Path) -> Callable[[Path, Sequence[Listed]], list[str]] | None:
    if DEVKIT.fullmatch(path.name):
        return _by_devkit
    if path.name == KAGGLE:
        return _by_kaggle
    if path.suffix == ".txt" and "val" in path.name.lower():
        with path.open(encoding="utf-8", errors="replace") as lines:
            return _by_text if TEXT_LINE.fullmatch(next(lines, "").strip()) else None
    return None


def _by_devkit(path: Path, images: Sequence[Listed]) -> list[str]:
    """A line an image, in the order of their names: the devkit's own number of the synset."""
    lines = path.read_text(encoding="utf-8", errors="replace").split()
    _check_count(path, len(lines), images)
    synsets = _synsets(path.with_name("meta.mat"), f"{path.name[:10]}_ID")
    if unknown := sorted({line for line in lines if line not in synsets}):
        raise DataError(
            f"{path} has {len(unknown)} numbers that meta.mat gives no synset ({three(unknown)}): use both of one devkit"
        )
    return [synsets[line] for line in lines]


def _synsets(meta: Path, number: str) -> dict[str, str]:
    """Number, as text -> synset, from a devkit's meta.mat."""
    from scipy.io import loadmat

    if not meta.is_file():
        raise DataError(f"{meta} is missing, which tells the synsets of the ground truth's numbers: put it there")
    try:
        table = loadmat(meta, squeeze_me=True)["synsets"].ravel()
        return {str(int(row[number])): str(row["WNID"]) for row in table}
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DataError(
            f"{meta} has no table `synsets` with {number} and WNID: copy it again from the devkit"
        ) from error


def _by_kaggle(path: Path, images: Sequence[Listed]) -> list[str]:
    """A row an image, in any order: name without suffix, then synset and box of each thing to be seen."""
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [row for row in csv.reader(lines) if len(row) > 1 and row[1].strip() and row[0] != "ImageId"]
    return _by_name(path, [(row[0], row[1].split()[0]) for row in rows], images)


def _by_text(path: Path, images: Sequence[Listed]) -> list[str]:
    """A line an image, in any order: file name and synset."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [TEXT_LINE.fullmatch(line.strip()) for line in lines if line.strip()]
    if not all(found):
        raise DataError(f"{path} has lines that are no `NAME.JPEG SYNSET`: mend it")
    return _by_name(path, [(line[1].rpartition(".")[0], line[2]) for line in found if line], images)


def _by_name(path: Path, pairs: list[tuple[str, str]], images: Sequence[Listed]) -> list[str]:
    _check_count(path, len(pairs), images)
    synsets = dict(pairs)
    stems = [image.name.rpartition(".")[0] for image in images]
    if missing := [stem for stem in stems if stem not in synsets]:
        raise DataError(f"{path} lacks {len(missing)} of the validation images ({three(missing)}): use the set's own")
    return [synsets[stem] for stem in stems]


def _check_count(path: Path, told: int, images: Sequence[Listed]) -> None:
    if told != len(images):
        folder = os.path.dirname(images[0].path)
        raise DataError(
            f"{path} tells {told} images and {folder} has {len(images)}: use the whole val/ and its own truth"
        )
