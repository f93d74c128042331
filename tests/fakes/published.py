"""Writers of small copies of published medical datasets, each in its publisher's folder layout; they return the folder.

Pictures and label values as in `fakes.medical`: label k has mean intensity 60 * k.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fakes.medical import blobs, write_picture
from PIL import Image


def write_drive(
    root: Path,
    *,
    num_train: int = 10,
    num_test: int = 4,
    size: tuple[int, int] = (36, 40),
    suffix: str = ".tif",
    labelled_test: bool = True,
    seed: int = 0,
) -> Path:
    """DRIVE: the first annotator codes 0/255, the second 0/1 in a palette; the field of view leaves out the rim."""
    for index in range(num_train + num_test):
        part, number = ("training", 21 + index) if index < num_train else ("test", 1 + index - num_train)
        image, labels = blobs(size, num_channels=3, seed=seed * 1000 + index)
        view = np.zeros(size, np.uint8)
        view[2:-2, 3:-3] = 255
        home = root / part
        write_picture(home / "images" / f"{number:02d}_{part}{suffix}", image)
        write_picture(home / "mask" / f"{number:02d}_{part}_mask.gif", view)
        if part == "training" or labelled_test:
            write_picture(home / "1st_manual" / f"{number:02d}_manual1.gif", labels * 255)
        if part == "test" and labelled_test:
            write_palette(home / "2nd_manual" / f"{number:02d}_manual2.gif", np.roll(labels, 1, axis=1))
    return root


def write_palette(path: Path, labels: np.ndarray) -> Path:
    """A palette picture whose indices are `labels` [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 255, 255, *([128] * 3 * 254)])
    picture.save(path)
    return path
