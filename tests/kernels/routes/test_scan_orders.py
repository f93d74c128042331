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


TO_NEIGHBOURS = [
    *((name, dims) for name in ("snake", "column_snake", "hilbert") for dims in (2, 3)),
    *((name, 2) for name in ROUTES if "spiral" in name or "snake_from" in name),
]


@given(st.sampled_from(TO_NEIGHBOURS).flatmap(lambda pick: st.tuples(st.just(pick[0]), st.tuples(*[SIZES] * pick[1]))))
def test_each_step_goes_to_a_neighbour_where_the_route_says_so(name_and_shape):
    name, shape = name_and_shape
    places = np.array(np.unravel_index(route_order(name, shape).numpy(), shape)).T
    assert (np.abs(np.diff(places, axis=0)).sum(axis=1) == 1).all()


@given(st.sampled_from(["zigzag", "zigzag_from_right"]), st.tuples(SIZES, SIZES))
def test_each_step_of_a_zigzag_goes_to_one_of_eight_neighbours(name, shape):
    places = np.array(np.unravel_index(route_order(name, shape).numpy(), shape)).T
    assert (np.abs(np.diff(places, axis=0)).max(axis=1, initial=0) <= 1).all()


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
        ("snake_from_bottom", (3, 2), [4, 5, 3, 2, 0, 1]),
        ("column_snake_from_bottom", (3, 2), [4, 2, 0, 1, 3, 5]),
        ("column_snake_from_bottom_right", (3, 2), [5, 3, 1, 0, 2, 4]),
        ("zigzag", (3, 4), [0, 1, 4, 8, 5, 2, 3, 6, 9, 10, 7, 11]),  # MHS-VM's X0
        ("zigzag_from_right", (2, 3), [2, 1, 5, 4, 0, 3]),
        ("spiral", (3, 4), [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]),  # MHS-VM's S0
        ("spiral", (4, 4), [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4, 5, 6, 10, 9]),
        ("spiral_from_bottom", (3, 3), [6, 7, 8, 5, 2, 1, 0, 3, 4]),
        ("atrous2", (3, 3), [0, 2, 6, 8, 3, 5, 1, 7, 4]),
        ("column_atrous2", (3, 3), [0, 6, 2, 8, 3, 5, 1, 7, 4]),
        ("atrous4", (1, 6), [0, 4, 1, 5, 2, 3]),
        ("atrous2", (2, 1, 3), [0, 2, 3, 5, 1, 4]),
        ("skip2", (4, 4), [0, 2, 8, 10, 4, 12, 6, 14, 1, 3, 9, 11, 5, 13, 7, 15]),  # EfficientVMamba's k0 .. k3
        ("column_window2", (3, 4), [0, 4, 1, 5, 8, 9, 2, 6, 3, 7, 10, 11]),
        ("hilbert", (4, 4), [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]),
        ("raster", (4,), [0, 1, 2, 3]),
        ("raster~", (4,), [3, 2, 1, 0]),
        ("window2", (3, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]),
        ("window2", (2, 2, 3), [0, 1, 3, 4, 6, 7, 9, 10, 2, 5, 8, 11]),
    ],
)
def test_small_orders_by_hand(name, shape, expected):
    assert route_order(name, shape).tolist() == expected


def classic_hilbert(order: int) -> list[tuple[int, int]]:
    """Hilbert's curve on 2^order cells a side by its rewriting rules, as (along, across) from (0, 0)."""
    rules = {"A": "+BF-AFA-FB+", "B": "-AF+BFB+FA-"}
    path = "A"
    for _ in range(order):
        path = "".join(rules.get(letter, letter) for letter in path)
    place, heading, places = (0, 0), (1, 0), [(0, 0)]
    for letter in path:
        if letter == "F":
            place = (place[0] + heading[0], place[1] + heading[1])
            places.append(place)
        elif letter in "+-":
            sign = 1 if letter == "+" else -1
            heading = (-sign * heading[1], sign * heading[0])
    return places


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_hilbert_on_a_square_of_a_power_of_two_is_hilberts_curve(order):
    size = 2**order
    places = [divmod(cell, size) for cell in route_order("hilbert", (size, size)).tolist()]
    classic = classic_hilbert(order)
    assert places in (classic, [(across, along) for along, across in classic])


def test_hilbert_through_a_cube_fills_one_octant_after_the_other():
    places = np.array(np.unravel_index(route_order("hilbert", (8, 8, 8)).numpy(), (8, 8, 8))).T
    octants = (places // 4).reshape(8, 64, 3)
    assert (octants == octants[:, :1]).all()
    assert len({tuple(octant[0]) for octant in octants}) == 8


@given(st.sampled_from(["dhw", "dwh", "hdw", "hwd", "wdh", "whd"]), st.tuples(SIZES, SIZES, SIZES))
def test_volume_routes_nest_their_axes_as_their_names_say(letters, shape):
    ranges = dict(zip("dhw", map(range, shape), strict=True))
    slow = []
    for outer in ranges[letters[0]]:
        for middle in ranges[letters[1]]:
            for inner in ranges[letters[2]]:
                at = dict(zip(letters, (outer, middle, inner), strict=True))
                slow.append((at["d"] * shape[1] + at["h"]) * shape[2] + at["w"])
    assert route_order(f"volume_{letters}", shape).tolist() == slow


@given(st.tuples(SIZES, SIZES, SIZES))
def test_inter_slice_of_segmamba_is_a_volume_route(shape):
    tokens = torch.arange(int(np.prod(shape)))
    interleaved = torch.stack(tokens.chunk(shape[0]), dim=-1).flatten()
    assert torch.equal(route_order("volume_hwd", shape), interleaved)


@given(st.tuples(SIZES, SIZES, SIZES))
def test_frames_and_places_of_a_video(shape):
    frames, height, width = shape
    tokens = torch.arange(frames * height * width).view(frames, height * width)
    assert torch.equal(route_order("spatial_first", shape), tokens.flatten())
    assert torch.equal(route_order("temporal_first", shape), tokens.t().flatten())


@given(st.tuples(SIZES, SIZES))
def test_routes_of_two_dates_equal_image_routes_on_changemambas_wide_images(shape):
    pair = torch.arange(2 * shape[0] * shape[1]).view(2, *shape)
    side_by_side = torch.cat([pair[0], pair[1]], dim=1)
    interleaved = torch.stack([pair[0], pair[1]], dim=2).flatten(1)
    for way, wide in (("sequential", side_by_side), ("cross", interleaved)):
        for name, image_route in ((f"bitemporal_{way}", "raster"), (f"bitemporal_{way}_column", "column")):
            expected = wide.flatten()[route_order(image_route, tuple(wide.shape))]
            assert torch.equal(route_order(name, (2, *shape)), expected)


@given(st.tuples(SIZES, SIZES))
def test_skip_sampling_is_efficientvmambas_four_strided_slices(shape):
    image = torch.arange(shape[0] * shape[1]).view(shape)
    parts = [image[::2, ::2], image[1::2, ::2].t(), image[::2, 1::2], image[1::2, 1::2].t()]
    assert torch.equal(route_order("skip2", shape), torch.cat([part.flatten() for part in parts]))


@given(st.sampled_from([2, 4]), st.one_of(st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES, SIZES)))
def test_atrous_visits_one_dilated_grid_after_the_other(step, shape):
    cells = torch.arange(int(np.prod(shape))).view(shape)
    for name, turn in ((f"atrous{step}", False), (f"column_atrous{step}", True)):
        grids = []
        for number in range(step ** len(shape)):
            offsets = [number // step**axis % step for axis in range(len(shape))]  # the first axis turns fastest
            grid = cells[tuple(slice(offset, None, step) for offset in offsets)]
            grids.append((grid.permute(*range(grid.dim() - 1, -1, -1)) if turn else grid).flatten())
        assert torch.equal(route_order(name, shape), torch.cat(grids))


@given(st.sampled_from([2, 4, 7, 8]), st.tuples(SIZES, SIZES))
def test_a_column_window_is_the_window_of_the_transposed_image(size, shape):
    transposed = torch.arange(shape[0] * shape[1]).view(shape).t()
    expected = transposed.flatten()[route_order(f"window{size}", shape[::-1])]
    assert torch.equal(route_order(f"column_window{size}", shape), expected)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (1, 5), (5, 1)])
def test_routes_from_another_corner_are_the_routes_of_a_mirrored_image(shape):
    cells = torch.arange(shape[0] * shape[1]).view(shape)
    for name, route_name, axes in [
        ("zigzag_from_right", "zigzag", [1]),  # MHS-VM's X1: columns mirrored
        ("spiral_from_bottom", "spiral", [0]),  # MHS-VM's S1: rows mirrored
        ("snake_from_bottom", "snake", [0]),
        ("column_snake_from_bottom", "column_snake", [0]),
        ("column_snake_from_bottom_right", "column_snake", [0, 1]),
    ]:
        assert torch.equal(route_order(name, shape), cells.flip(axes).flatten()[route_order(route_name, shape)])


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
    with pytest.raises(ShapeError, match="3-D grids"):
        route_order("temporal_first", (4, 4))
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
