"""Square crops around a box, as OSTrack and MambaEVT cut them, and the way back from a crop to its frame.

Boxes are (x, y, width, height) in pixels of the frame, from its top left corner; shares are (centre x, centre y, width,
height) of a crop's side. A crop of factor f has f times the side of a square of the box's area. What lies beyond the
frame is black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statefield.errors import DataError, ShapeError

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "CropPlace", "as_input", "clipped", "crop_around", "cut"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Box = NDArray[np.float64]  # [4]


@dataclass(frozen=True)
class CropPlace:
    """Where a crop lies: its top left pixel and its side, whole pixels of the frame."""

    left: int
    top: int
    side: int

    def shares_of(self, box: Box) -> Box:
        """A box of the frame as shares of the crop; beyond 0 and 1 where it leaves the crop."""
        x, y, width, height = box
        centre = x + width / 2 - self.left, y + height / 2 - self.top
        return np.array([*centre, width, height], dtype=np.float64) / self.side

    def box_of(self, shares: Box) -> Box:
        """The box of the frame that lies at these shares of the crop."""
        x, y, width, height = np.asarray(shares, dtype=np.float64) * self.side
        return np.array([x - width / 2 + self.left, y - height / 2 + self.top, width, height])


def crop_around(box: Box, factor: float) -> CropPlace:
    """The crop whose side is `factor` times the root of the box's area, in whole pixels, centred on the box.

    Raises: DataError: a box without area.
    """
    x, y, width, height = (float(value) for value in box)
    if not (np.isfinite(box).all() and width > 0 and height > 0):
        raise DataError(
            f"a box of {width:g} x {height:g} pixels at ({x:g}, {y:g}): a width and a height above 0 are needed."
        )
    side = max(math.ceil(math.sqrt(width * height) * factor), 1)
    return CropPlace(round(x + width / 2 - side / 2), round(y + height / 2 - side / 2), side)


def cut(frame: NDArray[np.uint8], place: CropPlace, size: int) -> Tensor:
    """The crop as float32 [3, size, size], 0 to 255, resized bilinearly; black beyond the frame.

    Resizing takes the four nearest pixels (no mean over many), as the authors' OpenCV does.

    Raises: ShapeError: a frame that is not uint8 [H, W, 3].
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ShapeError(f"a frame of {frame.dtype} {list(frame.shape)}: uint8 [H, W, 3] is needed.")
    rows = _taps(place.top, place.side, size, frame.shape[0])
    columns = _taps(place.left, place.side, size, frame.shape[1])
    first, last = int(columns.places.min()), int(columns.places.max()) + 1
    across = _blended(frame[:, first:last], rows)  # [size, columns, 3]
    down = _blended(across.transpose(1, 0, 2), _Taps(columns.places - first, columns.weights))  # [size, size, 3]
    return torch.from_numpy(np.ascontiguousarray(down.transpose(2, 1, 0)))


@dataclass(frozen=True)
class _Taps:
    """The two pixels that each of `size` places is between: places int64 [2, size], weights float32 [2, size, 1, 1]."""

    places: NDArray[np.int64]
    weights: NDArray[np.float32]


def _taps(start: int, side: int, size: int, length: int) -> _Taps:
    """Of a crop from pixel `start` on, `side` long, in a frame of `length`. Work and memory do not grow with `side`."""
    at = np.maximum((np.arange(size) + 0.5) * (side / size) - 0.5, 0.0)
    low = np.floor(at).astype(np.int64)
    places = start + np.stack((low, np.minimum(low + 1, side - 1)))
    weights = np.stack((1 - (at - low), at - low))
    weights[(places < 0) | (places >= length)] = 0
    return _Taps(places.clip(0, length - 1), weights.astype(np.float32)[:, :, None, None])


def _blended(pixels: NDArray[np.generic], taps: _Taps) -> NDArray[np.float32]:
    """Rows between rows: [rows, columns, 3] -> [size, columns, 3]."""
    return pixels[taps.places[0]] * taps.weights[0] + pixels[taps.places[1]] * taps.weights[1]


def as_input(crop: Tensor) -> Tensor:
    """Values 0 to 255, [..., 3, H, W], as the net takes them: less ImageNet's mean, over its standard deviation."""
    mean, std = (crop.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (crop / 255 - mean) / std


def clipped(box: Box, width: int, height: int, margin_px: float) -> Box:
    """The box with what lies beyond a frame of `width` x `height` cut off, never thinner than `margin_px`."""
    margin_x, margin_y = min(margin_px, width), min(margin_px, height)
    left, top = min(max(box[0], 0.0), width - margin_x), min(max(box[1], 0.0), height - margin_y)
    right = min(max(box[0] + box[2], margin_x), float(width))
    bottom = min(max(box[1] + box[3], margin_y), float(height))
    return np.array([left, top, max(right - left, margin_x), max(bottom - top, margin_y)])
