"""mLSTM: its parallel, recurrent and chunkwise forms are one function, also in pieces and at the ends of its range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import mlstm, native, use_kernels
from statefield.kernels.mlstm import mlstm_parallel
from statefield.kernels.mlstm.op import mlstm_backward_op, mlstm_op

FAST = ("chunked", "native")


@pytest.fixture(params=("reference", *FAST))
def implementation(request):
    if request.param == "native" and native.unavailable():
        pytest.skip(native.unavailable())
    with use_kernels(request.param):
        yield request.param


def drawn(length: int, channels: int = 6, *, dtype: torch.dtype = torch.float64, gates: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    rows, steps = (2, 2, length, channels), (2, 2, length)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (rows, rows, rows, steps, steps)
    ]
    tensors[3] *= gates
    tensors[4] *= gates
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def gradients(h: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(h.dtype)
    return torch.autograd.grad((h * weight).sum(), leaves)


@pytest.mark.parametrize("rowwise", [True, False])
@pytest.mark.parametrize("length", [1, 16, 45])
def test_recurrence_and_chunks_equal_the_parallel_form_in_values_and_gradients(implementation, length, rowwise):
    leaves = drawn(length)
    wanted = mlstm_parallel(*leaves, stabilize_rowwise=rowwise)
    found = mlstm(*leaves, chunk_size=16, stabilize_rowwise=rowwise)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for got, expected in zip(gradients(found, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cut", [1, 16, 30])
def test_two_pieces_with_the_state_between_them_equal_one_run(implementation, cut):
    leaves = drawn(45)
    whole, last = mlstm(*leaves, return_state=True, chunk_size=16)
    first, state = mlstm(*(x[:, :, :cut] for x in leaves), return_state=True, chunk_size=16)
    second, end = mlstm(*(x[:, :, cut:] for x in leaves), initial_state=state, return_state=True, chunk_size=16)
    pieces = torch.cat([first, second], 2)
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end, last, rtol=1e-10, atol=1e-10)
    for got, expected in zip(gradients(pieces, leaves), gradients(whole, leaves), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_empty_state_may_be_written_out(implementation):
    leaves = drawn(20)
    zero = (torch.zeros(2, 2, 6, 6), torch.zeros(2, 2, 6), torch.full((2, 2), -torch.inf))
    empty = tuple(x.double() for x in zero)
    torch.testing.assert_close(mlstm(*leaves, initial_state=empty), mlstm(*leaves), rtol=1e-12, atol=1e-12)


def test_the_size_of_a_chunk_does_not_change_the_result(implementation):
    leaves = drawn(130)
    wanted = mlstm(*leaves, chunk_size=64)
    for chunk_size in (16, 32, 128):
        torch.testing.assert_close(mlstm(*leaves, chunk_size=chunk_size), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shift", "forgets"), [(-300.0, 0.0), (300.0, 0.0), (0.0, -300.0), (0.0, 300.0), (-90.0, -90.0)]
)
def test_gates_beyond_the_range_of_exp_give_numbers_and_gradients(implementation, shift, forgets):
    """exp(300) is no float32. What hardly enters gives an output of nothing, not NaN."""
    q, k, v, i, f = (x.detach() for x in drawn(33, dtype=torch.float32))
    leaves = [x.requires_grad_() for x in (q, k, v, i + shift, f + forgets)]
    h = mlstm(*leaves, chunk_size=16)
    assert h.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(h, leaves))
    if shift == -300.0:
        assert h.abs().max() < 1e-36


def test_equal_gates_that_never_forget_share_the_stabilizers_gradient_as_autograd_does(implementation):
    """Every step then ties with all before it: the maximum passes half to each side."""
    q, k, v, _, _ = (x.detach() for x in drawn(5))
    i = torch.full((2, 2, 5), 0.7, dtype=torch.float64).requires_grad_()
    f = torch.full((2, 2, 5), 800.0, dtype=torch.float64)  # log sigmoid is exactly 0
    _, (C, _, m) = mlstm(q, k, v, i, f, return_state=True)
    (grad,) = torch.autograd.grad(m.sum(), i, retain_graph=True)
    if implementation == "chunked":  # its one maximum over all steps takes the last that is largest
        assert torch.equal(grad.sum(2), torch.ones(2, 2, dtype=torch.float64))
    else:
        assert torch.equal(grad[0, 0], torch.tensor([1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2], dtype=torch.float64))
    weight = torch.ones_like(C)
    total = (torch.exp(m)[..., None, None] * C * weight).sum()  # what the state really is does not know m
    (grad,) = torch.autograd.grad(total, i)
    of_step = torch.exp(i.detach()) * torch.einsum("bhsv,bhsk->bhs", v, k / 6**0.5)
    torch.testing.assert_close(grad, of_step, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("behind", FAST)
@pytest.mark.parametrize("ahead", ["reference", *FAST])
def test_a_backward_runs_from_the_forward_of_any_implementation(ahead, behind):
    if "native" in (ahead, behind) and native.unavailable():
        pytest.skip(native.unavailable())
    inputs = [x.detach() for x in drawn(37)]
    options = (1e-6, True, 16)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def run(forward: str, backward: str) -> list[Tensor]:
        with use_kernels(forward):
            results = mlstm_op(*inputs, None, None, None, *options, True)
        with use_kernels(backward):
            return mlstm_backward_op(grad, None, None, None, list(results), *inputs, None, None, None, *options)

    for got, expected in zip(run(ahead, behind), run("reference", "reference"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_what_is_kept_for_the_backward_grows_with_the_length_and_not_with_its_square():
    def kept(length: int) -> int:
        results = mlstm_op(*(x.detach() for x in drawn(length)), None, None, None, 1e-6, True, 16, True)
        return sum(x.numel() for x in results[4:])

    assert kept(320) == 10 * kept(32)


def test_gates_may_have_the_official_trailing_axis(implementation):
    q, k, v, i, f = drawn(9)
    assert torch.equal(mlstm(q, k, v, i[..., None], f[..., None]), mlstm(q, k, v, i, f))


def _states(**changed: Tensor) -> tuple[Tensor, ...]:
    given = {"C": torch.zeros(2, 2, 6, 6), "n": torch.zeros(2, 2, 6), "m": torch.zeros(2, 2)} | changed
    return tuple(given.values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"q": torch.zeros(2, 9, 6)}, "q has shape"),
        ({"v": torch.zeros(2, 2, 9, 5)}, "v has shape"),
        ({"f": torch.zeros(2, 2, 8)}, "f has shape"),
        ({"i": torch.zeros(2, 2, 9, 2)}, "i has shape"),
        ({"k": torch.zeros(2, 2, 9, 6, dtype=torch.int64)}, "k is torch.int64"),
        ({"initial_state": _states(n=torch.zeros(2, 2, 5))}, "n of initial_state has shape"),
        ({"initial_state": _states()[:2]}, "initial_state has 2 entries"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changed, said):
    given = dict(zip("qkvif", (x.detach() for x in drawn(9)), strict=True))
    with pytest.raises(ShapeError, match=said):
        mlstm(**(given | changed))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk_size": 48}, "chunk_size is 48"),
        ({"eps": -1.0}, "eps is -1"),
        ({"stabilize_rowwise": False, "return_state": True}, "stabilize_rowwise=False"),
        ({"stabilize_rowwise": False, "initial_state": _states()}, "stabilize_rowwise=False"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        mlstm(*drawn(9), **options)
