"""What NVML and the host say of a machine's health: on literals, and by the real pynvml over a driver with planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import stand_in

from harness import environment
from harness.box import health, vitals
from harness.box.vitals import Card, Host, Moment, Pair, Process
from harness.doctor import NOTE, OK, WRONG, Finding

ROOT = Path(__file__).parents[1]
GIB = 2**30
WELL = Card(
    number=0,
    name="a card",
    bus_id="0000:17:00.0",
    memory_bytes=80 * GIB,
    link_width=16,
    link_width_max=16,
    link_generation=1,
    link_generation_max=5,
    power_limit_w=700,
    power_limit_default_w=700,
    ecc_since_start=0,
    ecc_ever=0,
    persistence=True,
    utilisation_pct=0,
    node=0,
    near=frozenset(range(8)),
)
TWIN = replace(WELL, number=1, bus_id="0000:ca:00.0", node=1, near=frozenset(range(8, 16)))
HOST = Host(frozenset(range(16)), seen=16, nodes=2, quota=None, shm_gib=64.0, load=0.5, kernel_log="")
PEERS = Pair((0, 1), status=0, ancestor=50)


def only(findings: list[Finding]) -> tuple[str, str, str]:
    """(mark, name, what was found) of the one finding."""
    (finding,) = findings
    return finding.mark, finding.name, finding.found


# --- judgements ---------------------------------------------------------------------------------------------------


def test_a_healthy_pair_of_cards_is_one_well_line_a_check() -> None:
    findings = health.judge_cards([WELL, TWIN], HOST)
    assert [(each.mark, each.name, each.found) for each in findings] == [
        (OK, "PCIe link", "x16 on every GPU"),
        (OK, "power limit", "700 W on every GPU"),
        (OK, "NUMA node", "GPU 0 node 0, with 8 cores for this process, GPU 1 node 1, with 8 cores for this process"),
        (OK, "GPU memory", "no uncorrected error on every GPU"),
        (OK, "XID", "none in the kernel's log"),
        (OK, "MIG", "off on every GPU"),
        (OK, "other users", "none seen at work on every GPU"),
    ]


def test_a_narrow_link_is_wrong_and_an_idle_cards_low_generation_is_not() -> None:
    assert only(health.judge_links([WELL, replace(TWIN, link_width=8)])) == (WRONG, "PCIe link", "GPU 1 has x8 of x16")
    assert only(health.judge_links([replace(WELL, link_generation=1)]))[0] == OK


@pytest.mark.parametrize(("watts", "mark"), [(700, OK), (750, OK), (665, OK), (660, NOTE), (595, NOTE), (590, WRONG)])
def test_a_power_limit_is_noted_under_95_per_cent_of_its_default_and_wrong_under_85(watts: float, mark: str) -> None:
    assert only(health.judge_power([replace(WELL, power_limit_w=watts)]))[0] == mark


def test_a_low_power_limit_comes_with_the_line_that_raises_it() -> None:
    (finding,) = health.judge_power([WELL, replace(TWIN, power_limit_w=560)])
    assert finding.found == "GPU 1 is limited to 560 W, 80 % of its default"
    assert finding.command == "sudo nvidia-smi -i 0000:ca:00.0 -pl 700"


def test_a_process_kept_off_a_gpus_node_is_wrong_and_one_with_a_core_there_is_not() -> None:
    beside_first = replace(HOST, allowed=frozenset(range(8)))
    found = "GPU 1 is on node 1, and this process may run on none of its cores"
    assert only(health.judge_numa([WELL, TWIN], beside_first)) == (WRONG, "NUMA node", found)
    assert only(health.judge_numa([WELL, TWIN], replace(HOST, allowed=frozenset({0, 15}))))[0] == OK
    assert only(health.judge_numa([replace(WELL, near=frozenset())], HOST))[0] == NOTE
    assert only(health.judge_numa([replace(WELL, near=frozenset())], replace(HOST, nodes=1)))[0] == OK


def test_memory_errors_of_today_and_repairs_are_wrong_and_those_of_old_are_noted() -> None:
    faulty = replace(TWIN, ecc_since_start=2, ecc_ever=7)
    found = "GPU 1 has had 2 uncorrected memory errors since the driver started"
    assert only(health.judge_memory_errors([WELL, faulty])) == (WRONG, "GPU memory", found)
    assert only(health.judge_memory_errors([replace(TWIN, ecc_ever=7)]))[0] == NOTE
    assert only(health.judge_memory_errors([replace(TWIN, repair_pending=True)]))[0] == WRONG
    assert only(health.judge_memory_errors([replace(TWIN, repair_failed=True)]))[0] == WRONG
    assert only(health.judge_memory_errors([replace(TWIN, ecc_since_start=None)]))[0] == NOTE


def test_a_card_cut_into_instances_is_wrong() -> None:
    assert only(health.judge_mig([WELL, replace(TWIN, mig=True)])) == (WRONG, "MIG", "GPU 1 is cut into instances")


@pytest.mark.parametrize(
    ("process", "mark"),
    [
        (Process(7, 300 * 2**20, 0), OK),  # a desktop's server that draws nothing
        (Process(7, 4 * GIB, 5), OK),
        (Process(7, None, 6), WRONG),
        (Process(7, 5 * GIB, 0), WRONG),
    ],
)
def test_a_process_is_another_user_when_it_takes_over_5_per_cent_of_a_gpu(process: Process, mark: str) -> None:
    assert only(health.judge_others([replace(WELL, others=(process,))]))[:2] == (mark, "other users")


def test_a_busy_gpu_whose_processes_are_hidden_has_another_user() -> None:
    found = "GPU 0 is used to 80 %, by a process that is not shown here"
    assert only(health.judge_others([replace(WELL, utilisation_pct=80)])) == (WRONG, "other users", found)


def test_persistence_is_noted_where_it_is_off() -> None:
    assert health.judge_persistence([WELL, replace(TWIN, persistence=None)]) == []
    assert only(health.judge_persistence([WELL, replace(TWIN, persistence=False)])) == (
        NOTE,
        "persistence",
        "off on GPU 1",
    )


def test_pairs_that_cannot_read_each_other_are_one_line_a_reason() -> None:
    pairs = [PEERS, Pair((0, 2), 1), Pair((1, 2), 1)]
    found = "2 of 3 pairs of GPUs cannot read each other's memory (chipset not supported): 0-2, 1-2"
    assert only(health.judge_peers(pairs)) == (WRONG, "peer access", found)
    well = "between all GPUs; nearest on the bus they share: socket link"
    assert only(health.judge_peers([PEERS])) == (OK, "peer access", well)
    assert only(health.judge_peers([Pair((0, 1), 2)]))[0] == NOTE, "cards of a kind that never can"
    assert only(health.judge_peers([Pair((0, 1))]))[0] == NOTE
    assert health.judge_peers([]) == []


def test_xids_are_counted_by_gpu_and_a_programs_own_errors_are_only_noted() -> None:
    log = (
        "6,1,2,-;NVRM: Xid (PCI:0000:ca:00): 79, pid=12, GPU has fallen off the bus.\n"
        "6,2,3,-;NVRM: Xid (PCI:0000:17:00): 31, pid=99, name=python\n"
        "6,3,4,-;NVRM: Xid (PCI:0000:17:00): 31, pid=99, name=python\n"
    )
    lost, fault = health.judge_xids(log, [WELL, TWIN])
    assert (lost.mark, lost.found) == (WRONG, "79 on GPU 1")
    assert (fault.mark, fault.found) == (NOTE, "31 on GPU 0, 2 times")
    assert only(health.judge_xids(None, [WELL]))[2] == "not known: the kernel's log may not be read here"


def test_a_link_is_judged_by_its_generation_only_while_its_card_is_busy() -> None:
    idle, busy = Moment(0, 0, link_generation=1, reasons=0), Moment(0, 99, link_generation=5, reasons=0)
    assert only(health.judge_moments([WELL], [idle]))[0] == NOTE
    assert only(health.judge_moments([WELL], [idle, busy]))[0] == OK
    found = "GPU 0 has PCIe generation 4 of 5 while busy"
    assert only(health.judge_moments([WELL], [replace(busy, link_generation=4)])) == (WRONG, "PCIe link", found)


def test_heat_and_power_brake_are_wrong_and_a_software_power_cap_is_not() -> None:
    def slowed_by(reasons: int) -> tuple[str, str, str]:
        return only(health.judge_moments([WELL], [Moment(0, 99, 5, reasons)] * 2 + [Moment(0, 99, 5, 0)] * 8))

    assert slowed_by(0x4)[0] == OK
    assert slowed_by(0x40 | 0x4) == (WRONG, "clocks", "GPU 0: thermal slow-down by hardware in 20 % of its busy time")
    assert slowed_by(0x80)[2] == "GPU 0: power brake in 20 % of its busy time"


def test_a_quota_below_the_cores_that_programs_see_is_wrong() -> None:
    limited = health.judge_quota(replace(HOST, quota=2.5))
    assert (limited.mark, limited.found) == (WRONG, "the control group allows 2.5 of the 16 that programs see")
    assert health.judge_quota(replace(HOST, quota=16)).mark == OK
    assert health.judge_quota(replace(HOST, allowed=frozenset({1, 2}), quota=2)).mark == NOTE


def test_others_on_half_of_the_cores_are_noted() -> None:
    assert health.judge_load(replace(HOST, load=7.9)) == []
    assert only(health.judge_load(replace(HOST, load=8))) == (NOTE, "CPU load", "8.0 on 16 cores in the last minute")


def test_small_shared_memory_is_wrong_where_several_gpus_need_it() -> None:
    assert only(health.judge_shm(0.0625, gpus=2)) == (WRONG, "/dev/shm", "64 MiB")
    assert only(health.judge_shm(0.0625, gpus=0))[0] == NOTE
    assert only(health.judge_shm(64.0, gpus=2)) == (OK, "/dev/shm", "64 GiB")


def test_cards_that_no_driver_answers_for_are_wrong() -> None:
    silent = [Finding(NOTE, "NVIDIA driver", "does not answer"), Finding(OK, "torch", "2")]
    assert [each.mark for each in health.judge_silence(silent, driver_answers=False, cards_on_bus=1)] == [WRONG, OK]
    assert health.judge_silence(silent, driver_answers=False, cards_on_bus=0) == silent


# --- looking ------------------------------------------------------------------------------------------------------


def plant(root: Path, **files: str) -> Path:
    """Files of /proc, /sys and /dev under a root of the test's own."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/outside\n3:memory:/outside\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
    ids=["version 2", "no limit", "a parent's", "version 1", "version 1, no limit", "no control groups"],
)
def test_the_quota_is_read_from_either_version_of_control_groups(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert environment.cpu_quota(plant(tmp_path, **files)) == quota


def test_the_kernels_lists_of_cores_are_read() -> None:
    assert vitals.cores_of("0-2,8\n") == {0, 1, 2, 8}
    assert vitals.cores_of("\n") == frozenset()


def test_a_kernels_log_that_may_not_be_read_is_unknown(tmp_path: Path) -> None:
    plant(tmp_path, **{"dev/kmsg": "first\n" + "x" * 10000 + "\nlast"})
    log = vitals.kernel_log(tmp_path / "dev/kmsg")
    assert log is not None
    assert log.startswith("first\n")
    assert log.endswith("\nlast")
    assert vitals.kernel_log(tmp_path / "no-such", "no-such-command") is None


# --- by the real pynvml -------------------------------------------------------------------------------------------

PROGRAM = """
import json, os, sys
from pathlib import Path
from harness import environment
from harness.box import health, vitals
with environment.nvml() as library:
    cards, findings = health.examine(library, Path(sys.argv[1]))
    watch = vitals.Watch(library)
    os.environ["STAND_IN_UTILISATION_PCT"] = "95"
    watch.look()
findings += health.judge_moments(cards, watch.moments)
print(json.dumps([(each.mark, each.name, each.found) for each in findings]))
"""
AT_REST = {"STAND_IN_UTILISATION_PCT": "0", "STAND_IN_POWER_LIMIT_PCT": "100"}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A root with two NUMA nodes, a GPU on each, and every core of this process on both."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    files = {"dev/kmsg": "", "dev/shm/file": "", "proc/self/cgroup": "0::/\n"}
    for node, bus_id in enumerate(("0000:17:00.0", "0000:ca:00.0")):
        files[f"sys/devices/system/node/node{node}/cpulist"] = cores
        files[f"sys/bus/pci/devices/{bus_id}/numa_node"] = f"{node}\n"
        files[f"sys/bus/pci/devices/{bus_id}/local_cpulist"] = f"{cores}\n"
    return plant(tmp_path, **files)


def faults(driver: Path, box: Path, **variables: str) -> list[tuple[str, str, str]]:
    """Whatever is not well of that box, in a process that finds that driver."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    variables = {**kept, "LD_LIBRARY_PATH": str(driver), **AT_REST, **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(box)], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(each) for each in json.loads(done.stdout) if each[1] != "CPU load"]
    assert len(found) > 10
    return [each for each in found if each[0] != OK]


def test_nothing_is_wrong_with_a_healthy_box(driver: Path, box: Path) -> None:
    assert faults(driver, box) == []


def test_an_idle_xorg_and_a_software_power_cap_are_no_faults(driver: Path, box: Path) -> None:
    assert faults(driver, box, STAND_IN_XORG_MIB="300", STAND_IN_CLOCK_EVENT_REASONS="0x4") == []


@pytest.mark.parametrize(
    ("variables", "mark", "name", "found"),
    [
        ({"STAND_IN_LINK_WIDTH": "8"}, WRONG, "PCIe link", "GPU 1 has x8 of x16"),
        ({"STAND_IN_LINK_GENERATION": "3"}, WRONG, "PCIe link", "GPU 1 has PCIe generation 3 of 4 while busy"),
        ({"STAND_IN_POWER_LIMIT_PCT": "80"}, WRONG, "power limit", "GPU 1 is limited to 300 W, 80 % of its default"),
        ({"STAND_IN_ECC_SINCE_START": "2"}, WRONG, "GPU memory", "GPU 1 has had 2 uncorrected memory errors"),
        ({"STAND_IN_ECC_EVER": "2"}, NOTE, "GPU memory", "GPU 1 has had 2 uncorrected memory errors in its life"),
        ({"STAND_IN_REPAIR_PENDING": "1"}, WRONG, "GPU memory", "GPU 1 has faulty memory that a reset will replace"),
        ({"STAND_IN_REPAIR_FAILED": "1"}, WRONG, "GPU memory", "GPU 1 could not replace faulty memory"),
        ({"STAND_IN_MIG": "1"}, WRONG, "MIG", "GPU 1 is cut into instances"),
        ({"STAND_IN_XORG_MIB": "8192"}, WRONG, "other users", "GPU 1: process 1000 uses 0 % of it and 33 % of its"),
        ({"STAND_IN_PERSISTENCE": "0"}, NOTE, "persistence", "off on GPU 1"),
        ({"STAND_IN_P2P": "1"}, WRONG, "peer access", "the two GPUs cannot read each other's memory (chipset"),
        ({"STAND_IN_CUDA": "12020"}, "missing", "torch", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_planted_fault_is_named_and_it_alone(
    variables: dict[str, str], mark: str, name: str, found: str, driver: Path, box: Path
) -> None:
    ((its_mark, its_name, its_found),) = faults(driver, box, **variables)
    assert (its_mark, its_name) == (mark, name)
    assert its_found.startswith(found)


def test_another_users_process_and_heat_are_named_on_the_gpus_that_have_them(driver: Path, box: Path) -> None:
    both = faults(driver, box, STAND_IN_RUNNING="4242:9000", STAND_IN_USED="4242:90")
    assert [each[:2] for each in both] == [(WRONG, "other users")] * 2
    assert both[1][2] == "GPU 1: process 4242 uses 90 % of it and 37 % of its memory"
    assert [each[1] for each in faults(driver, box, STAND_IN_CLOCK_EVENT_REASONS="0x40")] == ["clocks"] * 2


def test_a_gpu_on_another_node_fewer_cores_and_a_lost_gpu_are_named(driver: Path, box: Path) -> None:
    plant(box, **{"sys/bus/pci/devices/0000:ca:00.0/local_cpulist": "9000-9007\n"})
    plant(box, **{"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    plant(box, **{"dev/kmsg": "6,1,2,-;NVRM: Xid (PCI:0000:ca:00): 79, GPU has fallen off the bus.\n"})
    node, xid, cores = faults(driver, box)
    assert node[:2] == (WRONG, "NUMA node")
    assert node[2].startswith("GPU 1 is on node 1,")
    assert xid == (WRONG, "XID", "79 on GPU 1")
    assert cores[:2] == (WRONG, "CPU cores")


def test_what_an_old_driver_does_not_tell_is_unknown_and_no_fault(driver: Path, box: Path) -> None:
    lost = faults(driver, box, STAND_IN_LOST="1")
    assert {each[0] for each in lost} == {NOTE}
    assert ("note", "NUMA node", "not known: the kernel does not say which node a GPU is on") in lost
