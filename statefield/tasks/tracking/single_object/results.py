"""What a tracker found, as text files that `statefield sot evaluate` and the benchmarks' toolkits read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.files import write_text
from statefield.tasks.tracking.single_object.follow import Followed

__all__ = ["result_text", "write_followed"]


def result_text(boxes: NDArray[np.float64]) -> str:
    """A line a frame: x, y, width, height in pixels."""
    return "".join(",".join(f"{value:.4f}" for value in box) + "\n" for box in boxes)


def write_followed(found: Followed, folder: Path) -> Path:
    """Write CASE.txt, and beside it CASE_scores.txt and CASE_time.txt (seconds), a line a frame; the path of the first.

    Each appears whole; CASE.txt is the last, so that a sequence which has it is done.
    """
    for what, values in (("scores", found.scores), ("time", found.seconds)):
        write_text(folder / f"{found.case}_{what}.txt", "".join(f"{value:.6f}\n" for value in values))
    path = folder / f"{found.case}.txt"
    write_text(path, result_text(found.boxes))
    return path
