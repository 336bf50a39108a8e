"""A row: every column in its order, as cells of text ("" where unknown), and the digests that say what may be compared.

A *record* is everything needed to rebuild a row (`trial.json`); a row says everything itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from dataclasses import fields
from decimal import Decimal
from typing import Any

from harness.config import RunConfig, names
from harness.metrics import METRICS
from harness.trial import Trial, from_json

SCHEMA_VERSION = 4
STATUSES = ("failed", "interrupted", "oom", "diverged", "invalid", "throttled", "contaminated", "ok")
COUNTS = ("throttled", "contaminated", "ok")  # with a warning unless ok
CELL_CHARACTERS_MAX = 1000


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = words(
    "status label gpu_name gpus images_per_gpu precision images_per_s input_alone_images_per_s model_alone_images_per_s "
    "bound_by pct_of_model_alone step_ms_p50 step_ms_p99 gpu_peak_process_gib gpu_memory_gib energy_j_per_image"
)
WHO = words(
    "schema_version run_id group_id launch started_at status_reason task_id shape_id setting_id software_id hardware_id"
)
DATASET = words("dataset_id source_form statistics_id classes train_images val_images excluded_images")
MACHINE = words(
    "cpu_name cpu_cores_usable ram_gib os container numa_nodes gpu_uuids gpu_link gpu_power_limit_w "
    "gpu_power_limit_default_w gpu_max_sm_clock_mhz gpu_datasheet_tflop_per_s pcie_gen_width driver_version torch torch_cuda dali dali_cuda triton "
    "cudnn nccl python harness git_commit data_filesystem"
)
SEEN = words(
    "timed_steps timed_s images_counted within_launch_ci_low_images_per_s within_launch_ci_high_images_per_s effective_steps "
    "step_ms_p95 outlier_steps settled warmup_steps restarts drift_pct_per_min compile_s block_build_s first_batch_s rank_skew_pct "
    "no_comm_images_per_s input_while_training_images_per_s decode_images_per_s storage_images_per_s limit_images_per_s "
    "limit_half_width_pct pct_of_limit data_wait_pct compute_pct optimiser_pct host_gap_pct exposed_comm_pct "
    "exchange_mib_per_step exchange_kib_per_image "
    "model_tflop_per_s gemm_peak_tflop_per_s mfu_pct copy_gb_per_s "
    "gpu_peak_allocated_gib gpu_peak_reserved_gib gpu_peak_other_gib host_peak_rss_gib memory_growth_mib_per_1000_steps "
    "images_per_gpu_expected_to_fit "
    "gpu_utilisation_pct jpeg_utilisation_pct sm_clock_mhz_p50 power_w temperature_c_max power_capped_pct throttled_pct "
    "throttle_reasons other_process_utilisation_pct host_load disk_read_gb_per_s page_cache "
    "epochs_done images_seen loss_first loss_last loss_at_100k_images loss_at_1m_images learning seeded_step_distance "
    "train_top1_error_pct val_top1_error_pct val_top5_error_pct"
)
# A dict keeps the first place of a name that is listed twice.
COLUMNS = tuple(dict.fromkeys([*FIRST, *WHO, *(item.name for item in fields(RunConfig)), *DATASET, *MACHINE, *SEEN]))

IDENTITIES = {
    "task_id": (*names("task"), "classes", "dataset_id", "source_form", "statistics_id"),
    "shape_id": names("shape"),
    "setting_id": names("setting"),
    "software_id": words("torch torch_cuda dali dali_cuda triton cudnn nccl driver_version python harness git_commit"),
    "hardware_id": words(
        "gpu_name gpu_memory_gib gpu_power_limit_w gpu_link pcie_gen_width cpu_name cpu_cores_usable ram_gib numa_nodes"
    ),
}
# Two tables for columns added after schema 1. IMPLIED: the cell that rows without the column implied, which therefore
# enters no digest. SINCE: the schema_version that first filled a column; `verify` lets older rows leave it empty.
IMPLIED: dict[str, str] = {"nodes": "1", "schedule": "constant", "warmup_epochs": "0", "decay_form": "torch"}
SINCE: dict[str, int] = {
    "exposed_comm_pct": 2,
    "restarts": 4,
    **dict.fromkeys(
        words(
            "within_launch_ci_low_images_per_s within_launch_ci_high_images_per_s effective_steps outlier_steps "
            "drift_pct_per_min"
        ),
        3,
    ),
}


def cell(value: Any) -> str:
    """One line of text: "" for None, true or false, whole numbers exactly, others to six significant digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number_cell(value)
    text = " ".join(str(value).split()).encode("utf-8", "replace").decode()
    return text if len(text) <= CELL_CHARACTERS_MAX else text[: CELL_CHARACTERS_MAX - 3] + "..."


def number_cell(value: float) -> str:
    short = f"{value + 0.0:.6g}"  # adding zero makes minus zero zero
    return f"{Decimal(short):f}" if "e" in short and 1e-9 <= abs(value) < 1e15 else short


def identities(row: dict[str, str]) -> dict[str, str]:
    """The five digests, of nothing but the row's cells; "" for one of which no cell is known."""
    return dict(zip(IDENTITIES, digests_of(identity_cells(row)), strict=True))


identity_cells = operator.itemgetter(*(name for columns in IDENTITIES.values() for name in columns))


@functools.lru_cache(maxsize=100_000)
def digests_of(cells: tuple[str, ...]) -> tuple[str, ...]:
    left = iter(cells)
    return tuple(digest_of(kind, tuple(itertools.islice(left, len(columns)))) for kind, columns in IDENTITIES.items())


@functools.lru_cache(maxsize=100_000)
def digest_of(kind: str, cells: tuple[str, ...]) -> str:
    """Of the cells of a kind's columns, in order. What older rows implied enters none, as if the column were not there."""
    known = zip(IDENTITIES[kind], cells, strict=True)
    parts = sorted(f"{name}={value}" for name, value in known if value and value != IMPLIED.get(name))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12] if parts else ""


def row_of(record: dict[str, Any]) -> dict[str, str]:
    """Every column's cell. What a record holds beyond the columns stays in the record."""
    trial = from_json(Trial, record["trial"])
    told = {name: metric(trial) for name, metric in METRICS.items()}
    values = {**record, **record["asked"], **record["dataset"], **record["machine"], **told}
    row = {name: cell(values.get(name)) for name in COLUMNS}
    return {**row, **identities(row)}


def ranks_of(row: dict[str, str]) -> int:
    """How many ranks a row ran on, of whichever kind; a table of another hand may leave the other kind empty or 0."""
    counts = [int(row[name]) for name in ("gpus", "cpus") if row[name].isdecimal()]
    return max(counts, default=0) or 1
