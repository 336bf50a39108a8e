"""What `doctor --box` makes of timed rates, on literals; how it measures, with real processes that fail in every way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.box import health, probes, rates
from harness.box import report as box
from harness.box.probes import Rate
from harness.box.rates import Seen, Series
from harness.box.report import Probe, Progress, Task
from harness.doctor import MISSING, NOTE, OK, WRONG, Finding

ROOT = Path(__file__).parents[1]
EIGHT = tuple(f"GPU {index}" for index in range(8))
SAME = dict.fromkeys(EIGHT, "a card")


def series(name: str, unit: str, **passes: tuple[float, ...]) -> Series:
    """Device -> what it did in each pass; spaces of a device's name are written _."""
    devices = tuple(device.replace("_", " ") for device in passes)
    return Series(Rate(name, unit, devices, ()), tuple(zip(*passes.values(), strict=True)))


def products(*values: float) -> Series:
    return series("matrix product bf16", "TFLOP/s", **{f"GPU_{index}": (value,) for index, value in enumerate(values)})


def only(findings: list[Finding]) -> tuple[str, str]:
    (finding,) = findings
    return finding.mark, finding.found


# --- judgements ---------------------------------------------------------------------------------------------------


def test_one_gpu_3_per_cent_off_its_siblings_is_named_and_it_alone() -> None:
    slow = products(800, 801, 770, 799)
    found = "bf16: GPU 2 770 TFLOP/s, 4 % below its siblings' 800"
    assert only(rates.judge_siblings("matrix product", slow, SAME)) == (WRONG, found)


@pytest.mark.parametrize("values", [(800, 779), (800, 801, 790, 799), (800, 800, 800, 900), (800,)], ids=str)
def test_siblings_within_3_per_cent_a_fast_one_and_an_only_one_are_no_faults(values: tuple[float, ...]) -> None:
    assert rates.judge_siblings("matrix product", products(*values), SAME) == []


def test_of_two_gpus_the_slower_is_named() -> None:
    assert only(rates.judge_siblings("matrix product", products(750, 800), SAME))[1].startswith("bf16: GPU 0 750 ")


def test_cards_of_two_models_are_not_compared() -> None:
    models = {"GPU 0": "large", "GPU 1": "large", "GPU 2": "small"}
    assert rates.judge_siblings("matrix product", products(800, 800, 200), models) == []


def test_copies_from_the_host_may_differ_by_a_tenth() -> None:
    def named(*values: float) -> list[Finding]:
        seen = Seen({"host to device": [Rate("host to device", "GB/s", EIGHT[: len(values)], values)]})
        return [each for each in rates.judge_seen(seen, ["a card"] * len(values)) if each.mark == WRONG]

    assert named(50, 46) == []
    assert only(named(50, 25))[1] == "GPU 1 25 GB/s, 50 % below its siblings' 50"


def test_a_pair_under_half_of_the_best_is_named() -> None:
    pairs = series("peer to peer", "GB/s", **{"GPU_0 -> GPU_1": (48.0,), "GPU_1 -> GPU_0": (23.0,)})
    found = "under half of the best pair's 48 GB/s: GPU 1 -> GPU 0 23"
    assert only(rates.judge_pairs("peer to peer", pairs)) == (WRONG, found)
    well = series("peer to peer", "GB/s", **{"GPU_0 -> GPU_1": (48.0,), "GPU_1 -> GPU_0": (24.0,)})
    assert rates.judge_pairs("peer to peer", well) == []


def test_a_disk_slower_than_what_decoding_takes_in_is_named_with_what_it_limits_training_to() -> None:
    disk = series("disk read", "GB/s", **{"/data": (0.55,)})
    found = "0.55 GB/s from /data: it would hold training to 5,000 images/s of 110 kB, and decoding takes in 7,000"
    assert only(rates.judge_disk("disk read", disk, 7000)) == (WRONG, found)
    assert rates.judge_disk("disk read", disk, 5000) == []
    assert rates.judge_disk("disk read", disk, None) == []


def test_without_a_decoders_rate_a_disk_under_200_mb_per_s_is_named() -> None:
    slow = series("disk read", "GB/s", **{"/data": (0.11,)})
    found = "0.11 GB/s from /data: it would hold training to 1,000 images/s of 110 kB"
    assert only(rates.judge_disk("disk read", slow, None)) == (WRONG, found)


def test_a_disk_is_held_to_the_fastest_decoder() -> None:
    decode = Rate("JPEG decode", "images/s", EIGHT[:2], (2000.0, 2001.0))
    seen = Seen({"JPEG decode": [decode], "disk read": [Rate("disk read", "GB/s", ("/data",), (0.2201,))]})
    assert [each.name for each in rates.judge_seen(seen, ["a card"] * 2) if each.mark == WRONG] == ["disk read"]


@pytest.mark.parametrize(
    ("values", "fallen"),
    [([100.0] * 9, 0.0), ([100, 100, 100, 98, 97, 96, 95, 96, 94], 0.05), ([100, 90], None), ([100, 95, 90], 0.1)],
    ids=str,
)
def test_a_drop_is_from_the_first_third_to_the_last(values: list[float], fallen: float | None) -> None:
    assert rates.drop(values) == (None if fallen is None else pytest.approx(fallen))


def test_what_gets_slower_in_a_soak_is_named_a_gpu_as_wrong_and_a_cpu_as_a_note() -> None:
    soak = series("copy", "GB/s", GPU_0=(100, 100, 99), GPU_1=(100, 98, 90), CPU=(10, 10, 9))
    gpu, cpu = rates.judge_drops("copy", soak)
    assert (gpu.mark, gpu.found) == (WRONG, "GPU 1 is 10 % slower in the last third of the soak than in the first")
    assert (cpu.mark, cpu.found) == (NOTE, "CPU is 10 % slower in the last third of the soak than in the first")


def test_what_no_bound_judges_is_told_as_measured() -> None:
    reduce = Rate("all-reduce", "GB/s", ("8 GPUs",), (212.4,), "nccl, 8 ranks")
    assert rates.judge_seen(Seen({"all-reduce": [reduce]}), ["a card"] * 8) == [
        Finding(OK, "all-reduce", "212 GB/s (nccl, 8 ranks)")
    ]


def test_the_worst_and_the_best_pass_and_pair_are_told() -> None:
    assert rates.told("copy", series("copy", "GB/s", GPU_0=(3000, 2900, 2950), GPU_1=(2.0, 2.0, 2.5))).found == (
        "GPU 0 2,950 (2,900 to 3,000), GPU 1 2 (2 to 2.5) GB/s"
    )
    many = series("peer to peer", "GB/s", **{f"{giver}->{giver + 1}": (20.0 + giver,) for giver in range(9)})
    assert rates.told("peer to peer", many).found == "20 (0->1) to 28 GB/s (8->9)"


def test_a_faulty_gpus_rates_are_told_beside_its_fault() -> None:
    seen = Seen({"copy": [Rate("copy", "GB/s", EIGHT[:2], (3000, 2500))]})
    fault, measured = rates.judge_seen(seen, ["a card"] * 2)
    assert (fault.mark, measured.mark) == (WRONG, NOTE)
    assert measured.found == "GPU 0 3,000, GPU 1 2,500 GB/s"


def test_nothing_is_wrong_with_the_rates_of_eight_equal_gpus() -> None:
    seen = Seen(
        {name: [Rate(name, "a second", EIGHT, (5.0,) * 8)] for name in ("copy", "host to device", "JPEG decode")}
    )
    seen.rates["matrix product"] = [Rate(f"matrix product {kind}", "TFLOP/s", EIGHT, (5.0,) * 8) for kind in ("a", "b")]
    assert {each.mark for each in rates.judge_seen(seen, ["a card"] * 8)} == {OK}


def test_gpus_that_torch_cannot_use_are_wrong() -> None:
    product = Rate("matrix product fp32", "TFLOP/s", ("CPU",), (0.2,))
    fault, _ = rates.judge_seen(Seen({"matrix product": [product]}), ["a card"] * 2)
    assert (fault.mark, fault.found) == (WRONG, "torch can use 0 of the 2 that the driver shows")
    assert [each.mark for each in rates.judge_seen(Seen({"matrix product": [product]}), [])] == [OK]


@pytest.mark.parametrize(
    ("marks", "sentence"),
    [
        ({"copy": OK, "XID": NOTE}, "Nothing is wrong that these checks can see."),
        ({"copy": OK, "MIG": WRONG}, "One thing is wrong with this machine: MIG."),
        ({"MIG": WRONG, "torch": MISSING}, "Two things are wrong with this machine: MIG, torch."),
    ],
)
def test_the_last_sentence_counts_what_is_wrong(marks: dict[str, str], sentence: str) -> None:
    assert box.last_line([Finding(mark, name, "") for name, mark in marks.items()]) == sentence


def test_a_thing_wrong_with_two_gpus_is_one_thing() -> None:
    twice = [Finding(WRONG, "PCIe link", f"GPU {index} has x8 of x16") for index in range(2)]
    assert box.last_line(twice) == "One thing is wrong with this machine: PCIe link."


# --- measuring ----------------------------------------------------------------------------------------------------


def task(folder: Path, *, models: tuple[str, ...] = (), left_s: float = 60.0, soak_s: float | None = None) -> Task:
    now_s = time.monotonic()
    return Task(models, folder, now_s + left_s, None if soak_s is None else now_s + soak_s)


def small_copy(_: float) -> list[Rate]:
    return probes.copies(0.001, size_bytes=2**22)


def raising(error: Exception) -> Probe:
    def run(_: float) -> list[Rate]:
        raise error

    return Probe("it", 0, run)


def findings_of(todo: list[Probe], asked: Task) -> list[Finding]:
    told: list[Progress] = []
    box.measure_all(probes, todo, asked, told.append)
    assert [each.doing == "" for each in told] == [False] * (len(told) - 1) + [True]
    return list(told[-1].findings)


def test_probes_run_one_after_another_and_one_that_fails_ends_none(tmp_path: Path) -> None:
    todo = [raising(ValueError("what happened")), Probe("copy", 0, small_copy)]
    failed, copied = findings_of(todo, task(tmp_path))
    assert failed == Finding(WRONG, "it", "failed: ValueError: what happened")
    assert (copied.mark, copied.name) == (OK, "copy")
    assert "GB/s (4 MiB, read plus written)" in copied.found


def test_a_check_that_this_machine_cannot_run_is_a_note_and_one_that_it_fails_is_wrong(tmp_path: Path) -> None:
    asked = task(tmp_path)
    assert only(findings_of([raising(probes.NotRun("no disk"))], asked)) == (NOTE, "not run: no disk")
    assert only(findings_of([raising(probes.Failed("CUDA error"))], asked)) == (WRONG, "failed: CUDA error")


def test_ranks_that_do_not_end_are_a_gpus_fault_and_not_a_busy_cpus(tmp_path: Path) -> None:
    late = probes.Failed("the ranks did not end")
    late.__cause__ = TimeoutError()
    assert only(findings_of([raising(late)], task(tmp_path)))[0] == NOTE
    assert only(findings_of([raising(late)], task(tmp_path, models=("a card", "a card"))))[0] == WRONG


def test_a_probe_that_would_need_more_time_than_is_left_is_not_begun(tmp_path: Path) -> None:
    todo = [Probe("copy", 30, small_copy)]
    assert findings_of(todo, task(tmp_path, left_s=20)) == [Finding(NOTE, "copy", "not run: no time is left")]


def test_a_soak_goes_round_until_its_time_is_over_and_a_single_pass_does_not(tmp_path: Path) -> None:
    calls: list[str] = []

    def count(_: float) -> list[Rate]:
        calls.append("")
        return small_copy(_)

    assert len(findings_of([Probe("copy", 0, count)], task(tmp_path))) == len(calls) == 1
    found = findings_of([Probe("copy", 0, count)], task(tmp_path, soak_s=0.5))
    assert len(calls) > 2
    assert " to " in found[-1].found


def test_every_probe_of_the_plan_is_a_function_of_probes_and_fits_a_minute_on_eight_gpus(tmp_path: Path) -> None:
    for gpus in (0, 1, 2, 8):
        todo = box.plan(probes, task(tmp_path, models=("a card",) * gpus))
        # The rest is for starting, and for the last words.
        assert sum(probe.needs_s for probe in todo) <= 0.9 * box.TIME_BOX_S
    assert [probe.run(0.0) for probe in todo if probe.name in ("host to device", "peer to peer")] == [[], []]


SPEAKS = "from multiprocessing.connection import Connection; from harness import doctor; from harness.box import report as box; import os, time, signal; c = Connection({descriptor}); c.recv(); "
TELLS = "c.send(box.Progress('2 of 7: copy', (doctor.Finding('ok', 'matrix product', '1'),))); "


def findings_with(
    program: str, folder: Path, *, patience_s: float, models: tuple[str, ...] = ("a card",)
) -> list[Finding]:
    return box.timed_findings(task(folder, models=models), lambda: None, patience_s, program)


def test_a_measuring_process_that_hangs_is_ended_and_its_check_named(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = f"{SPEAKS}{TELLS}open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    first, fault = findings_with(program, tmp_path, patience_s=2)
    assert first == Finding(OK, "matrix product", "1")
    assert (fault.mark, fault.name, fault.found) == (WRONG, "copy", "did not end in time: a GPU or its link hangs")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_measuring_process_that_dies_is_named_with_its_end(tmp_path: Path) -> None:
    program = f"{SPEAKS}{TELLS}os.kill(os.getpid(), signal.SIGSEGV)"
    first, fault = findings_with(program, tmp_path, patience_s=60)
    assert first.name == "matrix product"
    assert fault == Finding(WRONG, "copy", "the process that measured it was ended by SIGSEGV")
    (never,) = findings_with("raise SystemExit(3)", tmp_path, patience_s=60)
    assert never == Finding(WRONG, "starting", "the process that measured it ended without a word, exit status 3")


def test_looking_goes_on_while_it_is_measured(tmp_path: Path) -> None:
    looks: list[float] = []
    program = f"{SPEAKS}{TELLS}time.sleep(0.6); c.send(box.Progress(''))"
    assert box.timed_findings(task(tmp_path), lambda: looks.append(time.monotonic()), 60, program) == []
    assert len(looks) >= 2


def test_without_torch_the_rest_is_still_told(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from harness.box import report; report.measure({descriptor})"
    assert findings_with(program, tmp_path, patience_s=60) == [
        Finding(NOTE, "timed checks", "not run: torch is not installed")
    ]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_tells_what_is_wrong_first_and_this_machines_rates(tmp_path: Path) -> None:
    """With less time than its ranks would need: what is left over is said, not begun."""
    program = "from harness.box import report; raise SystemExit(report.main(None, time_box_s=20))"
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    variables = {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    *lines, blank, sentence = done.stdout.splitlines()
    order = [box.REDDEST_FIRST.index(line.split()[0]) for line in lines if not line.startswith(" ")]
    assert order == sorted(order)
    assert done.returncode == int(order[0] <= box.REDDEST_FIRST.index(MISSING))
    assert blank == ""
    assert sentence.startswith(("Nothing is wrong", "One thing is wrong", "Two things are wrong"))
    assert all(len(line) <= 100 for line in lines)
    for name in ("NVIDIA driver", "CPU cores", "/dev/shm", "matrix product", "all-reduce"):
        assert any(line[9:].startswith(name) for line in lines), name
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_fault_is_shown_in_red_on_a_terminal() -> None:
    assert box.doctor.COLOURS[health.WRONG] == box.doctor.COLOURS[MISSING]
