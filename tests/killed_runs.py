"""Runs that save themselves in processes of their own, to be killed: each beside the run of its case that nobody stopped."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path

import psutil
from runs import ROOT, SCHEMES, Started, finished, rows, run_words, wait_for
from saved_runs import differences, kept, process_group_of_one, unfinished

from harness.results import verify

# As a group's second launch, which measures no parts alone when it has trained.
SECOND = (str(ROOT / "tests" / "second_launch.py"), "run")
EPOCHS = 24
SMALL_NET = ("--learning-rate", "0.0003", "--epochs", str(EPOCHS), "--checkpoint-every", "16", "--evaluate-every", "24")
# Of the large network, one checkpoint in the middle of four steps, and one at the end.
LARGE_NET = ("--epochs", "0.66", "--checkpoint-every", "8", "--keep", "1")
CASES = {
    "one": ("--cpus", "1", "--torch-threads", "1", "--model", "cifar-18pct", *SMALL_NET),
    "data": (*SCHEMES["data"], *SMALL_NET),
    "columns": (*SCHEMES["columns"], *LARGE_NET),
    "hybrid": (*SCHEMES["hybrid"], *LARGE_NET),
}
FOR_EVER = ("--epochs", "100000", "--checkpoint-every", "16")
ENDS_WITHIN_S = 150


class Saving(Started):
    """A run that saves itself in a folder of its own, beside those of other runs of its table."""

    def __init__(self, table: Path, *words: str):
        self.before = set(table.parent.glob("runs/*"))
        super().__init__(table, *words)

    def folders(self) -> set[Path]:
        """Its own, if it has come so far."""
        return set(self.table.parent.glob("runs/*")) - self.before

    def folder(self) -> Path:
        (folder,) = self.folders()
        return folder

    def step(self) -> int:
        """The newest that it has saved; 0 where there is none."""
        names = [path.name for folder in self.folders() for path in folder.glob("checkpoints/step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def saves(self, after: int = 0) -> bool:
        """Whether it comes to save a step later than this one before it ends."""
        return wait_for(lambda: self.step() > after or self.ended(), 120) and not self.ended()

    def is_saving(self) -> bool:
        """Whether it comes to write a checkpoint, which is looked for without a pause, and does so now."""
        end_s = time.monotonic() + 120
        while time.monotonic() < end_s and not self.ended():
            if unfinished(self.folders()):
                return True
        return False

    def ended(self) -> bool:
        return self.process.poll() is not None


class Runs:
    """Runs of one table, as a test starts them one after the other."""

    def __init__(self, pictures: Path, table: Path):
        self.pictures, self.table = pictures, table
        self.begun: list[Saving] = []

    def begin(self, *words: str) -> Saving:
        return self.start(*SECOND, *run_words(self.pictures, self.table, *words)[3:])

    def go_on(self, folder: Path, *words: str) -> Saving:
        """From what the run of this folder saved last."""
        places = ("--data", str(self.pictures), "--table", str(self.table))
        return self.start(*SECOND, "--resume", str(folder), *places, *words)

    def start(self, *words: str) -> Saving:
        """Python with these words."""
        self.begun.append(Saving(self.table, *words))
        return self.begun[-1]

    def clear_away(self) -> None:
        for each in self.begun:
            each.clear_away()


class NeverStopped:
    """By case, the folder of the run that nobody stopped."""

    def __init__(self, pictures: Path, root: Path):
        self.pictures, self.root = pictures, root

    def __getitem__(self, case: str) -> Path:
        root = self.root / case
        if not root.exists():
            self.make(case, root)
        (folder,) = root.glob("runs/*")
        return folder

    def make(self, case: str, root: Path) -> None:
        if case == "one":
            # One rank is the same in this process, too.
            once = {"images_per_gpu": 2, "epochs": float(EPOCHS), "checkpoint_every": 10**6, "keep": 2}
            with process_group_of_one():
                kept(self.pictures, root, **once)
            return
        once = ("--checkpoint-every", "1000000", "--quiet")
        root.mkdir()
        done = finished(*SECOND, *run_words(self.pictures, root / "table.csv", *CASES[case], *once)[3:])
        assert done.returncode == 0 or clocks_alone_doubt(*rows(root / "table.csv")), done.stderr


def restarted(run: Saving, dead: psutil.Process | None) -> bool:
    """Whether both ranks live again after one has died."""

    def both() -> bool:
        ranks = [run.rank(index) for index in range(2)]
        return all(rank is not None and rank != dead for rank in ranks) or run.ended()

    return wait_for(both, 120) and not run.ended()


def kill_rank(run: Saving, index: int) -> psutil.Process | None:
    victim = run.rank(index)
    if victim is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    return victim


def kill_launcher(run: Saving) -> None:
    """All that it has started ends with it; a rank that is being started, once it has read what it is made of."""
    run.look()
    run.process.kill()
    run.process.wait()
    assert run.leaves_nothing(within_s=40), run.left_running()


def clocks_alone_doubt(row: dict[str, str]) -> bool:
    """Whether a row is invalid for nothing else than two clocks: on a busy machine they are read apart, and these windows are short."""
    reasons = row["status_reason"].split("; ")
    return row["status"] == "invalid" and all("clock says" in each or "a second clock" in each for each in reasons)


def ends_well(run: Saving, whole: Path) -> dict[str, str]:
    """The row of a run that ends as `whole` did, and leaves nothing."""
    status, output = run.ends_with(ENDS_WITHIN_S)
    row = rows(run.table)[-1]
    assert (status, row["status"]) == (0, "ok") or clocks_alone_doubt(row), output
    assert run.leaves_nothing(), run.left_running()
    assert "Traceback" not in output
    (folder,) = run.table.parent.glob(f"runs/{row['run_id']}")
    assert differences(folder, whole) == []
    assert unfinished(run.table.parent.glob("runs/*")) == []
    assert verify(run.table) == []
    return row


def told_to_go_on(output: str) -> list[str]:
    """The words that a person is told, as a shell takes them; `python` is this one."""
    (line,) = [line for line in output.splitlines() if line.startswith("go on with: ")]
    python, *words = shlex.split(line.removeprefix("go on with: "))
    assert python == "python"
    return words
