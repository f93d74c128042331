"""The deformable convolution beside torch's convolution and grid sampling, at the map's border, and its errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import deformable_conv, implementations, use_kernels

RUNNING_HERE = [
    row.implementation
    for row in implementations()
    if row.op == "deformable_conv" and row.device == "cpu" and row.available
]
every_implementation = pytest.mark.parametrize("implementation", RUNNING_HERE)


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _still(x, groups, points):
    return torch.zeros(*x.shape[:3], groups, points, 2)


@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 2), (5, 1)])
@every_implementation
def test_points_that_stay_and_weights_that_are_equal_everywhere_make_a_convolution(
    implementation, kernel_size, dilation
):
    """Points are counted column by column: the weight of point i k + j lies in column i and row j of the kernel."""
    x, weights = _draw(2, 7, 6, 8), _draw(2, kernel_size**2, seed=1)
    with use_kernels(implementation):
        mask = weights.expand(2, 7, 6, -1, -1)
        found = deformable_conv(
            x, _still(x, 2, kernel_size**2), mask, kernel_size=kernel_size, dilation=float(dilation)
        )
    kernels = weights.unflatten(1, (kernel_size, kernel_size)).transpose(1, 2).repeat_interleave(4, 0).unsqueeze(1)
    reach = dilation * (kernel_size // 2)
    wanted = functional.conv2d(x.permute(0, 3, 1, 2), kernels, padding=reach, dilation=dilation, groups=8)
    torch.testing.assert_close(found, wanted.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@every_implementation
def test_a_moved_point_is_read_as_by_grid_sampling(implementation):
    x, offset = _draw(2, 5, 7, 3), 2 * _draw(2, 5, 7, 1, 1, 2, seed=1)
    with use_kernels(implementation):
        found = deformable_conv(x, offset, torch.ones(2, 5, 7, 1, 1), kernel_size=1)
    column = torch.arange(7.0) + offset[..., 0, 0, 0]
    row = torch.arange(5.0)[:, None] + offset[..., 0, 0, 1]
    grid = torch.stack((2 * column / 6 - 1, 2 * row / 4 - 1), -1)
    wanted = functional.grid_sample(x.permute(0, 3, 1, 2), grid, align_corners=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@every_implementation
def test_a_point_on_the_far_side_of_the_border_gives_nothing_and_learns_nothing(implementation):
    """At -1 and at the size the bilinear value is 0 anyway; there, as in DCNv4, the place has no gradient either."""
    x = _draw(1, 1, 1, 4)
    for distance, reaches in ((-1.0, False), (-0.5, True), (0.5, True), (1.0, False), (3.0, False)):
        for axis in (0, 1):
            offset = torch.zeros(1, 1, 1, 1, 1, 2)
            offset[..., axis] = distance
            given = [tensor.clone().requires_grad_() for tensor in (x, offset, torch.ones(1, 1, 1, 1, 1))]
            with use_kernels(implementation):
                y = deformable_conv(*given, kernel_size=1)
                grads = torch.autograd.grad(y.sum(), given)
            assert bool(y.detach().any()) is reaches
            assert [bool(grad.any()) for grad in grads] == [reaches] * 3


@every_implementation
def test_what_nobody_reads_does_not_matter_and_what_is_no_number_shows(implementation):
    x, offset, mask = _draw(1, 5, 5, 2), _still(_draw(1, 5, 5, 2), 1, 9), _draw(1, 5, 5, 1, 9, seed=1)
    x[0, 0, 0] = torch.nan
    offset[0, 4, 4, 0, 0, 1] = torch.nan
    mask[0, 4, 0, 0, 8] = torch.nan  # of a point outside the map
    with use_kernels(implementation):
        missing = deformable_conv(x, offset, mask).isnan().all(-1)[0]
    wanted = torch.zeros(5, 5, dtype=torch.bool)
    wanted[:2, :2] = wanted[4, 4] = wanted[4, 0] = True
    assert torch.equal(missing, wanted)


@every_implementation
def test_a_place_far_along_a_wide_map_is_as_exact_as_one_at_its_beginning(implementation):
    x = torch.arange(4099.0).reshape(1, 1, -1, 1) % 2  # 0, 1, 0, 1, ...
    offset = torch.tensor([1e-6, 0.0]).expand(1, 1, 4099, 1, 1, 2)
    with use_kernels(implementation):
        y = deformable_conv(x, offset, torch.ones(1, 1, 4099, 1, 1), kernel_size=1)
    torch.testing.assert_close(y[0, 0, [0, 4096], 0], torch.tensor([1e-6, 1e-6]), rtol=1e-5, atol=0)


@every_implementation
def test_views_of_one_projection_give_what_copies_give(implementation):
    packed, x = _draw(2, 4, 5, 56), _draw(2, 4, 5, 32, seed=1)
    numbers = packed[..., :54].unflatten(-1, (2, 27))
    offset, mask = numbers[..., :18].unflatten(-1, (9, 2)), numbers[..., 18:]
    with use_kernels(implementation):
        views = deformable_conv(x, offset, mask)
        copies = deformable_conv(x, offset.contiguous(), mask.contiguous())
    assert torch.equal(views, copies)


def test_arguments_that_do_not_fit_are_named():
    x, offset, mask = _draw(1, 4, 5, 6), _draw(1, 4, 5, 2, 9, 2), _draw(1, 4, 5, 2, 9)
    with pytest.raises(ShapeError, match="x has shape"):
        deformable_conv(x[0], offset, mask)
    with pytest.raises(ShapeError, match="mask has shape"):
        deformable_conv(x, offset, mask, kernel_size=5)
    with pytest.raises(ShapeError, match="divides the 5 channels"):
        deformable_conv(x[..., :5], offset, mask)
    with pytest.raises(ShapeError, match="offset has shape"):
        deformable_conv(x, offset[..., :1], mask)
    with pytest.raises(ShapeError, match=r"mask is torch\.int64"):
        deformable_conv(x, offset, mask.long())
    with pytest.raises(ConfigError, match="kernel_size is 0"):
        deformable_conv(x, offset, mask, kernel_size=0)
