"""What every layout of a hyperspectral scene offers, and the table of them.

scene = open_scene(None, "indian_pines")             # embedded
scene = open_scene("data/PaviaU")                     # the one layout that the folder has

A scene is one picture, so there are no records: which pixels are learnt from and which are tested on is a setting of
the experiment (`statefield.tasks.remote_sensing.hyperspectral.splits`), or the publisher's, in files of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from statefield.datasets.adapter import Layout, choose_layout
from statefield.datasets.sample import DatasetInfo, Meta
from statefield.errors import DataError, LabelError, ShapeError
from statefield.labels import UNLABELLED
from statefield.registry import Registry


@dataclass(frozen=True, eq=False)
class Scene:
    """cube: float32 [C, H, W], the file's own values. labels: int64 [H, W], 0 .. K - 1, or `UNLABELLED`.

    info: `classes` name the labels, `channels` the bands. meta: the place on the ground, where the file has one.
    official: the publisher's training and test pixels, two maps as `labels` is one, where the folder has them.
    """

    cube: np.ndarray
    labels: np.ndarray
    info: DatasetInfo
    meta: Meta
    official: tuple[np.ndarray, np.ndarray] | None = None


@runtime_checkable
class SceneAdapter(Layout, Protocol):
    """A published scene, as its files lie."""

    def describe(self, root: Path | None) -> DatasetInfo:
        """Classes and bands, without reading a file."""

    def load(self, root: Path | None) -> Scene:
        """Read the scene.

        Raises `DataError`, `LabelError` or `ShapeError` when a file is damaged or is not the published scene.
        """


SCENE_ADAPTERS: Registry[SceneAdapter] = Registry("hyperspectral scene")


def open_scene(root: str | os.PathLike[str] | None, layout: str = "auto") -> Scene:
    """The scene at `root`, or an embedded one by its name; arguments and errors as `open_dataset`, and of `load`."""
    folder = None if root is None else Path(root)
    return choose_layout(folder, layout, None, SCENE_ADAPTERS).load(folder)


def scene_of(
    cube_hwc: np.ndarray, labels: np.ndarray, info: DatasetInfo, meta: Meta, size: tuple[int, int], labels_at: Path
) -> Scene:
    """A scene from what the files hold, checked against the published one.

    Args:
        cube_hwc: [H, W, C], any real dtype. labels: [H, W], 0 without label, 1 .. K. size: the published (H, W).

    Raises:
        ShapeError: another size or number of bands. LabelError: other labels. DataError: values that are not finite.
    """
    wanted = (*size, len(info.channels))
    if cube_hwc.shape != wanted:
        raise ShapeError(
            f"{meta['path']}: rows, columns and bands are {cube_hwc.shape}; the published scene {meta['case']} has "
            f"{wanted}. Give the file as published (of Indian Pines and Salinas the one called corrected)."
        )
    cube = np.ascontiguousarray(np.moveaxis(cube_hwc, -1, 0), dtype=np.float32)
    if not np.isfinite(cube).all():
        raise DataError(f"{meta['path']}: holds values that are NaN or infinite; finite ones are needed.")
    target = label_map(labels, info, meta["case"], size, labels_at)
    if not (target != UNLABELLED).any():
        raise LabelError(f"{labels_at}: no pixel has a label (all are 0).")
    return Scene(cube, target, info, meta)


def label_map(labels: np.ndarray, info: DatasetInfo, case: str, size: tuple[int, int], labels_at: Path) -> np.ndarray:
    """int64 [H, W], 0 .. K - 1 or `UNLABELLED`, from a file's 1 .. K and 0; errors as `scene_of`."""
    if labels.shape != size:
        raise ShapeError(f"{labels_at}: {labels.shape} rows and columns of labels; the scene has {size}.")
    numbers = np.asarray(labels, np.float64)
    num_classes = len(info.classes)
    wrong = ~((numbers >= 0) & (numbers <= num_classes) & (numbers == np.floor(numbers)))
    if wrong.any():
        raise LabelError(
            f"{labels_at}: {int(wrong.sum())} labels, such as {numbers[wrong][0]:g}, are no class of {case}: "
            f"0 (no label) and 1 to {num_classes} are known."
        )
    target = numbers.astype(np.int64) - 1
    target[target < 0] = UNLABELLED
    return target


def plain_meta(case: str, path: Path) -> Meta:
    """The meta of a scene without a place on the ground."""
    return {
        "case": case,
        "path": str(path),
        "spacing": (1.0, 1.0),
        "spacing_known": False,
        "affine": None,
        "file": None,
    }
