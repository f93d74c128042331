"""Outlines of the regions of a label raster, strip of rows by strip of rows.

GDAL traces the regions of one strip. What touches the line to the next strip stays open and is joined with what lies
beyond: shared pieces of the line vanish, and the ends that are left find each other. So memory holds the regions of a
strip and those that are open, not all there are; the outlines are those of the whole raster at once.

Coordinates are pixel corners (column, row). A ring is int64 [n, 2] and ends where it begins; the first of a region is
the outer one. By the sign of its area (columns to the right, rows down) an outer ring is positive, a hole negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes

Ring = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Outline:
    """A region connected by pixels' sides: its class and its rings, the outer one first."""

    value: int
    rings: list[Ring]


def outlines(strips: Iterable[NDArray[np.uint8]], wanted: NDArray[np.bool_]) -> Iterator[Outline]:
    """Every region of a wanted class, in the order in which they end.

    Args:
        strips: the raster's rows from the top, uint8 [h, W] each. wanted: bool [256], for each class whether its
            regions are traced.
    """
    unfinished: list[Outline] = []
    top = 0
    for labels in strips:
        bottom = top + len(labels)
        found = _traced(labels, wanted, top)
        joined = _joined(unfinished, found, top, labels.shape[1]) if unfinished else found
        unfinished = []
        for region in joined:
            if region.rings[0][:, 1].max() < bottom:
                yield region
            else:
                unfinished.append(region)
        top = bottom
    yield from unfinished


def _traced(labels: NDArray[np.uint8], wanted: NDArray[np.bool_], top: int) -> list[Outline]:
    found = []
    for geometry, value in shapes(labels, mask=wanted[labels], connectivity=4):
        rings = [np.asarray(ring, np.int64) + np.array([0, top]) for ring in geometry["coordinates"]]
        rings = [ring if (_area(ring) > 0) == (place == 0) else ring[::-1] for place, ring in enumerate(rings)]
        found.append(Outline(int(value), rings))
    return found


def _area(ring: Ring) -> int:
    """Twice the signed area."""
    x, y = ring.T
    return int((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())


def _joined(above: list[Outline], below: list[Outline], line: int, width: int) -> list[Outline]:
    """The regions of both sides of a line, where those of one class that share a piece of it are one."""
    regions = [*above, *below]
    of_above, of_below = _owners(above, line, width, 0), _owners(below, line, width, len(above))
    values = np.array([region.value for region in regions], np.int64)
    shared = (of_above >= 0) & (of_below >= 0)
    shared[shared] = values[of_above[shared]] == values[of_below[shared]]
    parent = list(range(len(regions)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    pairs = np.unique(np.stack([of_above[shared], of_below[shared]], axis=1), axis=0)
    for first, second in pairs.tolist():
        parent[root(second)] = root(first)
    groups: dict[int, list[Outline]] = {}
    for number, region in enumerate(regions):
        groups.setdefault(root(number), []).append(region)
    return [group[0] if len(group) == 1 else _merged(group, line, shared) for group in groups.values()]


def _owners(regions: list[Outline], line: int, width: int, first: int) -> NDArray[np.int64]:
    """For each column the number of the region (from `first`) whose outer ring lies on the line there, or -1."""
    owner = np.full(width, -1, np.int64)
    for number, region in enumerate(regions, start=first):
        for place in _edges_on(region.rings[0], line):
            left, right = sorted(region.rings[0][place : place + 2, 0].tolist())
            owner[left:right] = number
    return owner


def _edges_on(ring: Ring, line: int) -> list[int]:
    on = ring[:, 1] == line
    return np.flatnonzero(on[:-1] & on[1:]).tolist()


def _merged(group: list[Outline], line: int, shared: NDArray[np.bool_]) -> Outline:
    """One region of several. Only outer rings lie on the line: a hole next to it would be open to the other side."""
    chains = [chain for region in group for chain in _chains(region.rings[0], line, shared)]
    start_of = {(int(chain[0, 0]), int(chain[0, 1])): number for number, chain in enumerate(chains)}
    rings, left = [], set(range(len(chains)))
    while left:
        number = min(left)
        loop = []
        while number in left:
            left.remove(number)
            loop.append(chains[number][:-1])
            number = start_of[int(chains[number][-1, 0]), int(chains[number][-1, 1])]
        rings += _simple(_without_straight_corners(np.concatenate(loop)))
    holes = [ring for region in group for ring in region.rings[1:]]
    rings.sort(key=_area, reverse=True)  # one of them is positive: the outer one
    return Outline(group[0].value, rings + holes)


def _chains(ring: Ring, line: int, shared: NDArray[np.bool_]) -> list[Ring]:
    """What is left of a ring without the shared pieces of the line, in chains from one such piece to the next."""
    spans = {place: slice(*sorted(ring[place : place + 2, 0].tolist())) for place in _edges_on(ring, line)}
    cuts = [place for place, columns in spans.items() if shared[columns].any()]
    if not cuts:
        return [ring]
    corners = np.concatenate([ring[cuts[0] : -1], ring[: cuts[0] + 1]])  # begins with an edge that is cut
    places = [place - cuts[0] for place in cuts]
    parts: list[Ring] = []
    for place, following in zip(places, [*places[1:], len(corners) - 1], strict=True):
        parts += _kept_pieces(corners[place, 0], corners[place + 1, 0], line, shared)
        parts.append(corners[place + 1 : following + 1])
    # chains end at shared pieces and nowhere else: where two corners of a region touch, each has to go its own way
    breaks = [number for number in range(len(parts)) if not np.array_equal(parts[number - 1][-1], parts[number][0])]
    parts = parts[breaks[0] :] + parts[: breaks[0]]
    bounds = [number - breaks[0] for number in breaks] + [len(parts)]
    return [
        np.concatenate([parts[start], *(part[1:] for part in parts[start + 1 : stop])])
        for start, stop in pairwise(bounds)
    ]


def _kept_pieces(start: int, stop: int, line: int, shared: NDArray[np.bool_]) -> list[Ring]:
    """The pieces of the edge from column `start` to `stop` that are not shared, in its direction."""
    low, high = min(start, stop), max(start, stop)
    kept = np.concatenate([[False], ~shared[low:high], [False]])
    bounds = (np.flatnonzero(kept[1:] != kept[:-1]) + low).reshape(-1, 2)  # columns from..to, left to right
    pieces = [np.array([[left, line], [right, line]], np.int64) for left, right in bounds.tolist()]
    return pieces if start < stop else [piece[::-1] for piece in reversed(pieces)]


def _simple(ring: Ring) -> list[Ring]:
    """A ring that touches itself in a corner as rings that do not: what it encloses there is a hole of its own."""
    if len(np.unique(ring[:-1], axis=0)) == len(ring) - 1:
        return [ring]
    found: list[Ring] = []
    path: list[tuple[int, int]] = []  # corners passed, and where in it each is
    place_of: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        corner = (x, y)
        if corner in place_of:
            start = place_of[corner]
            found.append(np.array([*path[start:], corner], np.int64))
            for passed in path[start + 1 :]:
                del place_of[passed]
            del path[start + 1 :]
        else:
            place_of[corner] = len(path)
            path.append(corner)
    return found


def _without_straight_corners(loop: Ring) -> Ring:
    """A closed ring of the corners [n, 2], without those where it goes straight on."""
    before, after = np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0)
    turns = ((before != loop) & (loop == after)).any(axis=1) & ((before == loop) & (loop != after)).any(axis=1)
    corners = loop[turns]
    return np.concatenate([corners, corners[:1]])
