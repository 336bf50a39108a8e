"""Print docs/parity.md: python tests/parity_tables.py [--data FOLDER] > docs/parity.md (default: the embedded set)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import nvidia.dali
import PIL
import torchvision
from parity import Difference, difference
from parity_draws import Verdict, verdicts
from parity_graphs import GRAPHS, photo
from parity_operators import OPERATORS
from parity_pictures import kinds
from PIL import features

from harness.environment import cpu_name
from pipelines.dataset.embedded import EMBEDDED_V1, open_embedded_set
from pipelines.sources import ImageSet, Split, open_folder

MOST_IMAGES = 600
WINDOWS, IMAGES = 6000, 100_000  # numbers drawn for the statistical tests

PAGE = """\
# DALI's pictures against Pillow's, torchvision's and numpy's

The same photographs, once through DALI's CPU operators and our graphs, once through what most people's results were made
with. Figures are levels of 0 to 255. *Mean* is over all pixels of a picture, then over pictures; *max* is the largest
difference anywhere, apart for the outermost rows and columns (*border*) and the rest (*inside*); PSNR is in dB, of the
median and of the worst picture, peak 255. `python tests/parity_tables.py --data FOLDER` prints this page;
`tests/test_parity.py` holds the same comparisons to bounds on a few pictures that it makes.

<!-- setting -->

## Operators

<!-- operators -->

Rows marked *not used* show what a default or an option would cost; our graphs do not use it. Rows without a DALI side say
how far the others are from one another. Colours, flip and mean are compared on centre squares of 224 x 224; CMYK,
progressive, PNG and EXIF on files that Pillow made of some of the photographs.

- **Decoding** is equal bit for bit, whatever the file's kind: both use libjpeg-turbo with the slow, exact inverse DCT and
  with *fancy* upsampling, which smooths the stored colours as it enlarges them. DALI's CPU decoder offers no plain
  upsampling; its GPU decoder has it by default, and there we ask for `jpeg_fancy_upsampling`. The fast inverse DCT is off
  by default, and stays off.
- **EXIF orientation**: DALI turns a picture by default, Pillow and torchvision do not. We set `adjust_orientation=False`
  everywhere. Obeyed, it is what Pillow's `exif_transpose` gives.
- **Antialiasing** is on in DALI, and in Pillow always. Without it the same size is another picture.
- **Resizing** differs for two reasons. Inside, DALI rounds once, at the end, and Pillow after each of its two passes: at
  most one level. At the border, where the filter reaches beyond the picture, DALI repeats the outermost pixel and Pillow
  weighs only what is there.
- **A window decoded alone** has borders of its own. torchvision's `resized_crop` cuts first as well, so they agree; Pillow's
  `resize(box=)` looks beyond the box, and the outermost pixels (further in, where a small window is enlarged) differ.
  Random-resized crops cut first, as torchvision does.
- **The paper's crop** is decoded with as much around it as the filter reaches. It therefore has no borders of its own: it is
  the picture that DALI's plain graph gives (all decoded, `resize_shorter`, crop 256, crop 224), but for single roundings.
- **Whole pixels**: of a 500 x 375 photograph the shorter side becomes 256 and the longer one 341.33. torchvision's `Resize`
  cuts fractions off and DALI's `resize_shorter` rounds to the nearest: both make 341 of it. The centre square then starts at
  42.5, which torchvision's `CenterCrop` rounds to the even 42 and DALI's `crop` up to 43: their squares lie a pixel apart,
  and the exact middle between them. We follow DALI's plain graph, everywhere: in runs, `data prepare` and `data statistics`.
- **Colour jitter** is another definition, not an error. DALI's `color_twist` is one matrix and one offset, rounded and clipped
  once, and agrees with that formula. Contrast turns about the middle grey of 128, torchvision's about the picture's own
  mean grey, which changes its brightness less; the hue turns in the plane of the NTSC colours I and Q at equal luma,
  torchvision's around the cone of HSV. torchvision shuffles the four changes and rounds and clips after each: how much its
  own order matters is in the table. Brightness and saturation differ by rounding alone (Pillow cuts fractions off).
- **float16** is rounded once, at the end, with the mean gone: its steps are 1/8 of a level beyond 128 and finer below.

## Whole graphs

<!-- graphs -->

Every side gets the same draws, those of the pipeline. The windows of `rrc` are drawn inside DALI's decoder, from the
picture's size: they are read from pictures of the same sizes whose pixels tell where they lie, and which pass through
the same operator under the same seed. What remains is the resizing of the table above. `code2012` is in levels divided by
1.1; the mean image is one of random levels, subtracted as any other. `rrc+jitter` is compared with the matrix in numpy,
since torchvision's definition is another one; there the matrix enlarges the roundings of the resize before it.

torchvision's `Resize` and `CenterCrop` show the evaluation up to a pixel to the side (*whole pixels*, above), and weights
trained elsewhere have seen that.

## Draws

<!-- draws -->

p is the chance of a statistic at least as large if the distribution is as it should be; of so many tests, one in twenty
falls below 0.05 by chance. The seed is fixed, so the figures are the same on each run. Positions of crops are shares of the
room that the window leaves. All but the windows are functions of seed, shard and images drawn before
(`pipelines/draws.py`), and the tables above show that pixels follow them. The colour noise is tested as the paper's three
numbers, turned back from the RGB that goes into the graph.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def operators(photos: Sequence[bytes]) -> str:
    pictures = kinds(photos)
    found = [one for one in OPERATORS if pictures[one.pictures]]
    return differences((one.ours, one.against, difference(one.pairs(pictures[one.pictures]))) for one in found)


def graphs(split: Split) -> str:
    return differences((one.ours, one.against, difference(one.pairs(split))) for one in GRAPHS)


def differences(rows: Iterable[tuple[str, str, Difference]]) -> str:
    header = "what | against | images | mean | max, inside | mean, border | max, border | PSNR, median | PSNR, worst"
    cells = [[ours, against, f"{apart.images:,}", *_levels(apart), *_psnr_db(apart)] for ours, against, apart in rows]
    return table(header.split(" | "), cells)


def _levels(apart: Difference) -> list[str]:
    return [f"{level:.3g}" for level in (apart.mean, apart.max_inside, apart.border_mean, apart.border_max)]


def _psnr_db(apart: Difference) -> list[str]:
    return ["equal" if math.isinf(db) else f"{db:.1f}" for db in (apart.psnr_median_db, apart.psnr_worst_db)]


def drawn(results: Iterable[Verdict]) -> str:
    header = "what is drawn | expected | test | numbers | statistic | p"
    rows = [
        [one.quantity, one.expected, one.test, f"{one.numbers:,}", f"{one.statistic:.4g}", f"{one.p:.2g}"]
        for one in results
    ]
    return table(header.split(" | "), rows)


def setting(name: str, images: ImageSet, count: int) -> str:
    """Which pictures, on what, with which versions."""
    return (
        f"{count:,} images of `{name}` (dataset {images.dataset_id}), on {cpu_name() or 'an unknown CPU'}. "
        f"DALI {nvidia.dali.__version__}, Pillow {PIL.__version__} with libjpeg-turbo "
        f"{features.version('libjpeg_turbo') or 'unknown'}, torchvision {torchvision.__version__}."
    )


def page(name: str, images: ImageSet) -> str:
    """docs/parity.md, on training images of the set, evenly chosen where it has many."""
    every = math.ceil(len(images.train) / MOST_IMAGES)
    files, labels = images.train.files[::every], images.train.labels[::every]
    split = replace(images.train, files=files, labels=labels)
    photos = [Path(file).read_bytes() for file in files]
    sizes = [photo(split, place).size for place in range(len(split))]
    parts = {
        "setting": setting(name, images, len(split)),
        "operators": operators(photos),
        "graphs": graphs(split),
        "draws": drawn(verdicts(sizes, WINDOWS, IMAGES)),
    }
    text = PAGE
    for part, printed in parts.items():
        text = text.replace(f"<!-- {part} -->", printed)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print docs/parity.md.", allow_abbrev=False)
    parser.add_argument("--data", metavar="FOLDER", help="class folders of images (default: the embedded set)")
    root = parser.parse_args().data
    print(page(Path(root).name, open_folder(root)) if root else page(EMBEDDED_V1.name, open_embedded_set()), end="")
