"""What every layout of labelled scenes offers, and the table of them. It is a table of its own, so that folders of
classes are never taken for images and masks, nor the other way round.

adapter, info = open_scenes("data/UCMerced_LandUse")
sample = adapter.load(adapter.records(Path("data/UCMerced_LandUse"), "train")[0])
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from statefield.datasets.adapter import Layout, choose_layout
from statefield.datasets.readers.picture import read_picture
from statefield.datasets.sample import DatasetInfo, Meta, Record
from statefield.datasets.splits import Split
from statefield.errors import DataError, ShapeError
from statefield.registry import Registry

_LABEL = "label"  # the key of a record's `extra`


class LabelledScene(TypedDict):
    """One scene."""

    image: np.ndarray  # float32 [C, H, W], in the file's own units: nothing is normalised here
    label: int  # 0 .. len(classes) - 1
    meta: Meta


@runtime_checkable
class SceneSet(Layout, Protocol):
    """As `DatasetAdapter`, of scenes: what a record belongs to is `label_of(record)`, and there is no mask."""

    def describe(self, root: Path | None) -> DatasetInfo:
        """Classes and channels; may read the header of an image."""

    def records(self, root: Path | None, split: Split) -> list[Record]:
        """The scenes of one split, sorted by name; looks at names only.

        Raises `DatasetLayoutError` when a class has no image or a list names none, its `EmptySplit` for an empty split.
        """

    def load(self, record: Record) -> LabelledScene:
        """Read one scene's file, nothing else."""


SCENE_SETS: Registry[SceneSet] = Registry("layout of scenes")


def open_scenes(
    root: str | os.PathLike[str] | None, layout: str = "auto", options: Mapping[str, Any] | None = None
) -> tuple[SceneSet, DatasetInfo]:
    """The adapter for the scenes at `root`, and what the dataset says of itself; as `open_dataset`, errors included."""
    folder = None if root is None else Path(root)
    adapter = choose_layout(folder, layout, options, SCENE_SETS)
    return adapter, adapter.describe(folder)


def scene_record(case: str, path: Path, label: int, info: DatasetInfo) -> Record:
    """The record of a scene of class number `label`."""
    return Record(case, (path,), info=info, extra={_LABEL: label})


def label_of(record: Record) -> int:
    """The class number of a scene's record."""
    return int(record.extra[_LABEL])


def load_scene(path: Path, case: str, num_channels: int | None = None) -> tuple[np.ndarray, Meta]:
    """An image as float32 [C, H, W], pixels without data 0, and its meta.

    Args: num_channels: what C has to be; a grey picture becomes three equal channels where 3 are wanted.

    Raises:
        DataError: the file is damaged, larger than the memory limit, or without a pixel of data.
        ShapeError: another number of channels.
    """
    picture = read_picture(path, case)
    image = picture.array
    if picture.valid is not None and not picture.valid.any():
        raise DataError(f"{path}: no pixel has data.")
    if num_channels == 3 and len(image) == 1:
        image = np.repeat(image, 3, axis=0)
    if num_channels is not None and len(image) != num_channels:
        raise ShapeError(
            f"{path}: {len(image)} channels found where {num_channels} are needed, as the other scenes have them. "
            "Bring every image to the same channels, or take this one away."
        )
    return image, picture.meta
