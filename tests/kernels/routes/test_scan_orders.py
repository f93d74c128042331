"""Routes: permutations, their reverses and inverses, and small cases worked by hand or taken from the specs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from statefield.errors import ConfigError, ShapeError, UnknownName
from statefield.kernels.routes import ROUTES, inverse_order, route, route_order
from statefield.kernels.routes import order as order_module

SIZES = st.integers(1, 9)
NAMES_AND_SHAPES = st.sampled_from([(name, dims) for name in ROUTES for dims in ROUTES[name].spatial_dims]).flatmap(
    lambda pick: st.tuples(st.just(pick[0]), st.tuples(*[SIZES] * pick[1]))
)


@given(NAMES_AND_SHAPES)
def test_every_route_visits_each_cell_once_and_its_inverse_undoes_it(name_and_shape):
    name, shape = name_and_shape
    order = route_order(name, shape)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(int(np.prod(shape))))
    x = torch.arange(order.numel()) * 7
    assert torch.equal(x[order][inverse_order(order)], x)


@given(NAMES_AND_SHAPES)
def test_a_tilde_walks_the_route_backwards(name_and_shape):
    name, shape = name_and_shape
    assert torch.equal(route_order(name + "~", shape), route_order(name, shape).flip(0))


@given(st.sampled_from(["snake", "column_snake"]), st.one_of(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES, SIZES)))
def test_each_step_of_a_snake_goes_to_a_neighbour(name, shape):
    places = np.array(np.unravel_index(route_order(name, shape).numpy(), shape)).T
    assert (np.abs(np.diff(places, axis=0)).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("raster", (2, 3), [0, 1, 2, 3, 4, 5]),
        ("column", (2, 3), [0, 3, 1, 4, 2, 5]),
        ("column", (2, 2, 2), [0, 4, 2, 6, 1, 5, 3, 7]),
        ("snake", (3, 4), [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]),  # PlainMamba's route o1
        ("column_snake", (3, 4), [0, 4, 8, 9, 5, 1, 2, 6, 10, 11, 7, 3]),  # PlainMamba's o3
        ("snake~", (2, 3), [3, 4, 5, 2, 1, 0]),  # PlainMamba's o2
        ("snake", (2, 2, 2), [0, 1, 3, 2, 6, 7, 5, 4]),
        ("diagonal", (3, 3), [0, 4, 8, 1, 5, 6, 2, 3, 7]),
        ("anti_diagonal", (3, 3), [0, 5, 7, 1, 3, 8, 2, 4, 6]),
        ("diagonal", (2, 3), [0, 4, 1, 5, 2, 3]),
        ("window2", (3, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]),
        ("window2", (2, 2, 3), [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11]),
    ],
)
def test_small_orders_by_hand(name, shape, expected):
    assert route_order(name, shape).tolist() == expected


def test_a_window_that_holds_the_whole_grid_is_raster():
    assert torch.equal(route_order("window8", (8, 5)), route_order("raster", (8, 5)))


def test_changing_a_returned_order_leaves_the_route_as_it_was():
    route_order("raster", (2, 2)).zero_()
    assert route_order("raster", (2, 2)).tolist() == [0, 1, 2, 3]


def test_an_unknown_route_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'snake'"):
        route_order("snak", (2, 2))


def test_a_shape_that_the_route_is_not_defined_for_is_refused():
    with pytest.raises(ShapeError, match="2-D grids"):
        route_order("diagonal", (2, 3, 4))
    with pytest.raises(ShapeError, match="without cells"):
        route_order("raster", (0, 4))


def test_a_route_that_misses_a_cell_is_refused_when_it_is_used(monkeypatch):
    monkeypatch.setattr(order_module.ROUTES, "_entries", dict(order_module.ROUTES._entries))

    @route("stuck")
    def stuck(shape):
        """Never leaves the first cell."""
        return np.zeros(int(np.prod(shape)), dtype=np.int64)

    with pytest.raises(ConfigError, match="exactly once"):
        route_order("stuck", (2, 2))


def test_a_name_with_the_reversal_mark_cannot_be_registered():
    with pytest.raises(ConfigError, match="reversed"):
        route("back~")
