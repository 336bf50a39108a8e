"""DALI prepares pictures as Pillow, torchvision and numpy do, within the bounds here, and draws what it says it draws.

docs/parity.md has the same comparisons on photographs.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import parity_draws
import pytest
from parity import Comparison, Difference, difference
from parity_draws import Verdict
from parity_graphs import GRAPHS, GraphComparison, box_of, coordinates
from parity_operators import OPERATORS
from parity_pictures import kinds, sampling, stored
from parity_tables import PAGE
from PIL import Image

from pipelines.sources import Split

DOCUMENT = Path(__file__).parents[1] / "docs" / "parity.md"
SIZES = ((500, 375), (375, 500), (333, 500), (260, 256), (240, 160), (640, 300), (400, 400), (300, 451))
SAMPLINGS = (0, 2, 1, 0, 2, 0, 0, 2)  # 4:4:4, 4:2:2 and 4:2:0, in Pillow's numbers


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """Pictures with edges, slopes and grain, of several shapes and samplings; one is grey."""
    draw = np.random.default_rng(1)
    files = []
    for (width, height), subsampling in zip(SIZES, SAMPLINGS, strict=True):
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        slopes = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        slopes[height // 3 : height // 2, width // 4 : width // 2] = draw.integers(0, 256, 3)
        pixels = (slopes + draw.integers(-20, 21, (height, width, 3))).clip(0, 255).astype(np.uint8)
        files.append(stored(Image.fromarray(pixels), "JPEG", quality=95, subsampling=subsampling))
    return [*files, stored(Image.fromarray(pixels).convert("L"), "JPEG", quality=95)]


@pytest.fixture(scope="module")
def pictures(photos: list[bytes]) -> dict[str, list[bytes]]:
    return kinds(photos)


@pytest.fixture(scope="module")
def split(photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.JPEG" for number in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        path.write_bytes(photo)
    return Split(tuple(map(str, paths)), (0,) * len(paths), 1)


EQUAL = {
    *((f"decode, {kind}", "Pillow") for kind in ("4:4:4", "4:2:2", "4:2:0", "grey", "CMYK", "progressive", "PNG")),
    ("EXIF orientation ignored", "Pillow"),
    ("EXIF orientation obeyed (not used)", "Pillow, turned"),
    ("flip", "Pillow"),
}
FLOAT = 4e-5  # what float32 rounds away of levels less their mean
# At most: mean over all pixels, then the largest difference inside and at the border.
CLOSE = {
    ("resize to 224 x 224", "Pillow"): (0.2, 1, 4),
    ("window decoded alone, resized to 224", "torchvision `resized_crop`"): (0.2, 1, 4),
    ("window decoded alone, resized to 224", "Pillow `resize(box=)`"): (0.22, 1, 14),
    ("the paper's crop, part decoded", "DALI's plain graph"): (1e-4, 1, 1),
    ("the paper's crop, part decoded", "Pillow"): (0.2, 1, 3),
    ("`resize_shorter`, crop 256", "Pillow, the same square"): (0.2, 1, 3),
    ("minus the mean, float32", "numpy"): (4e-6, FLOAT, FLOAT),
    ("minus the mean, float16", "numpy"): (0.015, 1 / 16, 1 / 16),
    ("the paper's colour noise", "numpy"): (6e-6, FLOAT, FLOAT),
    ("brightness 1.3", "torchvision"): (0.5, 1, 1),
    ("saturation 1.3", "torchvision"): (0.5, 1, 1),
    ("all four, one matrix", "the same formula, by numpy"): (0.15, 1, 1),
    ("evaluation, centre crop", "Pillow"): (0.2, 1 + FLOAT, 1 + FLOAT),
    ("evaluation, ten views", "Pillow"): (0.2, 1 + FLOAT, 3 + FLOAT),
    ("training, `paper`", "Pillow and numpy"): (0.2, 1 + FLOAT, 2 + FLOAT),
    ("training, `paper`, mean image", "Pillow and numpy"): (0.2, 1 + FLOAT, 2 + FLOAT),
    ("training, `paper`, float16", "Pillow and numpy"): (0.2, 1 + 1 / 16, 2 + 1 / 16),
    ("training, `code2012`", "Pillow and numpy"): (0.18, 0.91, 1.82),
    ("training, `rrc`", "Pillow"): (0.23, 1 + FLOAT, 3 + FLOAT),
    ("training, `rrc+jitter`", "Pillow, the colour matrix by numpy"): (0.32, 4, 4),
}
# Other definitions and other options: the mean difference is at least and at most this.
APART = {
    ("decode, fast IDCT (not used)", "Pillow"): (0.8, 1.3),
    ("plain chroma upsampling (not used)", "Pillow"): (2, 3.5),
    ("resize to 224 x 224 without antialiasing (not used)", "Pillow"): (2, 3.5),
    ("`resize_shorter`, crop 256", "Pillow, exact square"): (1, 2),
    ("`resize_shorter`, crop 256", "torchvision `Resize`, `CenterCrop`"): (1.5, 2.5),
    ("torchvision `Resize`, `CenterCrop`", "Pillow, exact square"): (0.7, 1.3),
    ("contrast 0.7", "torchvision"): (1.5, 2.5),
    ("hue 25", "torchvision"): (10, 16),
    ("all four, one matrix", "torchvision, in this order"): (12, 19),
    ("torchvision, all four in this order", "torchvision, in reverse"): (4.5, 7),
    ("evaluation, centre crop", "torchvision `Resize`, `CenterCrop`"): (1.5, 2.5),
}


def named(one: Comparison | GraphComparison) -> str:
    return f"{one.ours} - {one.against}"


def held(one: Comparison | GraphComparison, apart: Difference) -> None:
    """Asserts the bound of a comparison."""
    name = (one.ours, one.against)
    if name in EQUAL:
        assert apart.mean == apart.max == 0
    elif name in CLOSE:
        mean, inside, border = CLOSE[name]
        assert apart.mean <= mean
        assert apart.max_inside <= inside
        assert apart.border_max <= border
    else:
        least, most = APART[name]
        assert least <= apart.mean <= most


@pytest.mark.parametrize("one", OPERATORS, ids=named)
def test_an_operator_agrees_within_its_bound(pictures: dict[str, list[bytes]], one: Comparison) -> None:
    held(one, difference(one.pairs(pictures[one.pictures])))


@pytest.mark.parametrize("one", GRAPHS, ids=named)
def test_a_whole_graph_agrees_within_its_bound(split: Split, one: GraphComparison) -> None:
    held(one, difference(one.pairs(split)))


@pytest.fixture(scope="module")
def drawn() -> list[Verdict]:
    return parity_draws.verdicts(SIZES, windows_drawn=800, images_drawn=20_000)


def test_every_number_is_drawn_from_the_distribution_it_should_have(drawn: list[Verdict]) -> None:
    assert len(drawn) == 14
    assert not [one for one in drawn if one.p < 0.001]


def test_a_wrong_covariance_is_seen() -> None:
    values = np.random.default_rng(0).standard_normal((20_000, 3))
    assert parity_draws.identity(values)[1] > 0.001
    assert parity_draws.identity(1.03 * values)[1] < 0.001
    assert parity_draws.identity(values @ [[1, 0.05, 0], [0, 1, 0], [0, 0, 1]])[1] < 0.001


def test_a_window_of_another_scale_or_aspect_is_seen() -> None:
    sizes = np.array([(500, 375)] * 800)
    boxes = parity_draws.torchvision_windows(sizes)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    smaller = np.concatenate([middle - 0.93 * half, middle + 0.93 * half], axis=1)
    wider = np.concatenate([middle - half * (1.05, 1), middle + half * (1.05, 1)], axis=1)
    assert parity_draws.of_windows(smaller, boxes, sizes)[0].p < 0.001
    assert parity_draws.of_windows(wider, boxes, sizes)[1].p < 0.001
    assert all(one.p > 0.999 for one in parity_draws.of_windows(boxes, boxes, sizes))


def test_a_difference_is_what_its_definition_says() -> None:
    zero, other = np.zeros((4, 4, 3)), np.zeros((4, 4, 3))
    other[1, 1], other[0, 3] = 4, 8
    assert difference([(zero, other), (zero, zero)]) == Difference(2, 0.375, 4, 1 / 3, 8, math.inf, other_psnr_db())
    with pytest.raises(ValueError, match="cannot be compared"):
        difference([(zero, zero[1:])])


def other_psnr_db() -> float:
    """Of two pixels in sixteen that are 4 and 8 levels off."""
    return 10 * math.log10(255**2 / ((4**2 + 8**2) / 16))


def test_a_picture_of_coordinates_tells_where_its_parts_lie() -> None:
    picture = np.asarray(coordinates(700, 300))
    assert box_of(picture[260:299, 255:600]).tolist() == [255, 260, 600, 299]


def test_the_pictures_are_of_the_kinds_they_are_named_by(pictures: dict[str, list[bytes]]) -> None:
    assert {kind: len(pictures[kind]) for kind in ("4:4:4", "4:2:2", "4:2:0", "grey")} == {
        "4:4:4": 4,
        "4:2:2": 1,
        "4:2:0": 3,
        "grey": 1,
    }
    assert {sampling(picture) for picture in pictures["PNG"]} == {"other"}


def test_the_page_is_what_the_command_prints_but_for_the_measured_figures() -> None:
    page = DOCUMENT.read_text()
    parts = re.split(r"<!-- \w+ -->", PAGE)
    places = [page.find(part) for part in parts]
    assert places[0] == 0
    assert places == sorted(places)
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [\d,]+ \|", page, re.MULTILINE)
    assert rows == [(one.ours, one.against) for one in OPERATORS] + [(one.ours, one.against) for one in GRAPHS]
