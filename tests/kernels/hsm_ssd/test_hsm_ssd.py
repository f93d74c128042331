"""What is particular to HSM-SSD's hidden states; ../test_operator_conformance.py holds them to their reference."""

from __future__ import annotations

import pytest
import torch

from statefield.errors import ShapeError
from statefield.kernels import hsm_ssd_states, implementations, use_kernels

RUNNING_HERE = sorted(
    row.implementation for row in implementations() if row.op == "hsm_ssd" and row.device == "cpu" and row.available
)


def drawn(length=12, channels=5, states=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"u": (2, channels, length), "dt": (2, states, length), "A": (states,), "B": (2, states, length)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_two_positions_worked_by_hand(implementation):
    """dt = (0, log 3): w = (1/4, 3/4); h = 8 * 1/4 * 2 + 4 * 3/4 * (-1) = 1, whatever A is."""
    u = torch.tensor([8.0, 4.0]).reshape(1, 1, 2)
    dt = torch.tensor([1.0, 3.0]).log()
    B = torch.tensor([2.0, -1.0]).reshape(1, 1, 2)
    with use_kernels(implementation):
        h = hsm_ssd_states(u, dt.reshape(1, 1, 2), torch.tensor([7.0]), B)
    torch.testing.assert_close(h, torch.ones(1, 1, 1))


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_equal_scores_give_the_mean_whatever_their_size(implementation):
    given = drawn(length=33)
    for score in (0.0, -1e4, 1e4):  # exp of neither is a float32
        with use_kernels(implementation):
            h = hsm_ssd_states(given["u"], torch.full_like(given["dt"], score), given["A"], given["B"])
        torch.testing.assert_close(h, given["u"] @ given["B"].transpose(1, 2) / 33)


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_A_has_no_effect_and_a_gradient_of_exactly_zero(implementation):
    given = drawn(length=33)
    A = given["A"].clone().requires_grad_()
    with use_kernels(implementation):
        h = hsm_ssd_states(**(given | {"A": A}))
        other = hsm_ssd_states(**(given | {"A": A.detach() + 5}))
        (grad,) = torch.autograd.grad(h.square().sum(), A)
    torch.testing.assert_close(h, other)
    assert not grad.any()


@pytest.mark.parametrize("implementation", RUNNING_HERE)
def test_a_score_that_is_no_number_is_not_hidden(implementation):
    given = drawn(length=33)
    given["dt"][0, 1, 20] = torch.nan
    with use_kernels(implementation):
        h = hsm_ssd_states(**given)
    assert h[0, :, 1].isnan().all()
    assert not h[1].isnan().any() and not h[0, :, 0].isnan().any()


def test_under_autocast_the_states_are_float32():
    given = {name: value.bfloat16() for name, value in drawn().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hsm_ssd_states(**given).dtype == torch.float32
    assert hsm_ssd_states(**given).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("u", torch.zeros(2, 5, 3, 4)),
        ("dt", torch.zeros(2, 3, 11)),
        ("A", torch.zeros(4)),
        ("B", torch.zeros(2, 4, 12)),
        ("B", torch.zeros(2, 3, 12, dtype=torch.int64)),
        ("A", torch.zeros(3, device="meta")),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, wrong):
    with pytest.raises(ShapeError, match=f"hsm_ssd_states: {name} "):
        hsm_ssd_states(**(drawn() | {name: wrong}))
