"""Runs of the harness in processes of their own: what they say, what they append, and what of them is left running."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# How two ranks share the smallest network that each scheme can share.
SCHEMES = {
    "data": ("--cpus", "2", "--parallel", "data", "--model", "cifar-18pct"),
    "columns": ("--cpus", "2", "--parallel", "columns"),
    "hybrid": ("--cpus", "2", "--parallel", "hybrid"),
}
FOR_EVER = ("--steps", "100000")
MARK = "HARNESS_TEST_RUN"


def draw_pictures(root: Path) -> Path:
    """Three classes told apart by colour, eight images each for training and two for validation."""
    for number, colour in enumerate(("red", "green", "blue")):
        for split, images in (("train", 8), ("val", 2)):
            (root / split / colour).mkdir(parents=True)
            for image in range(images):
                picture = Image.effect_noise((96 + image, 80 + number), 90).convert("RGB")
                Image.blend(picture, Image.new("RGB", picture.size, colour), 0.5).save(
                    root / split / colour / f"{image}.jpg"
                )
    return root


def run_words(pictures: Path, table: Path, *words: str) -> list[str]:
    """What follows `python` in a run on a few images, for which nothing is compiled unless it is asked."""
    if "--compile" not in words:
        words = ("--compile", "off", *words)
    if "--model" not in words:
        words = ("--init", "paper", *words)
    of_what = ("--data", str(pictures), "--table", str(table), "--images-per-gpu", "2")
    return ["-m", "harness", "run", *of_what, *words]


def finished(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with these words, from its beginning to its end."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=240)


def harness(*words: str) -> subprocess.CompletedProcess[str]:
    return finished("-m", "harness", *words)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def verified(table: Path) -> bool:
    return harness("verify", str(table)).returncode == 0


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.1)
    return what()


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


# --- processes ----------------------------------------------------------------------------------------------------


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has, and waits for its parent to look."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def words_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def marked(mark: str) -> set[psutil.Process]:
    """The processes alive whose environment has this mark: whoever inherits it, wherever its parents went."""
    found = set()
    for process in psutil.process_iter():
        # Others end while they are looked at, and some may not be looked at.
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and lives(process):
                found.add(process)
    return found


def listening_ports(processes: Collection[psutil.Process] | None = None) -> set[int]:
    """The ports at which these processes listen; at which any process does, if left out."""
    pids = None if processes is None else {process.pid for process in processes}
    return {
        connection.laddr.port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and (pids is None or connection.pid in pids)
    }


class Started:
    """A job under way in a session of its own, as a terminal would start it: a process, and all that it starts."""

    def __init__(
        self, table: Path, *words: str, cwd: Path = ROOT, environment: Mapping[str, str] = MappingProxyType({})
    ):
        self.table, self.mark = table, uuid.uuid4().hex
        self.family: set[psutil.Process] = set()
        self.ports: set[int] = set()
        self.output = table.parent / f"{self.mark}.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=cwd,
                env={**os.environ, **environment, MARK: self.mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self) -> set[psutil.Process]:
        """Its processes now; they and the ports at which they listen are remembered."""
        alive = marked(self.mark)
        for process in tuple(alive):
            with contextlib.suppress(psutil.Error):
                alive.update(process.children(recursive=True))
        self.family |= alive
        self.ports |= listening_ports(alive)
        return alive

    def reaches(self, phase: str, within_s: float = 120) -> bool:
        """Whether it comes so far before it ends; its processes are looked at then."""

        def reached() -> bool:
            told = any(f'"{phase}"' in path.read_text() for path in self.table.parent.glob("runs/*/progress.jsonl"))
            return told or self.process.poll() is not None

        came = wait_for(reached, within_s) and self.process.poll() is None
        self.look()
        return came

    def rank(self, index: int) -> psutil.Process | None:
        """The process that is this rank, if it lives; what a rank starts is younger and inherits its place."""
        born = []
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("RANK") == str(index)
                if mine and {"harness", "harness.rank"} & set(words_of(process)):
                    born.append((process.create_time(), process.pid, process))
        return min(born)[2] if born else None

    def send_rank(self, index: int, number: signal.Signals) -> None:
        """Send the rank a signal, after a look at all that might outlive it."""
        victim = self.rank(index)
        assert victim is not None, self.output.read_text()
        victim.send_signal(number)

    def folder(self) -> Path:
        (folder,) = self.table.parent.glob("runs/*")
        return folder

    def ends_with(self, within_s: float = 120) -> tuple[int, str]:
        """(exit status, all that was said)."""
        return self.process.wait(timeout=within_s), self.output.read_text()

    def left_running(self) -> list[str]:
        """What lives of it, in words."""
        left = [process for process in self.family | marked(self.mark) if lives(process)]
        return [f"{process.pid}: {' '.join(words_of(process))[:200]}" for process in left]

    def leaves_nothing(self, within_s: float = 5) -> bool:
        """Whether none of its processes is left, and no port is held at which one listened."""
        return wait_for(lambda: not self.left_running() and not self.ports & listening_ports(), within_s)

    def clear_away(self) -> None:
        """Kill whatever is left."""
        for process in self.family | marked(self.mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
