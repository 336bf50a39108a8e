"""The probes of the machine: run on this CPU for real, within little time, and with a fault planted where one is looked for."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import environment
from harness.box import disk as probe_disk
from harness.box import probes
from harness.box import ranks as probe_ranks
from harness.box.laps import Lane, lap_count, laps, steady
from harness.box.probes import CPU, GIB, MIB, SIDES, Failed, NotRun, Rate, rate

SHORT_S = 0.05
PATIENCE_S = 300.0  # for ranks on a machine that has other work
SMALL = 8 * MIB


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_work_of_a_lap_over_the_median_lap() -> None:
    assert rate(100.0, (1.0, 2.0, 60.0)) == 50
    assert rate(100.0, (4.0,)) == 25


def test_a_ring_carries_twice_the_bytes_but_for_a_ranks_own_share() -> None:
    assert probe_ranks.bus_bytes(2, 400) == 400
    assert probe_ranks.bus_bytes(8, 400) == 700


def test_the_laps_fill_the_time_and_are_enough_for_a_median() -> None:
    assert lap_count(0.5, 10) == 20
    assert lap_count(3, 1) == 4


def test_the_first_quarter_of_the_laps_warms_up() -> None:
    assert steady((8.0, 7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert steady((5.0,)) == (5.0,)


# --- laps ---------------------------------------------------------------------------------------------------------


def test_lanes_run_side_by_side_and_each_has_its_laps() -> None:
    seen: list[str] = []
    found = laps([Lane(CPU, lambda: seen.append("a")), Lane(CPU, lambda: seen.append("b"))], 3)
    assert "".join(seen) == "ababab"
    assert [len(lap_s) for lap_s in found] == [3, 3]


def test_a_lap_is_timed_from_the_end_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    seconds = iter((1.0, 0.5, 4.0))

    def work() -> None:
        now_s[0] += next(seconds)

    assert laps([Lane(CPU, work)], 3) == [(1.0, 0.5, 4.0)]


def test_one_lap_is_taken_however_late_it_is() -> None:
    assert [len(lap_s) for lap_s in laps([Lane(CPU, lambda: None)], 100, deadline_s=0.0)] == [1]


# --- for a run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_matrix_product_counts_two_operations_for_every_term(dtype: torch.dtype) -> None:
    peak = probes.matrix_product(CPU, dtype, SHORT_S)
    assert peak.work in {2.0 * side**3 for side in SIDES}
    assert peak.lap_s
    assert min(peak.lap_s) > 0


def test_a_product_whose_next_would_take_too_long_is_the_largest() -> None:
    assert probes.product_side(CPU, torch.float32, 0.0) == 256


def test_a_product_is_of_the_side_that_runs_at_the_highest_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    lap_s = {256: 1.0, 512: 4.0, 1024: 40.0}
    monkeypatch.setattr(probes, "product", lambda _device, _dtype, side: side)
    monkeypatch.setattr(probes, "one_lap_s", lambda lane: lap_s[lane[0]])
    monkeypatch.setattr(probes, "SIDES", tuple(lap_s))
    assert probes.product_side(CPU, torch.float32, 1e9) == 512


def test_no_product_is_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "one_lap_s", lambda _lane: 1e-9)
    monkeypatch.setattr(probes, "quickest_s", lambda _lane: 1e-9)
    # Three matrices of 512 x 512 float32 numbers are 3 MiB.
    monkeypatch.setattr(probes, "spare_bytes", lambda device: 6 * MIB)
    assert probes.product_side(CPU, torch.float32, 1e9) == 512
    monkeypatch.setattr(probes, "spare_bytes", lambda device: 6 * MIB - 1)
    assert probes.product_side(CPU, torch.float32, 1e9) == 256
    monkeypatch.setattr(probes, "spare_bytes", lambda device: 3 * MIB)
    assert probes.product_side(CPU, torch.bfloat16, 1e9) == 512


def test_the_work_is_a_product_of_normal_numbers() -> None:
    one, other = probes.random_numbers(CPU, 2, 256, 256)
    found = probes.product(CPU, torch.float32, 256).work()
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, one @ other)
    # 131,072 draws: five standard errors of their mean and spread.
    numbers = torch.stack((one, other))
    assert abs(float(numbers.mean())) < 0.014
    assert abs(float(numbers.std()) - 1) < 0.01


def test_a_copy_counts_what_is_read_and_what_is_written() -> None:
    peak = probes.copy(CPU, SHORT_S, SMALL)
    assert peak.work == 2 * SMALL
    assert min(peak.lap_s) > 0


def test_a_copy_takes_no_more_than_a_quarter_of_the_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "spare_bytes", lambda device: 64 * MIB)
    assert probes.random_buffer(CPU, GIB).nbytes == 16 * MIB
    assert probes.random_buffer(CPU, 8 * MIB).nbytes == 8 * MIB


def test_the_random_numbers_of_a_run_go_on_as_if_nobody_had_asked() -> None:
    before = torch.get_rng_state()
    probes.matrix_product(CPU, torch.float32, 0.0)
    probes.copy(CPU, 0.0, SMALL)
    assert torch.equal(torch.get_rng_state(), before)


# --- the box ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpus")
def test_a_cpu_multiplies_in_fp32_on_all_its_cores_and_gives_them_back() -> None:
    before = torch.get_num_threads()
    (found,) = probes.matrix_products(SHORT_S)
    assert (found.name, found.unit, found.devices) == ("matrix product fp32", "TFLOP/s", ("CPU",))
    assert found.values[0] > 0
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("no_gpus")
def test_a_cpu_copies() -> None:
    (found,) = probes.copies(SHORT_S, SMALL)
    assert (found.name, found.unit, found.devices) == ("copy", "GB/s", ("CPU",))
    assert found.values[0] > 0
    assert found.detail == "8 MiB, read plus written"


@pytest.mark.usefixtures("no_gpus")
def test_a_cpu_has_no_links_to_ask() -> None:
    assert probes.host_to_device(SHORT_S) == []
    assert probes.peer_to_peer(SHORT_S) == []


def test_one_gpu_alone_has_nobody_to_reduce_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert probes.peer_to_peer(SHORT_S) == []
    assert probes.all_reduce(SHORT_S) == []


@pytest.mark.usefixtures("no_gpus")
def test_a_cpu_decodes_the_built_in_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "IMAGES", 4)
    (found,) = probes.jpeg_decodes(SHORT_S)
    assert (found.name, found.unit, found.devices) == ("JPEG decode", "images/s", ("CPU",))
    assert found.values[0] > 0
    assert f"CPU threads: {environment.cpu_cores_usable()}" in found.detail


def test_the_decoder_of_a_gpu_can_be_built() -> None:
    files = [np.zeros(1, np.uint8)]
    assert b"mixed" in probes.decoder("mixed", files, 1, None).serialize()
    assert b"mixed" not in probes.decoder("cpu", files, 1, None).serialize()


@pytest.mark.usefixtures("no_gpus")
def test_without_dali_nothing_is_decoded_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(probes, "IMAGES", 1)
    with pytest.raises(NotRun, match=r"^needs nvidia\.dali, which is not installed$"):
        probes.jpeg_decodes(SHORT_S)


@pytest.mark.usefixtures("no_gpus")
def test_a_sick_device_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors " + 200 * "x")

    monkeypatch.setattr(torch, "mm", sick)
    with pytest.raises(
        Failed, match=r"^CUDA error: uncorrectable ECC error encountered CUDA kernel errors \[\.\.\.\]$"
    ):
        probes.matrix_products(SHORT_S)


@pytest.mark.gpus(1)
def test_every_gpu_answers_what_one_gpu_can_be_asked() -> None:
    names = tuple(map(probes.name_of, probes.devices()))
    asked: list[Callable[[float], list[Rate]]] = [probes.matrix_products, probes.copies, probes.host_to_device]
    found = [each for probe in (*asked, probes.jpeg_decodes) for each in probe(SHORT_S)]
    assert [each.devices for each in found] == [names] * 5
    assert min(value for each in found for value in each.values) > 0


@pytest.mark.gpus(2)
def test_every_pair_of_gpus_and_all_of_them_together_answer() -> None:
    (pairs,), (together,) = probes.peer_to_peer(SHORT_S), probes.all_reduce(SHORT_S, patience_s=PATIENCE_S)
    gpus = torch.cuda.device_count()
    assert len(pairs.devices) == len(pairs.values) == gpus * (gpus - 1)
    assert together.devices == (f"{gpus} GPUs",)
    assert min(*pairs.values, *together.values) > 0


# --- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpus")
def test_two_ranks_of_a_cpu_reduce_and_say_which_bytes_are_counted() -> None:
    (found,) = probes.all_reduce(SHORT_S, numbers=250_000, patience_s=PATIENCE_S)
    assert (found.name, found.unit, found.devices) == ("all-reduce", "GB/s", ("CPU",))
    assert found.values[0] > 0
    assert found.detail == "gloo, 2 ranks, 1 MB; bus GB/s: 2 (N - 1) / N of the bytes a second"
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_gpus")
def test_ranks_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_ranks, "all_reduce_rank", hang)
    with pytest.raises(Failed, match=r"^the ranks did not end within 0\.1 s$"):
        probes.all_reduce(SHORT_S, patience_s=0.0)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_gpus")
def test_a_rank_that_dies_ends_the_other_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_ranks, "all_reduce_rank", die_or_hang)
    with pytest.raises(Failed, match=r"^a rank failed: RuntimeError: NCCL error: unhandled system error$"):
        probes.all_reduce(SHORT_S, patience_s=PATIENCE_S)
    assert multiprocessing.active_children() == []


def hang(*_: Any) -> None:
    signal.pause()


def die_or_hang(index: int, *_: Any) -> None:
    if index == 1:
        raise RuntimeError("NCCL error: unhandled system error")
    signal.pause()


# --- disk ---------------------------------------------------------------------------------------------------------

FILE_BYTES = 2 * probe_disk.BLOCK_BYTES


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to read from, also where pytest's lies in memory."""
    monkeypatch.setattr(probes, "IN_MEMORY", ())
    return tmp_path


@pytest.fixture
def no_direct_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refusing(descriptor: int, command: int, *flags: int) -> int:
        if command == fcntl.F_SETFL and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", refusing)


def open_files_in(folder: Path) -> list[str]:
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists()]
    return [link for link in links if link.startswith(str(folder))]


def test_a_disk_is_read_and_left_as_it_was(disk: Path) -> None:
    (found,) = probes.disk_read(disk, SHORT_S, FILE_BYTES)
    assert (found.name, found.unit, found.devices) == ("disk read", "GB/s", (str(disk),))
    assert found.values[0] > 0
    assert found.detail.partition(", ")[2] in ("O_DIRECT", "page cache dropped (no O_DIRECT here)")
    assert list(disk.iterdir()) == []


@pytest.mark.usefixtures("no_direct_reading")
def test_a_file_system_without_direct_reading_is_read_past_its_cache(disk: Path) -> None:
    (found,) = probes.disk_read(disk, SHORT_S, FILE_BYTES)
    assert found.detail.endswith("page cache dropped (no O_DIRECT here)")


def disk_read_bytes() -> int:
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["read_bytes"])


@pytest.mark.parametrize("direct", [True, False], ids=["O_DIRECT", "page cache"])
def test_what_is_read_comes_from_the_disk_each_time(
    tmp_path: Path, direct: bool, request: pytest.FixtureRequest
) -> None:
    if environment.filesystem_of(tmp_path) in probes.IN_MEMORY:
        pytest.skip("pytest's folder lies in memory")
    if not direct:
        request.getfixturevalue("no_direct_reading")
    with probe_disk.scratch_file(tmp_path, FILE_BYTES, PATIENCE_S) as file:
        for _ in range(2):
            before = disk_read_bytes()
            for _ in range(FILE_BYTES // probe_disk.BLOCK_BYTES):
                file.read_block()
            assert disk_read_bytes() - before >= FILE_BYTES


def test_an_interruption_leaves_nothing_on_the_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Path], int]] = []

    def interrupted(*_: Any) -> int:
        seen.append((list(disk.iterdir()), len(open_files_in(disk))))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "preadv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probes.disk_read(disk, SHORT_S, FILE_BYTES)
    # The file is there and has no name: not even a kill would leave it.
    assert seen == [([], 1)]
    assert open_files_in(disk) == []


def test_a_disk_that_gives_less_than_it_took_has_failed(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: real(*arguments) - 512)
    with pytest.raises(Failed, match=r"^the disk gave less of a file than was written$"):
        probes.disk_read(disk, SHORT_S, FILE_BYTES)


def test_a_full_disk_is_not_filled_further(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: real(folder)._replace(free=3 * GIB // 2))
    with pytest.raises(NotRun, match=r"has 1\.5 GiB free, and it takes 2$"):
        probes.disk_read(disk, SHORT_S)


def test_a_folder_in_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = environment.filesystem_of(tmp_path)
    monkeypatch.setattr(probes, "IN_MEMORY", (kind,))
    with pytest.raises(NotRun, match=rf"lies in memory \({kind}\)$"):
        probes.disk_read(tmp_path, SHORT_S)


def test_a_folder_that_is_not_there_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match=r"cannot be written$"):
        probes.disk_read(tmp_path / "none", SHORT_S)
