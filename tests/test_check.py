"""`data check` finds every bad image before a run does, says why, and lists what a run is to leave out."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines import DataError
from pipelines.dataset import check
from pipelines.dataset.check import Report, Row, read_manifest, told, write
from pipelines.sources import open_source

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((160, 120))


def encoded(kind: str = "JPEG", picture: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def another(number: int) -> bytes:
    """A good file like no other."""
    return encoded(picture=Image.new("RGB", (40, 30), (number, 255 - number, 7)))


def bomb(side: int) -> bytes:
    """A PNG of few bytes whose header asks for side x side pixels."""

    def chunk(name: bytes, contents: bytes) -> bytes:
        return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif)


def flipped(whole: bytes) -> bytes:
    """A JPEG whose picture data hold markers that do not belong there."""
    middle = len(whole) // 2
    return whole[:middle] + b"\xff\xd1" + whole[middle + 2 :]


SECOND = [PICTURE.rotate(180)]
WHOLE, PNG, WEBP = encoded(), encoded("PNG"), encoded("WEBP")
SIXTEEN = Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13)

BAD = {
    "empty.jpg": (b"", "empty"),
    "html.jpg": (b"\n<!DOCTYPE html>\n<html><title>404</title></html>", "no image: it is HTML"),
    "svg.png": (b'<?xml version="1.0"?><svg></svg>', "no image: it is XML"),
    "text.jpg": ("this is no picture, été".encode(), "no image: it is text"),
    "noise.jpg": (bytes(range(1, 200)), "no image: its first bytes"),
    "gif.jpg": (encoded("GIF", PICTURE.convert("P")), "wrong format: it is GIF"),
    "tiff.jpg": (encoded("TIFF"), "wrong format: it is TIFF"),
    "zip.jpg": (b"PK\x03\x04 and so on", "wrong format: it is a zip archive"),
    "moving.png": (encoded("PNG", save_all=True, append_images=SECOND), "animated: 2 pictures"),
    "moving.webp": (encoded("WEBP", save_all=True, append_images=SECOND), "animated: 2 pictures"),
    "bomb.png": (bomb(14_000), "too many pixels: 14000 x 14000 = 196,000,000, over the limit of 100,000,000"),
    "short-2.jpg": (WHOLE[:-2], "truncated"),
    "short-30.jpg": (WHOLE[: len(WHOLE) * 7 // 10], "truncated"),
    "short-progressive.jpg": (encoded(progressive=True)[:-40], "truncated"),
    "header-only.jpg": (WHOLE[:100], "truncated"),
    "no-end.png": (PNG[:-12], "truncated"),
    "short.png": (PNG[: len(PNG) // 2], "truncated"),
    "short.bmp": (encoded("BMP")[:9000], "truncated"),
    "short.webp": (WEBP[: len(WEBP) // 2], "damaged"),
    "flipped.png": (PNG[:400] + bytes([PNG[400] ^ 4]) + PNG[401:], "damaged"),
    "header.jpg": (b"\xff\xd8\xff\xe0" + bytes(range(100)), "damaged"),
}
NOTED = {
    "good.jpg": (another(1), ()),
    "good.png": (encoded("PNG", Image.new("RGB", (9, 9))), ()),
    "good.bmp": (encoded("BMP"), ()),
    "good.webp": (WEBP, ()),
    "tail.jpg": (another(2) + bytes(500), ()),
    "cmyk.jpg": (encoded(picture=PICTURE.convert("CMYK")), ("CMYK",)),
    "grey.jpg": (encoded(picture=PICTURE.convert("L")), ("grey",)),
    "deep.png": (encoded("PNG", SIXTEEN), ("grey", "16-bit")),
    "palette.png": (encoded("PNG", PICTURE.convert("P")), ("palette",)),
    "alpha.png": (encoded("PNG", PICTURE.convert("RGBA")), ("alpha",)),
    "grey-alpha.png": (encoded("PNG", PICTURE.convert("LA")), ("grey", "alpha")),
    "turned.jpg": (turned(), ("rotated by EXIF",)),
    "progressive.jpg": (encoded(progressive=True), ("progressive",)),
    "really-png.JPEG": (PNG, ("PNG named .JPEG",)),
    "really-jpeg.png": (another(3), ("JPEG named .png",)),
    "two.jpg": (encoded("MPO", save_all=True, append_images=SECOND), ("several pictures",)),
    "tiny.png": (encoded("PNG", Image.new("RGB", (7, 30))), ("tiny",)),
    "flipped.jpg": (flipped(encoded(quality=96)), ("damaged but decoded",)),
}

Lay = Callable[..., Path]


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """Writes files under a root: `lay({"a/1.jpg": bytes})`."""

    def write_all(files: dict[str, bytes]) -> Path:
        for name, contents in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
        return tmp_path / "root"

    return write_all


def checked(root: Path, **arguments: Any) -> Report:
    return check.check(root, **{"workers": 2, **arguments})


def rows_of(root: Path, **arguments: Any) -> dict[str, Row]:
    return {row.path: row for row in checked(root, **arguments).rows}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind, in two classes."""
    root = tmp_path_factory.mktemp("zoo")
    for folder, table in (("bad", BAD), ("noted", NOTED)):
        (root / folder).mkdir()
        for name, (contents, _) in table.items():
            (root / folder / name).write_bytes(contents)
        (root / folder / "usual.jpg").write_bytes(another(100 + len(folder)))
    return root


@pytest.fixture(scope="module")
def found(zoo: Path) -> dict[str, Row]:
    return rows_of(zoo)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_with_its_reason(found: dict[str, Row], name: str) -> None:
    contents, fault = BAD[name]
    row = found[f"bad/{name}"]
    assert row.fault.startswith(fault)
    assert "\n" not in row.fault
    assert row.bytes == len(contents)
    assert row.sha256 == hashlib.sha256(contents).hexdigest()


@pytest.mark.parametrize("name", NOTED)
def test_a_good_file_is_kept_with_what_is_worth_knowing(found: dict[str, Row], name: str) -> None:
    contents, notes = NOTED[name]
    row = found[f"noted/{name}"]
    assert (row.fault, row.notes) == ("", notes)
    with Image.open(io.BytesIO(contents)) as image:
        assert (row.width, row.height, row.channels) == (*image.size, len(image.getbands()))
        assert row.format == image.format


def test_the_report_counts_by_kind(zoo: Path) -> None:
    report = checked(zoo)
    assert report.total == len(BAD) + len(NOTED) + 2
    assert len(report.bad) == sum(report.faults.values()) == len(BAD)
    assert report.faults["animated"] == 2
    assert report.faults["truncated"] == 7
    assert report.notes["grey"] == 3


def test_what_the_decoders_complain_of_does_not_reach_the_terminal(
    zoo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checked(zoo)
    assert capfd.readouterr().err == ""


def test_the_result_is_the_same_whatever_the_number_of_workers(zoo: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        write(checked(zoo, workers=workers), tmp_path / str(workers))
    for name in ("exclude.txt", "manifest.csv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_bad_files_among_many_good_ones_are_found_and_no_others(lay: Lay) -> None:
    files = {f"{'ab'[number % 2]}/{number:03}.jpg": another(number) for number in range(150)}
    wrong = {"a/002.jpg": WHOLE[:-30], "b/063.jpg": WHOLE[:-40], "b/065.jpg": b"text", "a/148.jpg": WHOLE[:-50]}
    report = checked(lay({**files, **wrong}))
    assert sorted(path for path, _ in report.bad) == sorted(wrong)


def test_a_file_over_the_pixel_limit_is_never_decoded(lay: Lay) -> None:
    # Its pixels are missing: a decoder would say so.
    root = lay({"a/hollow.png": bomb(200), "a/good.jpg": another(1), "b/good.jpg": another(2)})
    assert rows_of(root)["a/hollow.png"].fault.startswith(("truncated", "damaged"))
    row = rows_of(root, pixel_limit=200 * 200 - 1)["a/hollow.png"]
    assert row.fault.startswith("too many pixels: 200 x 200 = 40,000")
    assert (row.width, row.height, row.format) == (200, 200, "PNG")


def test_pillows_own_limit_and_warnings_are_as_they_were_afterwards(zoo: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    checked(zoo)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_large_file_is_checked_as_a_small_one_is(lay: Lay) -> None:
    tail = bytes(check.BYTES_KEPT)
    root = lay(
        {
            "a/large.jpg": WHOLE + tail,
            "a/cut.bmp": encoded("BMP", PICTURE.resize((800, 600)))[:-9],
            "b/1.jpg": another(1),
        }
    )
    rows = rows_of(root)
    assert rows["a/large.jpg"].fault == ""
    assert rows["a/large.jpg"].sha256 == hashlib.sha256(WHOLE + tail).hexdigest()
    assert rows["a/cut.bmp"].fault.startswith("truncated")


def test_far_more_bytes_than_pixels_are_not_read_into_memory(lay: Lay) -> None:
    root = lay({"a/huge.jpg": WHOLE, "b/1.jpg": another(1)})
    os.truncate(root / "a/huge.jpg", 80 << 20)
    assert rows_of(root)["a/huge.jpg"].fault == "too many bytes: 83,886,080 for 160 x 120 pixels"


def test_links_that_leave_the_folder_are_bad_and_those_within_are_followed(lay: Lay, tmp_path: Path) -> None:
    root = lay({"a/1.jpg": another(1), "b/1.jpg": another(2)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").write_bytes(WHOLE)
    (root / "a/out.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/in.jpg").symlink_to("../b/1.jpg")
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    (root / "b/back").symlink_to(root)
    rows = rows_of(root)
    assert sorted(rows) == ["a/1.jpg", "a/gone.jpg", "a/in.jpg", "a/out.jpg", "b/1.jpg", "c"]
    assert rows["a/out.jpg"].fault == f"outside the folder: it leads to {str(tmp_path / 'elsewhere/1.jpg')!r}"
    assert rows["a/out.jpg"].sha256 == ""
    assert rows["c"].fault.startswith("outside the folder")
    assert rows["a/in.jpg"].fault == ""
    assert rows["a/gone.jpg"].fault == "unreadable: No such file or directory"


def test_a_folder_reached_by_a_link_may_itself_be_the_root(lay: Lay, tmp_path: Path) -> None:
    lay({"a/1.jpg": another(1), "b/1.jpg": another(2)})
    (tmp_path / "link").symlink_to("root")
    assert checked(tmp_path / "link").bad == []


def test_a_pipe_is_not_waited_for(lay: Lay) -> None:
    root = lay({"a/1.jpg": another(1), "b/1.jpg": another(2)})
    os.mkfifo(root / "a/pipe.jpg")
    assert rows_of(root)["a/pipe.jpg"].fault == "unreadable: it is no regular file"


def test_duplicates_are_told_and_those_that_leak_told_apart(lay: Lay) -> None:
    same, other = another(1), another(2)
    root = lay(
        {
            "train/a/1.jpg": same, "train/a/2.jpg": same, "train/b/1.jpg": same, "val/a/1.jpg": same,
            "train/b/2.jpg": other, "val/b/1.jpg": another(3), "train/a/e1.jpg": b"", "train/a/e2.jpg": b"",
        }
    )  # fmt: skip
    notes = {path: row.notes for path, row in rows_of(root).items() if row.notes}
    assert notes == {
        "train/a/2.jpg": ("duplicate: train/a/1.jpg",),
        "train/b/1.jpg": ("duplicate in another class: train/a/1.jpg",),
        "val/a/1.jpg": ("duplicate in the other split: train/a/1.jpg",),
    }
    assert checked(root).notes == {"duplicate": 1, "duplicate in another class": 1, "duplicate in the other split": 1}


def test_the_list_makes_the_rest_a_set_that_opens(zoo: Path, tmp_path: Path) -> None:
    excluded, _ = write(checked(zoo), tmp_path)
    images = open_source(zoo, exclude=excluded)
    assert images.excluded == len(BAD)
    left = {os.path.relpath(path, zoo) for split in (images.train, images.val) if split for path in split.files}
    assert left == {f"noted/{name}" for name in NOTED} | {"bad/usual.jpg", "noted/usual.jpg"}
    lines = excluded.read_text().splitlines()
    assert (
        lines[0]
        == f"# Left out: {len(BAD)} of {len(BAD) + len(NOTED) + 2} files, bad by `data check`; reasons in manifest.csv."
    )
    assert lines[1:] == sorted(f"bad/{name}" for name in BAD)


def test_what_no_run_would_take_for_an_image_is_not_listed_but_told(lay: Lay, tmp_path: Path) -> None:
    root = lay(
        {"a/1.jpg": another(1), "b/1.jpg": another(2), "a/deeper/bad.jpg": b"", "a/bad.jpg": b"", "a/bad.gif": b""}
    )
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    report = checked(root)
    assert [path for path, _ in report.bad] == ["a/bad.jpg", "a/deeper/bad.jpg", "a/gone.jpg"]
    lines = write(report, tmp_path)[0].read_text().splitlines()
    assert lines[1:] == [
        "# To be mended by hand: 'a/deeper/bad.jpg' (empty)",
        "# To be mended by hand: 'a/gone.jpg' (unreadable: No such file or directory)",
        "a/bad.jpg",
    ]
    with pytest.raises(DataError, match=r"a/gone\.jpg is named as an image and is no file"):
        open_source(root, exclude=tmp_path / "exclude.txt")
    (root / "a/gone.jpg").unlink()
    assert open_source(root, exclude=tmp_path / "exclude.txt").excluded == 1


def test_names_that_are_no_text_neither_break_the_files_nor_get_lost(lay: Lay, tmp_path: Path) -> None:
    root = lay(
        {"a/1.jpg": another(1), "b/1.jpg": another(2), "a/two\nlines.jpg": another(3), "b/\u2028.jpg": another(4)}
    )
    Path(os.fsdecode(os.fsencode(root) + b"/a/caf\xe9.jpg")).write_bytes(b"")
    (root / 'b/co,m"ma.jpg').write_bytes(another(5))
    report = checked(root)
    excluded, manifest = write(report, tmp_path)
    assert report.faults == {"bad name": 2, "empty": 1}
    assert b"a/caf\xe9.jpg" in excluded.read_bytes().split(b"\n")
    assert read_manifest(manifest) == list(report.rows)
    assert open_source(root, exclude=excluded).excluded == 1


def test_the_manifest_says_everything_and_nothing_it_does_not_know(lay: Lay, tmp_path: Path) -> None:
    root = lay({"a/2.jpg": WHOLE, "b/1.jpg": b"", "a/10.jpg": encoded(picture=PICTURE.convert("L"), progressive=True)})
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    _, manifest = write(checked(root), tmp_path)
    grey = (root / "a/10.jpg").read_bytes()
    assert manifest.read_text().splitlines() == [
        "path,bytes,sha256,width,height,channels,format,fault,notes",
        f"a/10.jpg,{len(grey)},{hashlib.sha256(grey).hexdigest()},160,120,1,JPEG,,grey; progressive",
        f"a/2.jpg,{len(WHOLE)},{hashlib.sha256(WHOLE).hexdigest()},160,120,3,JPEG,,",
        "a/gone.jpg,,,,,,,unreadable: No such file or directory,",
        f"b/1.jpg,0,{hashlib.sha256(b'').hexdigest()},,,,,empty,",
    ]


def test_the_summary_counts_names_the_first_bad_files_and_says_what_to_do(lay: Lay) -> None:
    root = lay({"a/1.jpg": another(1), "b/1.jpg": encoded(picture=PICTURE.convert("L")), "b/2.jpg": b""})
    assert told(checked(root), "lists").splitlines() == [
        "3 files: 2 good, 1 bad",
        "       1  bad: empty",
        "       1  noted: grey",
        "'b/2.jpg': empty",
        "all of it: lists/manifest.csv",
        "to run without the bad ones: --exclude lists/exclude.txt",
    ]
    for number in range(30):
        (root / os.fsdecode(b"a/\xe9%d.jpg" % number)).write_bytes(b"")
    (root / "a/gone.jpg").symlink_to("nowhere.jpg")
    lines = told(checked(root), "lists").splitlines()
    assert lines[0] == "34 files: 2 good, 32 bad"
    assert "and 22 more bad ones" in lines
    assert lines[-1].startswith("1 are no images to a run")
    "\n".join(lines).encode("ascii")


def test_a_set_without_bad_files_needs_no_list(lay: Lay) -> None:
    root = lay({"a/1.jpg": another(1), "b/1.jpg": another(2)})
    assert told(checked(root), "lists").splitlines() == ["2 files: 2 good, 0 bad", "all of it: lists/manifest.csv"]


@pytest.mark.parametrize(
    "contents", ["", "path,bytes\n", "{}", None], ids=["empty", "other columns", "other", "missing"]
)
def test_a_file_that_is_no_manifest_is_refused_in_a_sentence(tmp_path: Path, contents: str | None) -> None:
    path = tmp_path / "manifest.csv"
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(DataError, match="is no manifest") as refused:
        read_manifest(path)
    assert "\n" not in str(refused.value)


def test_progress_ends_at_all_files_and_never_falls(zoo: Path) -> None:
    heard: list[tuple[int, int]] = []
    total = checked(zoo, progress=lambda done, total: heard.append((done, total))).total
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)


def test_an_interrupt_ends_it_and_leaves_no_thread(lay: Lay) -> None:
    root = lay({f"{'ab'[number % 2]}/{number:03}.jpg": another(number) for number in range(200)})
    before = threading.active_count()

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(root, progress=interrupt)
    assert threading.active_count() == before


def test_what_is_no_folder_of_images_is_told_in_a_sentence(lay: Lay, tmp_path: Path) -> None:
    root = lay({"train-000.tar": b"", "a/notes.txt": b"", ".hidden/1.jpg": WHOLE})
    with pytest.raises(DataError, match="holds no image files"):
        checked(root)
    with pytest.raises(DataError, match="does not exist"):
        checked(tmp_path / "gone")


def test_lists_that_cannot_be_written_are_told_and_nothing_half_written_stays(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(Report(()), tmp_path / "file")
    write(checked(zoo), tmp_path / "lists")
    assert sorted(path.name for path in (tmp_path / "lists").iterdir()) == ["exclude.txt", "manifest.csv"]
