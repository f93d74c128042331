"""Every operator's standard form, which exported files hold in its place, equals the operator's definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from statefield.errors import ExportError
from statefield.kernels import conformance as cases
from statefield.kernels import selective_scan, standard_forms, use_kernels
from statefield.kernels._choice import OPERATORS
from statefield.kernels._standard import STEPS

FAMILIES = cases.families()
FORMS = standard_forms.decompositions()


class _Standard(TorchDispatchMode):
    """Inside, every operator of ours is computed by its standard form."""

    replaced = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FORMS:
            self.replaced += 1
            return FORMS[func](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", list(FAMILIES))
def test_equals_the_definition(name, dtype):
    family = FAMILIES[name]
    for variant in family.variants:
        given = {n: plain(value) for n, value in cases.draw(family, variant, dtype).items()}
        exact = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in given.items()}
        with torch.no_grad():
            with _Standard() as mode:
                found = cases.outputs_of(family, given)
            with use_kernels("reference"):
                wanted = cases.outputs_of(family, exact)
        assert mode.replaced, "the operator itself was not met"
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype in (dtype, torch.float32)
            assert cases.distance(ours, theirs) <= cases.TOLERANCE[dtype], variant


def test_every_operator_has_one():
    assert {str(op) for op in FORMS} == {f"statefield.{name}.default" for name in OPERATORS}


@pytest.mark.parametrize("length", [1, STEPS - 1, STEPS, STEPS + 1, 5 * STEPS, 37 * STEPS + 3])
def test_a_scan_of_any_length_goes_on_from_a_state(length):
    torch.manual_seed(length)
    u, delta, B = torch.randn(2, length, 3), torch.randn(2, length, 3), torch.randn(2, length, 2)
    given = (u, delta, -torch.rand(3, 2).exp(), B, B.flip(1))
    options: dict[str, Any] = {"delta_softplus": True, "initial_state": torch.randn(2, 3, 2), "layout": "bld"}
    wanted = selective_scan(*given, **options, return_state=True)
    with _Standard():
        found = selective_scan(*given, **options, return_state=True)
    for ours, theirs in zip(found, wanted, strict=True):
        assert cases.distance(ours, theirs) <= cases.TOLERANCE[torch.float32]


def test_strong_decays_do_not_overflow():
    u = torch.ones(1, 200, 2)
    given = (u, 1e4 * u, torch.tensor([[-1.0], [-1e4]]), torch.ones(1, 200, 1), torch.ones(1, 200, 1))
    with _Standard():
        y = selective_scan(*given, layout="bld")
    torch.testing.assert_close(y, selective_scan(*given, layout="bld"))


def test_a_scan_of_unknown_length_is_refused():
    class Scan(torch.nn.Module):
        def forward(self, u: Tensor, A: Tensor) -> Tensor:
            return selective_scan(u, u, A, u[..., :2], u[..., :2], layout="bld")

    length = torch.export.Dim("length", min=4, max=64)
    program = torch.export.export(Scan(), (torch.randn(1, 8, 3), -torch.rand(3, 2)), dynamic_shapes=({1: length}, None))
    with pytest.raises(ExportError, match="is written for one number of tokens"):
        program.run_decompositions(FORMS)
