"""What is particular to the non-causal duality; ../test_operator_conformance.py holds it to its reference."""

from __future__ import annotations

import pytest
import torch

from statefield.errors import ShapeError
from statefield.kernels import implementations, non_causal_ssd, use_kernels

RUNNING_HERE = sorted(
    row.implementation
    for row in implementations()
    if row.op == "non_causal_ssd" and row.device == "cpu" and row.available
)


def drawn(length=12, heads=4, channels=5, states=3, groups=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    weights = (2, length, states) if groups is None else (2, length, groups, states)
    return {
        "x": randn(2, length, heads, channels),
        "dt": randn(2, length, heads).abs(),
        "A": -randn(heads).abs(),
        "B": randn(*weights),
        "C": randn(*weights),
        "D": randn(heads),
    }


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_two_positions_worked_by_hand(implementation):
    """One head, P = N = 1: a = (2 * 3, 1 * 3), S = 6 * 10 * 1 + 3 * (-1) * 2 = 54; y = 54 C + 0.5 x."""
    x, dt = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1), torch.tensor([2.0, 1.0]).reshape(1, 2, 1)
    B, C = torch.tensor([10.0, -1.0]).reshape(1, 2, 1), torch.tensor([1.0, -2.0]).reshape(1, 2, 1)
    A, D = torch.tensor([-3.0]), torch.tensor([0.5])
    with use_kernels(implementation):
        y = non_causal_ssd(x, dt, A, B, C, D)
        negative = non_causal_ssd(x, dt, A, B, C, D, positive_decay=False)
    assert y.flatten().tolist() == [54.5, -107.0]
    assert negative.flatten().tolist() == [-53.5, 109.0]


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_float16_sums_that_outgrow_float16_are_kept(implementation):
    """As stage 1 of VSSD at 224 pixels: the state is 3136 * 30 = 94080, beyond 65504; what C reads out of it is not."""
    length = 3136
    x = torch.ones(1, length, 1, 8, dtype=torch.float16)
    dt = torch.full((1, length, 1), 30.0, dtype=torch.float16)
    B = torch.ones(1, length, 4, dtype=torch.float16)
    C = torch.full((1, length, 4), 2.0**-6, dtype=torch.float16)
    A = torch.tensor([-1.0])
    official = C @ (B.transpose(1, 2) @ (x[:, :, 0] * dt))  # in float16 throughout, as under the authors' autocast
    assert official.isinf().all()
    with use_kernels(implementation):
        y = non_causal_ssd(x.requires_grad_(), dt, A, B, C)
        (grad,) = torch.autograd.grad(y.float().mul(2.0**-10).sum(), x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.full_like(y, 4 * 94080 / 64), rtol=0, atol=4)  # 5880, half a unit in its place
    # dS = 3136 / 64 / 1024, dx = 30 * 4 * dS
    torch.testing.assert_close(grad, torch.full_like(grad, 120 * 3136 / 2**16), rtol=1e-3, atol=0)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_order_of_positions_does_not_matter(implementation):
    given = drawn(length=33)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[:, order] if value.dim() > 1 else value for name, value in given.items()}
    with use_kernels(implementation):
        torch.testing.assert_close(non_causal_ssd(**shuffled), non_causal_ssd(**given)[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_head_h_reads_group_h_mod_G(implementation):
    given = drawn(heads=4, groups=2)
    with use_kernels(implementation):
        y = non_causal_ssd(**given)
        for head in range(4):
            alone = {name: given[name][..., head : head + 1] for name in ("dt", "A", "D")}
            alone |= {name: given[name][:, :, head % 2] for name in "BC"}
            y_head = non_causal_ssd(given["x"][:, :, head : head + 1], **alone)
            torch.testing.assert_close(y[:, :, head : head + 1], y_head, rtol=1e-5, atol=1e-5)


def test_autocast_computes_in_float32():
    given = drawn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = non_causal_ssd(**{name: value.bfloat16() for name, value in given.items()})
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", torch.zeros(2, 12, 20)),
        ("dt", torch.zeros(2, 12, 3)),
        ("A", torch.zeros(4, 3)),
        ("B", torch.zeros(2, 12, 3, 3)),
        ("C", torch.zeros(2, 12, 4)),
        ("D", torch.zeros(5)),
        ("dt", torch.zeros(2, 12, 4, dtype=torch.int64)),
        ("B", torch.zeros(2, 12, 3, device="meta")),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, wrong):
    with pytest.raises(ShapeError, match=f"non_causal_ssd: {name} "):
        non_causal_ssd(**(drawn() | {name: wrong}))
