"""Every number told of a Trial: pure functions of raw observations, in the order in which they may use each other.

A metric that cannot be known from a trial is None, which becomes an empty cell.

numbers.py      small arithmetic; intervals.py: what can be said of a series of times
speed.py        how fast it was; learning.py: what was learned
limits.py       how far from the limit it was, and what bounded it
arithmetic.py   how much arithmetic that is, against what the devices can do
memory.py       what memory it took; telemetry.py: what the sensors saw meanwhile
validity.py     whether it counts
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.metrics import arithmetic, learning, limits, memory, speed, telemetry, validity
from harness.trial import Trial

METRICS: dict[str, Callable[[Trial], Any]] = {
    metric.__name__: metric
    for metric in (
        validity.status, validity.status_reason,
        speed.images_per_s, speed.step_ms_p50, speed.step_ms_p95, speed.step_ms_p99, speed.outlier_steps,
        speed.timed_steps, speed.timed_s, speed.images_counted, speed.within_launch_ci_low_images_per_s,
        speed.within_launch_ci_high_images_per_s, speed.effective_steps, speed.drift_pct_per_min, speed.settled,
        speed.warmup_steps, speed.restarts, speed.compile_s, speed.block_build_s, speed.first_batch_s, speed.rank_skew_pct,
        limits.input_alone_images_per_s, limits.model_alone_images_per_s, limits.no_comm_images_per_s,
        limits.input_while_training_images_per_s, limits.decode_images_per_s, limits.storage_images_per_s,
        limits.limit_images_per_s, limits.limit_half_width_pct, limits.bound_by, limits.pct_of_model_alone,
        limits.pct_of_limit, limits.data_wait_pct, limits.compute_pct, limits.optimiser_pct, limits.host_gap_pct,
        limits.exposed_comm_pct, limits.exchange_mib_per_step, limits.exchange_kib_per_image,
        arithmetic.model_tflop_per_s, arithmetic.gemm_peak_tflop_per_s, arithmetic.mfu_pct, arithmetic.copy_gb_per_s,
        memory.gpu_peak_allocated_gib, memory.gpu_peak_reserved_gib, memory.host_peak_rss_gib,
        memory.images_per_gpu_expected_to_fit,
        telemetry.gpu_peak_process_gib, telemetry.gpu_peak_other_gib, telemetry.memory_growth_mib_per_1000_steps,
        telemetry.gpu_utilisation_pct, telemetry.jpeg_utilisation_pct, telemetry.sm_clock_mhz_p50, telemetry.power_w,
        telemetry.temperature_c_max, telemetry.power_capped_pct, telemetry.throttled_pct, telemetry.throttle_reasons,
        telemetry.other_process_utilisation_pct, telemetry.host_load, telemetry.energy_j_per_image,
        telemetry.disk_read_gb_per_s, telemetry.page_cache,
        learning.epochs_done, learning.images_seen, learning.loss_first, learning.loss_last,
        learning.loss_at_100k_images, learning.loss_at_1m_images, learning.learning, validity.seeded_step_distance,
        learning.train_top1_error_pct, learning.val_top1_error_pct, learning.val_top5_error_pct,
    )
}  # fmt: skip
