"""Two tables: which is faster, by how much, and whether it may be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.config import AskedWrongly
from harness.metrics.intervals import CONFIDENCE
from harness.metrics.limits import INPUT_BOUNDS
from harness.noise import measured_beside
from harness.pairs import (
    KINDS,
    LISTED_AT_MOST,
    ONE_AT_A_TIME,
    Condition,
    Pair,
    Row,
    Side,
    differing,
    pairs_between,
    pairs_of_best_batches,
    pairs_within,
    side_of,
)
from harness.results import read_table
from harness.rows import IDENTITIES, identities
from harness.summary import markdown


def compare(
    a_path: Path | str,
    b_path: Path | str,
    fail_below: float | None = None,
    across: Sequence[str] = (),
    best_batch: bool = False,
    allow_software: bool = False,
) -> tuple[str, int]:
    """The text and the exit status: 0 said, 1 B/A is below `fail_below`, 3 refused as incomparable.

    One table given twice is compared within itself. Raises AskedWrongly for a table or a field that does not serve.
    """
    wrong = [name for name in across if name not in IDENTITIES["task_id"]]
    if wrong:
        fields = ", ".join(IDENTITIES["task_id"])
        raise AskedWrongly(f"--across {wrong[0]} is not a field of the task: give one of {fields}")
    within = Path(a_path).resolve() == Path(b_path).resolve()
    floors_pct, unread = measured_beside([a_path, b_path])
    a = side_of("A", read_table(a_path), floors_pct)
    b = a if within else side_of("B", read_table(b_path), floors_pct)
    sides = [a] if within else [a, b]
    pairs, alone = (pairs_within(a, across), []) if within else pairs_between(a, b, across)
    pairs.sort(key=lambda pair: "shape" in pair.kinds)
    best = pairs_of_best_batches(a, b, across, pairs) if best_batch and not within else []
    refusals = stale_refusals(sides, across) or ([] if pairs else task_refusals(a, alone))
    head = [about(side, path) for side, path in zip(sides, (a_path, b_path), strict=False)]
    head += listed(
        "Errors, for `verify` to explain; the ids below are recomputed", [e for s in sides for e in s.errors]
    )
    head += listed("Not ranked", [text for side in sides for text in side.unranked])
    head += listed("Noise tables that cannot be read", unread)
    if refusals or not pairs:
        return "\n".join([*head, *listed("Incomparable", refusals), "", refusal(sides, refusals)]), 3
    body = [*comparison("Equal batch", pairs), *scaling(pairs), *comparison("Each at its best batch", best)]
    body += listed("Not compared: A never ran this task", task_refusals(a, alone))
    judged = [pair for pair in [*pairs, *best] if "shape" not in pair.kinds]
    unjudged = bool(alone or b.lost or any(unjudged_shape(pair, best_batch) for pair in pairs))
    gate, status = gated(judged, unjudged, fail_below, allow_software)
    return "\n".join([*head, *body, "", *gate, sentence(judged, within)]), status


def about(side: Side, path: Path | str) -> str:
    ranked = sum(len(condition.rows) for condition in side.conditions)
    return f"{side.name}: {path}, rows: {len(side.rows)}, ranked: {ranked}, conditions: {len(side.conditions)}"


def listed(title: str, texts: Sequence[str]) -> list[str]:
    more = [f"- and {len(texts) - LISTED_AT_MOST} more"] if len(texts) > LISTED_AT_MOST else []
    return ["", f"{title}:", *(f"- {text}" for text in texts[:LISTED_AT_MOST]), *more] if texts else []


def stale_refusals(sides: Sequence[Side], across: Sequence[str]) -> list[str]:
    """Rows that bear the task_id of other rows and differ from them in a field of the task."""
    honest: dict[str, Row] = {}
    for row in [row for each in sides for row in each.rows]:
        if row["task_id"] not in honest and row["task_id"] == identities(row)["task_id"]:
            honest[row["task_id"]] = row
    found = []
    for side, row in [(each, row) for each in sides for row in each.stale_tasks]:
        fields = differing("task_id", honest.get(row["task_id"], row), row)
        if texts := [text for name, text in fields if name not in across]:
            found.append(f"{side.name} {row['run_id']} bears another task's id: {', '.join(texts)}")
    return found


def task_refusals(a: Side, alone: Sequence[Condition]) -> list[str]:
    """For each condition of B, the fields that keep it from the nearest task of A."""
    tasks = list({condition.ids["task_id"]: condition.row for condition in a.conditions}.values())
    found = []
    for condition in alone[: LISTED_AT_MOST + 1] if tasks else []:
        nearest = min((differing("task_id", row, condition.row) for row in tasks), key=len)
        found.append(f"B {condition.row['run_id']}: {', '.join(text for _, text in nearest)}")
    return found


def refusal(sides: Sequence[Side], refusals: Sequence[str]) -> str:
    if refusals:
        return (
            f"A and B cannot be compared, for they computed different things ({refusals[0]}); --across FIELD lifts one."
        )
    if len(sides) == 1 and sides[0].conditions:
        return "The table holds one condition and so nothing to compare it with: give a second table."
    empty = " and ".join(side.name for side in sides if not side.conditions)
    return f"Nothing can be compared, for {empty} has no row that counts (status ok): run it again."


def comparison(title: str, pairs: Sequence[Pair]) -> list[str]:
    """What differs in each pair, software versions first to be read, and then the table of ratios."""
    pairs = [pair for pair in pairs if "shape" not in pair.kinds]
    if not pairs:
        return []
    shared = len({str(pair.floor) for pair in pairs}) == 1
    differ = [what_differs(pair) + ("" if shared else f"; {pair.floor}") for pair in pairs]
    changes = [f"{count}. {text}" for count, text in enumerate(differ, 1)]
    lines = [{"#": str(count), **ratio_line(pair)} for count, pair in enumerate(pairs, 1)]
    return ["", f"{title}{f'; {pairs[0].floor}' if shared else ''}. From A to B:", *changes, "", markdown(lines)]


def what_differs(pair: Pair) -> str:
    parts = [f"{kind} ({', '.join(texts)})" for kind in KINDS if (texts := pair.differences(f"{kind}_id"))]
    lifted = [
        text
        for kind in ("task_id", "shape_id")
        for name, text in differing(kind, pair.a.row, pair.b.row)
        if name in pair.excused
    ]
    parts += [f"lifted ({', '.join(lifted)})"] if lifted else []
    return f"differs in {'; '.join(parts)}" if parts else "nothing differs"


def ratio_line(pair: Pair) -> Row:
    ratio, both = pair.ratio, (pair.a, pair.b)
    known = ratio.low is not None
    return {
        "on": change(side.name for side in both),
        "images a rank": change(side.row["images_per_gpu"] for side in both),
        "precision": change(side.row["precision"] for side in both),
        "A images/s": speed(pair.a.images_per_s),
        "launches of A": str(len(pair.a.rows)),
        "B images/s": speed(pair.b.images_per_s),
        "launches of B": str(len(pair.b.rows)),
        "B/A": f"{ratio.value:.3f}",
        f"{100 * CONFIDENCE:.0f} % interval": f"{ratio.low:.3f} to {ratio.high:.3f}" if known else "",
        "p": f"{ratio.p:.2g}" if ratio.p is not None and "hardware" not in pair.kinds else "",
        "bound by": change(side.row["bound_by"] for side in both),
        "verdict": pair.verdict,
    }


def change(values: Iterable[str]) -> str:
    return " -> ".join(dict.fromkeys(value for value in values if value))


def speed(images_per_s: float) -> str:
    return f"{images_per_s:.0f}" if images_per_s >= 1000 else f"{images_per_s:.4g}"


def scaling(pairs: Sequence[Pair]) -> list[str]:
    """The second table, of pairs whose shape differs: speed a rank, and no verdict."""
    lines: list[Row] = []
    changes = []
    for count, pair in enumerate((pair for pair in pairs if "shape" in pair.kinds), 1):
        changes.append(f"{count}. {what_differs(pair)}")
        for name, side in (("A", pair.a), ("B", pair.b)):
            lines.append({"#": str(count), "side": name, **shape_line(side), "scaling efficiency, %": ""})
        lines[-1]["scaling efficiency, %"] = efficiency_pct(pair)
    if not lines:
        return []
    return ["", "Different shapes, a rank each; no verdict. From A to B:", *changes, "", markdown(lines)]


def shape_line(side: Condition) -> Row:
    a_rank = side.images_per_s / side.ranks
    cells = {"on": side.name, "ranks": str(side.ranks), "images a rank": side.row["images_per_gpu"]}
    return {
        **cells,
        "launches": str(len(side.rows)),
        "images/s": speed(side.images_per_s),
        "images/s a rank": speed(a_rank),
    }


def efficiency_pct(pair: Pair) -> str:
    """Speed a rank with more ranks, of that with fewer; "" where more differs than ranks and settings."""
    fewer, more = sorted((pair.a, pair.b), key=lambda side: side.ranks)
    batches = {side.row["images_per_gpu"] for side in (fewer, more)}
    if fewer.ranks == more.ranks or len(batches) > 1 or pair.kinds - {"shape", "setting"}:
        return ""
    return f"{100 * (more.images_per_s / more.ranks) / (fewer.images_per_s / fewer.ranks):.1f}"


def gated(
    judged: Sequence[Pair], unjudged: bool, fail_below: float | None, allow_software: bool
) -> tuple[list[str], int]:
    """What `--fail-below` says: 1 if some pair is below it, 3 if something of B could not be judged, else 0."""
    if fail_below is None:
        return [], 0
    below = [pair for pair in judged if (pair.ratio.low or pair.ratio.value) < fail_below]
    confounded = [pair for pair in judged if pair.confounded and not allow_software]
    if confounded:
        return [
            f"--fail-below cannot judge hardware and software at once: add --allow-software, or {ONE_AT_A_TIME}."
        ], 3
    if below:
        return [
            f"Failed: B/A may be as low as {min(p.ratio.low or p.ratio.value for p in below):.3f}, below {fail_below:g}."
        ], 1
    if unjudged or not judged:
        return ["--fail-below has not judged all of B: some of it does not count, or has no equal in A (see above)."], 3
    return [f"Passed: B/A is at least {fail_below:g} throughout."], 0


def unjudged_shape(pair: Pair, best_batch: bool) -> bool:
    """Whether a pair differs in shape, and in more than the batch, which the best batches judge."""
    names = {name for name, _ in differing("shape_id", pair.a.row, pair.b.row)}
    return bool(names - {"images_per_gpu"} if best_batch else names)


def sentence(judged: Sequence[Pair], within: bool) -> str:
    """The last line, for who buys."""
    if not judged:
        return (
            "No verdict: A and B differ in shape (ranks, or images a rank), and what they share is told a rank above."
        )
    if len(judged) == 1:
        return said_of_one(judged[0])
    verdicts = [pair.verdict for pair in judged]
    counts = {name: sum(v == f"B is {name}" for v in verdicts) for name in ("faster", "slower")}
    same = verdicts.count("the same")
    ratios = [pair.ratio.value for pair in judged]
    other = "the first of its kind in the table" if within else "A"
    return (
        f"In {len(judged)} comparisons with {other}, B is faster in {counts['faster']}, slower in {counts['slower']} and the same in "
        f"{same}; in {len(judged) - same - sum(counts.values())} nothing may be said; B/A runs from {min(ratios):.3f} to {max(ratios):.3f}."
    )


def said_of_one(pair: Pair) -> str:
    speeds = f"{speed(pair.b.images_per_s)} against {speed(pair.a.images_per_s)} images/s"
    said = {
        "B is faster": f"B ({pair.b.name}) trains {pair.ratio} times as fast as A ({pair.a.name}): {speeds}",
        "B is slower": f"B ({pair.b.name}) trains {pair.ratio} times as fast as A ({pair.a.name}), slower: {speeds}",
        "the same": f"A and B are equally fast within the noise floor: B/A is {pair.ratio}",
        "not told apart": f"A and B cannot be told apart: B/A is {pair.ratio}; more launches would narrow that",
    }
    if pair.confounded:
        text = f"B ran at {pair.ratio} times A's speed ({speeds}), but which of hardware and software did it cannot be said"
    else:
        text = said.get(
            pair.verdict, f"B ran at {pair.ratio} times A's speed ({speeds}), an indication: {pair.verdict}"
        )
    starved = [name for name, side in (("A", pair.a), ("B", pair.b)) if side.row["bound_by"] in INPUT_BOUNDS]
    return text + (f"; bound by its input: {' and '.join(starved)}." if starved else ".")
