"""Which rows may be compared with which, and their ratio.

Identities are those of the rows' own cells; a stored digest is never trusted. Launches that share all five are one
*condition*, and conditions are what is compared: B against the A that differs from it in the least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, variance
from types import MappingProxyType

from harness.metrics.intervals import CONFIDENCE
from harness.results import stale_identities
from harness.rows import IDENTITIES, IMPLIED, digest_of, identities, ranks_of
from harness.summary import number

# Two runs of the same thing, an hour apart, may differ by this much; assumed until a machine's own A against A says.
ASSUMED_FLOOR_PCT = 1.0
LAUNCHES_FOR_A_TEST = 3
KINDS = tuple(kind.removesuffix("_id") for kind in IDENTITIES)
ONE_AT_A_TIME = "change one of them at a time"
LISTED_AT_MOST = 20
Row = dict[str, str]


@dataclass(frozen=True, eq=False)
class Condition:
    """Launches that computed the same thing on the same hardware with the same software, shape and settings."""

    ids: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    floor_pct: float | None = None  # of its hardware, where A against A has measured it

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
        return ranks_of(self.row)

    @property
    def name(self) -> str:
        device = self.row["gpu_name"] or self.row["cpu_name"] or "an unnamed machine"
        return f"{self.ranks} x {device}" if self.ranks > 1 else device


def percent(pct: float) -> str:
    return f"{pct:.0f}" if pct >= 10 else f"{pct:.2g}"


@dataclass(frozen=True)
class Floor:
    """What two runs of the same thing may differ by on the hardware of A and of B; None where nobody has measured it.

    A measured floor stands also where it is below the assumed one.
    """

    a_pct: float | None = None
    b_pct: float | None = None

    @property
    def pct(self) -> float:
        """The larger of both sides', the assumed one for a side without its own."""
        return max(ASSUMED_FLOOR_PCT if pct is None else pct for pct in (self.a_pct, self.b_pct))

    def __str__(self) -> str:
        sides, assumed = {"A": self.a_pct, "B": self.b_pct}, f"assumed {percent(ASSUMED_FLOOR_PCT)} %"
        measured = [name for name, pct in sides.items() if pct is not None]
        if not measured:
            how = "assumed: `python -m harness doctor --noise` measures it"
        elif len(measured) == len(sides):
            how = "measured on A and B"
        else:
            how = ", ".join(f"{name} {'measured' if name in measured else assumed}" for name in sides)
        return f"noise floor {percent(self.pct)} % ({how})"


@dataclass(frozen=True)
class Ratio:
    """B's images/s over A's; the interval and p are known where both sides have three launches."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    floor_pct: float = ASSUMED_FLOOR_PCT

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None:
            return f"ratio only: under {LAUNCHES_FOR_A_TEST} launches a side"
        floor = 1 + self.floor_pct / 100
        if self.low > floor:
            return "B is faster"
        if self.high < 1 / floor:
            return "B is slower"
        within = self.low >= 1 / floor and self.high <= floor
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

    @property
    def floor(self) -> Floor:
        return Floor(self.a.floor_pct, self.b.floor_pct)

    @cached_property
    def ratio(self) -> Ratio:
        return ratio_of(self.a.speeds, self.b.speeds, self.floor.pct)

    @property
    def verdict(self) -> str:
        return "confounded: hardware and software differ" if self.confounded else self.ratio.verdict


def ratio_of(a: Sequence[float], b: Sequence[float], floor_pct: float = ASSUMED_FLOOR_PCT) -> Ratio:
    """Welch's test on the logarithms: launches are the unit, and the two sides need not vary alike."""
    logs = [[math.log(speed) for speed in side] for side in (a, b)]
    difference = fmean(logs[1]) - fmean(logs[0])
    value = math.exp(difference)
    if min(len(a), len(b)) < LAUNCHES_FOR_A_TEST:
        return Ratio(value, floor_pct=floor_pct)
    errors = [variance(side) / len(side) for side in logs]
    error = math.sqrt(sum(errors))
    if error < 1e-12:
        return Ratio(value, value, value, 1.0 if abs(difference) < 1e-12 else 0.0, floor_pct)
    from scipy.special import stdtr, stdtrit  # costs as much as everything else here: only where it is needed

    freedom = sum(errors) ** 2 / sum(e**2 / (len(side) - 1) for e, side in zip(errors, logs, strict=True))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Ratio(value, math.exp(difference - half), math.exp(difference + half), p, floor_pct)


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


def side_of(name: str, rows: Sequence[Row], floors_pct: Mapping[str, float] = MappingProxyType({})) -> Side:
    """Only `ok` rows are ranked; of a run_id that is there twice, the first. `floors_pct`: measured ones, by hardware_id."""
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
        like = Condition(ids, floor_pct=floors_pct.get(ids["hardware_id"]))
        conditions.setdefault(tuple(ids.values()), like).rows.append(row)
    side.lost.difference_update(conditions)
    side.conditions.extend(conditions.values())
    return side


def why_not_ranked(row: Row, seen: set[str]) -> str:
    if row["status"] != "ok":
        return f"{row['status'] or 'no status'}{': ' + row['status_reason'] if row['status_reason'] else ''}"
    if row.get("profile"):
        return f"it was profiled (--profile {row['profile']}), which costs time"
    if not 0 < (number(row["images_per_s"]) or 0) < math.inf:
        return f"images_per_s is {row['images_per_s'] or 'unknown'}"
    return "the same run_id is in the table already" if row["run_id"] in seen and row["run_id"] else ""


def likenesses(condition: Condition, excused: Sequence[str]) -> list[tuple[str, ...]]:
    """What two conditions may share, ever more: task, batch, ranks, shape, then all else. The first four are loose."""
    task, shape = (digest_without(condition, kind, excused) for kind in ("task_id", "shape_id"))
    ranks = digest_without(condition, "shape_id", (*excused, "images_per_gpu"))
    loose = [(task,), (task, "batch", condition.row["images_per_gpu"]), (task, "ranks", ranks), (task, shape)]
    close = (task, shape, *(condition.ids[kind] for kind in IDENTITIES))
    return [*loose, *(close[:length] for length in range(3, len(close) + 1))]


def digest_without(condition: Condition, kind: str, excused: Sequence[str]) -> str:
    if not any(name in excused for name in IDENTITIES[kind]):
        return condition.ids[kind]
    return digest_of(kind, tuple("" if name in excused else condition.row[name] for name in IDENTITIES[kind]))


def pairs_between(a: Side, b: Side, excused: Sequence[str]) -> tuple[list[Pair], list[Condition]]:
    """Each condition of B with the one of A most like it, the latest of equals; and those whose task A never ran."""
    index: dict[tuple[str, ...], Condition] = {}
    for condition in a.conditions:
        index.update(dict.fromkeys(likenesses(condition, excused), condition))
    pairs, alone = [], []
    for condition in b.conditions:
        near = next((index[key] for key in reversed(likenesses(condition, excused)) if key in index), None)
        if near is None:
            alone.append(condition)
        else:
            pairs.append(Pair(near, condition, tuple(excused)))
    return pairs, alone


def pairs_within(side: Side, across: Sequence[str]) -> list[Pair]:
    """One table against itself: each condition with the first of its task that is most like it in shape."""
    first: dict[tuple[str, ...], Condition] = {}
    pairs = []
    for condition in side.conditions:
        keys = likenesses(condition, across)[:4]
        near = next((first[key] for key in reversed(keys) if key in first), None)
        for key in keys:
            first.setdefault(key, condition)
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
