"""Two tables: which is faster, by how much, and whether it may be said.

Identities are those of the rows' own cells; a stored digest is never trusted. Launches that share all five are one
*condition*, and conditions are what is compared: B against the A that differs from it in the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance

from harness.config import AskedWrongly
from harness.results import IDENTITIES, IMPLIED, digest_of, identities, markdown, number, read_table, stale_identities

# Two runs of the same thing, an hour apart, may differ by this much; assumed until a machine's own A against A says.
NOISE_FLOOR = 1.01
LAUNCHES_FOR_A_TEST = 3
CONFIDENCE = 0.95
KINDS = tuple(kind.removesuffix("_id") for kind in IDENTITIES)
ONE_AT_A_TIME = "change one of them at a time"
LISTED_AT_MOST = 20
Row = dict[str, str]


@dataclass(frozen=True, eq=False)
class Condition:
    """Launches that computed the same thing on the same hardware with the same software, shape and settings."""

    ids: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    @property
    def row(self) -> Row:
        return self.rows[0]

    @cached_property
    def speeds(self) -> list[float]:
        return [float(row["images_per_s"]) for row in self.rows]

    @property
    def images_per_s(self) -> float:
        """The geometric mean over launches, so that B over A is one over A over B."""
        return math.exp(fmean(map(math.log, self.speeds)))

    @property
    def ranks(self) -> int:
        asked = number(self.row["gpus"] or self.row["cpus"])
        return int(asked) if asked and 1 <= asked < math.inf else 1

    @property
    def name(self) -> str:
        device = self.row["gpu_name"] or self.row["cpu_name"] or "an unnamed machine"
        return f"{self.ranks} x {device}" if self.ranks > 1 else device


@dataclass(frozen=True)
class Ratio:
    """B's images/s over A's; the interval and p are known where both sides have three launches."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None:
            return f"ratio only: under {LAUNCHES_FOR_A_TEST} launches a side"
        if self.low > NOISE_FLOOR:
            return "B is faster"
        if self.high < 1 / NOISE_FLOOR:
            return "B is slower"
        within = self.low >= 1 / NOISE_FLOOR and self.high <= NOISE_FLOOR
        return "the same" if within else "not told apart"

    def __str__(self) -> str:
        between = f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else ""
        return f"{self.value:.3f}{between}"


@dataclass(frozen=True)
class Pair:
    a: Condition
    b: Condition
    excused: tuple[str, ...] = ()  # fields that may differ: --across, or the batch with --best-batch

    def differences(self, kind: str) -> list[str]:
        return [text for name, text in differing(kind, self.a.row, self.b.row) if name not in self.excused]

    @cached_property
    def kinds(self) -> set[str]:
        """What differs: task, shape, setting, software, hardware."""
        return {kind for kind in KINDS if self.differences(f"{kind}_id")}

    @property
    def confounded(self) -> bool:
        return {"hardware", "software"} <= self.kinds

    @cached_property
    def ratio(self) -> Ratio:
        return ratio_of(self.a.speeds, self.b.speeds)

    @property
    def verdict(self) -> str:
        return "confounded: hardware and software differ" if self.confounded else self.ratio.verdict


def ratio_of(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Welch's test on the logarithms: launches are the unit, and the two sides need not vary alike."""
    logs = [[math.log(speed) for speed in side] for side in (a, b)]
    difference = fmean(logs[1]) - fmean(logs[0])
    value = math.exp(difference)
    if min(len(a), len(b)) < LAUNCHES_FOR_A_TEST:
        return Ratio(value)
    errors = [variance(side) / len(side) for side in logs]
    error = math.sqrt(sum(errors))
    if error < 1e-12:
        return Ratio(value, value, value, 1.0 if abs(difference) < 1e-12 else 0.0)
    from scipy.special import stdtr, stdtrit  # costs as much as everything else here: only where it is needed

    freedom = sum(errors) ** 2 / sum(e**2 / (len(side) - 1) for e, side in zip(errors, logs, strict=True))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Ratio(value, math.exp(difference - half), math.exp(difference + half), p)


def differing(kind: str, a: Row, b: Row) -> list[tuple[str, str]]:
    """The columns of a kind in which two rows differ: name, and "name: A's -> B's"."""
    pairs = [(name, a[name] or IMPLIED.get(name, ""), b[name] or IMPLIED.get(name, "")) for name in IDENTITIES[kind]]
    return [(name, f"{name}: {old or 'unknown'} -> {new or 'unknown'}") for name, old, new in pairs if old != new]


# --- which is compared with which ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    name: str
    rows: list[Row]
    conditions: list[Condition]
    unranked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stale_tasks: list[Row] = field(default_factory=list)
    lost: set[tuple[str, ...]] = field(default_factory=set)  # identities of which no row is ranked


def side_of(name: str, rows: Sequence[Row]) -> Side:
    """Only `ok` rows are ranked; of a run_id that is there twice, the first."""
    side = Side(name, list(rows), [])
    conditions: dict[tuple[str, ...], Condition] = {}
    seen: set[str] = set()
    for row in rows:
        stale = stale_identities(row)
        side.errors.extend(f"{name} {row['run_id']}: {text}" for text in stale)
        if any(text.startswith("task_id") for text in stale):
            side.stale_tasks.append(row)
        ids = identities(row)
        if reason := why_not_ranked(row, seen):
            side.lost.add(tuple(ids.values()))
            side.unranked.append(f"{name} {row['run_id'] or row['label']}: {reason}")
            continue
        seen.add(row["run_id"])
        conditions.setdefault(tuple(ids.values()), Condition(ids)).rows.append(row)
    side.lost.difference_update(conditions)
    side.conditions.extend(conditions.values())
    return side


def why_not_ranked(row: Row, seen: set[str]) -> str:
    if row["status"] != "ok":
        return f"{row['status'] or 'no status'}{': ' + row['status_reason'] if row['status_reason'] else ''}"
    if not 0 < (number(row["images_per_s"]) or 0) < math.inf:
        return f"images_per_s is {row['images_per_s'] or 'unknown'}"
    return "the same run_id is in the table already" if row["run_id"] in seen and row["run_id"] else ""


def prefixes(condition: Condition, excused: Sequence[str]) -> list[tuple[str, ...]]:
    """What a condition is like, ever closer: task, shape, the excused fields too, setting, software, hardware."""
    loose = (digest_without(condition, kind, excused) for kind in ("task_id", "shape_id"))
    key = (*loose, *(condition.ids[kind] for kind in IDENTITIES))
    return [key[:length] for length in range(1, len(key) + 1)]


def digest_without(condition: Condition, kind: str, excused: Sequence[str]) -> str:
    if not any(name in excused for name in IDENTITIES[kind]):
        return condition.ids[kind]
    return digest_of(kind, tuple("" if name in excused else condition.row[name] for name in IDENTITIES[kind]))


def pairs_between(a: Side, b: Side, excused: Sequence[str]) -> tuple[list[Pair], list[Condition]]:
    """Each condition of B with the one of A most like it, the latest of equals; and those whose task A never ran."""
    index: dict[tuple[str, ...], Condition] = {}
    for condition in a.conditions:
        index.update(dict.fromkeys(prefixes(condition, excused), condition))
    pairs, alone = [], []
    for condition in b.conditions:
        near = next((index[prefix] for prefix in reversed(prefixes(condition, excused)) if prefix in index), None)
        if near is None:
            alone.append(condition)
        else:
            pairs.append(Pair(near, condition, tuple(excused)))
    return pairs, alone


def pairs_within(side: Side, across: Sequence[str]) -> list[Pair]:
    """One table against itself: each condition with the first of its task and shape, or else the first of its task."""
    first: dict[tuple[str, ...], Condition] = {}
    pairs = []
    for condition in side.conditions:
        task, shape, *_ = prefixes(condition, across)
        near = first.get(shape) or first.get(task)
        first.setdefault(task, condition)
        first.setdefault(shape, condition)
        if near is not None:
            pairs.append(Pair(near, condition, tuple(across)))
    return pairs


def pairs_of_best_batches(a: Side, b: Side, across: Sequence[str], already: Sequence[Pair]) -> list[Pair]:
    excused = (*across, "images_per_gpu")
    pairs, _ = pairs_between(best_batches(a), best_batches(b), excused)
    known = {(pair.a, pair.b) for pair in already if "shape" not in pair.kinds}
    return [pair for pair in pairs if "shape" not in pair.kinds and (pair.a, pair.b) not in known]


def best_batches(side: Side) -> Side:
    """Of the conditions that differ in nothing but batch and settings, the fastest."""
    best: dict[tuple[str, ...], Condition] = {}
    for condition in side.conditions:
        ids = condition.ids
        key = (
            digest_without(condition, "shape_id", ["images_per_gpu"]),
            *(ids[kind] for kind in ids if kind not in ("shape_id", "setting_id")),
        )
        if key not in best or condition.images_per_s > best[key].images_per_s:
            best[key] = condition
    return Side(side.name, side.rows, list(best.values()))


# --- what is said -------------------------------------------------------------------------------------------------


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
    a = side_of("A", read_table(a_path))
    b = a if within else side_of("B", read_table(b_path))
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
    if refusals or not pairs:
        return "\n".join([*head, *listed("Incomparable", refusals), "", refusal(sides, refusals)]), 3
    body = [*comparison("Equal batch", pairs), *scaling(pairs), *comparison("Each at its best batch", best)]
    body += listed("Not compared: A never ran this task", task_refusals(a, alone))
    judged = [pair for pair in [*pairs, *best] if "shape" not in pair.kinds]
    gate, status = gated(judged, len(judged) < len(pairs) or bool(alone or b.lost), fail_below, allow_software)
    return "\n".join([*head, *body, "", *gate, sentence(judged, within)]), status


def about(side: Side, path: Path | str) -> str:
    ranked = sum(len(condition.rows) for condition in side.conditions)
    return f"{side.name}: {path}, {len(side.rows)} rows, {ranked} ranked, conditions: {len(side.conditions)}"


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
    changes = [f"{count}. {what_differs(pair)}" for count, pair in enumerate(pairs, 1)]
    lines = [{"#": str(count), **ratio_line(pair)} for count, pair in enumerate(pairs, 1)]
    floor = f"Verdicts allow for a noise floor of {100 * (NOISE_FLOOR - 1):.0f} % (assumed)."
    return ["", f"{title}. {floor} From A to B:", *changes, "", markdown(lines)]


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
    """Speed a rank with more ranks, of that with fewer; "" where more than the shape differs."""
    fewer, more = sorted((pair.a, pair.b), key=lambda side: side.ranks)
    if fewer.ranks == more.ranks or pair.kinds - {"shape", "setting"}:
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
    starved = [name for name, side in (("A", pair.a), ("B", pair.b)) if side.row["bound_by"] == "input"]
    return text + (f"; bound by its input: {' and '.join(starved)}." if starved else ".")
