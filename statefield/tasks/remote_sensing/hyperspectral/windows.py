"""The window around each pixel, cut from a scene when it is needed.

Of side w, the window of pixel (r, c) covers rows r - w // 2 to r + (w - 1) // 2, and columns likewise, so of an even
side the pixel is the first of the second half (as in the authors' notebook of MorpMamba). Beyond the scene are zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from statefield.errors import ConfigError


class Windows:
    """`windows(pixels)`: float32 [N, C, w, w] around N pixels of a cube [C, H, W].

    Args:
        cube: float32 [C, H, W]; one copy with a border is kept. side: w >= 1.
    """

    def __init__(self, cube: np.ndarray, side: int) -> None:
        before, behind = margins(side)
        border = ((0, 0), (before, behind), (before, behind))
        self._views = sliding_window_view(np.pad(cube, border), (side, side), axis=(1, 2))  # [C, H, W, w, w]

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """pixels: int [N, 2], rows and columns."""
        found = self._views[:, pixels[:, 0], pixels[:, 1]]
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, 0, 1)))


def margins(side: int) -> tuple[int, int]:
    """Pixels of a window before and behind its own pixel; `ConfigError` for a side below 1."""
    if side < 1:
        raise ConfigError(f"windows of side {side} asked for; 1 or more is needed.")
    return side // 2, (side - 1) // 2
