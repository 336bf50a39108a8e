"""What `doctor --certify` measures: run on this CPU for real, and with a fault planted in each check."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import small_step
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import certify, checks
from harness.certify import Check
from harness.checks import Measured, NotRun
from harness.config import PARALLEL
from models import block, lrn
from pipelines.dataset.embedded import open_embedded_set

CPU = torch.device("cpu")
PATIENCE_S = 300.0  # for ranks on a machine that has other work
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
normalise = partial(lrn.local_response_norm, columns=2)
fused = partial(block.relu_lrn_maxpool, columns=2)


# --- numerics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_our_lrn_is_right_to_the_rounding_of_its_dtype(dtype: torch.dtype) -> None:
    assert checks.lrn_numerics(CPU, dtype, normalise, images=1).verdict == "ok"


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_our_block_is_right_to_the_rounding_of_its_dtype(dtype: torch.dtype) -> None:
    assert checks.block_numerics(CPU, dtype, fused, images=1).verdict == "ok"


def narrow_sums(x: Tensor) -> Tensor:
    """LRN computed in x's own dtype."""
    return lrn.reference(x, columns=2)


def half_gradient(x: Tensor) -> Tensor:
    """Right forward, and half the gradient."""
    y = normalise(x)
    return y / 2 + y.detach() / 2


@pytest.mark.parametrize(
    ("dtype", "fault"),
    [
        (FP32, partial(normalise, alpha=1.001e-4)),
        (FP32, partial(normalise, columns=1)),
        (FP32, partial(normalise, size=3)),
        (FP32, lambda x: normalise(x) * (1 + 4e-6)),
        (BF16, lambda x: normalise(x) * 1.01),
        (BF16, narrow_sums),
        (FP32, half_gradient),
        (FP32, lambda x: normalise(x) * math.nan),
    ],
    ids=["alpha", "columns", "size", "4e-6 off", "a hundredth off", "sums in bfloat16", "half the gradient", "NaN"],
)
def test_an_lrn_that_is_off_is_seen(dtype: torch.dtype, fault: Callable[[Tensor], Tensor]) -> None:
    assert checks.lrn_numerics(CPU, dtype, fault, images=1).verdict == "off"


def test_an_lrn_right_in_one_memory_format_only_is_seen() -> None:
    def fault(x: Tensor) -> Tensor:
        return normalise(x) * (1 if x.is_contiguous(memory_format=torch.channels_last) else 1.01)

    assert checks.lrn_numerics(CPU, BF16, fault, images=1).verdict == "off"


@pytest.mark.parametrize(
    "fault",
    [
        partial(fused, alpha=1.001e-4),
        lambda x: F.max_pool2d(normalise(F.relu(x)), 3, 2, ceil_mode=False) * 1.0001,
        lambda x: F.avg_pool2d(normalise(F.relu(x)), 3, 2),
        lambda x: F.max_pool2d(normalise(x), 3, 2),
    ],
    ids=["alpha", "a ten-thousandth off", "average-pool", "no ReLU"],
)
def test_a_block_that_is_off_is_seen(fault: Callable[[Tensor], Tensor]) -> None:
    assert checks.block_numerics(CPU, FP32, fault, images=1).verdict == "off"


def test_the_plain_operations_pass_as_the_block_does() -> None:
    assert (
        checks.block_numerics(CPU, FP32, lambda x: F.max_pool2d(normalise(F.relu(x)), 3, 2), images=1).verdict == "ok"
    )


# --- speed, input, step, ranks ------------------------------------------------------------------------------------


def test_a_slow_kernel_is_seen() -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.05)
        return x * 1

    found = checks.bandwidth(CPU, slow, False, passes=2, bound=0.5, images=1)
    assert (found.verdict, found.unit) == ("off", "of a copy's GB/s")
    assert replace(found, worst=0.5).verdict == "ok"


def test_a_backward_is_timed_without_its_forward() -> None:
    def slow_forward(x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x * 1

    assert checks.seconds_of(partial(slow_forward, torch.ones(1)), CPU, calls=1, blocks=1) >= 0.02
    assert checks.bandwidth(CPU, slow_forward, True, passes=2, bound=None, images=1).worst > (
        3 * checks.bandwidth(CPU, slow_forward, False, passes=2, bound=None, images=1).worst
    )


def test_a_cpu_has_no_bound_for_speed() -> None:
    (forward, _) = certify.speed_checks(CPU, "LRN", normalise)
    assert forward.run().verdict == "measured"


def test_the_bounds_for_speed_are_the_least_bytes_over_the_most_that_may_be_issued() -> None:
    shares = {
        check.name: check.run.keywords.get("bound", check.run.args[4])
        for kernel in ("LRN", "block")
        for check in certify.speed_checks(torch.device("cuda"), kernel, normalise)
    }
    assert {name: round(share, 2) for name, share in shares.items()} == {
        "LRN forward, speed": 0.7,
        "LRN backward, speed": 0.7,
        "block forward, speed": 0.44,
        "block backward, speed": 0.57,
    }


def test_decodings_are_compared_in_levels() -> None:
    grey = partial(torch.full, (1, 3, 2, 2), 100.0)
    assert checks.apart_in(grey, grey, torch.max, 1).worst == 0
    brighter = checks.apart_in(lambda: grey() + 3, grey, torch.mean, 1)
    assert (brighter.worst, brighter.unit, brighter.verdict) == (3, "levels", "off")


def test_the_cpus_decoding_equals_itself() -> None:
    config = checks.step_config(CPU, images_per_gpu=8)
    decode = partial(checks.pixels, config, open_embedded_set().train, CPU)
    found = checks.apart_in(decode, decode, torch.max, checks.RESIZE_LEVELS)
    assert (found.worst, found.verdict) == (0, "ok")
    assert decode().shape == (8, 3, 224, 224)


def test_a_compiled_step_agrees_with_the_eager_one_and_one_that_does_not_is_seen() -> None:
    assert checks.compiled_step(CPU, small_step.build).verdict == "ok"
    found = checks.compiled_step(CPU, small_step.wrong_when_compiled)
    assert found.verdict == "off"
    assert found.worst == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_ranks_have_the_gradients_of_one_process_on_all_images(parallel: str) -> None:
    assert checks.two_ranks(CPU, timeout_s=PATIENCE_S, parallel=parallel).verdict == "ok"


def test_ranks_that_do_not_communicate_are_seen() -> None:
    found = checks.two_ranks(CPU, small_step.without_communication, timeout_s=PATIENCE_S)
    assert found.verdict == "off"
    assert found.worst > 0.1


def test_ranks_that_hang_are_killed() -> None:
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"did not end within 0.5 s"):
        checks.two_ranks(CPU, timeout_s=0.5)
    assert time.monotonic() - began_s < 10
    assert multiprocessing.active_children() == []


def test_gpus_that_are_not_there_are_not_run() -> None:
    with pytest.raises(NotRun, match=r"needs 2 GPUs"):
        checks.two_ranks(torch.device("cuda"))


# --- the table ----------------------------------------------------------------------------------------------------


def passing() -> Measured:
    return Measured(0.5, "of the rounding allowed", 1)


def test_a_row_says_what_was_compared_the_worst_the_bound_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert certify.report([Check("LRN, float32", "against float64", passing)], 60) == ["ok"]
    row = capsys.readouterr().out.splitlines()[1:]
    assert row == [
        "ok        LRN, float32              0.5 of the rounding allowed    at most 1",
        "          against float64",
    ]


def test_one_planted_fault_fails_exactly_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Check("LRN", "", partial(checks.lrn_numerics, CPU, FP32, partial(normalise, alpha=2e-4), images=1)),
        Check("another", "", passing),
    ]
    verdicts = certify.report(rows, 60)
    assert verdicts == ["off", "ok"]
    assert certify.exit_status(verdicts) == 1
    assert certify.exit_status(["ok", "measured", "not run"]) == 0


def test_a_check_that_raises_is_one_sentence_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> Measured:
        raise RuntimeError("no kernel image is available\nand forty lines more")

    verdicts = certify.report([Check("first", "", breaks), Check("second", "", passing)], 60)
    assert verdicts == ["failed", "ok"]
    assert certify.exit_status(verdicts) == 1
    text = capsys.readouterr().out
    assert "RuntimeError: no kernel image is available" in text
    assert "forty lines" not in text


def test_a_rank_that_raises_is_told_in_its_own_words() -> None:
    verdict, told = certify.attempt(Check("", "", partial(checks.two_ranks, CPU, small_step.broken, PATIENCE_S)), 60)
    assert (verdict, told) == ("failed", "RuntimeError: no memory for these weights")


def test_what_the_time_does_not_reach_is_not_run() -> None:
    def breaks() -> Measured:
        raise AssertionError("started without time")

    assert certify.report([Check("late", "", breaks)], time_box_s=0) == ["not run"]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Measured(1.0, "", 1), "ok"),
        (Measured(1.01, "", 1), "off"),
        (Measured(math.nan, "", 1), "off"),
        (Measured(0.7, "", 0.7, at_least=True), "ok"),
        (Measured(0.69, "", 0.7, at_least=True), "off"),
        (Measured(math.nan, "", 0.7, at_least=True), "off"),
        (Measured(0.1, "", None), "measured"),
    ],
)
def test_a_bound_holds_or_does_not_and_nan_never_does(measured: Measured, verdict: str) -> None:
    assert measured.verdict == verdict


def test_a_nan_among_the_draws_is_never_the_least_nor_overlooked() -> None:
    for values in ([math.nan, 1.0], [1.0, math.nan]):
        assert math.isnan(checks.least(values))
        assert math.isnan(checks.largest(values))
    assert (checks.least([2.0, 1.0]), checks.largest([2.0, 1.0])) == (1.0, 2.0)


def test_a_cpu_certifies_nothing_for_a_gpu_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert certify.main(None, time_box_s=0) == 0
    assert "Nothing was certified for a GPU" in capsys.readouterr().out.rpartition("\n\n")[2]


def test_every_check_of_the_issue_is_in_the_table_and_those_of_a_gpu_are_not_run_here() -> None:
    listed = certify.checks(CPU, lambda: pytest.fail("no pictures are needed without a GPU"))
    names = [check.name for check in listed]
    for start in (
        "GPUs found",
        "LRN, ",
        "block, ",
        "LRN forward",
        "LRN backward",
        "block forward",
        "block backward",
        "compiled",
        "two ranks, data",
        "two ranks, columns",
        "two ranks, hybrid",
    ):
        assert any(name.startswith(start) for name in names), start
    decodings = [check for check in listed if check.name.startswith("DALI")]
    assert [certify.attempt(check, 60) for check in decodings] == [("not run", "needs a GPU")] * 3


def test_a_gpu_that_the_driver_shows_and_torch_cannot_use_is_off() -> None:
    usable = torch.cuda.device_count()
    assert certify.gpus_found(usable).verdict == "ok"
    assert certify.gpus_found(usable + 1).verdict == "off"
