"""What bounded a row, in the one sentence that a person needs: how much there is of it, how much of the rest, what to try."""

from __future__ import annotations

from collections.abc import Callable

from harness.rows import COUNTS

Row = dict[str, str]


def figure(cell: str, unit: str = "", digits: int = 3) -> str:
    """`1,234 images/s`, to `digits` significant digits at least; a dash for an empty cell."""
    if not cell:
        return "-"
    number = float(cell)
    text = f"{number:,.0f}" if abs(number) >= 10 ** (digits - 1) else f"{number:.{digits}g}"
    return f"{text} {unit}".strip()


def network_takes(row: Row) -> str:
    return f"the network could take {figure(row['model_alone_images_per_s'])}"


def more_threads(row: Row) -> str:
    return f"more --dali-threads (now {row['dali_threads'] or 'unknown'})"


def of_storage(row: Row) -> str:
    cold = " (the page cache was cold)" if row["page_cache"] in ("cold", "partly cold") else ""
    return (
        f"reading the files gives {figure(row['storage_images_per_s'])} images/s{cold}, {network_takes(row)}; "
        "try a faster disk, memory, or fewer bytes an image by `data prepare`"
    )


def of_decode(row: Row) -> str:
    engine = "--hw-decoder-load 0.9" if row["decode"] == "mixed" else more_threads(row)
    return (
        f"JPEG decoding gives {figure(row['decode_images_per_s'])} images/s, {network_takes(row)}; "
        f"try `data prepare`, or {engine}"
    )


def of_augment(row: Row) -> str:
    cheaper = "--augment rrc, or " if row["augment"] != "rrc" else ""
    return (
        f"augmentation leaves {figure(row['input_alone_images_per_s'])} of the {figure(row['decode_images_per_s'])} images/s that "
        f"decoding gives, {network_takes(row)}; try {cheaper}{more_threads(row)}"
    )


def of_input(row: Row) -> str:
    if not row["input_alone_images_per_s"]:
        return f"what it gives alone stands in the row of the group's first launch; try {more_threads(row)}"
    return (
        f"it gives {figure(row['input_alone_images_per_s'])} images/s alone, {network_takes(row)}; --limits full tells reading, "
        f"decoding and augmentation apart; try {more_threads(row)}"
    )


def of_communication(row: Row) -> str:
    return (
        f"the network gives {figure(row['model_alone_images_per_s'])} images/s, and {figure(row['no_comm_images_per_s'])} where ranks "
        "exchange nothing; try more --images-per-gpu, or another --parallel"
    )


def of_host(row: Row) -> str:
    compiled = "--compile on, or " if row["compile"] == "off" else ""
    return f"the device waits for the host for {figure(row['host_gap_pct'])} % of a step; try {compiled}more --images-per-gpu"


def of_model(row: Row) -> str:
    gives = (
        f", the input could give {figure(row['input_alone_images_per_s'])}" if row["input_alone_images_per_s"] else ""
    )
    mfu = f"; it does {figure(row['mfu_pct'])} % of what matrix products do here" if row["mfu_pct"] else ""
    return f"the network takes {figure(row['model_alone_images_per_s'])} images/s{gives}{mfu}"


SENTENCES: dict[str, Callable[[Row], str]] = {
    "storage": of_storage,
    "decode": of_decode,
    "augment": of_augment,
    "input": of_input,
    "communication": of_communication,
    "host": of_host,
    "model": of_model,
}


def bound(row: Row) -> str:
    """`bound by decode: JPEG decoding gives 9,800 images/s, the network could take 21,400; try ...`"""
    if row["bound_by"] not in SENTENCES:
        return "not measured in this launch (the first of a group measures it)"
    return f"bound by {row['bound_by']}: {SENTENCES[row['bound_by']](row)}"


def next_step(row: Row) -> str:
    """The most useful thing to try after this row."""
    if row["status"] == "oom":
        fits = row["images_per_gpu_expected_to_fit"] or max(1, int(row["images_per_gpu"]) // 2)
        return f"--images-per-gpu {fits}"
    if row["status"] not in COUNTS:
        return "mend the reason above: this speed does not count"
    if row["status"] != "ok":
        return "run it again on a machine that is cool and your own: such a row is never ranked"
    if row["profile"]:
        return "the same without --profile, for a row that may be compared"
    if row["learning"] == "too short":
        return "a longer run (--steps 200 or more) to see it learn; --launches 3 for an interval"
    if row["learning"] == "flat":
        return "the loss is flat: try --init code2012 or a lower --learning-rate before trusting what it learns"
    return "--launches 3 for an interval, then `compare` with another machine's table"
