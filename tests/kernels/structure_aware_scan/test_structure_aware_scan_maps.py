"""structure_aware_scan: the scan's states as a map, what the fusion adds, what does not fit. More in conformance."""

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import native, selective_scan, state_fusion, structure_aware_scan, use_kernels
from statefield.kernels.structure_aware_scan import scan_states, structure_aware_scan_reference

IMPLEMENTATIONS = ["reference", "chunked"] + ([] if native.unavailable() else ["native"])
NAMES = ("u", "delta", "A", "B", "C", "D", "weight", "alpha", "delta_bias")


def inputs(batch, height, width, states, channels, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = (
        randn(batch, height, width, channels),
        0.5 * randn(batch, height, width, channels),
        -torch.exp(0.5 * randn(channels, states)),
        randn(batch, height, width, states),
        randn(batch, height, width, states),
        randn(channels),
        randn(3, channels, 3, 3),
        randn(3),
        0.3 * randn(channels),
    )
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 5, 4, 3, 7), (1, 20, 3, 1, 18), (1, 3, 37, 2, 33)])
def test_values_and_every_gradient_equal_autograd_through_the_definition(implementation, shape):
    tensors = inputs(*shape)
    expected = structure_aware_scan_reference(*tensors)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected_grads = torch.autograd.grad(expected, tensors, cotangent)
    with use_kernels(implementation):
        out = structure_aware_scan(*tensors)
        grads = torch.autograd.grad(out, tensors, cotangent)
    for name, ours, theirs in zip(("y", *NAMES), (out, *grads), (expected, *expected_grads), strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= 1e-12, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_with_centre_taps_of_one_alone_it_is_the_selective_scan(implementation):
    u, delta, A, B, C, D, weight, alpha, bias = (tensor.detach() for tensor in inputs(2, 3, 5, 4, 6))
    centre = torch.zeros_like(weight)
    centre[0, :, 1, 1] = 1
    with use_kernels(implementation):
        y = structure_aware_scan(u, delta, A, B, C, D, centre, torch.ones_like(alpha), bias)
        rows = [tensor.flatten(1, 2) for tensor in (u, delta, B, C)]
        scanned = selective_scan(rows[0], rows[1], A, rows[2], rows[3], D, None, bias, True, layout="bld")
    assert torch.allclose(y.flatten(1, 2), scanned, rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_the_fusion_of_the_scan_states(implementation):
    u, delta, A, B, C, D, weight, alpha, bias = (tensor.detach() for tensor in inputs(1, 6, 4, 2, 5))
    with use_kernels(implementation):
        states = scan_states(u, delta, A, B, bias, True)
        fused = state_fusion(states, weight, alpha, C, D, u)
        y = structure_aware_scan(u, delta, A, B, C, D, weight, alpha, bias)
    assert torch.allclose(y, fused, rtol=0, atol=1e-12)


def test_states_by_hand():
    # dt = delta = 1 without softplus, A = log(1/2): each state is half the one before plus B u, row by row.
    u = torch.tensor([[[[1.0], [2.0]], [[0.0], [4.0]]]])
    ones = torch.ones(1, 2, 2, 1)
    states = scan_states(u, ones, torch.tensor([[0.5]]).log(), ones, None, False)
    assert torch.allclose(states.flatten(), torch.tensor([1.0, 2.5, 1.25, 4.625]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sixteen_bit_inputs_keep_their_states_in_float32(implementation):
    # 64 steps that hardly decay: added up in bfloat16, steps of 1/64 would be lost beside a state near 1.
    tensors = [tensor.detach() for tensor in inputs(1, 8, 8, 1, 16, torch.bfloat16)]
    tensors[0], tensors[3] = torch.full_like(tensors[0], 1 / 64), torch.ones_like(tensors[3])
    tensors[1], tensors[2] = torch.ones_like(tensors[1]), torch.full_like(tensors[2], -1e-4)
    with use_kernels(implementation):
        y = structure_aware_scan(*tensors, delta_softplus=False)
        exact = structure_aware_scan(*[tensor.double() for tensor in tensors], delta_softplus=False)
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).abs().max() <= exact.abs().max() * 2**-8


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"u": torch.zeros(4, 3, 5)}, ShapeError, r"u has shape \[4, 3, 5\]"),
        ({"delta": torch.zeros(1, 3, 4, 5)}, ShapeError, "delta has shape"),
        ({"A": torch.zeros(4, 2)}, ShapeError, "A has shape"),
        ({"B": torch.zeros(1, 4, 3, 1)}, ShapeError, "B has shape"),
        ({"C": torch.zeros(1, 4, 3, 3)}, ShapeError, "C has shape"),
        ({"D": torch.zeros(4)}, ShapeError, "D has shape"),
        ({"weight": torch.zeros(2, 5, 3, 3)}, ShapeError, "weight has shape"),
        ({"alpha": torch.zeros(2)}, ShapeError, "alpha has shape"),
        ({"delta_bias": torch.zeros(1)}, ShapeError, "delta_bias has shape"),
        ({"D": torch.zeros(5, dtype=torch.int32)}, ShapeError, "D is torch.int32"),
        ({"dilations": (0, 3, 5)}, ConfigError, "dilations are"),
    ],
)
def test_what_does_not_fit_is_named(change, error, said):
    given = {
        "u": torch.zeros(1, 4, 3, 5),
        "delta": torch.zeros(1, 4, 3, 5),
        "A": torch.zeros(5, 2),
        "B": torch.zeros(1, 4, 3, 2),
        "C": torch.zeros(1, 4, 3, 2),
        "D": torch.zeros(5),
        "weight": torch.zeros(3, 5, 3, 3),
        "alpha": torch.zeros(3),
        "delta_bias": torch.zeros(5),
    }
    with pytest.raises(error, match=said):
        structure_aware_scan(**(given | change))
