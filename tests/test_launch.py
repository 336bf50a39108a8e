"""What "auto" becomes, what the ranks leave behind, and the sentence about a rank that died."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from literals import rank_of

from harness import folders, launch, resolve
from harness.config import AskedWrongly, RunConfig
from harness.metrics import validity

ROOT = Path(__file__).parents[1]


def test_without_gpus_and_cpus_it_is_the_first_gpu_or_else_the_cpu() -> None:
    on_gpu, on_cpu = (resolve.resolve(RunConfig(), cores=16, gpus=gpus) for gpus in (4, 0))
    assert (on_gpu.gpus, on_gpu.cpus, on_gpu.ranks) == (1, 0, 1)
    assert (on_cpu.gpus, on_cpu.cpus, on_cpu.ranks) == (0, 1, 1)


def test_the_cores_are_shared_by_the_ranks_and_never_none() -> None:
    assert resolve.resolve(RunConfig(cpus=2), cores=2, gpus=0).torch_threads == 1
    assert resolve.resolve(RunConfig(cpus=3), cores=2, gpus=0).dali_threads == 1
    assert resolve.resolve(RunConfig(gpus=2), cores=64, gpus=2).dali_threads == 8


def test_a_typed_setting_beats_auto() -> None:
    config = resolve.resolve(RunConfig(gpus=1, decode="cpu", dali_threads=5, compile="off"), cores=64, gpus=1)
    assert (config.decode, config.dali_threads, config.compile, config.hw_decoder_load) == ("cpu", 5, "off", None)


def test_the_block_is_fused_wherever_it_can_be() -> None:
    on_cpu = {"cores": 2, "gpus": 0}
    assert resolve.resolve(RunConfig(cpus=1), **on_cpu).block == "fused"
    assert resolve.resolve(RunConfig(cpus=1), **on_cpu, compiler=False).block == "plain"
    assert resolve.resolve(RunConfig(cpus=1), **on_cpu, fusible=False).block == "plain"
    assert resolve.resolve(RunConfig(cpus=1, block="plain"), **on_cpu).block == "plain"
    assert resolve.resolve(RunConfig(gpus=1), cores=2, gpus=1, compiler=False).block == "fused"


def test_what_is_computed_does_not_depend_on_the_machine() -> None:
    small, large = (resolve.resolve(RunConfig(), cores=c, gpus=g) for c, g in ((2, 0), (128, 8)))
    differing = {name for name, value in small.columns().items() if value != large.columns()[name]}
    assert differing <= {"gpus", "cpus", "decode", "dali_threads", "torch_threads", "hw_decoder_load"}


@pytest.mark.parametrize(("asked", "found"), [(2, 1), (1, 0)])
def test_too_few_gpus_are_refused_with_the_number_found(asked: int, found: int) -> None:
    with pytest.raises(AskedWrongly, match=f"--gpus {asked} was asked and {found} GPU.* --cpus {asked}"):
        resolve.check_gpus(asked, found)


def test_a_gpu_decoder_for_cpu_ranks_is_refused() -> None:
    with pytest.raises(AskedWrongly, match=r"--decode mixed .* --gpus"):
        resolve.check_shape(RunConfig(cpus=1, decode="mixed"), train_images=100)


def test_more_ranks_than_images_are_refused() -> None:
    with pytest.raises(AskedWrongly, match="3 ranks were asked and 2 training images were found"):
        resolve.check_shape(RunConfig(cpus=3), train_images=2)


def rank_file(folder: Path, rank: int, failure: str = "", trial: dict | None = None) -> None:
    (folder / f"rank-{rank}.json").write_text(json.dumps({"failure": failure, "trial": trial}))


def begun(folder: Path) -> folders.Launch:
    """A launch of two CPU ranks whose folder this is."""
    told = {"dataset": {"classes": 10, "train_images": 8}}
    return folders.Launch(folder, RunConfig(cpus=2), limits=True, told=told)


def test_a_rank_that_left_nothing_makes_a_failed_trial(tmp_path: Path) -> None:
    trial = begun(tmp_path).trial("", stopped=False)
    assert trial.failure == "only 0 of 2 ranks left a trial"


def test_a_rank_out_of_memory_is_told_as_that_though_the_agent_ended_the_others(tmp_path: Path) -> None:
    rank_file(tmp_path, 1, trial=asdict(rank_of(1, windows=(), out_of_memory=True)))
    trial = begun(tmp_path).trial("", stopped=False)
    assert validity.status_and_reason(trial) == ("oom", "out of GPU memory at 32 images a rank")


def test_a_ranks_own_words_are_the_reason(tmp_path: Path) -> None:
    rank_file(tmp_path, 0, failure="cat.jpg is truncated: replace it")
    failures = {0: SimpleNamespace(exitcode=1, timestamp=5), 1: SimpleNamespace(exitcode=-9, timestamp=6)}
    assert launch.why_ranks_failed(failures, tmp_path) == "cat.jpg is truncated: replace it"


def test_a_killed_rank_is_named_with_the_signal_and_the_phase(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text('{"phase": "start"}\n{"phase": "timed", "step": 3, "steps": 9}\n')
    failures = {1: SimpleNamespace(exitcode=-signal.SIGKILL, timestamp=5)}
    assert launch.why_ranks_failed(failures, tmp_path).startswith("rank 1 ended by SIGKILL while timed; see ")


def test_the_ranks_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    with launch.rank_environment(resolve.resolve(RunConfig(cpus=2), cores=2, gpus=0)):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before


FREED_BY_ITS_OWN_THREAD = """
import threading, time, weakref
from datetime import timedelta
from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer
from harness import launch
{install}
class Handler:
    def start(self):
        self.timer = _PeriodicTimer(timedelta(milliseconds=10), Handler.beat, weakref.ref(self))
        self.timer.start()
        self.thread = self.timer._thread
    @staticmethod
    def beat(weak):
        handler = weak()
        time.sleep(0.3)
handler = Handler()
handler.start()
thread = handler.thread
time.sleep(0.1)
del handler
thread.join(10)
class Loud:
    def __del__(self):
        raise ValueError("another's")
Loud()
"""


@pytest.mark.parametrize("install", ["launch.overlook_the_timer()\n" * 2, ""], ids=["overlooked", "as torch has it"])
def test_torchs_timer_freed_by_its_own_thread_says_nothing_and_others_still_speak(install: str) -> None:
    program = FREED_BY_ITS_OWN_THREAD.format(install=install)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "ValueError: another's" in done.stderr
    assert ("cannot join current thread" in done.stderr) == (not install)


def test_the_plan_says_the_minutes_it_expects() -> None:
    config = RunConfig(gpus=2, timed_seconds=30.0, launches=3, recipe="throughput")
    assert resolve.plan(config).endswith(
        "on 2 GPUs (data), 128 images a rank, 30 timed seconds, 3 launches; about 5 minutes"
    )
