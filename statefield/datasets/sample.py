"""The vocabulary of the datasets: what a file on disk becomes.

Axis letters: C channel, D axial slice, H row, W column. A volume is in canonical orientation: D grows to the patient's
superior, H to the anterior, W to the right. A photograph keeps its own rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from statefield.labels import UNLABELLED as UNLABELLED


@dataclass(frozen=True, eq=False)
class FileGeometry:
    """How a NIfTI file lays its voxels: all that is needed to write an array back exactly as the file had it.

    header: the file's own header bytes (348 of NIfTI-1, 540 of NIfTI-2), with its sform, qform and their codes.
    shape: the spatial shape in the file's axis order, as many axes as the file has (2 or 3).
    affine: float64 [4, 4], voxel (i, j, k) of the file to millimetres (RAS+).
    orientation: per file axis, (canonical axis, +1 or -1), as nibabel's `io_orientation` says it.
    """

    header: bytes
    shape: tuple[int, ...]
    affine: np.ndarray
    orientation: tuple[tuple[int, int], ...]


class Meta(TypedDict):
    """What travels with the pixels and returns with the prediction."""

    case: str
    path: str  # the (first) image file
    spacing: tuple[float, ...]  # mm between voxel centres, in the array's axis order: (D, H, W) or (H, W)
    spacing_known: bool  # False: the file states no spacing, the 1.0s are a pixel grid and not millimetres
    affine: np.ndarray | None  # float64 [4, 4]: (d, h, w) index of `image` to millimetres (RAS+); None for photographs
    file: FileGeometry | None  # the file's own axis order; None for photographs
    crs: NotRequired[str]  # WKT of a raster's coordinate reference system, where the file has one
    transform: NotRequired[tuple[float, ...]]  # (a, b, c, d, e, f): column x, row y to a x + b y + c, d x + e y + f


class Sample(TypedDict):
    """One case. `mask` is absent when the case has no labels."""

    image: np.ndarray  # float32 [C, H, W] or [C, D, H, W], in the file's own units: nothing is normalised here
    meta: Meta
    mask: NotRequired[np.ndarray]  # int64 [H, W] or [D, H, W], values in 0 .. len(classes) - 1, or UNLABELLED


class ChangeSample(TypedDict):
    """Two images of one place. `mask` is absent when the pair has no labels."""

    before: np.ndarray  # float32 [C, H, W], in the file's own units
    after: np.ndarray  # float32 [C, H, W], the same pixels later
    meta: Meta
    mask: NotRequired[np.ndarray]  # int64 [H, W], values in 0 .. len(classes) - 1, or UNLABELLED
    before_mask: NotRequired[np.ndarray]  # int64 [H, W], of `before_classes`: what was there
    after_mask: NotRequired[np.ndarray]  # int64 [H, W], of `after_classes`: what is there


@dataclass(frozen=True)
class About:
    """Where a layout comes from, in words, for `statefield datasets` and the table of docs/datasets.md.

    task: what is labelled in what. split: how its cases are divided. labels: how the files code them. terms: the
    publisher's conditions, to be checked there before data is passed on. source: whom to cite, and where it is offered.
    """

    title: str
    task: str
    split: str
    labels: str
    terms: str
    source: str


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself: `classes[v]` names label value v, `channels[c]` names image channel c."""

    classes: tuple[str, ...]
    channels: tuple[str, ...]
    spatial_dims: int  # 2: [C, H, W] samples; 3: [C, D, H, W] samples


@dataclass(frozen=True)
class ChangeInfo(DatasetInfo):
    """Of pairs of images: `classes` are those of `mask`; a date's own mask, where there is one, has its own."""

    before_classes: tuple[str, ...] = ()
    after_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """Where one case lies on disk. `images` holds one file per channel, or one file that holds every channel.

    `info`, when given, is what `load` checks the files against: the number of channels and the label values. `group`
    names the patient: cases of one group never part (into splits, or folds); "": the case is a group of its own. Of a
    pair of images, `images` is the first date and `after` the second; each date may have a mask of its own.
    """

    case: str
    images: tuple[Path, ...]
    mask: Path | None = None
    info: DatasetInfo | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    after: tuple[Path, ...] = ()
    before_mask: Path | None = None
    after_mask: Path | None = None
