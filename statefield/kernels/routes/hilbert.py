"""The Hilbert curve of a grid of any size, in two and three dimensions, of which every step goes to a neighbour.

Hilbert's curve cuts a square into quarters. Here a box of any sizes is cut into smaller boxes, about in halves, and the
parts are joined end to start. A part is a *run*: a curve through a box a x b x c from the corner (0, 0, 0) to the
corner (a - 1, 0, 0) along its main axis a. Colour the cells like a chessboard: a run through neighbours is possible
only where a is even or all three sizes are odd (and, where a = 1, only through a single cell). Each cut below keeps to
that, so no step is ever diagonal:

    along    a = a1 + a2                               with a long: two runs along a
    level    b = b1 + b2, the low part cut in a too    with b long or c = 1: up, along, down (Hilbert's cut in 2-D)
    full     b = b1 + b2, c = c1 + c2, and the low     five runs: up, inwards, along, outwards, down (Hilbert's cut
             b parts and the high c parts cut in a     in 3-D, with two of his cuts left to the next level)

On a square of 2^k a side this is the Hilbert curve itself. The cuts are those of the generalised Hilbert curve
("gilbert") of J. Cerveny, which has a diagonal step at some sizes; where the cuts lie is chosen here so that none is.
"""

from __future__ import annotations

import numpy as np

from statefield.kernels.routes.order import Shape, route

Sizes = tuple[int, int, int]
_A, _B, _C = np.eye(3, dtype=np.int64)


@route("hilbert")
def hilbert(shape: Shape) -> np.ndarray:
    """A Hilbert curve for any sizes: each step goes to a neighbour, and near cells are visited at near times."""
    axes = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis), reverse=True)  # the longest axis first
    longest, *others = (shape[axis] for axis in axes)
    second, third = (*others, 1)[:2]
    even = next((place for place, size in enumerate(others) if size % 2 == 0), None)
    runs: dict[Sizes, np.ndarray] = {}
    if longest % 2 == 0 or even is None:
        places = _run((longest, second, third), runs)
    else:
        # A run along the odd longest axis would need a diagonal step: its last part runs along an even axis instead.
        odd = others[even] + 1
        if even == 0:
            places = _run((second, odd, third), runs)[:, [1, 0, 2]]
        else:
            places = _run((third, odd, second), runs)[:, [1, 2, 0]]
        if longest > odd:
            places = np.concatenate([_run((longest - odd, second, third), runs), places + (longest - odd) * _A])
    of_axes = dict(zip(axes, places.T, strict=False))
    return np.ravel_multi_index([of_axes[axis] for axis in range(len(shape))], shape)


def _run(sizes: Sizes, runs: dict[Sizes, np.ndarray]) -> np.ndarray:
    """The cells of a run through a box in their order, int64 [a b c, 3]. `runs` remembers those of smaller boxes."""
    if sizes not in runs:
        runs[sizes] = _make_run(*sizes, runs)
    return runs[sizes]


def _make_run(a: int, b: int, c: int, runs: dict[Sizes, np.ndarray]) -> np.ndarray:
    assert a % 2 == 0 or (a * b * c % 2 == 1 and (a > 1 or b * c == 1)), "no run through neighbours"

    def part(m: int, s: int, t: int, axes: tuple[np.ndarray, ...], start: np.ndarray | int = 0) -> np.ndarray:
        """A run through m x s x t cells, its three axes laid along `axes`, from `start`."""
        return _run((m, s, t), runs) @ np.stack(axes) + start

    if b == c == 1:
        return np.arange(a)[:, None] * _A
    if 2 * a > 3 * max(b, c):
        a1 = _even_half(a)
        return np.concatenate([part(a1, b, c, (_A, _B, _C)), part(a - a1, b, c, (_A, _B, _C), a1 * _A)])
    all_odd = a % 2 == 1
    if 3 * c > 4 * b or (c > b and all_odd) or (b % 2 == 0 and c % 2 == 1 and 3 * b <= 4 * c):
        return part(a, c, b, (_A, _C, _B))
    b1, a1 = _even_half(b), a // 2
    if 3 * b > 4 * c or all_odd:
        return np.concatenate(
            [
                part(b1, c, a1, (_B, _C, _A)),
                part(a, b - b1, c, (_A, _B, _C), b1 * _B),
                part(b1, c, a - a1, (-_B, _C, -_A), (a - 1) * _A + (b1 - 1) * _B),
            ]
        )
    if c % 2 == 1 and a1 % 2 == 0:
        a1 -= 1  # the runs along c have three odd sizes then
    c1 = c // 2
    return np.concatenate(
        [
            part(b1, c1, a1, (_B, _C, _A)),
            part(c, a1, b - b1, (_C, _A, _B), b1 * _B),
            part(a, b1, c - c1, (_A, -_B, -_C), (b1 - 1) * _B + (c - 1) * _C),
            part(c, a - a1, b - b1, (-_C, -_A, _B), (a - 1) * _A + b1 * _B + (c - 1) * _C),
            part(b1, c1, a - a1, (-_B, _C, -_A), (a - 1) * _A + (b1 - 1) * _B),
        ]
    )


def _even_half(size: int) -> int:
    """The even number at or below half of size, at least 2; 1 for 2."""
    return 1 if size == 2 else max(2, size // 4 * 2)
