"""The structure-aware scan of volumes: one scan slice by slice, then the fusion in three directions."""

import pytest
import torch

from statefield.errors import ShapeError
from statefield.kernels import state_fusion, structure_aware_scan, use_kernels


def inputs(*grid, states=2, channels=3, kernels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    taps = [3] * (len(grid) - 1)  # grid is B with S
    shapes = {
        "u": (*grid, channels),
        "delta": (*grid, channels),
        "A": (channels, states),
        "B": (*grid, states),
        "C": (*grid, states),
        "D": (channels,),
        "weight": (kernels, channels, *taps),
        "alpha": (kernels,),
        "delta_bias": (channels,),
    }
    given = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    given["A"] = -given["A"].exp()
    return {name: value.requires_grad_() for name, value in given.items()}


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_values_and_gradients_equal_the_recurrence_written_out(implementation):
    given = inputs(2, 2, 3, 2)
    u, A = given["u"].flatten(1, 3), given["A"]
    step = torch.nn.functional.softplus(given["delta"] + given["delta_bias"]).flatten(1, 3)
    h, states = torch.zeros(2, 2, 3, dtype=torch.float64), []
    for t in range(u.shape[1]):
        decay = torch.exp(step[:, t, None] * A.T)
        h = decay * h + (step[:, t] * u[:, t])[:, None] * given["B"].flatten(1, 3)[:, t, :, None]
        states.append(h)
    fused = torch.stack(states, 1).unflatten(1, (2, 3, 2))
    wanted = state_fusion(fused, given["weight"], given["alpha"], given["C"], given["D"], given["u"], dilations=(1, 2))
    with use_kernels(implementation):
        found = structure_aware_scan(**given, dilations=(1, 2))
    torch.testing.assert_close(found, wanted)
    leaves = list(given.values())
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, wanted)))


def test_one_slice_with_kernels_that_stay_in_it_is_a_map():
    volume = inputs(2, 1, 5, 4)
    with torch.no_grad():
        within = torch.zeros_like(volume["weight"])
        within[:, :, 1] = volume["weight"][:, :, 1]
        of_map = {name: value.squeeze(1) if name in "u delta B C" else value for name, value in volume.items()}
        of_map["weight"] = volume["weight"][:, :, 1]
        found = structure_aware_scan(**(volume | {"weight": within}), dilations=(1, 3))
        torch.testing.assert_close(found.squeeze(1), structure_aware_scan(**of_map, dilations=(1, 3)))


def test_gradients_equal_finite_differences():
    given = inputs(1, 2, 1, 2, channels=2)

    def function(*values):
        return structure_aware_scan(**dict(zip(given, values, strict=True)), dilations=(1, 3))

    assert torch.autograd.gradcheck(function, tuple(given.values()))


def test_what_does_not_fit_is_named():
    given = inputs(1, 2, 3, 4)
    with pytest.raises(ShapeError, match=r"B has shape .* \[B, D, H, W, N\]"):
        structure_aware_scan(**(given | {"B": given["B"][:, :1]}), dilations=(1, 3))
    with pytest.raises(ShapeError, match=r"u has shape .* \[B, D, H, W, E\]"):
        structure_aware_scan(**(given | {"u": given["u"][:, 0]}), dilations=(1, 3))
