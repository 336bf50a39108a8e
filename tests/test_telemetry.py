"""Telemetry: each number exact on literals, and what the real pynvml sees of a stand-in driver whose cards misbehave."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stand_in
from literals import rank_of, trial_of

from harness import environment
from harness.metrics import telemetry as told
from harness.telemetry import FAILURES_MAX, CpuEnergy, Sensor, Telemetry, others_utilisation, own_bytes, used_by_others
from harness.trial import Meters, RankTrial, Sample, Trial, Window

ROOT = Path(__file__).parents[1]
GIB, MIB = 2**30, 2**20
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80


def leaks(trial: Trial) -> bool:
    return told.is_leak(told.memory_growth_mib_per_1000_steps(trial))


def open_window(start_s: float = 0.0, stop_s: float = 100.0) -> Window:
    return Window(start_s, stop_s, (100.0,), (1.0,))


def samples_of(name: str, *values: Any) -> tuple[Sample, ...]:
    return tuple(Sample(at_s=float(place), steps=place, **{name: value}) for place, value in enumerate(values))


def watched(*samples: Sample, rank: int = 0, **changes: Any) -> RankTrial:
    """A rank with one window, from second 0 to 100, and these samples."""
    return rank_of(rank, windows=(open_window(),), samples=samples, **changes)


def trial_with(name: str, *values: Any) -> Trial:
    """One rank whose samples have this field alone."""
    return trial_of(watched(*samples_of(name, *values)))


def two_ranks(name: str, first: Sequence[Any], second: Sequence[Any]) -> Trial:
    return trial_of(watched(*samples_of(name, *first)), watched(*samples_of(name, *second), rank=1))


def metered(*pairs: tuple[Meters | None, Meters | None], rank: int = 0, **changes: Any) -> RankTrial:
    """A rank of ten-second windows between these pairs of meters, with 320 images counted."""
    windows = tuple(
        Window(20.0 * place, 20.0 * place + 10, (100.0,), (1.0,), opened=opened, closed=closed)
        for place, (opened, closed) in enumerate(pairs)
    )
    return rank_of(rank, windows=windows, **changes)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_a_sample_counts_only_while_one_of_its_ranks_windows_is_open() -> None:
    moments = (0.9, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.1)
    samples = tuple(Sample(at_s=at_s, steps=0, temperature_c=at_s) for at_s in moments)
    rank = rank_of(windows=(open_window(3.0, 4.0), open_window(1.0, 2.0)), samples=samples)
    assert [sample.at_s for sample in told.samples_in_windows(rank)] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert told.samples_in_windows(rank_of(windows=(), samples=samples)) == []


def test_a_hot_and_shared_card_outside_the_windows_is_no_matter() -> None:
    before = Sample(-1.0, 0, clock_event_reasons=HW_THERMAL, other_process_utilisation_pct=90.0, temperature_c=99.0)
    within = Sample(1.0, 1, clock_event_reasons=0, other_process_utilisation_pct=0.0, temperature_c=60.0)
    trial = trial_of(watched(before, within))
    assert (told.throttled_pct(trial), told.throttle_reasons(trial), told.throttled(trial)) == (0.0, None, "")
    assert (told.other_process_utilisation_pct(trial), told.contaminated(trial)) == (0.0, "")
    assert told.temperature_c_max(trial) == 60.0


def test_utilisations_and_load_are_means_over_samples_and_ranks() -> None:
    for name, metric in (
        ("gpu_utilisation_pct", told.gpu_utilisation_pct),
        ("jpeg_utilisation_pct", told.jpeg_utilisation_pct),
        ("host_load", told.host_load),
    ):
        assert metric(two_ranks(name, (90.0, 100.0, None), (20.0,))) == 70.0


def test_clock_is_the_median_and_temperature_the_highest() -> None:
    assert told.sm_clock_mhz_p50(two_ranks("sm_clock_mhz", (1900.0, 1500.0), (1000.0, None))) == 1500.0
    assert told.temperature_c_max(two_ranks("temperature_c", (60.0, 71.0), (64.0,))) == 71.0


def test_power_is_the_jobs_and_unknown_where_a_rank_does_not_tell_its_own() -> None:
    assert told.power_w(two_ranks("power_w", (300.0, 400.0, None), (100.0,))) == 450.0
    assert told.power_w(two_ranks("power_w", (300.0,), (None,))) is None


METRICS = (
    told.gpu_utilisation_pct,
    told.jpeg_utilisation_pct,
    told.sm_clock_mhz_p50,
    told.power_w,
    told.temperature_c_max,
    told.power_capped_pct,
    told.throttled_pct,
    told.throttle_reasons,
    told.other_process_utilisation_pct,
    told.energy_j_per_image,
    told.disk_read_gb_per_s,
    told.host_load,
    told.page_cache,
    told.gpu_peak_process_gib,
    told.gpu_peak_other_gib,
    told.memory_growth_mib_per_1000_steps,
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("trial", [trial_of(), trial_with("host_load", None, None), trial_of(ranks=())])
def test_without_a_sensor_there_is_no_number(metric: Any, trial: Trial) -> None:
    assert metric(trial) is None
    assert (told.throttled(trial), told.contaminated(trial), leaks(trial)) == ("", "", False)


def test_clock_event_reasons_have_names_by_bit() -> None:
    import pynvml

    for bit, name in told.CLOCK_EVENT_REASONS.items():
        assert told.names_of(bit) == {name}
    assert told.names_of(0x44) == {"sw_power_cap", "hw_thermal_slowdown"}
    assert told.names_of(0) == told.names_of(0x8000) == set()
    bits = {name: bit for bit, name in told.CLOCK_EVENT_REASONS.items()}
    assert bits == {
        "gpu_idle": pynvml.nvmlClocksEventReasonGpuIdle,
        "applications_clocks": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
        "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
        "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
        "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "hw_thermal_slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
        "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
        "display_clocks": pynvml.nvmlClocksEventReasonDisplayClockSetting,
    }


@pytest.mark.parametrize("reason", [HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE])
def test_heat_hardware_and_the_power_brake_throttle_the_worst_rank(reason: int) -> None:
    trial = two_ranks("clock_event_reasons", (0,) * 10, (reason, reason | SW_POWER_CAP, 0, 0, None))
    assert told.throttled_pct(trial) == 50.0
    assert told.power_capped_pct(trial) == 100 / 14
    name = told.CLOCK_EVENT_REASONS[reason]
    assert told.throttled(trial) == (
        f"rank 1's GPU was slowed down in 50 % of the samples ({name}): look at its cooling and power supply"
    )
    assert set(str(told.throttle_reasons(trial)).split("+")) == {"sw_power_cap", name}


def test_a_software_power_cap_is_a_column_and_no_throttling() -> None:
    trial = trial_with("clock_event_reasons", *(SW_POWER_CAP,) * 19, 0x111)
    assert (told.power_capped_pct(trial), told.throttled_pct(trial)) == (95.0, 0.0)
    assert (told.throttle_reasons(trial), told.throttled(trial)) == ("sw_power_cap", "")


def test_reasons_are_told_once_each_in_the_order_of_their_bits() -> None:
    trial = two_ranks("clock_event_reasons", (HW_POWER_BRAKE | HW_SLOWDOWN, SW_POWER_CAP), (HW_SLOWDOWN, 0x1))
    assert told.throttle_reasons(trial) == "sw_power_cap+hw_slowdown+hw_power_brake"


def test_one_slow_sample_in_twenty_is_not_yet_throttled_and_one_in_nineteen_is() -> None:
    assert told.throttled(trial_with("clock_event_reasons", HW_THERMAL, *(0,) * 19)) == ""
    assert "in 5.26 % of the samples" in told.throttled(trial_with("clock_event_reasons", HW_THERMAL, *(0,) * 18))


def test_others_on_the_worst_ranks_gpu_contaminate_above_five_per_cent() -> None:
    trial = two_ranks("other_process_utilisation_pct", (0.0, 5.0, None), (30.0, 50.0))
    assert told.other_process_utilisation_pct(trial) == 40.0
    assert told.contaminated(trial) == (
        "other processes used 40 % of rank 1's GPU: run again where nobody else computes"
    )
    assert told.contaminated(trial_with("other_process_utilisation_pct", 4.0, 6.0)) == ""


def joules(opened: float | None, closed: float | None) -> tuple[Meters, Meters]:
    return Meters(energy_j=opened), Meters(energy_j=closed)


def test_energy_is_summed_over_ranks_and_windows_and_nothing_between_them() -> None:
    on_gpu: dict[str, Any] = {"gpu_total_bytes": 80 * GIB}
    first = metered(joules(100.0, 420.0), joules(1000.0, 1320.0), **on_gpu)
    second = metered(joules(0.0, 320.0), joules(320.0, 640.0), rank=1, **on_gpu)
    assert told.energy_j_per_image(trial_of(first, second)) == 1280 / 640


@pytest.mark.parametrize("bad", [joules(None, 5.0), joules(5.0, None), joules(900.0, 5.0), (None, None)])
def test_energy_is_unknown_where_a_gpu_or_a_window_lacks_it_or_its_counter_began_again(
    bad: tuple[Meters | None, Meters | None],
) -> None:
    on_gpu: dict[str, Any] = {"gpu_total_bytes": 80 * GIB}
    good = metered(joules(0.0, 320.0), joules(320.0, 640.0), **on_gpu)
    assert told.energy_j_per_image(trial_of(good)) == 2.0
    assert told.energy_j_per_image(trial_of(good, metered(joules(0.0, 1.0), bad, rank=1, **on_gpu))) is None


def test_on_a_cpu_the_rank_that_tells_the_machines_load_tells_its_energy() -> None:
    loaded = samples_of("host_load", 2.0)
    teller = metered(joules(0.0, 640.0), samples=loaded)
    other = metered(joules(None, None), rank=1)
    assert told.energy_j_per_image(trial_of(teller, other)) == 1.0
    another_machine = metered(joules(None, None), rank=2, samples=loaded)
    assert told.energy_j_per_image(trial_of(teller, other, another_machine)) is None


def read(opened: int | None, closed: int | None) -> tuple[Meters, Meters]:
    return Meters(disk_read_bytes=opened), Meters(disk_read_bytes=closed)


def test_disk_reads_are_summed_over_ranks_and_windows() -> None:
    first = metered(read(7, 7 + 10**9), read(4 * 10**9, 5 * 10**9))
    second = metered(read(0, 0), read(0, 2 * 10**9), rank=1)
    assert told.disk_read_gb_per_s(trial_of(first, second)) == 4 / 20
    assert told.disk_read_gb_per_s(trial_of(first, metered(read(0, 0), read(None, 0), rank=1))) is None


@pytest.mark.parametrize(
    ("read_bytes", "state"),
    [(0, "warm"), (1599, "warm"), (1600, "partly cold"), (16000, "partly cold"), (16001, "cold"), (90000, "cold")],
)
def test_the_page_cache_is_cold_where_most_of_the_images_came_from_disks(read_bytes: int, state: str) -> None:
    rank = metered(read(500, 500 + read_bytes))
    assert told.page_cache(trial_of(rank, image_bytes=100.0)) == state
    assert told.page_cache(trial_of(rank)) is None
    assert told.page_cache(trial_of(metered(read(500, None)), image_bytes=100.0)) is None


# --- memory -------------------------------------------------------------------------------------------------------


def test_the_fullest_process_and_what_it_holds_beside_torch() -> None:
    first = watched(*samples_of("gpu_process_bytes", 5 * GIB, 6 * GIB, None), gpu_peak_reserved_bytes=5 * GIB)
    second = watched(*samples_of("gpu_process_bytes", 4 * GIB), rank=1, gpu_peak_reserved_bytes=GIB)
    assert told.gpu_peak_process_gib(trial_of(first, second)) == 6.0
    assert told.gpu_peak_other_gib(trial_of(first, second)) == 3.0
    assert told.gpu_peak_other_gib(trial_of(first)) == 1.0


def test_what_is_beside_torch_is_unknown_without_both_or_where_no_sample_saw_the_peak() -> None:
    seen = samples_of("gpu_process_bytes", 4 * GIB)
    assert told.gpu_peak_other_gib(trial_of(watched(*seen))) is None
    assert told.gpu_peak_other_gib(trial_of(watched(gpu_peak_reserved_bytes=GIB))) is None
    assert told.gpu_peak_other_gib(trial_of(watched(*seen, gpu_peak_reserved_bytes=5 * GIB))) is None


def grown(mib: Sequence[float], steps_each: int = 20, gpu_mib: Sequence[float] = (), rank: int = 0) -> RankTrial:
    """A rank whose process was so large, every so many steps."""
    samples = [
        Sample(
            at_s=float(place),
            steps=1000 + place * steps_each,
            host_rss_bytes=round(each * MIB),
            gpu_process_bytes=round(gpu_mib[place] * MIB) if gpu_mib else None,
        )
        for place, each in enumerate(mib)
    ]
    return watched(*samples, rank=rank)


# Of 32 images a step our own record keeps labels and indices, 16 bytes an image: 0.49 MiB in a thousand steps.
RECORDED_MIB = 1000 * 16 * 32 / MIB


def test_a_leak_of_a_mib_a_step_is_flagged_whichever_memory_it_is_of() -> None:
    flat, leak = [2000.0] * 11, [2000.0 + 20 * place for place in range(11)]
    for leaking in (grown(leak), grown(flat, gpu_mib=leak), grown(leak, gpu_mib=flat)):
        assert told.memory_growth_mib_per_1000_steps(trial_of(leaking)) == 1000 - RECORDED_MIB
        assert leaks(trial_of(leaking))
    both = grown(leak, gpu_mib=leak, rank=1)
    assert told.memory_growth_mib_per_1000_steps(trial_of(grown(flat), both)) == 2000 - RECORDED_MIB
    assert told.memory_growth_mib_per_1000_steps(trial_of(grown(flat))) == 0.0


@pytest.mark.parametrize("samples", [11, 40])
@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_in_noise_and_noise_is_no_leak(seed: int, samples: int) -> None:
    draw = random.Random(seed)
    flat = [2000 + draw.uniform(-10, 10) for _ in range(samples)]
    leak = [each + 20 * place for place, each in enumerate(flat)]
    assert leaks(trial_of(grown(leak)))
    assert not leaks(trial_of(grown(flat)))


@pytest.mark.parametrize("place", range(1, 20))
def test_one_jump_is_no_leak_wherever_it_comes(place: int) -> None:
    jump = grown([2000.0] * place + [3000.0] * (20 - place))
    assert told.memory_growth_mib_per_1000_steps(trial_of(jump)) == 0.0


def test_what_our_own_record_grows_by_is_no_leak_of_the_run() -> None:
    images = 8192
    own = grown([2000 + 20 * place * 16 * images / MIB for place in range(11)])
    rank = dataclasses.replace(own, images_per_step=images)
    assert told.memory_growth_mib_per_1000_steps(trial_of(rank)) == pytest.approx(0, abs=1e-6)


def test_growth_is_told_only_of_ten_samples_over_two_hundred_steps() -> None:
    leak = [2000.0 + 25 * place for place in range(10)]
    assert told.memory_growth_mib_per_1000_steps(trial_of(grown(leak, steps_each=25))) == 1000 - RECORDED_MIB
    assert told.memory_growth_mib_per_1000_steps(trial_of(grown(leak[:9], steps_each=25))) is None
    assert told.memory_growth_mib_per_1000_steps(trial_of(grown(leak, steps_each=22))) is None


def test_a_long_runs_growth_is_told_from_samples_spread_over_all_of_it() -> None:
    points = [(steps, 0.5 * steps) for steps in range(50_000)]
    kept = told.spread_evenly(points, 300)
    assert (len(kept), kept[0], kept[-1]) == (300, points[0], points[-1])
    assert told.growth(kept) == 0.5


def test_a_leaking_process_is_found_by_its_own_samples() -> None:
    # Pages of their own: on the heap they may fill what others have left there.
    leaked: list[mmap.mmap] = []
    telemetry = Telemetry(None, lambda: len(leaked), with_load=False)
    begun_s = time.perf_counter()
    samples = []
    for _ in range(11):
        samples.append(telemetry.sample())
        for _ in range(20):
            leaked.append(mmap.mmap(-1, MIB))
            leaked[-1].write(b"x" * MIB)
    telemetry.close()
    rank = rank_of(windows=(open_window(begun_s, time.perf_counter()),), samples=tuple(samples))
    growth = told.memory_growth_mib_per_1000_steps(trial_of(rank))
    assert growth == pytest.approx(1000, rel=0.1)


# --- whose it is --------------------------------------------------------------------------------------------------

ME, CHILD, XORG, HOSTS_NUMBER = 10, 11, 900, 70_001


@pytest.mark.parametrize(
    ("by_pid", "expected"),
    [
        ({ME: 80.0}, 0.0),
        ({ME: 80.0, CHILD: 10.0, XORG: 3.0, 901: 4.0}, 7.0),
        ({CHILD: 10.0, XORG: 3.0}, 3.0),
        ({}, 0.0),
        ({HOSTS_NUMBER: 95.0}, 0.0),
        ({HOSTS_NUMBER: 60.0, XORG: 30.0}, None),
    ],
)
def test_what_others_used_of_the_gpu(by_pid: dict[int, float], expected: float | None) -> None:
    assert others_utilisation(by_pid, {ME, CHILD}) == expected


@pytest.mark.parametrize(
    ("used_pct", "running", "expected"),
    [
        ({XORG: 30.0}, [ME], 30.0),  # this rank was idle
        ({}, [ME], 0.0),
        ({}, [HOSTS_NUMBER], 0.0),
        ({XORG: 30.0}, [HOSTS_NUMBER], None),
        ({}, [], None),  # a list that does not even show this rank shows nobody
        (None, [ME], None),
    ],
)
def test_an_idle_rank_is_told_from_one_that_nvml_hides(
    used_pct: dict[int, float] | None, running: list[int], expected: float | None
) -> None:
    assert used_by_others(used_pct, running, {ME, CHILD}) == expected


@pytest.mark.parametrize(
    ("by_pid", "expected"),
    [
        ({ME: 5 * GIB, XORG: GIB}, 5 * GIB),
        ({ME: 5 * GIB, CHILD: GIB, XORG: GIB}, 6 * GIB),
        ({HOSTS_NUMBER: 5 * GIB}, 5 * GIB),
        ({HOSTS_NUMBER: 5 * GIB, XORG: GIB}, None),
        ({ME: None, XORG: GIB}, None),
        ({}, None),
    ],
)
def test_our_own_gpu_memory(by_pid: dict[int, int | None], expected: int | None) -> None:
    assert own_bytes(by_pid, {ME, CHILD}) == expected


# --- sensors ------------------------------------------------------------------------------------------------------


def test_a_sensor_that_fails_three_times_running_is_asked_no_more() -> None:
    asked: list[str] = []
    answers = iter(["down", "up", "down", "down", "down", "up"])

    def ask() -> int:
        asked.append(next(answers))
        if asked[-1] == "down":
            raise OSError("not now")
        return 7

    sensor = Sensor(ask)
    assert [sensor.read() for _ in range(8)] == [None, 7, None, None, None, None, None, None]
    assert len(asked) == 2 + FAILURES_MAX


def package(root: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    path = root / folder
    path.mkdir()
    for file, text in (("name", name), ("energy_uj", str(energy_uj)), ("max_energy_range_uj", str(range_uj))):
        (path / file).write_text(text + "\n")
    return path


def test_a_cpus_energy_is_its_packages_and_goes_on_where_a_counter_begins_again(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = package(tmp_path, "intel-rapl:1", "package-1", 0)
    inner = package(tmp_path, "intel-rapl:0:0", "core", 0)
    board = package(tmp_path, "intel-rapl:2", "psys", 0)
    twin = package(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    energy = CpuEnergy(tmp_path)
    assert energy.joules() == 0.0
    for folder, energy_uj in ((first, 100_000), (second, 250_000), (inner, 5), (board, 6), (twin, 7)):
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
    assert energy.joules() == 0.2 + 0.25
    (first / "energy_uj").write_text("350000\n")
    assert energy.joules() == 0.7


def test_a_cpus_energy_is_unknown_without_a_package_and_where_one_may_not_be_read(tmp_path: Path) -> None:
    assert CpuEnergy(tmp_path / "nowhere").joules() is None
    package(tmp_path, "intel-rapl:0", "package-0", 1)
    (package(tmp_path, "intel-rapl:1", "package-1", 1) / "energy_uj").unlink()
    assert Sensor(CpuEnergy(tmp_path).joules).read() is None


def test_on_a_cpu_a_sample_has_the_process_and_the_load_and_no_gpu() -> None:
    telemetry = Telemetry(None, lambda: 12, with_load=True)
    before_s, sample, after_s = time.perf_counter(), telemetry.sample(), time.perf_counter()
    telemetry.close()
    assert before_s <= sample.at_s <= after_s
    assert sample.steps == 12
    assert sample.host_rss_bytes is not None
    assert sample.host_rss_bytes > 10 * MIB
    assert sample.host_load is not None
    assert sample == Sample(sample.at_s, sample.steps, host_rss_bytes=sample.host_rss_bytes, host_load=sample.host_load)


def test_only_one_rank_of_a_machine_tells_what_is_the_whole_machines() -> None:
    telemetry = Telemetry(None, lambda: 0, with_load=False)
    assert telemetry.sample().host_load is None
    assert telemetry.meters().energy_j is None
    telemetry.close()


def test_samples_come_from_a_thread_until_it_is_closed() -> None:
    taken = threading.Semaphore(0)

    def steps_done() -> int:
        taken.release()
        return 5

    telemetry = Telemetry(None, steps_done, with_load=False)
    assert telemetry.samples() == ()
    telemetry.start()
    for _ in range(2):
        assert taken.acquire(timeout=60)
    telemetry.close()
    samples = telemetry.samples()
    assert len(samples) >= 2
    assert {sample.steps for sample in samples} == {5}
    assert sorted(sample.at_s for sample in samples) == [sample.at_s for sample in samples]
    assert "telemetry" not in {thread.name for thread in threading.enumerate()}


READER = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
while os.read(file, 1 << 20):
    pass
print("read", flush=True)
sys.stdin.read()
"""


def test_what_a_started_process_reads_from_the_disk_is_metered(tmp_path: Path) -> None:
    if environment.filesystem_of(tmp_path) == "tmpfs":
        pytest.skip("the tests' temporary folder is not on a disk: --basetemp chooses another")
    path = tmp_path / "pictures"
    with path.open("wb") as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
    telemetry = Telemetry(None, lambda: 0, with_load=False)
    opened = telemetry.meters().disk_read_bytes
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"read\n"
        closed = telemetry.meters().disk_read_bytes
        reader.communicate()
    telemetry.close()
    assert opened is not None
    assert closed is not None
    assert closed - opened >= 8 * MIB


# --- through pynvml -----------------------------------------------------------------------------------------------

LOOK = """
import dataclasses, json, os, pynvml, sys
from harness.telemetry import Telemetry

def look(gpu, *moments):
    telemetry = Telemetry(gpu, lambda: 3, with_load=False)
    seen = []
    for moment in moments:
        os.environ.update(moment)
        seen.append([dataclasses.asdict(telemetry.sample()), telemetry.meters().energy_j])
    telemetry.close()
    return seen
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 that knows two GPUs."""
    return stand_in.build(tmp_path_factory.mktemp("driver"))


def look(driver: Path, gpu: int | str, *moments: dict[str, str], first: str = "", **variables: str) -> list[Any]:
    """(a sample, the energy counter) of a GPU of that driver at each moment, whose variables change what the card does."""
    program = f"{LOOK}\n{first}\nprint(json.dumps(look({gpu!r}, *{list(moments)!r})))"
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    variables = {**kept, "LD_LIBRARY_PATH": str(driver), **variables}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(Sample(**sample), energy_j) for sample, energy_j in json.loads(done.stdout)]


def gpu_fields(sample: Sample) -> dict[str, Any]:
    """The fields that are the GPU's, by name."""
    hosts = {"at_s", "steps", "host_rss_bytes", "host_load"}
    return {name: value for name, value in vars(sample).items() if name not in hosts}


def trial_seen(seen: list[Any], **changes: Any) -> Trial:
    """One rank with these samples, all of them in its window."""
    samples = tuple(sample for sample, _ in seen)
    window = open_window(samples[0].at_s, samples[-1].at_s)
    return trial_of(rank_of(windows=(window,), samples=samples, **changes))


BUSY = {"STAND_IN_RUNNING": "self:2048", "STAND_IN_USED": "self:90"}


def test_every_sensor_of_a_healthy_card_is_read_through_pynvml(driver: Path) -> None:
    (sample, energy_j), (_, later_j) = look(driver, 0, BUSY, {})
    assert gpu_fields(sample) == {
        "gpu_utilisation_pct": 90.0,
        "jpeg_utilisation_pct": 40.0,
        "sm_clock_mhz": 1900.0,
        "power_w": 300.5,
        "temperature_c": 60.0,
        "clock_event_reasons": 0,
        "gpu_process_bytes": 2 * GIB,
        "other_process_utilisation_pct": 0.0,
    }
    assert sample.steps == 3
    assert (energy_j, later_j) == (1250.0, 1500.0)


@pytest.mark.parametrize(
    ("gpu", "visible", "energy_j"),
    [(0, "", None), (0, "1", 1500.0), (1, "1", None), (1, "1,0", 1250.0), ("GPU-1", "0", 1500.0), ("GPU-7", "0", None)],
)
def test_the_gpu_is_the_one_that_cuda_shows_at_that_place_or_has_that_uuid(
    driver: Path, gpu: int | str, visible: str, energy_j: float | None
) -> None:
    ((sample, told_j),) = look(driver, gpu, {}, CUDA_VISIBLE_DEVICES=visible)
    assert told_j == energy_j
    assert (sample.power_w is None) == (energy_j is None)


def test_a_thermal_window_is_throttled_and_a_power_cap_is_not(driver: Path) -> None:
    cool, capped, hot = ({"STAND_IN_CLOCK_EVENT_REASONS": bits} for bits in ("0", "0x4", "0x48"))
    heated = trial_seen(look(driver, 0, cool, capped, hot, hot))
    assert told.throttled_pct(heated) == 50.0
    assert told.throttle_reasons(heated) == "sw_power_cap+hw_slowdown+hw_thermal_slowdown"
    assert "in 50 % of the samples (hw_slowdown, hw_thermal_slowdown)" in told.throttled(heated)
    busy = trial_seen(look(driver, 0, capped, capped))
    assert (told.power_capped_pct(busy), told.throttled(busy)) == (100.0, "")


def test_a_busy_foreign_process_contaminates_and_an_idle_xorg_does_not(driver: Path) -> None:
    shared = trial_seen(look(driver, 0, {"STAND_IN_RUNNING": "self:2048 17:900", "STAND_IN_USED": "self:60 17:30"}))
    assert told.contaminated(shared) == (
        "other processes used 30 % of rank 0's GPU: run again where nobody else computes"
    )
    assert told.gpu_peak_process_gib(shared) == 2.0
    for used in ("self:90 18:0", "self:90", ""):
        desk = trial_seen(look(driver, 0, {"STAND_IN_RUNNING": "self:2048", "STAND_IN_USED": used}))
        assert (told.other_process_utilisation_pct(desk), told.contaminated(desk)) == (0.0, "")


def test_in_a_container_the_only_process_is_ours_and_two_are_nobodys(driver: Path) -> None:
    alone, two = look(
        driver,
        0,
        {"STAND_IN_RUNNING": "4000000:3072", "STAND_IN_USED": "4000000:90"},
        {"STAND_IN_RUNNING": "4000000:3072 4000001:1", "STAND_IN_USED": "4000000:90"},
    )
    assert (alone[0].gpu_process_bytes, alone[0].other_process_utilisation_pct) == (3 * GIB, 0.0)
    assert (two[0].gpu_process_bytes, two[0].other_process_utilisation_pct) == (None, None)


def test_a_process_that_this_one_has_started_is_its_own(driver: Path) -> None:
    start = "import subprocess; child = subprocess.Popen(['cat'], stdin=subprocess.PIPE); os.environ['CHILD'] = str(child.pid)"
    used = "os.environ['STAND_IN_USED'] = 'self:50 17:20 ' + os.environ['CHILD'] + ':30'"
    ((sample, _),) = look(driver, 0, {}, first=f"{start}\n{used}")
    assert sample.other_process_utilisation_pct == 20.0


def test_what_a_driver_leaves_unwritten_is_no_process(driver: Path) -> None:
    seen = look(driver, 0, {"STAND_IN_RUNNING": "self:1", "STAND_IN_USED": "self:50 0:4294967295"})
    assert seen[0][0].other_process_utilisation_pct == 0.0


def test_a_card_that_vanishes_leaves_unknowns_and_what_was_seen_before(driver: Path) -> None:
    before, *after = look(driver, 0, BUSY, *[{"STAND_IN_LOST": "1"}] * 5)
    assert None not in gpu_fields(before[0]).values()
    for sample, energy_j in after:
        assert set(gpu_fields(sample).values()) == {None}
        assert energy_j is None
        assert sample.host_rss_bytes is not None
    assert told.temperature_c_max(trial_seen([before, *after])) == 60.0


SAMPLED = (
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetJpgUtilization",
    "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetProcessUtilization",
)


def test_an_old_driver_that_lacks_the_functions_leaves_every_cell_empty(tmp_path: Path) -> None:
    seen = look(stand_in.build(tmp_path, without=SAMPLED), 0, BUSY, *[{}] * 4)
    for sample, energy_j in seen:
        assert set(gpu_fields(sample).values()) == {None}
        assert energy_j is None
    trial = trial_seen(seen, gpu_total_bytes=24 * GIB)
    assert [metric.__name__ for metric in METRICS if metric(trial) is not None] == []


def test_a_driver_that_calls_them_throttle_reasons_tells_them(tmp_path: Path) -> None:
    driver = stand_in.build(tmp_path, without=["nvmlDeviceGetCurrentClocksEventReasons"])
    ((sample, _),) = look(driver, 0, {"STAND_IN_CLOCK_EVENT_REASONS": "0x20"})
    assert sample.clock_event_reasons == SW_THERMAL


def test_an_old_pynvml_that_lacks_names_leaves_their_cells_empty_and_no_others(driver: Path) -> None:
    lacks = "del pynvml.nvmlDeviceGetJpgUtilization, pynvml.nvmlDeviceGetCurrentClocksEventReasons"
    ((sample, _),) = look(driver, 0, BUSY, first=lacks)
    assert [name for name, value in gpu_fields(sample).items() if value is None] == ["jpeg_utilisation_pct"]


def test_without_a_driver_a_gpus_samples_are_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    ((sample, energy_j),) = look(tmp_path, 0, {})
    assert set(gpu_fields(sample).values()) == {None}
    assert energy_j is None
    assert sample.host_rss_bytes is not None
