"""ReLU, normalisation and max-pool in one operator on the CPU: right, torch's contract, built once whoever asks, refusals."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models import block
from models.block import reference, relu_lrn_maxpool

ROOT = Path(__file__).parents[1]
# float32: sums of up to 21 squares in another order. bfloat16: one rounding of the result.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
CONSTANTS = (5, 1e-4, 0.75, 2.0, 2)


def activations(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Within the rounding of found's dtype of the largest expected value."""
    assert found.shape == expected.shape
    if expected.numel():
        scale = expected.abs().max().item()
        assert (found.double() - expected).abs().max().item() <= TOLERANCE[found.dtype] * scale


def places(winners: Tensor, width: int) -> Tensor:
    """max_pool2d's flat indices of these places in 3x3 windows of stride 2."""
    rows, columns = (torch.arange(n) for n in winners.shape[2:])
    down, right = winners.long() // 3, winners.long() % 3
    return (2 * rows[:, None] + down) * width + 2 * columns + right


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(3, 8), st.integers(3, 9)),
    columns=st.integers(1, 3),
    size=st.sampled_from([1, 3, 5, 7, 21]),
    constants=st.sampled_from([(1e-4, 0.75, 2.0), (0.1, 0.75, 1.0), (2.0, 0.5, 0.3), (0.0, 0.0, 1.0)]),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
)
def test_any_shape_agrees_with_the_formula_forward_and_backward(
    shape: tuple[int, int, int, int],
    columns: int,
    size: int,
    constants: tuple[float, float, float],
    dtype: torch.dtype,
) -> None:
    n, width, *rest = shape
    x = activations(n, width * columns, *rest, dtype=dtype)
    exact = x.double().requires_grad_()
    expected = reference(exact, size, *constants, columns)
    x.requires_grad_()
    found = relu_lrn_maxpool(x, size, *constants, columns)
    gradient = activations(*found.shape, dtype=dtype, seed=1)
    found.backward(gradient)
    expected.backward(gradient.double())
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_close(found.detach(), expected.detach())
    assert_close(x.grad, exact.grad)


def test_of_equal_activations_the_first_wins_as_in_max_pool() -> None:
    # Few different values, most of them negative: windows full of ties, among them zeros from ReLU.
    x = torch.randint(-6, 3, (2, 8, 9, 11), generator=torch.Generator().manual_seed(0)).float()
    pooled, winners = block.forward(x, 1, 0.0, 0.0, 1.0, 1)
    expected, indices = F.max_pool2d(F.relu(x), 3, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    assert torch.equal(places(winners, 11), indices)


def test_not_a_number_reaches_every_window_that_saw_it() -> None:
    x = activations(1, 4, 7, 7)
    x[0, 1, 2, 2] = math.nan
    (pooled, winners), exact = block.forward(x, 1, 1e-4, 0.75, 2.0, 1), x.double()
    expected, indices = F.max_pool2d(block.lrn.reference(F.relu(exact), 1), 3, 2, return_indices=True)
    assert torch.equal(pooled.isnan(), expected.isnan())
    assert pooled.isnan().sum() == 4
    assert torch.equal(places(winners, 7), indices)


def test_the_window_never_reaches_into_the_other_column() -> None:
    x = activations(1, 96, 3, 3).abs()
    changed = x.clone()
    changed[:, 47] += 50
    touched = (relu_lrn_maxpool(x, columns=2) != relu_lrn_maxpool(changed, columns=2)).any((0, 2, 3))
    assert touched.nonzero().flatten().tolist() == [45, 46, 47]


def test_the_number_of_threads_changes_no_bit() -> None:
    x = activations(5, 96, 9, 9)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            pooled, winners = block.forward(x, *CONSTANTS)
            results.append((pooled, winners, block.backward(pooled, x, winners, *CONSTANTS)))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, results[0], other) for other in results[1:])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
def test_the_operators_hold_torchs_contract(memory_format: torch.memory_format) -> None:
    x = activations(2, 8, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(block.forward, (x, *CONSTANTS))
    pooled, winners = block.forward(x.detach(), *CONSTANTS)
    torch.library.opcheck(block.backward, (pooled.contiguous(), x.detach(), winners, *CONSTANTS))


def test_compiled_in_one_graph_under_autocast_it_agrees_with_the_formula() -> None:
    x = activations(2, 8, 5, 5)
    exact = x.double().requires_grad_()
    expected = reference(exact, columns=2)
    expected.sum().backward()
    x.requires_grad_()
    compiled = torch.compile(lambda x: relu_lrn_maxpool(x, columns=2), fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(x)
        found.sum().backward()
    assert_close(found.detach(), expected.detach())
    assert_close(x.grad, exact.grad)


def test_differentiating_twice_is_refused() -> None:
    x = activations(1, 4, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(relu_lrn_maxpool(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 4, 4)}, r"x has shape \(4, 4, 4\); it must have four dimensions"),
        ({"x": torch.zeros(1, 4, 2, 5)}, r"x has shape \(1, 4, 2, 5\); its height and width must be at least 3"),
        ({"x": torch.zeros(1, 4, 3, 3, dtype=torch.int32)}, r"x has dtype torch.int32; on cpu it must be one of"),
        (
            {"x": torch.zeros(1, 4, 3, 3, dtype=torch.float64)},
            r"torch.float64; on cpu .* torch.float32, torch.bfloat16",
        ),
        ({"x": torch.zeros(1, 4, 3, 3).to_sparse()}, r"x has layout torch.sparse_coo"),
        ({"size": 2}, r"size is 2; it must be odd and positive"),
        ({"columns": 3}, r"columns is 3; it must be positive and divide x's 4 channels"),
        ({"beta": math.nan}, r"beta is nan"),
        ({"k": 0.0}, r"k is 0.0; it must be positive"),
    ],
)
def test_an_argument_without_a_right_answer_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relu_lrn_maxpool(**({"x": torch.zeros(1, 4, 3, 3)} | change))


# --- building -----------------------------------------------------------------------------------------------------

BUILD = "from models import block; block.build()"


def building(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_ranks_that_build_at_once_and_one_killed_before_leave_one_library(tmp_path: Path) -> None:
    killed = building(tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.so"))
    for rank in [building(tmp_path), building(tmp_path)]:
        _, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
    assert len(list(tmp_path.glob("*.so"))) == 1


@pytest.mark.parametrize("compiler", ["/no/compiler", "false"])
def test_without_a_compiler_that_works_the_build_names_it(compiler: str, tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "CXX": compiler}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"compiled by {compiler} " in done.stderr or f"{compiler} could not compile" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.gpus(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("channels", "places"), [(96, 55), (256, 27), (6, 8)])
def test_on_a_gpu_it_agrees_with_the_formula(channels: int, places: int, compiled: bool, dtype: torch.dtype) -> None:
    x = activations(3, channels, places, places, dtype=dtype)
    exact = x.double().requires_grad_()
    expected = reference(exact, columns=2)
    gradient = activations(*expected.shape, dtype=dtype, seed=1)
    expected.backward(gradient.double())
    on_gpu = x.cuda().requires_grad_()
    function = torch.compile(relu_lrn_maxpool, fullgraph=True) if compiled else relu_lrn_maxpool
    found = function(on_gpu, columns=2)
    found.backward(gradient.cuda())
    tolerance = {torch.float16: 2**-11, **TOLERANCE}[dtype]
    for ours, true in ((found.detach(), expected.detach()), (on_gpu.grad, exact.grad)):
        assert (ours.cpu().double() - true).abs().max() <= tolerance * true.abs().max()
