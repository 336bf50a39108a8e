"""`doctor --noise`: a machine against itself, and the noise floor that `compare` reads from the rows of that.

They are ordinary rows, in a table `<machine>-noise.csv` beside the machine's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean

from harness.config import RunConfig
from harness.pairs import LAUNCHES_FOR_A_TEST, percent, side_of
from harness.recipes import settings
from harness.results import TableError, read_table
from harness.rows import identities

LAUNCHES = 20
LEAST_LAUNCHES = 4 * LAUNCHES_FOR_A_TEST
SUFFIX = "-noise.csv"
# Windows shorter than a comparison's, so that many launches are made: what that adds to the floor errs on the careful side.
CPU_STEPS, GPU_TIMED_S = 12, 10.0
# What all of a launch takes, on two CPU cores and on GPUs, and the parts alone after the first.
CPU_LAUNCH_S, GPU_LAUNCH_S, ALONE_S = 60.0, 70.0, 30.0


def floor_pct(speeds: Sequence[float]) -> float | None:
    """What two sets of three launches of the same thing may differ by, from images/s in the order in which launches ran.

    It is the most by which two sets of consecutive launches without a common one differ, as ratios of geometric means; None
    of fewer than twelve launches. Consecutive, since so are a comparison's, whose two sides lie apart in time: a machine that
    drifts says so. The most, since the sets are few and overlap: a percentile of them would promise more than it keeps.
    """
    if len(speeds) < LEAST_LAUNCHES:
        return None
    logs, size = [math.log(speed) for speed in speeds], LAUNCHES_FOR_A_TEST
    sets = [fmean(logs[start : start + size]) for start in range(len(logs) - size + 1)]
    # Each set against the least and the greatest of those that had ended before it began.
    ended = zip(sets[size:], accumulate(sets, min), accumulate(sets, max), strict=False)
    return 100 * math.expm1(max(max(mean - least, greatest - mean) for mean, least, greatest in ended))


def measured_beside(tables: Iterable[Path | str]) -> tuple[dict[str, float], list[str]]:
    """The noise floor, per cent, of each hardware_id in the noise tables of these tables' folders: the largest of its
    conditions; and a sentence for every noise table that cannot be read."""
    folders = {Path(table).parent.resolve(): Path(table).parent for table in tables}
    floors: dict[str, float] = {}
    unread = []
    for path in sorted(path for folder in folders.values() for path in folder.glob(f"*{SUFFIX}")):
        try:
            conditions = side_of(path.name, read_table(path)).conditions
        except TableError as error:
            unread.append(str(error))
            continue
        for condition in conditions:
            pct, hardware = floor_pct(condition.speeds), condition.ids["hardware_id"]
            if pct is not None and hardware:
                floors[hardware] = max(pct, floors.get(hardware, 0.0))
    return floors, unread


# --- the launches -------------------------------------------------------------------------------------------------


def config_of(gpus: int) -> RunConfig:
    """The run that is made again and again: on all GPUs, or else on the CPU."""
    if gpus:
        return RunConfig(**settings("throughput", {"gpus": gpus, "timed_seconds": GPU_TIMED_S}))
    return RunConfig(**settings("smoke", {"steps": CPU_STEPS}))


def plan(config: RunConfig, table: Path) -> str:
    seconds = ALONE_S + config.launches * (GPU_LAUNCH_S if config.on_gpu else CPU_LAUNCH_S)
    cores = "" if config.on_gpu else " on two cores, less on more"
    return (
        f"A against A: {config.launches} launches of one and the same run, about {seconds / 60:.0f} minutes{cores}.\n"
        f"Their rows go to {table}; Ctrl-C keeps those made so far."
    )


def told(table: Path) -> str:
    """What the launches like the table's last one come to."""
    rows = read_table(table)
    latest = identities(rows[-1])
    speeds = next((each.speeds for each in side_of(table.name, rows).conditions if each.ids == latest), [])
    pct = floor_pct(speeds)
    if pct is None:
        has = f"{table} has {len(speeds)} of this run"
        return (
            f"No noise floor yet: it takes {LEAST_LAUNCHES} launches that count, and {has}; the same command adds more."
        )
    return (
        f"Noise floor {percent(pct)} %, the most by which {LAUNCHES_FOR_A_TEST} launches differ from "
        f"{LAUNCHES_FOR_A_TEST} others among {len(speeds)}; `compare` allows for it where a table lies beside {table}."
    )


def main(launches: int = LAUNCHES, folder: Path = Path("results"), asked: RunConfig | None = None) -> int:
    """Run so many launches of one thing (`asked`, or what suits the machine) into the folder's noise table; the worst exit
    status. A launch that does not count ends it."""
    from harness import environment
    from harness.run import default_table, run

    config = (asked or config_of(environment.visible_gpus())).with_(launches=launches)
    machine = environment.machine(config.gpus or 0, ".")
    table = folder / (default_table(config, machine).stem + SUFFIX)
    print(plan(config, table), flush=True)
    status = run([config], table, several=True, quiet=False)
    if table.exists():
        print(told(table))
    return status
