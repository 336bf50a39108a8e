"""How far from the limit it was, and what bounded it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from harness.metrics.learning import images_a_step
from harness.metrics.numbers import MIB, one_a_shard, seconds_between, share_pct
from harness.metrics.speed import images_per_s
from harness.trial import RankTrial, Trial, Window

INPUT_BOUND_WAIT_PCT = 5.0
COMMUNICATION_BOUND_RATIO = 1.05
HOST_BOUND_GAP_PCT = 5.0
# What binds a run that is bound by its input: the input as a whole, or the part of it that takes longest.
INPUT_BOUNDS = ("input", "storage", "decode", "augment")


def alone_images_per_s(trial: Trial, part: str) -> float | None:
    """Images of the whole job a second through a part; those that several columns see count once."""
    laps = [rank.alone[part] for rank in trial.ranks if part in rank.alone]
    if not laps or len(laps) < len(trial.ranks):
        return None
    seconds = seconds_between(laps, [rank.clock_ahead_s for rank in trial.ranks])
    return sum(rank.alone[part].images for rank in one_a_shard(trial)) / seconds if seconds else None


def input_alone_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "input")


def model_alone_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "model")


def no_comm_images_per_s(trial: Trial) -> float | None:
    return alone_images_per_s(trial, "no_comm")


def input_while_training_images_per_s(trial: Trial) -> float | None:
    """What the input gives while the model trains on a batch that is there already, and neither waits for the other."""
    return alone_images_per_s(trial, "input_while_training")


def storage_images_per_s(trial: Trial) -> float | None:
    """Encoded images read into memory, and no more."""
    return alone_images_per_s(trial, "storage")


def decode_images_per_s(trial: Trial) -> float | None:
    """Images read and decoded, not augmented."""
    return alone_images_per_s(trial, "decode")


def limit_half_width_pct(trial: Trial) -> float | None:
    """Half of the 95 % interval of the less sure of input alone and model alone, as a share of it."""
    from harness.metrics.intervals import relative_half_width  # with numpy, which only rebuilding a row needs

    widths = [
        100 * relative_half_width(rank.alone[part].block_s)
        for rank in trial.ranks
        for part in ("input", "model")
        if part in rank.alone and len(rank.alone[part].block_s) > 2
    ]
    return max(widths, default=None)


def limit_images_per_s(trial: Trial) -> float | None:
    """What input and model allow together: the slower, or, where they take turns on the same cores, their series."""
    source, model = input_alone_images_per_s(trial), model_alone_images_per_s(trial)
    if not source or not model:
        return None
    return 1 / (1 / source + 1 / model) if trial.ranks_share_cores_with_input else min(source, model)


def exposed_comm_pct(trial: Trial) -> float | None:
    """Share of a step that the model alone spends on communication that nothing hides: its time less that without any."""
    model, no_comm = model_alone_images_per_s(trial), no_comm_images_per_s(trial)
    return 100 * (1 - model / no_comm) if model and no_comm else None


def exchange_mib_per_step(trial: Trial) -> float | None:
    """What all ranks together send each other in a training step."""
    sent = [rank.sent_bytes_per_step for rank in trial.ranks if rank.sent_bytes_per_step is not None]
    return sum(sent) / MIB if sent and len(sent) == trial.ranks_asked else None


def exchange_kib_per_image(trial: Trial) -> float | None:
    mib = exchange_mib_per_step(trial)
    return 1024 * mib / images_a_step(trial) if mib is not None else None


def pct_of_limit(trial: Trial) -> float | None:
    return share_pct(images_per_s(trial), limit_images_per_s(trial))


def pct_of_model_alone(trial: Trial) -> float | None:
    return share_pct(images_per_s(trial), model_alone_images_per_s(trial))


# --- where the time goes --------------------------------------------------------------------------------------------


def share_of_windows_pct(trial: Trial, spent_ms: Callable[[Window], float]) -> float | None:
    """Share of the ranks' windows that was spent on something, the mean over ranks."""
    shares = [
        100 * sum(map(spent_ms, rank.windows)) / 1000 / seconds
        for rank in trial.ranks
        if (seconds := sum(w.stop_s - w.start_s for w in rank.windows))
    ]
    return fmean(shares) if shares else None


def has_phases(trial: Trial) -> bool:
    return all(w.compute_ms and w.optimiser_ms for rank in trial.ranks for w in rank.windows)


def data_wait_pct(trial: Trial) -> float | None:
    """Share of the windows in which there was no batch to train on."""
    return share_of_windows_pct(trial, lambda w: sum(w.wait_ms))


def compute_pct(trial: Trial) -> float | None:
    """Share of the windows from a batch to its gradients, communication included."""
    return share_of_windows_pct(trial, lambda w: sum(w.compute_ms)) if has_phases(trial) else None


def optimiser_pct(trial: Trial) -> float | None:
    """Share of the windows from gradients to changed weights."""
    return share_of_windows_pct(trial, lambda w: sum(w.optimiser_ms)) if has_phases(trial) else None


def host_gap_pct(trial: Trial) -> float | None:
    """Share of a step in which the device had nothing to do because the host had not asked yet; the mean over ranks.

    Of a GPU: how much longer a step takes than one that was asked for in time, both without communication. Of a CPU, which
    is its own host: what the loop does between the steps.
    """
    if trial.ranks_share_cores_with_input:
        spent = [pct for metric in (data_wait_pct, compute_pct, optimiser_pct) if (pct := metric(trial)) is not None]
        return max(0.0, 100 - sum(spent)) if len(spent) == 3 else None
    gaps = [gap_pct(rank) for rank in trial.ranks]
    known = [gap for gap in gaps if gap is not None]
    return fmean(known) if known and len(known) == len(gaps) else None


def gap_pct(rank: RankTrial) -> float | None:
    asked, queued = rank.alone.get("no_comm", rank.alone.get("model")), rank.alone.get("queued")
    if asked is None or queued is None or not asked.images or not queued.images or asked.stop_s == asked.start_s:
        return None
    busy_s = (queued.stop_s - queued.start_s) / queued.images
    return max(0.0, 100 * (1 - busy_s / ((asked.stop_s - asked.start_s) / asked.images)))


def slowest_input_part(trial: Trial) -> str | None:
    """storage, decode or augment: the one that adds most to an image's time; None where they were not told apart."""
    storage, decode, whole = storage_images_per_s(trial), decode_images_per_s(trial), input_alone_images_per_s(trial)
    if not storage or not decode or not whole:
        return None
    costs = {"storage": 1 / storage, "decode": 1 / decode - 1 / storage, "augment": 1 / whole - 1 / decode}
    return max(costs, key=lambda part: costs[part])


def bound_by(trial: Trial) -> str | None:
    """input (or the part of it: storage, decode, augment), communication, host or model; None where it was not measured.

    Input where the wait for data is over 5 %; then communication where the model alone is over 5 % faster without; then
    host where the device had nothing to do for over 5 % of a step.
    """
    wait, model, no_comm = data_wait_pct(trial), model_alone_images_per_s(trial), no_comm_images_per_s(trial)
    if wait is not None and wait > INPUT_BOUND_WAIT_PCT:
        return slowest_input_part(trial) or "input"
    if wait is None or model is None or (len(trial.ranks) > 1 and no_comm is None):
        return None
    if no_comm is not None and no_comm > COMMUNICATION_BOUND_RATIO * model:
        return "communication"
    return "host" if (host_gap_pct(trial) or 0) > HOST_BOUND_GAP_PCT else "model"
