"""A launch from its folder to its row: what was asked lies there first, then what each rank saw, then the record.

Whoever runs a launch holds the lock in its folder. One whose lock is free and which has no row has ended without a word:
`settle_unfinished` makes its row of what its ranks left.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import environment, results
from harness.checkpoint import forget_unfinished, whole_ones
from harness.config import CHECKPOINTS, AskedWrongly, RunConfig
from harness.forecast.cards import datasheet_tflop_per_s
from harness.progress import PHASES, last_phase
from harness.rows import SCHEMA_VERSION, row_of
from harness.trial import RankTrial, Trial, from_json
from pipelines.sources.imageset import ImageSet

RUNNING = "running.json"
LOCK = "running.lock"
LAUNCHER = "HARNESS_LAUNCHER"  # variable of a rank's environment: the process whose end is its own
# File systems whose reads the kernel counts as a process's own; of others nobody here knows what came from a disk.
LOCAL_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay")


@dataclass(frozen=True)
class Launch:
    """One launch of a group. `told` is its record but for the trial; `limits`: the parts alone are measured too."""

    folder: Path
    config: RunConfig
    limits: bool
    told: dict[str, Any]
    held: list[Any] = field(default_factory=list, compare=False)

    @classmethod
    def begin(
        cls, config: RunConfig, images: ImageSet, table: Path, group_id: str, number: int, ranks_here: int
    ) -> Launch:
        """A new folder beside the table, locked, which says what was asked. Only a group's first launch measures the parts alone."""
        now = datetime.now(UTC)
        run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        told = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "group_id": group_id,
            "launch": number,
            "started_at": now.isoformat(timespec="seconds"),
            "asked": config.columns(),
            "dataset": {**dataset_cells(images), "image_bytes": bytes_on_a_disk(config, images)},
            "machine": machine_of(config, images, ranks_here),
        }
        launch = cls(results.run_folder(table, run_id), config, number == 1, told)
        launch.folder.mkdir(parents=True)
        try:
            launch.hold()
        except NotImplementedError:
            launch.discard()
            raise AskedWrongly(f"{table.parent} is on a file system without locks: give another --table") from None
        running = {"table": table.name, "config": asdict(config), "limits": launch.limits, "told": told}
        results.write_whole(launch.folder / RUNNING, json.dumps(running))
        return launch

    @classmethod
    def read(cls, folder: Path) -> Launch:
        """The launch whose folder it is."""
        running = json.loads((folder / RUNNING).read_text())
        return cls(folder, RunConfig(**running["config"]), running["limits"], running["told"])

    @property
    def saved(self) -> bool:
        """Whether its folder holds a checkpoint."""
        return bool(whole_ones(self.folder / CHECKPOINTS))

    @property
    def classes(self) -> int:
        return int(self.told["dataset"]["classes"])

    def hold(self) -> None:
        """Take the folder's lock; filelock.Timeout where another process runs this launch."""
        from filelock import FileLock  # 40 ms that --help need not pay

        lock = FileLock(self.folder / LOCK)
        lock.acquire(timeout=0)
        self.held.append(lock)

    def let_go(self) -> None:
        while self.held:
            self.held.pop().release()
        if not (self.folder / RUNNING).exists():
            # While there is something to settle, all who would must meet at one file.
            (self.folder / LOCK).unlink(missing_ok=True)

    def record(self, failure: str = "", *, stopped: bool = False) -> dict[str, Any]:
        """Everything a row is told from; `rows.row_of` says how."""
        return {**self.told, "trial": asdict(self.trial(failure, stopped=stopped))}

    def trial(self, failure: str, *, stopped: bool) -> Trial:
        """The ranks' files as one Trial. Ranks that left none make it a failed one, with the reason."""
        left = [read_rank(self.folder, rank) for rank in range(self.config.ranks)]
        trials = [from_json(RankTrial, each["trial"]) for each in left if each["trial"] is not None]
        failure = failure or first_failure(self.folder, self.config.ranks)
        # The ranks beside one that ran out of memory are ended by the agent: its trial is the reason.
        explained = failure or stopped or any(trial.out_of_memory for trial in trials)
        if len(trials) < self.config.ranks and not explained:
            failure = f"only {len(trials)} of {self.config.ranks} ranks left a trial"
        return Trial(
            classes=self.classes,
            train_images=self.told["dataset"]["train_images"],
            ranks_asked=self.config.ranks,
            ranks_share_cores_with_input=not self.config.on_gpu,
            ranks=tuple(trials),
            failure=failure,
            precision=self.config.precision,
            image_bytes=self.told["dataset"].get("image_bytes"),
        )

    def finish(self, table: Path, record: dict[str, Any]) -> dict[str, str]:
        """The record written down, the row appended, the folder tidied."""
        row = row_of(record)
        results.write_record(self.folder, record)
        results.append(table, row)
        self.tidy()
        return row

    def tidy(self) -> None:
        """Take away what the record now holds; logs stay."""
        for path in (*self.folder.glob("rank-*.json"), self.folder / RUNNING, self.folder / "progress.jsonl"):
            path.unlink(missing_ok=True)
        forget_unfinished(self.folder)
        self.let_go()

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.let_go()


def dataset_cells(images: ImageSet) -> dict[str, Any]:
    """The columns of a row about its images."""
    return {
        "dataset_id": images.dataset_id,
        "source_form": images.source_form,
        "statistics_id": images.statistics.statistics_id if images.statistics else None,
        "classes": len(images.classes),
        "train_images": len(images.train),
        "val_images": len(images.val) if images.val else 0,
        "excluded_images": images.excluded,
    }


def bytes_on_a_disk(config: RunConfig, images: ImageSet) -> float | None:
    """Of an image on average; None where none is read from a disk."""
    kind = environment.filesystem_of(Path(images.train.files[0]).parent)
    on_disk = kind in LOCAL_DISKS and config.pipeline != "synthetic"
    return images.train.image_bytes if on_disk else None


def machine_of(config: RunConfig, images: ImageSet, ranks_here: int) -> dict[str, Any]:
    """The machine's columns, and beside them what the datasheet promises of the GPUs that run."""
    found = environment.machine(ranks_here if config.on_gpu else 0, Path(images.train.files[0]).parent)
    each = datasheet_tflop_per_s(found.get("gpu_name"), config.precision)
    return {**found, "gpu_datasheet_tflop_per_s": each * config.ranks if each else None}


def new_group_id() -> str:
    return secrets.token_hex(4)


# --- what ranks left ----------------------------------------------------------------------------------------------


def write_rank(folder: Path, rank: int, failure: str, trial: dict[str, Any] | None) -> None:
    path = folder / f"rank-{rank}.json"
    path.with_suffix(".new").write_text(json.dumps({"failure": failure, "trial": trial}))
    path.with_suffix(".new").replace(path)


def forget_rank(folder: Path, rank: int) -> None:
    """What this rank left before it was started again."""
    (folder / f"rank-{rank}.json").unlink(missing_ok=True)


def read_rank(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank left behind: its failure in words, its trial; neither if it left nothing."""
    with contextlib.suppress(OSError, ValueError):
        left: dict[str, Any] = json.loads((folder / f"rank-{rank}.json").read_text())
        return left
    return {"failure": "", "trial": None}


LOST_THE_OTHERS = "lost the other ranks"


def first_failure(folder: Path, ranks: int) -> str:
    """The words of the rank that failed first; of one that only lost the others where none has more to say."""
    written = []
    for rank in range(ranks):
        with contextlib.suppress(OSError):
            words = read_rank(folder, rank)["failure"]
            written.append((LOST_THE_OTHERS in words, (folder / f"rank-{rank}.json").stat().st_mtime, words))
    return next((words for _, _, words in sorted(written) if words), "")


# --- launches that ended without a word ---------------------------------------------------------------------------


def settle_unfinished(table: Path) -> list[str]:
    """A row for each launch of this table that no process runs any more; the sentences to tell a person of them."""
    said = []
    for running in sorted(results.run_folder(table, "").glob(f"*/{RUNNING}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            beside = table.parent / json.loads(running.read_text())["table"]
            if os.path.realpath(beside) != os.path.realpath(table):
                continue
            try:
                said += settle(table, Launch.read(running.parent))
            except AskedWrongly as error:
                said.append(f"{running.parent.name} ended without a row, and none can be made of it: {error}")
    return said


def how_it_ended(left: dict[int, dict[str, Any]], failure: str, phase: str) -> str:
    """Why a job failed that ended without a row, by what its ranks left and the first words of failure among that."""
    silent = [rank for rank, each in left.items() if not each["failure"] and each["trial"] is None]
    if failure and (LOST_THE_OTHERS not in failure or not silent):
        return failure
    which = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))} left no word in its folder"
    if failure:
        return f"{failure} while {phase}; {which}"
    if len(silent) < len(left) and all(each["trial"]["interrupted"] for each in left.values() if each["trial"]):
        return f"the job was stopped while {phase}; {which}"
    return f"the job ended without a word while {phase}: it was killed, or its machine stopped; {which}"


def settle(table: Path, launch: Launch) -> list[str]:
    from filelock import Timeout

    try:
        launch.hold()
    except (Timeout, NotImplementedError):
        return []  # it runs, or this file system cannot tell
    try:
        if not (launch.folder / RUNNING).exists():
            return []  # another command was quicker
        run_id = launch.told["run_id"]
        if table.exists() and any(row["run_id"] == run_id for row in results.read_table(table)):
            launch.tidy()
            return []
        written = (launch.folder / "trial.json").exists()
        record = results.read_record(launch.folder) if written else launch.record()
        ranks = record["trial"]["ranks"]
        left = {n: read_rank(launch.folder, n) for n in range(launch.config.ranks)}
        # A rank that left no trial was not asked to stop: the others were, because it had died.
        unseen = len(ranks) == len(left) and all(r["interrupted"] and not r["windows"] for r in ranks)
        if unseen and not launch.saved:
            launch.discard()
            return []
        if len(ranks) < len(left) and not written:
            phase = PHASES[last_phase(launch.folder / "progress.jsonl")]
            record["trial"]["failure"] = how_it_ended(left, first_failure(launch.folder, len(left)), phase)
        row = launch.finish(table, record)
        return [f"{run_id}, which had ended without a row, is {row['status']}: {row['status_reason']}"]
    finally:
        launch.let_go()
