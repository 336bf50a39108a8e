"""A whole run gives its row the evidence that it claims: each planted fault is found in it, and a healthy run is accused of none."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import planted
import pytest
import stand_in
import torch
from planted import MIB, Fault, Ran

from harness import advice, seeded, summary, telemetry
from harness import workload as of_runs
from harness.config import RunConfig
from harness.measure import Recording
from harness.metrics.telemetry import other_process_utilisation_pct, power_capped_pct
from harness.metrics.validity import status_and_reason
from harness.results import verify
from harness.rows import COLUMNS, words
from harness.trial import Trial
from harness.workload import build_network

Runs = Callable[..., Ran]


@pytest.fixture
def ran(pictures: Path, tmp_path: Path) -> Runs:
    """`planted.ran` on the few pictures."""
    return partial(planted.ran, pictures, tmp_path)


@pytest.fixture(scope="module")
def healthy_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("healthy") / "table.csv"


@pytest.fixture(scope="module")
def healthy(pictures: Path, healthy_table: Path) -> Ran:
    """A run with every measurement and no fault, long enough for its drift and its memory to be told."""
    return planted.ran(pictures, healthy_table.parent, limits="full", steps=None, timed_seconds=6.5)


# --- without a fault ----------------------------------------------------------------------------------------------

# What a GPU, several ranks, the fused block or a hundred thousand images would have to be there for.
EMPTY_ON_ONE_CPU_RANK = words(
    "gpu_name gpu_memory_gib gpu_uuids gpu_link gpu_power_limit_w gpu_power_limit_default_w gpu_max_sm_clock_mhz "
    "gpu_datasheet_tflop_per_s pcie_gen_width driver_version gpu_peak_allocated_gib gpu_peak_reserved_gib gpu_peak_process_gib "
    "gpu_peak_other_gib gpu_utilisation_pct jpeg_utilisation_pct sm_clock_mhz_p50 power_w temperature_c_max power_capped_pct "
    "throttled_pct throttle_reasons other_process_utilisation_pct images_per_gpu_expected_to_fit rank_skew_pct "
    "no_comm_images_per_s exposed_comm_pct exchange_mib_per_step exchange_kib_per_image block_build_s loss_at_100k_images "
    "loss_at_1m_images"
)
EMPTY_UNLESS_ASKED = words(
    "label jitter init hw_decoder_load exclude statistics statistics_id steps epochs evaluate_every profile drops patience "
    "layer_rates noise_epochs fine_tune_from target_train_error_pct checkpoint_every resume time_limit"
)
# Where the system does not tell: of RAPL, disks, containers and repositories, and of what need not be installed.
MAY_BE_UNKNOWN = words(
    "energy_j_per_image page_cache container git_commit torch_cuda dali_cuda triton cudnn nccl cpu_name data_filesystem "
    "numa_nodes"
)


def test_a_healthy_run_counts_and_nothing_is_said_against_it(healthy: Ran) -> None:
    assert (healthy.row["status"], healthy.row["status_reason"], healthy.exit_status) == ("ok", "", 0)


def test_a_healthy_run_does_not_leak(healthy: Ran) -> None:
    assert healthy.row["memory_growth_mib_per_1000_steps"]
    assert "leak" not in summary.memory(healthy.row)


def test_every_column_that_a_cpu_can_fill_is_filled(healthy: Ran) -> None:
    empty = {name for name in COLUMNS if not healthy.row[name]}
    assert empty - set(MAY_BE_UNKNOWN) == {"status_reason", *EMPTY_ON_ONE_CPU_RANK, *EMPTY_UNLESS_ASKED}


def test_what_a_healthy_run_tells_of_itself_agrees(healthy: Ran) -> None:
    cell = {name: float(text) for name, text in healthy.row.items() if re.fullmatch(r"\d+(\.\d+)?", text)}
    assert cell["within_launch_ci_low_images_per_s"] < cell["images_per_s"] < cell["within_launch_ci_high_images_per_s"]
    assert 95 < cell["data_wait_pct"] + cell["compute_pct"] + cell["optimiser_pct"] < 100
    assert cell["timed_steps"] * 4 == cell["images_counted"]
    # In float32, operation by operation, this network is what the seeded step holds it to.
    assert cell["seeded_step_distance"] == 0
    assert healthy.row["learning"] == "seen"
    assert advice.bound(healthy.row).startswith(f"bound by {healthy.row['bound_by']}: ")


def test_a_healthy_row_is_borne_out_by_its_record(healthy: Ran, healthy_table: Path) -> None:
    assert verify(healthy_table) == []


# --- what bounds it -----------------------------------------------------------------------------------------------

SLOW_S = 0.05  # a batch of four: 80 images/s at most
SLOWER_S = 0.15  # a step, of which the input's own milliseconds are far under 5 %


def figures(sentence: str, pattern: str) -> list[float]:
    """The numbers of a sentence that has this form."""
    found = re.fullmatch(pattern, sentence)
    assert found is not None, sentence
    return [float(number.replace(",", "")) for number in found.groups()]


def test_a_slow_reader_is_a_wait_for_data_and_the_input_binds(ran: Runs) -> None:
    row = ran(planted.slow_from("augment", SLOW_S), limits="brief", steps=10).row
    assert row["status"] == "ok"
    assert float(row["data_wait_pct"]) > 50
    assert row["bound_by"] == "input"
    (gives, takes) = figures(
        advice.bound(row),
        r"bound by input: it gives ([\d.,]+) images/s alone, the network could take ([\d.,]+); --limits full tells reading, "
        r"decoding and augmentation apart; try more --dali-threads \(now 1\)",
    )
    assert gives <= 4 / SLOW_S < takes


@pytest.mark.parametrize("stage", ["storage", "decode", "augment"])
def test_the_slow_part_of_the_input_is_told_from_the_others_and_named_with_its_rate(ran: Runs, stage: str) -> None:
    row = ran(planted.slow_from(stage, SLOW_S), limits="full", steps=10).row
    assert (row["status"], row["bound_by"]) == ("ok", stage)
    rates = [float(row[f"{part}_images_per_s"]) for part in ("storage", "decode", "input_alone")]
    slowest = 4 / SLOW_S
    assert [rate <= slowest for rate in rates] == [stage == "storage", stage != "augment", True]
    number = r"([\d.,]+)"
    what = {
        "storage": rf"reading the files gives {number} images/s, the network could take {number}; try a faster disk, .*",
        "decode": rf"JPEG decoding gives {number} images/s, the network could take {number}; try `data prepare`, or more "
        r"--dali-threads \(now 1\)",
        "augment": rf"augmentation leaves {number} of the [\d.,]+ images/s that decoding gives, the network could take {number}; "
        r"try more --dali-threads \(now 1\)",
    }
    gives, takes = figures(advice.bound(row), f"bound by {stage}: {what[stage]}")
    assert gives <= slowest + 0.5 < takes


def test_a_slow_model_binds_and_the_input_does_not(ran: Runs) -> None:
    row = ran(planted.slow_model(SLOWER_S), limits="brief", steps=8).row
    assert (row["status"], row["bound_by"]) == ("ok", "model")
    assert float(row["data_wait_pct"]) < 5
    assert float(row["compute_pct"]) > 85
    takes, gives, _ = figures(
        advice.bound(row),
        r"bound by model: the network takes ([\d.,]+) images/s, the input could give ([\d.,]+); it does ([\d.,]+) % of what "
        "matrix products do here",
    )
    assert takes <= 4 / SLOWER_S < gives


def test_slow_bookkeeping_is_the_hosts(ran: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Recording.keep

    def slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(SLOWER_S)
        keep(*arguments, **named)

    monkeypatch.setattr(Recording, "keep", slowly)
    row = ran(limits="brief", steps=8).row
    assert (row["status"], row["bound_by"]) == ("ok", "host")
    assert float(row["data_wait_pct"]) < 5
    assert float(row["host_gap_pct"]) > 80
    assert advice.bound(row).startswith("bound by host: the device waits for the host for ")


# --- whether it counts --------------------------------------------------------------------------------------------


TOO_OFTEN = r"rank 0: one image came \d+ times in \d+ from 24"


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        (planted.nan_from(0), "invalid", "the first loss was not finite"),
        (planted.nan_from(9), "diverged", "the loss was nan at step 9"),
        (planted.constant_labels, "invalid", "rank 0: all labels were the same"),
        (planted.frozen, "invalid", r"rank 0: 8 of 8 parameters did not move \(conv1.bias\)"),
        (planted.grey, "invalid", "rank 0: all pixels were the same"),
        (planted.one_image, "invalid", f"rank 0: all labels were the same; {TOO_OFTEN}"),
        (planted.stuck, "invalid", "rank 0: one image came 20 times in 80 from 24"),
        # With what is dropped an epoch is no whole one any more, and an image may come too often.
        (planted.halves, "invalid", f"rank 0: 40 images came in where steps x batch is 80(; {TOO_OFTEN})?"),
    ],
    ids=["nan at once", "nan", "constant labels", "frozen model", "grey", "one image", "one batch", "half batches"],
)
def test_a_speed_that_does_not_count_is_refused_for_its_own_reason(
    ran: Runs, fault: Fault, status: str, reason: str
) -> None:
    found = ran(fault)
    assert found.row["status"] == status
    assert re.fullmatch(reason, found.row["status_reason"]), found.row["status_reason"]


def test_a_clock_that_lies_is_refused(ran: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    true_clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 0.9 * true_clock())
    row = ran().row
    monkeypatch.undo()
    assert row["status"] == "invalid"
    second, first = figures(
        row["status_reason"], r"rank 0: a second clock saw ([\d.]+) s pass where the first says ([\d.]+) s"
    )
    assert first / second == pytest.approx(0.9, abs=0.005)


def test_a_wrong_operation_in_the_network_as_it_runs_is_refused_by_the_seeded_step(
    ran: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_when_compiled(config: RunConfig, *of: Any) -> torch.nn.Module:
        network = build_network(config.with_(compile="off"), *of)
        if config.compile == "on":
            network.get_parameter("conv2.weight").register_hook(lambda gradient: 1.001 * gradient)
        return network

    monkeypatch.setattr(of_runs, "build_network", wrong_when_compiled)
    monkeypatch.setattr(seeded, "distance", partial(seeded.distance, build=wrong_when_compiled))
    row = ran(limits="brief", compile="on", steps=10).row
    assert row["status"] == "invalid"
    assert row["status_reason"] == (
        "rank 0: a seeded step's gradient is 0.001 of its norm from eager float32's, where 9.2e-05 is allowed"
    )


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_step_that_does_not_fit_is_a_row_with_its_batch(ran: Runs) -> None:
    found = ran(planted.out_of_memory_from(15), limits="brief")
    assert (found.row["status"], found.row["status_reason"]) == ("oom", "out of GPU memory at 4 images a rank")
    assert (found.row["images_per_gpu"], found.row["images_per_s"], found.exit_status) == ("4", "", 1)


def test_what_was_trained_stands_though_the_model_alone_does_not_fit(ran: Runs) -> None:
    row = ran(planted.out_of_memory_with_a_batch_that_stays(), limits="brief").row
    assert (row["status"], row["status_reason"]) == ("ok", "")
    assert row["images_per_s"]
    assert row["input_alone_images_per_s"]
    assert (row["model_alone_images_per_s"], row["limit_images_per_s"]) == ("", "")


def test_a_leak_of_a_mib_a_step_is_flagged(ran: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "SAMPLE_EVERY_S", 0.05)
    row = ran(planted.leaking(MIB), steps=240).row
    assert row["status"] == "ok"
    assert summary.memory(row).endswith(" MiB in 1,000 steps: a leak")
    assert float(row["memory_growth_mib_per_1000_steps"]) == pytest.approx(1000, rel=0.2)


# --- the card ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 that knows two GPUs."""
    return stand_in.build(tmp_path_factory.mktemp("driver"))


COOL, CAPPED, HOT = ({"STAND_IN_CLOCK_EVENT_REASONS": bits} for bits in ("0", "0x4", "0x48"))
ALONE = {"STAND_IN_RUNNING": "self:2048", "STAND_IN_USED": "self:90"}
IDLE_XORG = {"STAND_IN_RUNNING": "self:2048 17:300", "STAND_IN_USED": "self:90 17:0"}
BUSY_OTHER = {"STAND_IN_RUNNING": "self:2048 17:900", "STAND_IN_USED": "self:60 17:30"}


def on_card(trial: Trial, driver: Path, *moments: dict[str, str]) -> Trial:
    return planted.on_card(trial, planted.samples_of_card(driver, *moments))


def test_a_thermal_window_is_throttled(healthy: Ran, driver: Path) -> None:
    assert status_and_reason(on_card(healthy.trial, driver, ALONE | COOL, HOT, COOL, COOL)) == (
        "throttled",
        "rank 0's GPU was slowed down in 25 % of the samples (hw_slowdown, hw_thermal_slowdown): look at its cooling and power "
        "supply",
    )


def test_a_busy_foreign_process_contaminates(healthy: Ran, driver: Path) -> None:
    assert status_and_reason(on_card(healthy.trial, driver, BUSY_OTHER)) == (
        "contaminated",
        "other processes used 30 % of rank 0's GPU: run again where nobody else computes",
    )


def test_a_hot_and_shared_card_is_throttled_first(healthy: Ran, driver: Path) -> None:
    assert status_and_reason(on_card(healthy.trial, driver, BUSY_OTHER | HOT))[0] == "throttled"


def test_a_software_power_cap_and_an_idle_xorg_are_seen_and_the_row_is_ok(healthy: Ran, driver: Path) -> None:
    busy = on_card(healthy.trial, driver, IDLE_XORG | CAPPED, CAPPED)
    assert status_and_reason(busy) == ("ok", "")
    assert (power_capped_pct(busy), other_process_utilisation_pct(busy)) == (100.0, 0.0)
