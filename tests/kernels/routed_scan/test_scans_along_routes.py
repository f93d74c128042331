"""routed_scan against permute, selective_scan, permute back, add; what is its own. More in the conformance tests."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from statefield.errors import ConfigError, ShapeError, UnknownName
from statefield.kernels import native, routed_scan, selective_scan, use_kernels
from statefield.kernels.conformance import differences
from statefield.kernels.routed_scan.cases import quarters
from statefield.kernels.routed_scan.op import routed_scan_op
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routes import ROUTES, inverse_order, route_order

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
MISSING = native.unavailable()
NATIVE = pytest.param("native", marks=pytest.mark.skipif(bool(MISSING), reason=MISSING or "-"))
IMPLEMENTATIONS = ["reference", "chunked", NATIVE]
SHAPES = {1: (23,), 2: (5, 7), 3: (3, 4, 3)}
CROSS = ("raster", "raster~", "column", "column~")


def arguments(shape, routes, channels=6, states=2, own=False, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def randn(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    num = len(routes)
    given = {
        "x": randn(batch, *shape, *((num,) if own else ()), channels),
        "delta": 0.5 * randn(batch, *shape, num, channels),
        "A": -torch.exp(0.5 * randn(num, channels, states)),
        "B": randn(batch, *shape, num, states),
        "C": randn(batch, *shape, num, states),
        "D": randn(num, channels),
        "delta_bias": 0.3 * randn(num, channels),
    }
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def by_permuting(x, delta, A, B, C, D, delta_bias, routes, merge=True):
    """[b, *S, E]: each route by itself through `selective_scan`, with every tensor permuted and permuted back."""
    shape = delta.shape[1:-2]
    outputs = []
    for k, name in enumerate(routes):
        order = route_order(name, tuple(shape))
        mine = x.select(-2, k) if x.dim() == delta.dim() else x

        def walked(tensor, order=order):
            return tensor.flatten(1, len(shape))[:, order]

        weights = (A[k], walked(B.select(-2, k)), walked(C.select(-2, k)), D[k], None, delta_bias[k], True)
        y = selective_scan(walked(mine), walked(delta.select(-2, k)), *weights, layout="bld")
        outputs.append(y[:, inverse_order(order)].unflatten(1, shape))
    return sum(outputs) if merge else torch.stack(outputs, dim=-2)


def results(function, given):
    y = function(**given)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad((y * weight).sum(), list(given.values()))
    return {"y": y.detach()} | {f"grad.{name}": grad for name, grad in zip(given, grads, strict=True)}


def assert_equal(found, wanted, dtype=torch.float64):
    assert differences(found, wanted, dtype) == []


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dims", SHAPES)
def test_every_route_equals_permuting_and_scanning(dims, implementation):
    names = [name for name, route in ROUTES.items() if dims in route.spatial_dims]
    assert names
    routes = (*names, *(f"{name}~" for name in names))
    given = arguments(SHAPES[dims], routes, channels=3, states=1)
    wanted = results(lambda **a: by_permuting(**a, routes=routes, merge=False), given)
    with use_kernels(implementation):
        found = results(lambda **a: routed_scan(**a, routes=routes, delta_softplus=True, merge=False), given)
    assert_equal(found, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "apart"])
@pytest.mark.parametrize(
    ("shape", "routes", "states"),
    [((5, 7), CROSS, 1), ((1, 9), ("snake", "column~"), 3), ((2, 3, 5), ("raster", "hilbert~", "column"), 2)],
)
def test_sums_and_inputs_of_several_routes(shape, routes, states, merge, own, implementation):
    given = arguments(shape, routes, states=states, own=own)
    wanted = results(lambda **a: by_permuting(**a, routes=routes, merge=merge), given)
    with use_kernels(implementation):
        found = results(lambda **a: routed_scan(**a, routes=routes, delta_softplus=True, merge=merge), given)
    assert_equal(found, wanted)


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
@pytest.mark.parametrize("threads", [1, 2])
def test_many_channels_in_several_blocks_over_several_chunks(threads):
    """More channels than a block of the backward holds, no multiple of a chunk in length; twice the same bits."""
    given = arguments((9, 11), CROSS, channels=211, states=1, batch=1, dtype=torch.float32)
    wanted = results(lambda **a: by_permuting(**a, routes=CROSS), given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with use_kernels("native"):
            first, second = (results(lambda **a: routed_scan(**a, delta_softplus=True), given) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert_equal(first, wanted, torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_routes_over_quarters_of_the_map_leave_the_rest_alone(implementation):
    """EfficientVMamba's: each quarter is a map of its own, and what a route does not visit has no part in it."""
    order = quarters(4, 6)
    given = arguments((4, 6), order, channels=5)
    with use_kernels(implementation):
        found = results(lambda **a: routed_scan(**a, routes=order, delta_softplus=True, merge=False), given)
        merged = routed_scan(**given, routes=order, delta_softplus=True)
    torch.testing.assert_close(found["y"].sum(-2), merged.detach(), rtol=1e-12, atol=1e-12)
    for k, tokens in enumerate(order):
        left = torch.ones(24, dtype=torch.bool)
        left[tokens] = False
        assert not found["y"].flatten(1, 2)[:, left, k].any()
        assert not found["grad.delta"].flatten(1, 2)[:, left, k].any()
        assert not found["grad.B"].flatten(1, 2)[:, left, k].any()

        def on_the_quarter(name, k=k, tokens=tokens):
            value = given[name].flatten(1, 2)[:, tokens]
            return value if name == "x" else value[:, :, k]

        rows = [on_the_quarter(name) for name in ("x", "delta", "B", "C")]
        D, bias = given["D"][k], given["delta_bias"][k]
        alone = selective_scan(*rows[:2], given["A"][k], *rows[2:], D, None, bias, True, layout="bld")
        torch.testing.assert_close(found["y"].flatten(1, 2)[:, tokens, k], alone, rtol=1e-11, atol=1e-11)


def test_names_and_their_orders_give_the_same():
    given = arguments((4, 5), CROSS)
    order = torch.stack([route_order(name, (4, 5)) for name in CROSS])
    torch.testing.assert_close(routed_scan(**given, routes=CROSS), routed_scan(**given, routes=order), rtol=0, atol=0)


def test_orders_are_looked_up_once_for_a_grid_and_device():
    like = torch.zeros(1)
    assert order_of(CROSS, (6, 5), like) is order_of(CROSS, (6, 5), like)
    assert order_of(CROSS, (5, 6), like) is not order_of(CROSS, (6, 5), like)


def test_an_order_first_met_in_inference_mode_serves_training():
    routes = ("snake", "column_snake~")
    given = arguments((3, 11), routes)
    with torch.inference_mode():
        wanted = routed_scan(**{name: tensor.detach() for name, tensor in given.items()}, routes=routes)
    y = routed_scan(**given, routes=routes)
    y.sum().backward()
    assert torch.equal(y, wanted)
    assert all(tensor.grad is not None for tensor in given.values())


class _Scan(torch.nn.Module):
    def forward(self, x, delta, A, B, C, D, delta_bias):
        return routed_scan(x, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True)


def test_an_exported_graph_serves_maps_of_other_sizes():
    height, width = torch.export.Dim("height", min=2, max=64), torch.export.Dim("width", min=2, max=64)
    small = {name: tensor.detach() for name, tensor in arguments((4, 5), CROSS).items()}
    moving = {1: height, 2: width}
    shapes = {name: moving if name in ("x", "delta", "B", "C") else None for name in NAMES}
    program = torch.export.export(_Scan(), (), small, dynamic_shapes=shapes)
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"statefield.route_orders.default", "statefield.routed_scan.default"} <= targets
    for shape in ((4, 5), (7, 3)):
        given = {name: tensor.detach() for name, tensor in arguments(shape, CROSS).items()}
        torch.testing.assert_close(program.module()(**given), _Scan()(**given), rtol=0, atol=0)


def test_a_compiled_function_serves_maps_of_other_sizes_and_orders_as_tensors():
    torch.compiler.reset()
    compiled = torch.compile(routed_scan, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((4, 5), (6, 7)):
        given = arguments(shape, CROSS)
        wanted = results(lambda **a: routed_scan(**a, delta_softplus=True), given)
        assert_equal(results(lambda **a: compiled(**a, delta_softplus=True), given), wanted)
    order = quarters(6, 8)
    given = arguments((6, 8), order)
    wanted = routed_scan(**given, routes=order)
    torch.testing.assert_close(compiled(**given, routes=order), wanted, rtol=0, atol=0)


def test_states_kept_for_the_backward_are_a_thirty_second_of_all():
    given = {name: tensor.detach() for name, tensor in arguments((8, 16), CROSS, channels=4, states=3).items()}
    order = order_of(CROSS, (8, 16), given["x"])
    flat = {name: given[name].flatten(1, 2) for name in ("x", "delta", "B", "C")}
    weights = [flat[name].unsqueeze(-2) for name in "BC"]
    tensors = (flat["x"], flat["delta"], given["A"], *weights, given["D"], given["delta_bias"])
    _, kept = routed_scan_op(*tensors, order, True, True, True)
    assert kept.shape == (2, 4, 128 // 32, 3, 4)
    _, none = routed_scan_op(*tensors, order, True, True, False)
    assert none.numel() == 0


def test_flops_are_those_of_mambas_convention_for_each_route():
    given = {name: tensor.detach() for name, tensor in arguments((3, 5), CROSS, channels=7, states=2).items()}
    with FlopCounterMode(display=False) as counter:
        routed_scan(**given)
    assert counter.get_total_flops() == 2 * 15 * 4 * 7 * (9 * 2 + 1)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", lambda x: x[:, :-1]),
        ("x", lambda x: x.long()),
        ("delta", lambda delta: delta[0, 0]),
        ("A", lambda A: A[0]),
        ("B", lambda B: B[..., :-1]),
        ("C", lambda C: C.unsqueeze(-2).repeat_interleave(4, -2)),  # 4 groups do not divide 6 channels
        ("D", lambda D: D[0]),
        ("delta_bias", lambda bias: bias.to("meta")),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(name, change):
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    with pytest.raises(ShapeError, match=f"routed_scan: {name} "):
        routed_scan(**(given | {name: change(given[name])}))


def test_groups_of_B_and_C_have_to_be_equal():
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    grouped = given["B"].unsqueeze(-2).repeat_interleave(3, -2)
    with pytest.raises(ShapeError, match="different numbers of groups"):
        routed_scan(**(given | {"B": grouped}))


@pytest.mark.parametrize(
    ("routes", "error", "words"),
    [
        (("raster", "rastr~", "column", "column~"), UnknownName, "did you mean"),
        (("raster",), ShapeError, "1 routes are given"),
        ((), ConfigError, "at least one name"),
        ("raster", ConfigError, "at least one name"),
        (torch.zeros(4, 15), ShapeError, "int64"),
        (torch.arange(15), ShapeError, "int64"),
        (torch.arange(64).reshape(4, 16), ShapeError, "1 <= T <= 15"),
        (torch.arange(60).reshape(4, 15), ConfigError, "from 0 to 59"),
        (torch.zeros(4, 2, dtype=torch.int64), ConfigError, "twice"),
    ],
)
def test_routes_that_do_not_fit_are_refused(routes, error, words):
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    with pytest.raises(error, match=words):
        routed_scan(**given, routes=routes)


def test_an_order_changed_in_place_is_checked_again():
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    order = torch.stack([route_order(name, (3, 5)) for name in CROSS])
    routed_scan(**given, routes=order)
    order[1, 0] = order[1, 1]
    with pytest.raises(ConfigError, match="twice"):
        routed_scan(**given, routes=order)


@pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")
def test_a_token_outside_of_the_map_is_refused_even_below_the_public_function():
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    flat = {name: given[name].flatten(1, 2) for name in ("x", "delta", "B", "C")}
    tensors = (flat["x"], flat["delta"], given["A"], flat["B"].unsqueeze(3), flat["C"].unsqueeze(3))
    for outside in (-1, 15):
        order = torch.stack([route_order(name, (3, 5)) for name in CROSS])
        order[2, 7] = outside
        with use_kernels("native"), pytest.raises(ConfigError, match=r"outside of 0 \.\.\. 14"):
            routed_scan_op(*tensors, given["D"], given["delta_bias"], order, True, True, False)


def test_vmap_over_parameters_is_refused_by_name():
    given = {key: tensor.detach() for key, tensor in arguments((3, 5), CROSS).items()}
    with pytest.raises(ConfigError, match="vmap over A"):
        torch.vmap(lambda A: routed_scan(**(given | {"A": A})))(given["A"].expand(2, *given["A"].shape))
