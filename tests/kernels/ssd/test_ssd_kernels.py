"""What is Mamba-2's scan's own: its relation to the selective scan, chunk sizes, limits, and its errors.

Values and gradients of every implementation against the definition are in the conformance tests.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import native, selective_scan, ssd, use_kernels

NATIVE_MISSING = native.unavailable()
NATIVE = pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_MISSING), reason=NATIVE_MISSING or "-"))
IMPLEMENTATIONS = ["reference", "chunked", NATIVE]


def arguments(length=23, heads=4, channels=3, states=5, groups=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": randn(2, length, heads, channels),
        "dt": 0.5 * randn(2, length, heads),
        "A": -torch.exp(0.5 * randn(heads)),
        "B": randn(2, length, groups, states),
        "C": randn(2, length, groups, states),
        "D": randn(heads),
        "z": randn(2, length, heads, channels),
    }


def f(shape, offset, amplitude=1.0):
    """A sine that numbers its own elements, as float32."""
    count = torch.Size(shape).numel()
    return (amplitude * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + offset)).float().reshape(shape)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_numbers_of_the_official_code(implementation):
    """Printed by mamba's ssd_minimal_discrete for these inputs (six decimals)."""
    dt = torch.nn.functional.softplus(f((1, 8, 2), 0.2) + f((2,), 0.3))
    A = -torch.exp(f((2,), 0.4, 0.5))
    with use_kernels(implementation):
        y, state = ssd(
            f((1, 8, 2, 3), 0.1), dt, A, f((1, 8, 1, 4), 0.5), f((1, 8, 1, 4), 0.6), f((2,), 0.7),
            return_state=True, chunk_size=4,
        )  # fmt: skip
    first = [0.282263, 2.028207, 2.820254, 4.078826, 1.207002, -2.232495, -3.722503, -4.097616, -2.545556]
    torch.testing.assert_close(y.flatten()[:9], torch.tensor(first), rtol=0, atol=2e-6)
    torch.testing.assert_close(y.flatten()[-3:], torch.tensor([-0.405047, 1.448625, 2.620986]), rtol=0, atol=2e-6)
    wanted = torch.tensor([-0.519137, -0.530278, -0.292021, 0.083578, -0.984633, -0.865303])
    torch.testing.assert_close(state.flatten()[:6], wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_is_a_selective_scan_whose_channels_share_their_decay(implementation):
    given = arguments()
    heads, channels = given["x"].shape[2:]
    states = given["B"].shape[3]
    by_channel = {name: given[name].flatten(2) for name in ("x", "z")}
    A = given["A"].repeat_interleave(channels)[:, None].expand(-1, states)
    wanted, wanted_state = selective_scan(
        by_channel["x"],
        given["dt"].repeat_interleave(channels, dim=2),
        A,
        given["B"],
        given["C"],
        given["D"].repeat_interleave(channels),
        by_channel["z"],
        delta_softplus=True,
        return_state=True,
        layout="bld",
    )
    with use_kernels(implementation):
        y, state = ssd(**given, dt_softplus=True, return_state=True, chunk_size=8)
    torch.testing.assert_close(y.flatten(2), wanted)
    torch.testing.assert_close(state, wanted_state.unflatten(1, (heads, channels)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_chunk_size_changes_nothing(implementation):
    given = {name: value.requires_grad_() for name, value in arguments().items()}
    with use_kernels(implementation):
        wanted = ssd(**given, dt_softplus=True)
        grads = torch.autograd.grad(wanted.square().sum(), list(given.values()))
        for chunk_size in (1, 5, 23, 24, 1000):
            y = ssd(**given, dt_softplus=True, chunk_size=chunk_size)
            torch.testing.assert_close(y, wanted)
            torch.testing.assert_close(torch.autograd.grad(y.square().sum(), list(given.values())), grads)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_halves_with_the_state_between_them_equal_one_run(implementation):
    given = {name: value.requires_grad_() for name, value in arguments().items()}
    options = {"dt_softplus": True, "return_state": True, "chunk_size": 4}

    def part(begin, end, state):
        along = {name: value[:, begin:end] if value.dim() > 2 else value for name, value in given.items()}
        return ssd(**along, initial_state=state, **options)

    with use_kernels(implementation):
        whole, last = ssd(**given, **options)
        first, between = part(0, 9, None)
        second, end = part(9, 23, between)
        halves = torch.cat([first, second], dim=1)
        torch.testing.assert_close(halves, whole)
        torch.testing.assert_close(end, last)
        wanted = torch.autograd.grad(whole.square().sum() + last.sum(), list(given.values()))
        found = torch.autograd.grad(halves.square().sum() + end.sum(), list(given.values()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_small_step_late_in_a_strongly_decaying_chunk_keeps_its_digits(implementation):
    """After steps that sum dt A to thousands, exp(cum_l - cum_s) of float32 sums would be off by 1e-4 and more."""
    dt = torch.full((1, 64, 1), 60.0)
    dt[:, 50:] = 1e-3
    x, B, C = torch.ones(1, 64, 1, 1), torch.ones(1, 64, 1, 1), torch.ones(1, 64, 1, 1)
    A = torch.tensor([-30.0])
    with use_kernels("reference"):
        wanted = ssd(x.double(), dt.double(), A.double(), B.double(), C.double())
    with use_kernels(implementation):
        found = ssd(x, dt, A, B, C)
    torch.testing.assert_close(found[:, 50:].double(), wanted[:, 50:], rtol=2e-6, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_step_outside_its_limits_is_clamped_and_passes_no_gradient(implementation):
    given = arguments(length=3, heads=1, groups=1)
    given["dt"] = torch.tensor([-0.5, 0.5, 3.0], dtype=torch.float64).reshape(1, 3, 1).repeat(2, 1, 1)
    given["dt"].requires_grad_()
    with use_kernels(implementation):
        y = ssd(**given, dt_limit=(0.0, 2.0))
        (grad,) = torch.autograd.grad(y.sum(), given["dt"])
        clamped = ssd(**(given | {"dt": given["dt"].detach().clamp(0, 2)}), dt_limit=(-10.0, 10.0))
    torch.testing.assert_close(y, clamped)
    assert not grad[:, [0, 2]].any() and grad[:, 1].all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_state_that_grows_is_as_large_as_the_loop_makes_it(implementation):
    """A > 0 is not forbidden: decays are then above 1, and each step is held against the largest value that it has."""
    given = arguments(length=40, dtype=torch.float32) | {"A": torch.ones(4)}
    with use_kernels("reference"):
        wanted = ssd(**given, dt_softplus=True)
    with use_kernels(implementation):
        found = ssd(**given, dt_softplus=True)
    scale = wanted.abs().amax((2, 3), keepdim=True)
    assert 1e9 < scale.max() < torch.inf
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=3e-5)


def test_states_kept_for_the_backward_are_one_a_chunk():
    given = {name: value.requires_grad_() for name, value in arguments(length=64).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ssd(**given, chunk_size=16)
    kept = [t for t in saved if t.dim() == 5]
    assert [list(t.shape) for t in kept] == [[2, 4, 4, 5, 3]]
    inputs = {value.data_ptr() for value in given.values()}
    assert all(t.data_ptr() in inputs for t in saved if t.dim() != 5)


def test_flops_are_those_of_the_matrix_products():
    given = {name: value.requires_grad_() for name, value in arguments(length=32, heads=2, groups=1).items()}
    with FlopCounterMode(display=False) as counter:
        y = ssd(**given, chunk_size=16)
    # two chunks of 16 steps, two sequences: C B^T 16 x 16 x 5; two heads of 16 x 16 x 3 and twice 16 x 5 x 3
    forward = 2 * 2 * 2 * (16 * 16 * 5 + 2 * (16 * 16 * 3 + 2 * 16 * 5 * 3))
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 23, 12)}, r"x has shape \[2, 23, 12\]"),
        ({"dt": torch.zeros(2, 22, 4)}, "dt has shape"),
        ({"A": torch.zeros(4, 5)}, "A has shape"),
        ({"B": torch.zeros(2, 23, 3, 5)}, "g dividing the 4 heads"),
        ({"C": torch.zeros(2, 23, 1, 5)}, "C has shape"),
        ({"D": torch.zeros(3)}, "D has shape"),
        ({"z": torch.zeros(2, 23, 4, 1)}, "z has shape"),
        ({"dt_bias": torch.zeros(5)}, "dt_bias has shape"),
        ({"initial_state": torch.zeros(2, 4, 5, 3)}, "initial_state has shape"),
        ({"D": torch.zeros(4, dtype=torch.int64)}, "D is torch.int64"),
        ({"A": torch.zeros(4, device="meta")}, "A is on meta and x on cpu"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(change, message):
    with pytest.raises(ShapeError, match=message):
        ssd(**(arguments() | change))


@pytest.mark.parametrize(
    ("option", "message"), [({"dt_limit": (2.0, 1.0)}, "dt_limit"), ({"chunk_size": 0}, "chunk_size is 0")]
)
def test_an_option_out_of_range_is_named(option, message):
    with pytest.raises(ConfigError, match=message):
        ssd(**arguments(), **option)
