"""SECOND: what was there, what is there, where that differs; as published in colours, or as ChangeMamba numbers it.

Source: Yang et al. 2022, doi 10.1109/TGRS.2021.3113912; the colours are those of its captain-whu.github.io/SCD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import CLASSES, Folders, PairFolders
from statefield.datasets.change.reading import assemble, read_labels, read_masks, read_picture
from statefield.datasets.readers.image import as_labels, read_image
from statefield.datasets.sample import UNLABELLED, About, ChangeInfo, ChangeSample, Record
from statefield.errors import LabelError, ShapeError

COLOURS: dict[str, tuple[int, int, int]] = {
    "unchanged": (255, 255, 255),
    "water": (0, 0, 255),
    "ground": (128, 128, 128),
    "low vegetation": (0, 128, 0),
    "tree": (0, 255, 0),
    "building": (128, 0, 0),
    "sports field": (255, 0, 0),
}


@dataclass(frozen=True)
class Second(PairFolders):
    """4662 pairs of 512 x 512 pixels, whose masks give the class of either date where the pair has changed."""

    name = "second"
    about = About(
        title="SECOND",
        task="changes between six classes of land, aerial, 4662 pairs 512 x 512",
        split="official folders: 2968 / 1694; val from train by seed",
        labels="a colour for each class, white unchanged; or 0 to 6 as ChangeMamba has it",
        terms="for research; see the source",
        source="Yang et al. 2022, doi 10.1109/TGRS.2021.3113912; captain-whu.github.io/SCD",
    )
    layout = (
        "SECOND/\n"
        "|-- train/{im1,im2,label1,label2}/  00003.png ...   masks in colours\n"
        "`-- test/{im1,im2,label1,label2}/   00001.png ...\n"
        "or, as ChangeMamba has it:\n"
        "SECOND/\n"
        "|-- train/{T1,T2,GT_CD,GT_T1,GT_T2}/  00003.png ...   0/255 in GT_CD, 0 to 6 in GT_T1 and GT_T2\n"
        "`-- test/{T1,T2,GT_CD,GT_T1,GT_T2}/   00001.png ..."
    )
    forms = (
        Folders("im1", "im2", None, "label1", "label2"),
        Folders("T1", "T2", "GT_CD", "GT_T1", "GT_T2"),
    )
    split_folders: ClassVar[Mapping[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}

    def describe(self, root: Path | None) -> ChangeInfo:
        return replace(super().describe(root), before_classes=tuple(COLOURS), after_classes=tuple(COLOURS))

    def load(self, record: Record) -> ChangeSample:
        """`mask` is 1 where changed; a date's class is `UNLABELLED` where changed and not given.

        Where there is no mask of change, changed is what has a class at either date.
        """
        masks = read_masks(record, _read_classes)
        if record.mask is None:
            (first, before), (second, after) = masks["before_mask"], masks["after_mask"]
            if before.shape != after.shape:
                raise ShapeError(f"{first} is of shape {before.shape}, {second} of {after.shape}; one is needed.")
            masks["mask"] = (first, ((before > 0) | (after > 0)).astype(np.int64))
        pictures = read_picture(record.images[0], record.case), read_picture(record.after[0], record.case)
        sample = assemble(record, *pictures, masks)
        for labels in (sample["before_mask"], sample["after_mask"]):
            labels[(sample["mask"] == 1) & (labels == 0)] = UNLABELLED
        return sample


CHANGE_ADAPTERS.register("second")(Second())


def _read_classes(path: Path, num_classes: int) -> np.ndarray:
    """Class numbers [H, W] of a mask in SECOND's colours, or in numbers."""
    if num_classes == len(CLASSES):
        return read_labels(path, num_classes)
    values = read_image(path).astype(np.int64)
    if len(values) == 1:
        return as_labels(path, values[0], num_classes)
    codes = (values[0] << 16) + (values[1] << 8) + values[2]
    labels = np.full(codes.shape, UNLABELLED)
    for label, (red, green, blue) in enumerate(COLOURS.values()):
        labels[codes == (red << 16) + (green << 8) + blue] = label
    unknown = np.unique(codes[labels == UNLABELLED])
    if unknown.size:
        shown = ", ".join(f"({code >> 16},{code >> 8 & 255},{code & 255})" for code in unknown[:6])
        raise LabelError(
            f"{path}: {unknown.size} colours that are none of SECOND's, such as {shown}; its colours are "
            f"{', '.join(f'{name} {colour}' for name, colour in COLOURS.items())}."
        )
    return labels
