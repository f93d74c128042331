"""PEDRo: persons before a moving DAVIS346 camera, 40 ms of events and boxes a sample (Boretti et al., CVPRW 2023).

numpy/SPLIT/NAME.npy    [N, 4] int64: time in microseconds, x, y, polarity
xml/SPLIT/NAME.xml      Pascal VOC: xmin, ymin, xmax, ymax in pixels
yolo/SPLIT/NAME.txt     class, centre x, centre y, width, height, as fractions of the picture
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.events.arrays import read_arrays
from statefield.datasets.events.stream import Events
from statefield.datasets.tracking.number_rows import read_rows, text_lines
from statefield.errors import DataError, DatasetLayoutError

SIZE = (346, 260)
CLASSES = ("person",)
Boxes = Literal["xml", "yolo"]


@dataclass(frozen=True)
class PedroSample:
    """Events, `boxes`: [M, 4] float32, x1, y1, x2, y2 in pixels, and `labels`: [M] int64, 0 for a person."""

    name: str
    events: Events
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def pedro_names(root: Path, split: str) -> list[str]:
    """The samples of a split ("train", "val", "test").

    Raises:
        DatasetLayoutError: no such folder, or no sample in it.
    """
    folder = root / "numpy" / split
    names = sorted(path.stem for path in folder.glob("*.npy"))
    if not names:
        raise DatasetLayoutError(
            f"{folder}: no .npy file. PEDRo's layout is numpy/, xml/ and yolo/, each with {split}/."
        )
    return names


def load_pedro(root: Path, split: str, name: str, boxes: Boxes = "xml") -> PedroSample:
    """One sample, with the boxes of its XML or of its YOLO file; both describe the same.

    Raises:
        DataError: a file that is missing or cannot be read, or events outside the sensor.
    """
    path = root / "numpy" / split / f"{name}.npy"
    found = read_arrays(path, columns="txyp")
    if len(found) and (int(found.x.max()) >= SIZE[0] or int(found.y.max()) >= SIZE[1]):
        raise DataError(f"{path}: events outside the sensor of {SIZE[0]} x {SIZE[1]} pixels.")
    events = Events(found.t, found.x, found.y, found.on, *SIZE)
    if boxes == "xml":
        corners, labels = _voc_boxes(root / "xml" / split / f"{name}.xml")
    else:
        corners, labels = _yolo_boxes(root / "yolo" / split / f"{name}.txt")
    return PedroSample(name, events, corners, labels)


def _voc_boxes(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # patterns instead of an XML parser, as that would expand entities; VOC's elements are plain and do not nest
    text = "\n".join(text_lines(path))
    if "<annotation" not in text:
        raise DataError(f"{path}: no Pascal VOC annotation.")
    rows, labels = [], []
    for number, body in enumerate(re.findall(r"<object>(.*?)</object>", text, flags=re.DOTALL), start=1):
        corners = [re.search(rf"<{key}>\s*(-?[\d.]+)\s*</{key}>", body) for key in ("xmin", "ymin", "xmax", "ymax")]
        name = re.search(r"<name>\s*(.*?)\s*</name>", body)
        if not all(corners) or name is None or name[1] not in CLASSES:
            raise DataError(f"{path}: object {number} is no {CLASSES[0]} with xmin, ymin, xmax and ymax.")
        rows.append([float(corner[1]) for corner in corners if corner is not None])
        labels.append(CLASSES.index(name[1]))
    return np.array(rows, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64)


def _yolo_boxes(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if not text_lines(path):  # a picture without persons
        return np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    rows = read_rows(path, 5, "class, centre x, centre y, width, height as fractions")
    labels = rows[:, 0].astype(np.int64)
    if np.isnan(rows).any() or (rows[:, 1:] < 0).any() or (rows[:, 1:] > 1).any() or not np.isin(labels, (0,)).all():
        raise DataError(f"{path}: a class other than 0, or a number that is no fraction of the picture.")
    scale = np.array(SIZE, dtype=np.float64)
    centre, extent = rows[:, 1:3] * scale, rows[:, 3:] * scale
    return np.concatenate([centre - extent / 2, centre + extent / 2], axis=1).astype(np.float32), labels
