"""state_fusion against its definition at every kind of rim, and what is its own; more in the conformance tests."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import native, state_fusion, use_kernels
from statefield.kernels.state_fusion import state_fusion_reference

NAMES = ("h", "weight", "alpha", "C", "D", "u")
# Tighter than the conformance table: here the definition runs in float64, and no exponentials are in it.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}
NATIVE_MISSING = native.unavailable()
NATIVE = pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason=NATIVE_MISSING or "-"))
IMPLEMENTATIONS = ["reference", "chunked", NATIVE]  # of maps the chunked form is the reference
# (B, *S, N, E), dilations: odd sizes, size one, maps smaller than the dilations, several tasks.
CASES = [
    ((1, 1, 1, 1, 1), (1, 3, 5)),
    ((2, 3, 2, 1, 24), (1, 3, 5)),
    ((1, 7, 9, 3, 17), (1, 2)),
    ((1, 37, 5, 2, 21), (1, 3, 5)),
    ((1, 1, 7, 1, 5), (2,)),
    ((1, 20, 1, 1, 16), (1, 3, 5)),
    ((2, 6, 7, 1, 130), (5, 1, 5, 9)),
    ((1, 4, 19, 1, 3), (6, 1)),
    ((1, 3, 4, 16, 5), (1,)),
    ((2, 9, 7, 3, 19), (2, 7)),
    ((1, 5, 6, 1, 33), (1, 3, 5, 7)),
    ((2, 3, 2, 16, 4), (4, 4)),  # twice the same: their taps are merged into the same places
    ((1, 2, 3, 3, 4), (1000, 1)),
    ((1, 4, 3, 1, 7), (6, 5, 4, 3, 2, 1)),
    ((1, 1, 1, 1, 1, 1), (1, 3, 5)),
    ((2, 5, 3, 2, 1, 19), (1, 3, 5)),
    ((1, 2, 6, 9, 3, 5), (1, 2)),
    ((1, 19, 2, 3, 1, 16), (5, 1, 5)),  # several tasks down the volume
    ((1, 3, 1, 14, 2, 4), (1000, 1)),
]


def inputs(shape, dilations, dtype=torch.float64, seed=0):
    *grid, states, channels = shape
    kernels = len(dilations)
    shapes = (
        shape,
        (kernels, channels, *[3] * (len(grid) - 1)),
        (kernels,),
        (*grid, states),
        (channels,),
        (*grid, channels),
    )
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for size in shapes]


def values_and_gradients(tensors, dilations, seed=1):
    """The output and each gradient by name, for a cotangent that is the same for every implementation and dtype."""
    out = state_fusion(*tensors, dilations=dilations)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grads = torch.autograd.grad(out, tensors, cotangent)
    return {"out": out, **dict(zip(NAMES, grads, strict=False))}


def assert_close(ours, expected, dtype):
    for name, value in expected.items():
        assert ours[name].shape == value.shape and ours[name].dtype == dtype, name
        error = (ours[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-6)
        assert error <= TOLERANCE[dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("count", [6, 4, 3], ids=["with C, D, u", "with C", "fused states"])
@pytest.mark.parametrize(("shape", "dilations"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_and_every_gradient_equal_autograd_of_the_definition(implementation, dtype, shape, dilations, count):
    tensors = inputs(shape, dilations, dtype)[:count]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = state_fusion_reference(*exact, dilations=dilations)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype).double()
    grads = torch.autograd.grad(expected, exact, cotangent)
    with use_kernels(implementation):
        ours = values_and_gradients(tensors, dilations)
    assert_close(ours, {"out": expected, **dict(zip(NAMES, grads, strict=False))}, dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_map_without_a_state_axis_is_the_map_with_one_state(implementation):
    h, weight, alpha, C, D, u = inputs((2, 4, 3, 1, 6), (1, 3, 5))
    with use_kernels(implementation):
        assert torch.equal(state_fusion(h[:, :, :, 0], weight, alpha, C, D, u), state_fusion(h, weight, alpha, C, D, u))
        assert torch.equal(state_fusion(h[:, :, :, 0], weight, alpha), state_fusion(h, weight, alpha)[:, :, :, 0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_volume_without_a_state_axis_is_the_volume_with_one_state(implementation):
    h, weight, alpha, C, D, u = inputs((2, 3, 4, 2, 1, 6), (1, 3, 5))
    flat = h.squeeze(4)
    with use_kernels(implementation):
        assert torch.equal(state_fusion(flat, weight, alpha, C, D, u), state_fusion(h, weight, alpha, C, D, u))
        assert torch.equal(state_fusion(flat, weight, alpha), state_fusion(h, weight, alpha).squeeze(4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_kernels_that_stay_within_their_slice_fuse_each_slice_of_a_volume_as_a_map(implementation):
    h, weight, alpha, *_ = inputs((2, 3, 4, 5, 2, 6), (1, 3, 5))
    within = torch.zeros_like(weight)
    within[:, :, 1] = weight[:, :, 1]
    with use_kernels(implementation):
        of_maps = state_fusion(h.flatten(0, 1), weight[:, :, 1], alpha).unflatten(0, (2, 3))
        torch.testing.assert_close(state_fusion(h, within, alpha), of_maps, rtol=1e-13, atol=1e-13)


def test_the_axes_of_a_volume_are_treated_alike():
    h, weight, alpha, *_ = inputs((1, 3, 4, 5, 2, 6), (1, 3, 5))
    turned = state_fusion(h.permute(0, 3, 1, 2, 4, 5), weight.permute(0, 1, 4, 2, 3), alpha)
    torch.testing.assert_close(turned.permute(0, 2, 3, 1, 4, 5), state_fusion(h, weight, alpha), rtol=1e-13, atol=1e-13)


@pytest.mark.skipif(bool(NATIVE_MISSING), reason=NATIVE_MISSING or "-")
@pytest.mark.parametrize("shape", [(2, 37, 6, 1, 80), (1, 37, 3, 4, 1, 40)], ids=["map", "volume"])
def test_results_are_equal_bit_for_bit_on_every_run_and_for_any_number_of_threads(shape):
    tensors = inputs(shape, (1, 3, 5), torch.float32)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            with use_kernels("native"):
                runs.append(values_and_gradients(tensors, (1, 3, 5)))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(run[name], value), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_changed_weights_count_in_the_next_call(implementation):
    h, weight, alpha, *_ = (tensor.detach() for tensor in inputs((1, 4, 4, 1, 3), (1, 3, 5)))
    with use_kernels(implementation):
        before = state_fusion(h, weight, alpha)
        weight.mul_(2)
        assert torch.allclose(state_fusion(h, weight, alpha), 2 * before)
        alpha.mul_(0.5)
        assert torch.allclose(state_fusion(h, weight, alpha), before)


def test_a_constant_map_is_multiplied_by_the_sum_of_all_taps():
    # Replicate padding: every tap reads 3 everywhere, so 27 taps of 1, alphas 1, 2, 3: 3 * 9 * (1 + 2 + 3) = 162.
    out = state_fusion(torch.full((1, 2, 3, 4), 3.0), torch.ones(3, 4, 3, 3), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(out, torch.full((1, 2, 3, 4), 162.0))


def test_exported_with_a_dynamic_map_it_holds_the_operator_and_runs_on_another_size():
    class Fusion(torch.nn.Module):
        def forward(self, h, weight, alpha):
            return state_fusion(h, weight, alpha)

    h, weight, alpha, *_ = (tensor.detach() for tensor in inputs((1, 6, 5, 1, 4), (1, 3, 5), torch.float32))
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(
        Fusion(), (h, weight, alpha), dynamic_shapes=({1: height, 2: width}, None, None), strict=True
    )
    assert any("statefield.state_fusion" in str(node.target) for node in program.graph.nodes)
    larger = torch.randn(1, 8, 9, 1, 4)
    assert torch.equal(program.module()(larger, weight, alpha), state_fusion(larger, weight, alpha))


def test_the_flop_counter_counts_25_taps_and_the_read_out():
    tensors = inputs((1, 4, 3, 1, 5), (1, 3, 5), torch.float32)
    with FlopCounterMode(display=False) as counter:
        state_fusion(*tensors)
    assert counter.get_total_flops() == 2 * (25 + 1 + 1) * 4 * 3 * 5


def test_the_flop_counter_counts_79_taps_of_a_volume():
    h, weight, alpha, *_ = inputs((1, 4, 3, 2, 1, 5), (1, 3, 5), torch.float32)
    with FlopCounterMode(display=False) as counter:
        state_fusion(h, weight, alpha)
    assert counter.get_total_flops() == 2 * 79 * 4 * 3 * 2 * 5


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"h": torch.zeros(4, 3, 5)}, ShapeError, r"h has shape \[4, 3, 5\]"),
        ({"h": torch.zeros(1, 0, 3, 5)}, ShapeError, "h has shape"),
        ({"weight": torch.zeros(2, 5, 3, 3)}, ShapeError, "weight has shape"),
        ({"weight": torch.zeros(3, 5, 3)}, ShapeError, r"\[K, E, 3, 3, 3\] for volumes"),
        ({"weight": torch.zeros(3, 5, 3, 3, 3)}, ShapeError, r"\[B, D, H, W, E\]"),
        ({"alpha": torch.zeros(2)}, ShapeError, "alpha has shape"),
        ({"C": torch.zeros(1, 4, 3, 2)}, ShapeError, "C has shape"),
        ({"D": torch.zeros(4)}, ShapeError, "D has shape"),
        ({"u": torch.zeros(1, 3, 4, 5)}, ShapeError, "u has shape"),
        ({"u": None}, ShapeError, "D and u come together"),
        ({"C": None}, ShapeError, "only with C"),
        ({"alpha": torch.zeros(3, dtype=torch.int64)}, ShapeError, "alpha is torch.int64"),
        ({"dilations": (1, 0, 5)}, ConfigError, "dilations are"),
        ({"dilations": ()}, ConfigError, "dilations are"),
    ],
)
def test_what_does_not_fit_is_named(change, error, said):
    given = {
        "h": torch.zeros(1, 4, 3, 5),
        "weight": torch.zeros(3, 5, 3, 3),
        "alpha": torch.zeros(3),
        "C": torch.zeros(1, 4, 3, 1),
        "D": torch.zeros(5),
        "u": torch.zeros(1, 4, 3, 5),
    }
    with pytest.raises(error, match=said):
        state_fusion(**(given | change))
