"""The window around each pixel, cut from a scene when it is needed.

Of side w, the window of pixel (r, c) covers rows r - w // 2 to r + (w - 1) // 2, and columns likewise, so of an even
side the pixel is the first of the second half (as in the authors' notebook of MorpMamba). Beyond the scene are zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from statefield.errors import ConfigError


class Windows:
    """`windows(pixels)`: float32 [N, C, w, w] around N pixels of a cube [C, H, W].

    Args:
        cube: float32 [C, H, W]; one copy with a border is kept. side: w >= 1.
    """

    def __init__(self, cube: np.ndarray, side: int) -> None:
        before, behind = margins(side)
        border = ((before, behind), (before, behind), (0, 0))
        # bands last: a pixel's spectrum is then copied as one piece
        self._scene = np.pad(np.moveaxis(cube, 0, -1), border)
        self._offsets = np.arange(side)

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """pixels: int [N, 2], rows and columns. In memory the bands of a pixel lie side by side (channels last)."""
        rows = pixels[:, 0, None, None] + self._offsets[:, None]
        columns = pixels[:, 1, None, None] + self._offsets
        return torch.from_numpy(self._scene[rows, columns]).permute(0, 3, 1, 2)  # [N, w, w, C] -> [N, C, w, w]


def margins(side: int) -> tuple[int, int]:
    """Pixels of a window before and behind its own pixel; `ConfigError` for a side below 1."""
    if side < 1:
        raise ConfigError(f"windows of side {side} asked for; 1 or more is needed.")
    return side // 2, (side - 1) // 2
