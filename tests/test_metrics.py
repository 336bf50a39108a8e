"""Every number told of a trial, exactly, on trials written by hand; and mistakes that published harnesses make."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from literals import TEN_CLASSES, rank_of, trial_of, window_of

from harness import results
from harness.metrics import METRICS, arithmetic, learning, limits, memory, numbers, speed, validity
from harness.trial import Alone, Evaluation, MemoryPoint, Peak, Trial, Window, from_json

# Two GPUs, four timed steps each of 32 images. The first rank starts at 10 s, the last ends at 10.5 s: 256 images in
# half a second. The slower rank's steps are the job's: 100, 110, 120, 150 ms.
FIRST = rank_of(
    0,
    warmup_steps=1,
    restarts=2,
    windows=(
        Window(
            10.0, 10.4, (100.0,) * 4, (1.0,) * 4, compute_ms=(60.0,) * 4, optimiser_ms=(20.0,) * 4, unadjusted_s=0.4
        ),
    ),
    losses=(2.0, 2.0, 1.0, 1.0, 1.0),
    correct=(0, 8, 8, 8, 8),
    indices_count=128,
    label_counts=(80, 80),
    sent_bytes_per_step=2**20,
    evaluations=(Evaluation(2, 50, 10, 40), Evaluation(5, 50, 20, 45)),
    alone={
        "input": Alone(300, 20.0, 21.0, (0.9, 1.0, 1.1)),
        "model": Alone(200, 22.0, 23.0),
        "no_comm": Alone(250, 24.0, 25.0),
        "queued": Alone(25, 0.0, 0.09),
        "input_while_training": Alone(260, 20.0, 21.0),
        "decode": Alone(400, 20.0, 21.0),
        "storage": Alone(1000, 20.0, 21.0),
    },
    peaks={"gemm": Peak(2e12, (1.0, 2.0, 4.0)), "copy": Peak(1e9, (0.5,))},
    train_multiply_adds_per_image=10**9,
    seeded_step_distance=1e-6,
    first_batch_s=0.5,
    compile_s=10.0,
    block_build_s=4.0,
    gpu_peak_allocated_bytes=3 * 2**30,
    gpu_peak_reserved_bytes=5 * 2**30,
    host_peak_rss_bytes=2**30,
)
SECOND = dataclasses.replace(
    FIRST,
    rank=1,
    windows=(
        Window(
            10.1,
            10.5,
            (90.0, 110.0, 120.0, 150.0),
            (3.0,) * 4,
            compute_ms=(60.0, 70.0, 80.0, 90.0),
            optimiser_ms=(20.0,) * 4,
        ),
    ),
    losses=(3.0, 2.0, 2.0, 1.0, 3.0),
    correct=(0, 8, 8, 8, 0),
    indices_digest="digest of rank 1",
    evaluations=(Evaluation(2, 50, 10, 40), Evaluation(5, 50, 20, 35)),
    alone={
        "input": Alone(300, 20.0, 22.0, (1.0, 1.0, 1.0)),
        "model": Alone(200, 22.0, 22.5),
        "no_comm": Alone(250, 24.0, 24.5),
        "queued": Alone(25, 0.0, 0.04),
        "input_while_training": Alone(260, 20.0, 22.0),
        "decode": Alone(400, 20.0, 22.0),
        "storage": Alone(1000, 20.0, 22.0),
    },
    peaks={"gemm": Peak(3e12, (1.0,)), "copy": Peak(1e9, (0.5,))},
    seeded_step_distance=3e-6,
    first_batch_s=0.7,
    compile_s=12.0,
    block_build_s=3.0,
    gpu_peak_allocated_bytes=4 * 2**30,
    gpu_peak_reserved_bytes=4 * 2**30,
    host_peak_rss_bytes=3 * 2**30,
)
TWO_RANKS = trial_of(FIRST, SECOND, classes=2, train_images=640)

EXPECTED = {
    "status": "invalid",  # the first loss, 2.5, is outside 0.5 to 3 x ln 2; and the second rank's steps add up to 470 ms
    "images_per_s": 512,
    "input_alone_images_per_s": 300,
    "model_alone_images_per_s": 400,
    "bound_by": "communication",
    "pct_of_model_alone": 128,
    "step_ms_p50": 115,
    "step_ms_p95": 145.5,
    "step_ms_p99": 149.1,
    "timed_steps": 4,
    "timed_s": 0.5,
    "images_counted": 256,
    "settled": True,
    "warmup_steps": 1,
    "restarts": 2,
    "compile_s": 12,
    "block_build_s": 4,
    "first_batch_s": 0.7,
    "rank_skew_pct": 100 * 15 / 115,
    "no_comm_images_per_s": 500,
    "limit_images_per_s": 300,
    "pct_of_limit": 100 * 512 / 300,
    "limit_half_width_pct": 24.8413771,  # 4.3026527 x 0.1 / sqrt(3), the first rank's input
    "input_while_training_images_per_s": 260,
    "decode_images_per_s": 400,
    "storage_images_per_s": 1000,
    "data_wait_pct": 2,
    "compute_pct": 67.5,
    "optimiser_pct": 20,
    "host_gap_pct": 15,  # 4 against 3.6 ms an image, 2 against 1.6
    "model_tflop_per_s": 1.024,
    "gemm_peak_tflop_per_s": 4,
    "mfu_pct": 25.6,
    "copy_gb_per_s": 4,
    "seeded_step_distance": 3e-6,
    "images_per_gpu_expected_to_fit": None,
    "exposed_comm_pct": 20,
    "exchange_mib_per_step": 2,
    "exchange_kib_per_image": 32,
    "gpu_peak_allocated_gib": 4,
    "gpu_peak_reserved_gib": 5,
    "host_peak_rss_gib": 4,
    "epochs_done": 0.5,
    "images_seen": 320,
    "loss_first": 2.5,
    "loss_last": 2,
    "loss_at_100k_images": None,
    "loss_at_1m_images": None,
    "learning": "too short",
    "train_top1_error_pct": 87.5,
    "val_top1_error_pct": 60,
    "val_top5_error_pct": 20,
    # Four steps are too few for these.
    "within_launch_ci_low_images_per_s": None,
    "within_launch_ci_high_images_per_s": None,
    "effective_steps": None,
    "drift_pct_per_min": None,
    "outlier_steps": 0,
}
# What sensors saw has its own tests: tests/test_telemetry.py.
SENSED = {name for name, metric in METRICS.items() if metric.__module__ == "harness.metrics.telemetry"}


@pytest.mark.parametrize("name", sorted(set(METRICS) - SENSED - {"status_reason"}))
def test_every_metric_is_exact_on_a_trial_of_two_ranks(name):
    expected = EXPECTED[name]
    told = METRICS[name](TWO_RANKS)
    assert told == (pytest.approx(expected, rel=1e-9) if isinstance(expected, (int, float)) else expected)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("status", "status_reason")])
def test_what_a_trial_without_ranks_cannot_tell_is_unknown_rather_than_zero(name):
    assert METRICS[name](Trial(10, 2048, 1, False, (), failure="no device")) is None


def test_a_failed_launch_says_why():
    trial = Trial(10, 2048, 1, False, (), failure="no device")
    assert validity.status_and_reason(trial) == ("failed", "no device")


# --- mistakes of published harnesses ------------------------------------------------------------------------------


def test_throughput_is_not_times_the_number_of_steps():
    assert speed.images_per_s(trial_of(rank_of(indices_count=320, windows=(window_of(10, 100.0),)))) == 320


def test_images_are_those_that_came_in_rather_than_those_asked_for():
    half = rank_of(indices_count=160)
    assert speed.images_per_s(trial_of(half)) == 160
    assert "160 images came in where steps x batch is 320" in validity.status_reason(trial_of(half))


def test_the_speeds_of_ranks_add_up_and_are_not_averaged():
    assert speed.images_per_s(trial_of(rank_of(0), rank_of(1))) == 640


# The second column of a network: the same images as the first, whose losses and right answers it does not know.
COLUMN = dataclasses.replace(
    SECOND,
    shard=0,
    column=1,
    losses=(math.nan,) * 5,
    correct=(0,) * 5,
    indices_digest=FIRST.indices_digest,
    evaluations=(Evaluation(2, 0, 0, 0), Evaluation(5, 0, 0, 0)),
)
TWO_COLUMNS = trial_of(dataclasses.replace(FIRST, shard=0), COLUMN, classes=2, train_images=640)


def test_two_columns_of_one_network_are_one_stream_of_images():
    told = {
        name: METRICS[name](TWO_COLUMNS) for name in ("images_counted", "images_per_s", "images_seen", "loss_first")
    }
    assert told == {"images_counted": 128, "images_per_s": 256, "images_seen": 160, "loss_first": 2.0}
    assert METRICS["input_alone_images_per_s"](TWO_COLUMNS) == 150
    assert METRICS["train_top1_error_pct"](TWO_COLUMNS) == 75
    assert METRICS["val_top1_error_pct"](TWO_COLUMNS) == 60
    assert METRICS["exchange_kib_per_image"](TWO_COLUMNS) == 64


def test_a_job_of_which_one_column_died_is_told_without_a_traceback():
    left = trial_of(COLUMN, ranks_asked=2, failure="rank 0 ended by SIGKILL while compiling")
    told = {name: metric(left) for name, metric in METRICS.items()}
    assert (told["status"], told["exchange_mib_per_step"], told["images_per_s"]) == ("failed", None, None)


def test_columns_that_received_different_images_are_not_believed():
    assert not [doubt for doubt in validity.doubts(TWO_COLUMNS) if "the scheme" in doubt]
    strange = dataclasses.replace(COLUMN, indices_digest="another")
    trial = trial_of(dataclasses.replace(FIRST, shard=0), strange, classes=2)
    assert "ranks received different images where the scheme gives them the same" in validity.doubts(trial)


def test_shards_that_received_the_same_images_are_not_believed():
    other = dataclasses.replace(FIRST, rank=2, shard=1)
    trial = trial_of(dataclasses.replace(FIRST, shard=0), COLUMN, other, classes=2)
    assert "ranks received the same images where the scheme gives each its own" in validity.doubts(trial)


def test_ranks_of_two_machines_are_timed_on_one_clock():
    ahead = 5000.0
    windows = (Window(10.1 + ahead, 10.5 + ahead, (100.0,) * 4, (1.0,) * 4),)
    alone = {"model": Alone(200, 22.0 + ahead, 22.5 + ahead)}
    second = dataclasses.replace(SECOND, windows=windows, clock_ahead_s=ahead, alone=alone)
    trial = trial_of(FIRST, second)
    assert METRICS["timed_s"](trial) == pytest.approx(0.5)
    assert METRICS["model_alone_images_per_s"](trial) == pytest.approx(400)


def test_ranks_that_received_the_same_images_count_them_once():
    assert speed.images_counted(trial_of(rank_of(0), rank_of(1, indices_digest="digest of rank 0"))) == 320


def test_the_clock_runs_until_the_last_rank_is_done():
    late = rank_of(1, windows=(window_of(start_s=51.0),))
    assert speed.timed_s(trial_of(rank_of(0), late)) == 2
    assert speed.images_per_s(trial_of(rank_of(0), late)) == 320


def test_what_happens_between_windows_is_not_timed():
    windows = (window_of(5, start_s=50.0), window_of(5, start_s=90.0))
    assert speed.timed_s(trial_of(rank_of(windows=windows))) == 1


def test_percentiles_of_step_time_are_what_their_names_say():
    steps = tuple(float(ms) for ms in range(101))
    trial = trial_of(rank_of(windows=(Window(0.0, 5.05, steps, (0.0,) * 101),)))
    assert (speed.step_ms_p50(trial), speed.step_ms_p95(trial), speed.step_ms_p99(trial)) == (50, 95, 99)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_the_least_and_the_most(values, share):
    assert min(values) <= numbers.percentile(values, share) <= max(values)
    assert numbers.percentile(values, 0) == min(values)
    assert numbers.percentile(values, 1) == max(values)


def test_warm_up_is_in_no_step_time_and_in_no_throughput():
    quick, slow = trial_of(rank_of(warmup_steps=5)), trial_of(rank_of(warmup_steps=500, compile_s=900.0))
    for metric in (speed.images_per_s, speed.step_ms_p50, speed.step_ms_p99, speed.timed_s):
        assert metric(quick) == metric(slow)


def test_warm_up_is_in_what_was_learned_from():
    assert learning.images_seen(trial_of(rank_of(losses=(2.0,) * 15))) == 15 * 32


def test_a_loss_that_was_seen_is_in_the_row():
    assert learning.loss_last(trial_of(rank_of(losses=(2.3, 1.25)))) == 1.25


def test_step_times_that_do_not_add_up_to_the_clock_are_not_believed():
    early = rank_of(windows=(Window(50.0, 50.5, (100.0,) * 10, (1.0,) * 10),))
    assert validity.status(trial_of(early)) == "invalid"
    assert "step times add up to 1 s where the clock says 0.5 s" in validity.status_reason(trial_of(early))


def test_a_launch_in_which_a_rank_did_not_finish_its_windows_has_no_speed():
    both = (window_of(5, start_s=50.0), window_of(5, start_s=90.0))
    unfinished = trial_of(rank_of(0, windows=both), rank_of(1, windows=both[:1], indices_count=160))
    assert speed.images_per_s(unfinished) is None


def test_a_launch_without_a_timed_step_is_not_ok():
    assert validity.status(Trial(10, 2048, 1, False, ())) != "ok"
    assert validity.status(trial_of(rank_of(windows=(), indices_count=0))) != "ok"


@pytest.mark.parametrize("name", METRICS)
def test_a_clock_that_stood_still_is_no_traceback(name):
    still = rank_of(windows=(Window(50.0, 50.0, (0.0,), (0.0,)),), alone={"input": Alone(32, 60.0, 60.0)})
    METRICS[name](trial_of(still, dataclasses.replace(still, rank=1)))


# --- limit --------------------------------------------------------------------------------------------------------


def test_the_limit_is_the_slower_part_where_each_has_its_own_device():
    assert limits.limit_images_per_s(trial_of()) == 400


def test_the_limit_is_their_series_where_they_share_cores():
    trial = trial_of(ranks_share_cores_with_input=True)
    assert limits.limit_images_per_s(trial) == pytest.approx(1 / (1 / 640 + 1 / 400))


@pytest.mark.parametrize(("wait_ms", "bound"), [(5.0, "model"), (5.1, "input")])
def test_a_run_is_bound_by_input_when_it_waits_over_five_percent(wait_ms, bound):
    assert limits.bound_by(trial_of(rank_of(windows=(window_of(wait_ms=wait_ms),)))) == bound


def test_what_binds_two_ranks_is_unknown_until_they_ran_without_communication():
    assert limits.bound_by(trial_of(rank_of(0), rank_of(1))) is None


INPUT_PARTS = {
    "storage": {"storage": 500, "decode": 450, "input": 400},
    "decode": {"storage": 5000, "decode": 450, "input": 400},
    "augment": {"storage": 5000, "decode": 1000, "input": 400},
    "input": {"input": 400},
}


@pytest.mark.parametrize("bound", INPUT_PARTS)
def test_the_part_of_the_input_that_takes_longest_is_named_where_it_was_told_apart(bound):
    alone = {part: Alone(images, 60.0, 61.0) for part, images in INPUT_PARTS[bound].items()}
    waits = rank_of(windows=(window_of(wait_ms=50.0),), alone={**alone, "model": Alone(900, 62.0, 63.0)})
    assert limits.bound_by(trial_of(waits)) == bound


@pytest.mark.parametrize(("queued_s", "bound"), [(0.951, "model"), (0.949, "host")])
def test_a_gpu_that_has_nothing_to_do_for_over_five_percent_of_a_step_is_bound_by_its_host(queued_s, bound):
    alone = {"model": Alone(400, 62.0, 63.0), "queued": Alone(400, 0.0, queued_s)}
    assert limits.bound_by(trial_of(rank_of(alone=alone))) == bound


def test_the_host_gap_of_a_cpu_is_what_is_left_of_its_steps():
    window = Window(50.0, 51.0, (100.0,) * 10, (1.0,) * 10, compute_ms=(80.0,) * 10, optimiser_ms=(9.0,) * 10)
    trial = trial_of(rank_of(windows=(window,)), ranks_share_cores_with_input=True)
    assert limits.host_gap_pct(trial) == pytest.approx(10)
    assert limits.bound_by(trial) == "host"


def test_a_gap_that_nobody_measured_is_unknown():
    assert limits.host_gap_pct(trial_of()) is None
    assert limits.host_gap_pct(trial_of(ranks_share_cores_with_input=True)) is None


@pytest.mark.parametrize(("images", "bound"), [(420, "model"), (421, "communication")])
def test_two_ranks_are_bound_by_communication_when_they_are_over_five_percent_faster_without(images, bound):
    alone = {"model": Alone(400, 0.0, 1.0), "no_comm": Alone(images, 2.0, 3.0)}
    assert limits.bound_by(trial_of(rank_of(0, alone=alone), rank_of(1, alone=alone))) == bound


def test_a_part_that_only_some_ranks_ran_alone_has_no_speed():
    assert limits.input_alone_images_per_s(trial_of(rank_of(0), rank_of(1, alone={}))) is None


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("late", "steps", "told"), [(0.94, 200, "seen"), (0.96, 200, "flat"), (0.5, 199, "too short")])
def test_learning_is_a_loss_under_the_entropy_of_the_labels_seen(late, steps, told):
    losses = (TEN_CLASSES,) * (steps - 20) + (late * TEN_CLASSES,) * 20
    assert learning.learning(trial_of(rank_of(losses=losses, correct=(4,) * steps))) == told


def test_guessing_the_commonest_label_is_not_learning():
    nearly_all_one_class = (991, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    losses = (TEN_CLASSES,) + (numbers.entropy(nearly_all_one_class),) * 299
    assert learning.learning(trial_of(rank_of(losses=losses, label_counts=nearly_all_one_class))) == "flat"


def test_loss_at_100k_images_is_the_mean_of_the_ten_steps_that_end_there():
    losses = [9.0] * 200
    losses[90:100] = range(10)
    assert learning.loss_at_100k_images(trial_of(rank_of(images_per_step=1000, losses=tuple(losses)))) == 4.5


def test_evaluations_of_ranks_are_added_up_rather_than_averaged():
    ranks = (rank_of(0, evaluations=(Evaluation(5, 30, 30, 30),)), rank_of(1, evaluations=(Evaluation(5, 10, 0, 10),)))
    assert learning.val_top1_error_pct(trial_of(*ranks)) == 25
    assert learning.val_top5_error_pct(trial_of(*ranks)) == 0


def test_without_validation_images_the_error_is_unknown():
    assert learning.val_top1_error_pct(trial_of(rank_of(evaluations=(Evaluation(5, 0, 0, 0),)))) is None


# --- whether it counts --------------------------------------------------------------------------------------------

NAN = math.nan
DOUBTFUL = [
    ({"losses": (0.4,) + (2.3,) * 14}, "invalid", "the first loss was 0.4, outside 1.15 to 6.91"),
    ({"losses": (7.0,) + (2.3,) * 14}, "invalid", "the first loss was 7"),
    ({"losses": (NAN,) * 15}, "invalid", "the first loss was not finite"),
    ({"losses": (2.3,) * 14 + (NAN,)}, "diverged", "the loss was nan at step 14"),
    ({"losses": (2.3, math.inf) + (2.3,) * 13}, "diverged", "the loss was inf at step 1"),
    ({"parameter_change_max": {"a": 0.1, "b": 0.0}}, "invalid", "1 of 2 parameters did not move (b)"),
    ({"parameter_change_max": {"a": NAN}}, "invalid", "1 of 1 parameters did not move (a)"),
    ({"label_counts": (480, 0, 0)}, "invalid", "all labels were the same"),
    ({"pixel_min": 3.0, "pixel_max": 3.0}, "invalid", "all pixels were the same"),
    ({"indices_count": 316}, "invalid", "316 images came in where steps x batch is 320"),
    ({"index_repeats_max": 3, "shard_images": 1024}, "invalid", "one image came 3 times in 320 from 1024"),
    ({"out_of_memory": True}, "oom", "out of GPU memory at 32 images a rank"),
    (
        {"windows": (Window(50.0, 51.0, (100.0,) * 10, (1.0,) * 10, unadjusted_s=1.02),)},
        "invalid",
        "a second clock saw 1.02 s pass where the first says 1 s",
    ),
    ({"interrupted": True}, "interrupted", "stopped by a signal or its time limit after 10 timed steps"),
]


@pytest.mark.parametrize(("changes", "status", "reason"), DOUBTFUL)
def test_a_trial_that_is_not_to_be_believed_says_so_and_why(changes, status, reason):
    told, why = validity.status_and_reason(trial_of(rank_of(**changes)))
    assert told == status
    assert reason in why


@pytest.mark.parametrize(
    ("precision", "distance", "status"),
    [
        ("fp32", 9.1e-5, "ok"),
        ("fp32", 9.2e-5, "invalid"),
        ("fp32", NAN, "invalid"),
        ("bf16", 0.5, "ok"),
        ("bf16", 0.51, "invalid"),
        ("", 1.0, "ok"),
    ],
)
def test_a_seeded_step_far_from_eager_float32_is_not_believed(precision, distance, status):
    trial = trial_of(rank_of(seeded_step_distance=distance), precision=precision)
    assert validity.status(trial) == status


# Of a card of 10 GiB, 100 images took 3 GiB and 200 took 4: an image takes 10.24 MiB, and 800 would fill it.
OUT_OF_MEMORY = rank_of(
    images_per_step=1024,
    out_of_memory=True,
    gpu_total_bytes=10 * 2**30,
    memory_points=(MemoryPoint(100, 3 * 2**30), MemoryPoint(200, 4 * 2**30)),
)


def test_after_running_out_of_memory_the_batch_that_should_fit_lies_on_the_line_of_two_smaller_ones():
    assert memory.images_per_gpu_expected_to_fit(trial_of(OUT_OF_MEMORY)) == 800
    assert validity.status_and_reason(trial_of(OUT_OF_MEMORY)) == (
        "oom",
        "out of GPU memory at 1024 images a rank of a card of 10.0 GiB; about 800 should fit",
    )


def test_a_batch_that_did_not_fit_is_never_expected_to():
    few = dataclasses.replace(OUT_OF_MEMORY, images_per_step=600)
    assert memory.images_per_gpu_expected_to_fit(trial_of(few)) == 592


def test_without_two_smaller_steps_nothing_is_said_to_fit():
    one = dataclasses.replace(OUT_OF_MEMORY, memory_points=OUT_OF_MEMORY.memory_points[:1])
    assert memory.images_per_gpu_expected_to_fit(trial_of(one)) is None


def test_steps_have_an_interval_of_their_launch_alone():
    steps = tuple(100.0 + 10 * (number % 2) for number in range(40))
    trial = trial_of(rank_of(windows=(Window(50.0, 54.2, steps, (0.0,) * 40),), indices_count=1280))
    low, high = speed.within_launch_ci_low_images_per_s(trial), speed.within_launch_ci_high_images_per_s(trial)
    assert low < speed.images_per_s(trial) < high
    assert speed.outlier_steps(trial) == 0


def test_one_step_that_took_ten_times_as_long_is_counted_and_still_timed():
    steps = (100.0,) * 39 + (1000.0,)
    trial = trial_of(rank_of(windows=(Window(50.0, 54.9, steps, (0.0,) * 40),), indices_count=1280))
    assert speed.outlier_steps(trial) == 1
    assert speed.timed_s(trial) == pytest.approx(4.9)


def test_utilisation_is_of_what_the_device_was_seen_to_do_and_never_of_a_guess():
    assert arithmetic.mfu_pct(trial_of(rank_of(train_multiply_adds_per_image=10**9))) is None


def test_a_trial_without_doubts_is_ok():
    assert validity.status_and_reason(trial_of()) == ("ok", "")


@pytest.mark.parametrize("count", [317, 320, 323])
def test_observers_may_disagree_by_one_percent(count):
    assert validity.status(trial_of(rank_of(indices_count=count))) == "ok"


def test_a_small_set_may_come_round_again():
    assert validity.status(trial_of(rank_of(shard_images=40, index_repeats_max=9))) == "ok"
    assert validity.status(trial_of(rank_of(shard_images=40, index_repeats_max=10))) == "invalid"


def test_ranks_that_took_different_numbers_of_steps_are_not_believed():
    assert validity.status(trial_of(rank_of(0), rank_of(1, losses=(2.3,) * 14))) == "invalid"


def test_one_doubtful_rank_spoils_the_launch_and_is_named():
    assert validity.status_reason(trial_of(rank_of(0), rank_of(1, pixel_max=-120.0))).startswith("rank 1:")


# --- kept on disk -------------------------------------------------------------------------------------------------

FLOATS = st.floats(width=32)


@given(st.lists(FLOATS, max_size=5), st.none() | FLOATS, st.booleans(), st.text())
def test_a_trial_comes_back_from_json_as_it_was(losses, first_batch_s, settled, failure):
    rank = rank_of(losses=tuple(losses), first_batch_s=first_batch_s, settled=settled, evaluations=())
    trial = trial_of(rank, failure=failure)
    kept = json.loads(json.dumps(results.strict(dataclasses.asdict(trial)), allow_nan=False))
    assert repr(from_json(Trial, kept)) == repr(trial)


def test_an_observation_that_no_trial_has_is_refused():
    kept = {**dataclasses.asdict(trial_of()), "images_per_s": 1e9}
    with pytest.raises(ValueError, match="Trial has no images_per_s"):
        from_json(Trial, kept)
