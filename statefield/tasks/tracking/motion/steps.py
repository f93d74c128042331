"""Steps of boxes, as MTP reads and predicts them: changes of centre and sides from frame to frame, in a unit.

The paper says "normalised" and not by what. Two units are here: the image's sides, and the sides of the box as it was
last seen, so that a step is the same near and far. Imports no torch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.errors import ConfigError

__all__ = ["Unit", "steps_of", "unit_of"]

Unit = Literal["box", "image"]
Array = NDArray[np.float64]
_LEAST = 1.0  # pixel: a box that has shrunk to nothing gives no unit


def unit_of(unit: Unit, last: Array, image_size: tuple[int, int] | None) -> Array:
    """What steps are divided by, [N, 4], for tracks that were last at `last` [N, 4] (centres and sides, pixels).

    Raises:
        ConfigError: the unit "image" and no image size.
    """
    if unit == "box":
        sides = np.maximum(last[:, 2:], _LEAST)
        return np.concatenate((sides, sides), axis=1)
    if image_size is None:
        raise ConfigError(
            "these weights measure steps in image sides, and nothing says how large the images are: give the width and "
            "height in pixels, for `statefield mot track` with --image-size 1920 1080 or in a seqinfo.ini."
        )
    return np.broadcast_to(np.array([*image_size, *image_size], dtype=np.float64), last.shape)


def steps_of(history: Array, lengths: NDArray[np.int64], unit: Array) -> Array:
    """Steps [N, q, 4] of boxes [N, q + 1, 4], newest last; zeros before the first of `lengths` [N] steps."""
    steps = np.diff(history, axis=1) / unit[:, None]
    count = steps.shape[1]
    unknown = np.arange(count) < count - lengths[:, None]
    steps[unknown] = 0
    return steps
