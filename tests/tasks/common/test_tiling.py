"""Tiled inference equals MONAI's, moves nothing, loses nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common import tiling
from statefield.tasks.common.tiling import (
    mirrored,
    num_windows,
    sliding_slabs,
    sliding_window,
    window_starts,
    window_weights,
)


def positional(windows: Tensor) -> Tensor:
    """A net whose answer depends on where in the window a pixel lies and on its neighbours: a shift shows."""
    ramp = torch.zeros(windows.shape[2:], dtype=windows.dtype)
    for axis, size in enumerate(windows.shape[2:]):
        steps = torch.arange(size, dtype=windows.dtype) * (axis + 1) * 0.37
        ramp = ramp + steps.reshape([-1 if other == axis else 1 for other in range(ramp.ndim)])
    first = windows[:, :1]
    return torch.cat(
        [first + ramp, windows.sum(1, keepdim=True) * ramp.cos(), first.roll(1, -1) - first.roll(1, -2)], 1
    )


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def layouts(draw: st.DrawFn) -> dict:
    axes = draw(st.sampled_from([2, 2, 3]))
    most = 20 if axes == 2 else 9
    return {
        "shape": (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *(draw(st.integers(1, most)) for _ in range(axes))),
        "roi": tuple(draw(st.integers(1, most)) for _ in range(axes)),
        "overlap": draw(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9])),
        "batch_size": draw(st.integers(1, 5)),
        "weighting": draw(st.sampled_from(["gaussian", "constant"])),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=120, deadline=None)
@given(layouts())
def test_blended_logits_equal_monai(layout: dict) -> None:
    image = noise(*layout["shape"], seed=layout["seed"])
    ours = sliding_window(
        image,
        positional,
        layout["roi"],
        overlap=layout["overlap"],
        batch_size=layout["batch_size"],
        weighting=layout["weighting"],
    )
    theirs = sliding_window_inference(
        image, layout["roi"], layout["batch_size"], positional, overlap=layout["overlap"], mode=layout["weighting"]
    )
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "roi", "axes"), [((2, 1, 13, 9), (6, 5), (0, 1)), ((1, 2, 7, 6, 9), (4, 6, 5), (0, 2))]
)
def test_mirrored_logits_equal_monai_on_the_averaged_net(shape: tuple, roi: tuple, axes: tuple) -> None:
    image = noise(*shape)

    def average(windows: Tensor) -> Tensor:
        first, second = axes[0] + 2, axes[1] + 2
        flips: list[list[int]] = [[], [first], [second], [first, second]]
        return torch.stack([positional(windows.flip(flip)).flip(flip) for flip in flips]).mean(0)

    ours = sliding_window(image, positional, roi, mirror_axes=axes, batch_size=3)
    torch.testing.assert_close(
        ours, sliding_window_inference(image, roi, 2, average, overlap=0.5, mode="gaussian"), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(ours, sliding_window(image, positional, roi), atol=1e-2)


def test_mirroring_a_net_twice_is_mirroring_it_once() -> None:
    windows = noise(2, 1, 6, 5)
    once = mirrored(positional, (0, 1))
    torch.testing.assert_close(mirrored(once, (0, 1))(windows), once(windows))
    assert mirrored(positional, ()) is positional


def test_a_pixelwise_net_gives_the_untiled_answer_in_float64() -> None:
    image = noise(2, 3, 17, 23, dtype=torch.float64)
    logits = sliding_window(image, lambda windows: windows**3, (8, 6), overlap=(0.25, 0.6))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, image**3, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_windows_are_averaged_in_float32(dtype: torch.dtype) -> None:
    image = noise(1, 2, 21, 18, dtype=dtype)
    logits = sliding_window(image, lambda windows: windows * 2, (8, 8), overlap=0.75, mirror_axes=(0, 1))
    assert logits.dtype == torch.float32
    # doubling is exact in half precision and the average of equal numbers is that number: only float32 rounding is left
    torch.testing.assert_close(logits, image.float() * 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("roi", [(128, 128), (256, 31)])
def test_corners_where_the_weight_is_least_are_finite_and_exact(roi: tuple[int, int]) -> None:
    assert float(window_weights(roi, "gaussian").min()) == pytest.approx(1e-3)
    image = noise(1, 1, 150, 140) * 1e4
    logits = sliding_window(image, lambda windows: windows, roi)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, image, rtol=1e-5, atol=1e-2)


def test_an_image_smaller_than_the_roi_is_padded_and_cut_back() -> None:
    image = noise(1, 1, 3, 5)
    seen: list[tuple[int, ...]] = []

    def net(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        assert windows.abs().sum() == pytest.approx(image.abs().sum())  # the rest is zeros
        return windows

    torch.testing.assert_close(sliding_window(image, net, (8, 6)), image)
    assert seen == [(1, 1, 8, 6)]


def test_slabs_come_in_order_and_hold_no_more_rows_than_a_window() -> None:
    image = noise(2, 1, 23, 9, 7)
    whole = sliding_window(image, positional, (6, 4, 4))
    next_row = 0
    for slab in sliding_slabs(image, positional, (6, 4, 4)):
        assert slab.start == next_row
        assert slab.logits.shape[2] == slab.stop - slab.start <= 6
        assert torch.equal(slab.logits, whole[:, :, slab.start : slab.stop])
        next_row = slab.stop
    assert next_row == 23


def test_progress_counts_every_window_and_the_net_never_gets_more_than_the_batch() -> None:
    calls: list[tuple[int, int]] = []

    def net(windows: Tensor) -> Tensor:
        assert len(windows) <= 3
        return windows

    sliding_window(noise(2, 1, 10, 10), net, (4, 4), batch_size=3, progress=lambda *count: calls.append(count))
    windows = 2 * len(window_starts(10, 4, 0.5)) ** 2
    assert calls[-1] == (windows, windows)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_inference_keeps_no_graph() -> None:
    conv = torch.nn.Conv2d(1, 2, 3, padding=1)
    assert not sliding_window(noise(1, 1, 9, 9), conv, (4, 4)).requires_grad


@pytest.mark.parametrize(
    ("image", "changes", "error", "says"),
    [
        (noise(1, 9, 9), {}, ShapeError, r"\[B, C, H, W\]"),
        (noise(1, 1, 9, 9).long(), {}, ShapeError, "int64"),
        (noise(1, 1, 9, 9), {"roi": (4, 4, 4)}, ShapeError, "2 positive whole numbers"),
        (noise(1, 1, 9, 9), {"roi": (4, 0)}, ShapeError, "2 positive whole numbers"),
        (noise(1, 1, 9, 9), {"overlap": 1.0}, ConfigError, r"\[0, 1\)"),
        (noise(1, 1, 9, 9), {"overlap": (0.5,)}, ConfigError, "2 axes"),
        (noise(1, 1, 9, 9), {"batch_size": 0}, ConfigError, "batch_size=0"),
        (noise(1, 1, 9, 9), {"mirror_axes": (2,)}, ConfigError, r"0\.\.1"),
        (noise(1, 1, 9, 9), {"mirror_axes": (0, 0)}, ConfigError, "different axes"),
        (noise(1, 1, 9, 9), {"weighting": "hann"}, ConfigError, "'hann'"),
    ],
)
def test_impossible_arguments_are_refused_at_the_call(
    image: Tensor, changes: dict, error: type[Exception], says: str
) -> None:
    arguments = {"roi": (4, 4), **changes}
    roi = arguments.pop("roi")
    with pytest.raises(error, match=says):
        sliding_slabs(image, positional, roi, **arguments)


@pytest.mark.parametrize("mirror_axes", [(), (1,)])
def test_a_net_that_returns_another_size_is_named(mirror_axes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(4, 1, 2, 2\).*\(4, 1, 4, 4\)"):
        sliding_window(noise(1, 1, 9, 9), lambda windows: windows[..., ::2, ::2], (4, 4), mirror_axes=mirror_axes)


@pytest.mark.parametrize(
    ("shape", "roi", "bands"),
    [
        ((1, 1, 9, 17, 8), (4, 5, 3), [(0, 6), (6, 7), (7, 17)]),
        ((1, 2, 3, 4, 6), (5, 8, 6), [(0, 1), (1, 4)]),  # padded on every axis
        ((2, 1, 12, 10), (5, 4), [(0, 3), (3, 10)]),
    ],
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_bands_of_columns_are_bit_for_bit_those_of_the_whole(
    shape: tuple, roi: tuple, bands: list[tuple[int, int]], overlap: float
) -> None:
    image = noise(*shape)
    options = {"overlap": overlap, "batch_size": 2, "mirror_axes": (0, 1)}
    whole = sliding_window(image, positional, roi, **options)
    counted: list[tuple[int, int]] = []
    for band in bands:
        counted.clear()
        slabs = list(
            sliding_slabs(image, positional, roi, band=band, progress=lambda *count: counted.append(count), **options)
        )
        joined = torch.cat([slab.logits for slab in slabs], 2)
        assert torch.equal(joined, whole[:, :, :, band[0] : band[1]])
        assert counted[-1] == (shape[0] * num_windows(shape[2:], roi, overlap, band),) * 2
    assert num_windows(shape[2:], roi, overlap) <= sum(num_windows(shape[2:], roi, overlap, band) for band in bands)


@pytest.mark.parametrize("band", [(3, 3), (-1, 2), (0, 8)])
def test_a_band_outside_the_image_is_refused(band: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="of the image's 7"):
        sliding_slabs(noise(1, 1, 5, 7), positional, (4, 4), band=band)


def test_rows_are_handed_out_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(1, 1, 11, 5, 4)
    whole = sliding_window(image, positional, (6, 4, 4))
    monkeypatch.setattr(tiling, "_BYTES_AT_A_TIME", 1)
    slabs = list(sliding_slabs(image, positional, (6, 4, 4)))
    assert [(slab.start, slab.stop) for slab in slabs] == [(row, row + 1) for row in range(11)]
    assert torch.equal(torch.cat([slab.logits for slab in slabs], 2), whole)
