"""Local response normalisation on the CPU: the formula itself, the operator's contract, refusals."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from models import lrn
from models.lrn import local_response_norm, reference

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def activations(
    *shape: int, dtype: torch.dtype = torch.float32, layout: str = "channels_last", seed: int = 0
) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100
    return values.to(dtype).contiguous(memory_format=FORMATS[layout])


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Within the rounding of found's dtype of the largest expected value."""
    assert found.shape == expected.shape
    if expected.numel():
        scale = expected.abs().max().item()
        assert (found.double() - expected).abs().max().item() <= TOLERANCE[found.dtype] * scale


def test_a_worked_example_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    sums = [1 + 4, 1 + 4 + 9, 4 + 9 + 16, 9 + 16]
    expected = [a / (2 + 0.1 * s) ** 0.75 for a, s in zip([1, 2, 3, 4], sums, strict=True)]
    for function in (reference, local_response_norm):
        assert function(x, size=3, alpha=0.1).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_alpha_is_the_papers_and_torchs_is_divided_by_the_window() -> None:
    x = activations(2, 9, 3, 3, dtype=torch.float64)
    assert_close(local_response_norm(x), F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0))


def test_the_window_never_reaches_into_the_other_column() -> None:
    x = activations(1, 96, 2, 2)
    changed = x.clone()
    changed[:, 47] += 50
    touched = (local_response_norm(x, columns=2) != local_response_norm(changed, columns=2)).any((0, 2, 3))
    assert touched.nonzero().flatten().tolist() == [45, 46, 47]
    x.requires_grad_()
    local_response_norm(x, columns=2)[:, 48].sum().backward()
    assert x.grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [48, 49, 50]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4), st.integers(1, 4)),
    columns=st.integers(1, 3),
    size=st.sampled_from([1, 3, 5, 7, 21]),
    constants=st.sampled_from([(1e-4, 0.75, 2.0), (0.1, 0.75, 1.0), (2.0, 0.5, 0.3), (0.0, 0.0, 1.0)]),
    layout=st.sampled_from(sorted(FORMATS)),
    dtype=st.sampled_from(sorted(TOLERANCE, key=str)),
    operator=st.booleans(),
)
def test_any_shape_agrees_with_the_formula_forward_and_backward(
    shape: tuple[int, int, int, int],
    columns: int,
    size: int,
    constants: tuple[float, float, float],
    layout: str,
    dtype: torch.dtype,
    operator: bool,
) -> None:
    n, width, height, breadth = shape
    shape = (n, width * columns, height, breadth)
    x, gradient = activations(*shape, dtype=dtype, layout=layout), activations(*shape, dtype=dtype, seed=1)
    arguments = (size, *constants, columns)
    exact = x.double().requires_grad_()
    reference(exact, *arguments).backward(gradient.double())
    x.requires_grad_()
    found = (lrn.forward if operator else local_response_norm)(x, *arguments)
    found.backward(gradient)
    assert found.dtype == dtype
    assert found.stride() == torch.empty_like(x, memory_format=lrn.memory_format(x)).stride()
    assert_close(found.detach(), reference(exact.detach(), *arguments))
    assert_close(x.grad, exact.grad)


@pytest.mark.parametrize("layout", FORMATS)
def test_the_closed_form_is_the_formulas_derivative(layout: str) -> None:
    x = (activations(2, 6, 2, 3, dtype=torch.float64, layout=layout) / 100).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: local_response_norm(x, alpha=0.3, columns=2), (x,))


# opcheck itself reads .grad of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("layout", FORMATS)
def test_the_operators_hold_torchs_contract(layout: str) -> None:
    x = activations(2, 8, 3, 3, layout=layout).requires_grad_()
    gradient = activations(2, 8, 3, 3, seed=1, layout="contiguous")
    torch.library.opcheck(lrn.forward, (x, 5, 1e-4, 0.75, 2.0, 2))
    torch.library.opcheck(lrn.backward, (gradient, x.detach(), 5, 1e-4, 0.75, 2.0, 2))


@pytest.mark.parametrize("layout", FORMATS)
def test_shapes_alone_give_the_strides_that_the_kernel_gives(layout: str) -> None:
    x = activations(2, 8, 3, 3, layout=layout)
    assert local_response_norm(x.to("meta")).stride() == local_response_norm(x).stride() == x.stride()
    assert local_response_norm(x[:, :, 1:]).stride() == local_response_norm(x.to("meta")[:, :, 1:]).stride()


@pytest.mark.parametrize("function", [local_response_norm, lrn.forward], ids=["public", "operator"])
def test_compiled_in_one_graph_under_autocast_sums_stay_in_float32(function: object) -> None:
    x = activations(2, 8, 3, 3)
    exact = x.double().requires_grad_()
    reference(exact, columns=2).sum().backward()
    x.requires_grad_()
    compiled = torch.compile(lambda x: function(x, 5, 1e-4, 0.75, 2.0, 2), fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(x)
        found.sum().backward()
    assert found.stride() == x.stride()
    assert_close(found.detach(), reference(exact.detach(), columns=2))
    assert_close(x.grad, exact.grad)


def test_half_precision_squares_do_not_overflow() -> None:
    x = torch.full((1, 5, 1, 1), 1000.0, dtype=torch.float16)
    assert_close(local_response_norm(x), reference(x.double()))


def test_differentiating_twice_is_refused() -> None:
    x = activations(1, 4, 1, 1).requires_grad_()
    for function in (lrn.Formula.apply, lrn.forward):
        (gradient,) = torch.autograd.grad(function(x, 5, 1e-4, 0.75, 2.0, 1).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError):
            gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 4, 4)}, r"x has shape \(4, 4, 4\); it must have four dimensions"),
        ({"x": torch.zeros(1, 4, 2, 2, dtype=torch.int32)}, r"x has dtype torch.int32; on cpu it must be one of"),
        ({"x": torch.zeros(1, 4, 2, 2, dtype=torch.complex64)}, r"x has dtype torch.complex64"),
        ({"x": torch.zeros(1, 4, 2, 2).to_sparse()}, r"x has layout torch.sparse_coo; .* dense"),
        ({"size": 4}, r"size is 4; it must be odd and positive"),
        ({"size": 0}, r"size is 0; it must be odd and positive"),
        ({"size": -3}, r"size is -3; it must be odd and positive"),
        ({"columns": 3}, r"columns is 3; it must be positive and divide x's 4 channels"),
        ({"size": 5.0}, r"size is 5.0; it must be an integer"),
        ({"size": math.nan}, r"size is nan; it must be an integer"),
        ({"columns": 0}, r"columns is 0; it must be positive"),
        ({"columns": -2}, r"columns is -2; it must be positive"),
        ({"columns": 2.0}, r"columns is 2.0; it must be an integer"),
        ({"columns": True}, r"columns is True; it must be an integer"),
        ({"alpha": "1e-4"}, r"alpha is '1e-4'; it must be a number"),
        ({"alpha": 1j}, r"alpha is 1j; it must be a number"),
        ({"alpha": math.nan}, r"alpha is nan; it must be finite"),
        ({"alpha": -1.0}, r"alpha is -1.0; it must be finite and not negative"),
        ({"beta": math.nan}, r"beta is nan; it must be finite"),
        ({"beta": True}, r"beta is True; it must be a number"),
        ({"beta": math.inf}, r"beta is inf; it must be finite"),
        ({"beta": -0.5}, r"beta is -0.5; it must be finite and not negative"),
        ({"k": 0.0}, r"k is 0.0; it must be positive"),
        ({"k": -2.0}, r"k is -2.0; it must be positive"),
        ({"k": math.nan}, r"k is nan; it must be positive"),
        ({"k": 1e-30, "beta": 2.0}, r"k is 1e-30; .* normal float32"),
    ],
)
def test_an_argument_without_a_right_answer_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"x": torch.zeros(1, 4, 2, 2)} | change
    compiled = torch.compile(local_response_norm, backend="eager", dynamic=False)
    for function in (local_response_norm, compiled):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 4}, "size is 4; it must be odd"),
        ({"columns": 3}, "columns is 3; it must be positive and divide x's 40 channels"),
        ({"columns": 1.0}, "columns is 1.0; it must be an integer"),
        ({"beta": math.nan}, "beta is nan; it must be finite"),
        ({"k": 0.0}, "k is 0.0; it must be positive"),
        ({"size": 35}, "size is 35; on CUDA it must be 33 at most"),
        ({"dtype": torch.float64}, "x has dtype torch.float64; on cuda it must be one of"),
        ({"dtype": torch.bool}, "x has dtype torch.bool; on cuda"),
    ],
)
def test_on_cuda_an_argument_is_refused_from_shapes_alone(change: dict[str, object], message: str) -> None:
    arguments = {"dtype": torch.bfloat16} | change
    with FakeTensorMode():
        x = torch.empty(2, 40, 3, 3, device="cuda", dtype=arguments.pop("dtype"))
        with pytest.raises(ValueError, match=message):
            local_response_norm(x, **arguments)


def test_on_cuda_a_window_wider_than_its_column_is_no_wider_than_it() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 34, 3, 3, device="cuda")
        assert local_response_norm(x, size=99, columns=2).shape == x.shape


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu"])
def test_another_device_is_refused(device: str) -> None:
    elsewhere = SimpleNamespace(device=torch.device(device, 0))
    with pytest.raises(ValueError, match=rf"x is on {device}:0; local_response_norm takes CPU and CUDA tensors"):
        local_response_norm(elsewhere)


@pytest.mark.gpus(1)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("channels", "places"), [(96, 55), (256, 27), (6, 5), (1200, 4)])
def test_on_a_gpu_it_agrees_with_the_formula(
    channels: int, places: int, compiled: bool, dtype: torch.dtype, layout: str
) -> None:
    x = activations(3, channels, places, places, dtype=dtype, layout=layout)
    gradient = activations(3, channels, places, places, dtype=dtype, layout=layout, seed=1)
    exact = x.double().requires_grad_()
    reference(exact, columns=2).backward(gradient.double())
    on_gpu = x.cuda().requires_grad_()
    function = torch.compile(local_response_norm, fullgraph=True) if compiled else local_response_norm
    found = function(on_gpu, columns=2)
    found.backward(gradient.cuda())
    assert found.stride() == on_gpu.stride()
    assert_close(found.detach().cpu(), reference(exact.detach(), columns=2))
    assert_close(on_gpu.grad.cpu(), exact.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.gpus(1)
def test_on_a_gpu_the_operators_hold_torchs_contract() -> None:
    x = activations(2, 8, 3, 3).cuda().requires_grad_()
    torch.library.opcheck(lrn.forward, (x, 5, 1e-4, 0.75, 2.0, 2))
    torch.library.opcheck(lrn.backward, (x.detach(), x.detach(), 5, 1e-4, 0.75, 2.0, 2))
