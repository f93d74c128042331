"""Overlap of rectangles, rotated boxes, polygons and masks as the VOT toolkit counts it: in pixels, not exactly.

The toolkit draws both regions onto the pixels and counts (votchallenge/toolkit 56f0053, vot/region/raster.py). Corners
are rounded to whole pixels (in single precision, halves to even), borders belong to the region, and what lies outside
the image is not drawn. Its rules for a row of a polygon: edges that reach the row give nodes, whose columns are cut
towards zero; sorted, they are filled in pairs; of two equal ones in the middle the first is skipped. Exact polygon
areas would differ by up to some percent for small targets, and published numbers are of pixels.

Here no picture is drawn. A row of a region is a few runs of pixels, so areas and intersections are sums over runs, for
all rows of all frames at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.regions import Mask, Polygon, Rectangle, Region, Special

Ints = NDArray[np.int64]
_MOST_ROWS = 2**18  # rows of pixels worked on at once


@dataclass(frozen=True)
class _Runs:
    """Rows of pixels: `starts` and `ends` [rows, runs], both within the run; an empty run ends before it starts."""

    starts: Ints
    ends: Ints

    def area(self) -> Ints:
        return np.maximum(self.ends - self.starts + 1, 0).sum(axis=1)

    def shared(self, other: _Runs) -> Ints:
        """Pixels that both have, per row."""
        low = np.maximum(self.starts[:, :, None], other.starts[:, None, :])
        high = np.minimum(self.ends[:, :, None], other.ends[:, None, :])
        return np.maximum(high - low + 1, 0).sum(axis=(1, 2))


def region_overlaps(
    first: Sequence[Region], second: Sequence[Region], image_size: tuple[int, int] | None = None
) -> NDArray[np.float64]:
    """Intersection over union, in pixels, of the regions of each frame: [T] float64 in [0, 1].

    Two empty regions, or two that share one column or one row, have an overlap of 1 by the toolkit's definition; a
    special region is empty.

    Args:
        first, second: T regions each.
        image_size: (width, height) in pixels; what lies outside is not counted. None counts everything.
    """
    assert len(first) == len(second)
    overlaps = np.zeros(len(first))
    if not len(first):
        return overlaps
    shapes = _Shapes(first), _Shapes(second)
    bounds = np.concatenate([shapes[0].bounds, shapes[1].bounds], axis=1)
    low = np.minimum(bounds[:, :2], bounds[:, 4:6])
    high = np.maximum(bounds[:, 2:4], bounds[:, 6:])
    overlaps[(low >= high).any(axis=1)] = 1.0
    drawn = ~(low >= high).any(axis=1)
    if image_size is not None:
        low, high = np.maximum(low, 0), np.minimum(high, np.array(image_size) - 1)
        drawn &= ~(low >= high).any(axis=1)
    groups: dict[tuple[str, str], list[int]] = {}
    for frame in np.flatnonzero(drawn).tolist():
        groups.setdefault((shapes[0].kinds[frame], shapes[1].kinds[frame]), []).append(frame)
    for kinds, frames in groups.items():
        if "special" in kinds:
            continue  # one of them is empty: 0
        if "mask" in kinds:
            for frame in frames:
                overlaps[frame] = _drawn_overlap(first[frame], second[frame], low[frame], high[frame])
            continue
        for part in _parts(np.array(frames), high[:, 1] - low[:, 1] + 1):
            sizes = high[part] - low[part] + 1
            runs = [one.rows(part, low[part], sizes) for one in shapes]
            of_frame = np.repeat(np.arange(len(part)), sizes[:, 1])
            shared = np.bincount(of_frame, weights=runs[0].shared(runs[1]), minlength=len(part))
            areas = [np.bincount(of_frame, weights=one.area(), minlength=len(part)) for one in runs]
            union = areas[0] + areas[1] - shared
            overlaps[part] = np.divide(shared, union, out=np.zeros(len(part)), where=union > 0)
    return overlaps


def is_empty(region: Region) -> bool:
    """True where there is no target: a special region, or a mask without a pixel, or a rectangle without a size."""
    if isinstance(region, Rectangle):
        return bool((region.box[2:] <= 0).any())
    return isinstance(region, Special) or (isinstance(region, Mask) and not region.pixels.any())


def _parts(frames: Ints, rows: Ints) -> list[Ints]:
    """`frames` in portions of at most _MOST_ROWS rows (or one frame)."""
    portion = (np.cumsum(rows[frames]) - 1) // _MOST_ROWS
    return [frames[portion == number] for number in np.unique(portion)]


class _Shapes:
    """Regions of one file, their numbers gathered by kind and rounded as the toolkit does.

    `kinds`: of each frame; `bounds`: [T, 4] int64, the first and last column and row: left, top, right, bottom.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self.kinds = [_kind(region) for region in regions]
        self.bounds = np.zeros((len(regions), 4), dtype=np.int64)
        self.place = np.zeros(len(regions), dtype=np.int64)  # of a frame among those of its kind
        self.stacks: dict[str, NDArray[np.float64]] = {}
        frames_of: dict[str, list[int]] = {}
        for frame, kind in enumerate(self.kinds):
            frames_of.setdefault(kind, []).append(frame)
        for kind, members in frames_of.items():
            frames = np.array(members)
            self.place[frames] = np.arange(len(frames))
            found = [regions[frame] for frame in members]
            if kind == "rectangle":
                boxes = _rounded(np.stack([one.box for one in found if isinstance(one, Rectangle)]))
                self.stacks[kind] = boxes
                self.bounds[frames] = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)
            elif kind == "mask":
                self.bounds[frames] = [_mask_bounds(one) for one in found if isinstance(one, Mask)]
            elif kind != "special":
                corners = _rounded(np.stack([one.corners for one in found if isinstance(one, Polygon)]))
                self.stacks[kind] = corners
                self.bounds[frames] = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)

    def rows(self, frames: Ints, low: Ints, sizes: Ints) -> _Runs:
        """The rows of frames of one kind, below each other.

        Args:
            low: [frames, 2], the first column and row; columns and rows are counted from there.
            sizes: [frames, 2], how many columns and rows.
        """
        heights = sizes[:, 1]
        of_frame = np.repeat(np.arange(len(frames)), heights)
        row = np.arange(len(of_frame)) - np.repeat(np.cumsum(heights) - heights, heights)
        width = sizes[of_frame, 0]
        kind = self.kinds[int(frames[0])]
        numbers = self.stacks[kind][self.place[frames]]
        if kind != "rectangle":
            return _polygon_rows(numbers - low[:, None, :], of_frame, row, width)
        boxes = numbers.astype(np.int64)
        start, first_row = (boxes[:, axis] - low[:, axis] for axis in (0, 1))
        is_inside = (row >= first_row[of_frame]) & (row < (first_row + boxes[:, 3])[of_frame])
        starts = np.maximum(start, 0)[of_frame]
        ends = np.minimum((start + boxes[:, 2])[of_frame], width) - 1
        return _Runs(starts[:, None], np.where(is_inside, ends, starts - 1)[:, None])


def _kind(region: Region) -> str:
    if isinstance(region, Polygon):
        return f"polygon of {len(region.corners)}"
    return {Rectangle: "rectangle", Mask: "mask", Special: "special"}[type(region)]


def _mask_bounds(region: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(region.pixels.any(axis=1)), np.flatnonzero(region.pixels.any(axis=0))
    if not len(rows):
        return region.left, region.top, region.left, region.top
    left, top = region.left, region.top
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]), top + int(rows[-1])


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.round(values.astype(np.float32)).astype(np.float64)


def _polygon_rows(corners: NDArray[np.float64], of_frame: Ints, row: Ints, width: Ints) -> _Runs:
    """`corners` [T, N, 2] are whole numbers; `of_frame`, `row` and `width` are of each row of pixels."""
    before = np.roll(corners, 1, axis=1)
    x, y = corners[of_frame, :, 0], corners[of_frame, :, 1]
    x_before, y_before = before[of_frame, :, 0], before[of_frame, :, 1]
    at = row[:, None].astype(np.float64)
    # an edge reaches a row from either side and at both of its ends
    reaches = (np.minimum(y, y_before) <= at) & (at <= np.maximum(y, y_before))
    rise = y_before - y
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = np.where(rise != 0, x + (at - y) / rise * (x_before - x), x)
    if _is_convex(corners).all():  # the pairs of nodes make one run, from the first to the last
        start = np.where(reaches, crossing, np.inf).min(axis=1)
        end = np.where(reaches, crossing, -np.inf).max(axis=1)
        fills = reaches.any(axis=1)
        first = np.trunc(np.where(fills, start, 0.0)).astype(np.int64)
        last = np.trunc(np.where(fills, end, -1.0)).astype(np.int64)
        fills &= (first < width) & (last >= 0)
        return _Runs(np.maximum(first, 0)[:, None], np.where(fills, np.minimum(last, width - 1), -1)[:, None])
    far = np.iinfo(np.int64).max
    nodes = np.sort(np.where(reaches, np.trunc(crossing), np.inf), axis=1)
    num_nodes = reaches.sum(axis=1)
    columns = np.where(np.isinf(nodes), 0, nodes).astype(np.int64)
    num_corners = corners.shape[1]
    starts = np.zeros((len(row), num_corners - 1), dtype=np.int64)
    ends = np.full((len(row), num_corners - 1), -1, dtype=np.int64)
    pointer = np.zeros(len(row), dtype=np.int64)
    last_end = np.full(len(row), -1, dtype=np.int64)
    for node in range(num_corners - 1):
        here, following = columns[:, node], columns[:, node + 1]
        is_due = (pointer == node) & (node < num_nodes - 1) & (here < width)
        skips = is_due & (here == following) & (node < num_nodes - 2)
        fills = is_due & ~skips & (following >= 0)
        # runs that touch share a column, which counts once
        begin = np.maximum(np.maximum(here, 0), last_end + 1)
        end = np.minimum(following, width - 1)
        starts[:, node] = np.where(fills, begin, 0)
        ends[:, node] = np.where(fills, end, -1)
        last_end = np.where(fills, np.maximum(end, last_end), last_end)
        pointer = np.where(skips, node + 1, np.where(is_due, node + 2, np.where(pointer == node, far, pointer)))
    return _Runs(starts, ends)


def _is_convex(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[T] bool: every corner turns the same way, and they turn around once (a star turns twice)."""
    sides = np.roll(corners, -1, axis=1) - corners
    following = np.roll(sides, -1, axis=1)
    turns = sides[..., 0] * following[..., 1] - sides[..., 1] * following[..., 0]
    same_way = (turns > 0).all(axis=1) | (turns < 0).all(axis=1)
    directions = np.arctan2(sides[..., 1], sides[..., 0])
    angles = np.angle(np.exp(1j * (np.roll(directions, -1, axis=1) - directions)))
    return np.asarray(same_way & (np.abs(angles.sum(axis=1)) < 3 * np.pi))


def _drawn_overlap(first: Region, second: Region, low: Ints, high: Ints) -> float:
    size = high - low + 1
    drawn = []
    for region in (first, second):
        canvas = np.zeros((size[1], size[0]), dtype=np.bool_)
        if isinstance(region, Mask):
            left, top = region.left - low[0], region.top - low[1]
            height, width = region.pixels.shape
            rows = slice(max(0, -top), max(0, min(height, size[1] - top)))
            columns = slice(max(0, -left), max(0, min(width, size[0] - left)))
            part = region.pixels[rows, columns]
            canvas[max(0, top) : max(0, top) + part.shape[0], max(0, left) : max(0, left) + part.shape[1]] = part
        else:
            runs = _Shapes([region]).rows(np.array([0]), low[None], size[None])
            column = np.arange(size[0])
            for start, end in zip(runs.starts.T, runs.ends.T, strict=True):
                canvas |= (column >= start[:, None]) & (column <= end[:, None])
        drawn.append(canvas)
    union = np.count_nonzero(drawn[0] | drawn[1])
    return np.count_nonzero(drawn[0] & drawn[1]) / union if union else 0.0
