"""Two images of one place and their masks become a sample, after a check that they show the same pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import raster
from statefield.datasets.readers.picture import SUFFIXES as SUFFIXES
from statefield.datasets.readers.picture import Picture, read_picture
from statefield.datasets.readers.picture import num_channels_of as num_channels_of
from statefield.datasets.sample import UNLABELLED, ChangeInfo, ChangeSample, DatasetInfo, Record
from statefield.errors import DataError, LabelError, ShapeError

_JPEG = (".jpg", ".jpeg")
_FARTHEST_FROM_BINARY = (
    64  # how far compression or resampling may have moved a value of a binary mask from 0 or 255 ...
)
_MOST_STRAYS = 0.01  # ... at all but this share of the pixels


def read_labels(path: Path, num_classes: int) -> np.ndarray:
    """A label picture or single-band raster as int64 [H, W]; of two classes 0/255 is read as 0/1.

    Raises `LabelError` for JPEG, whose compression changes values, and for values outside the classes.
    """
    if path.suffix.lower() in _JPEG:
        raise LabelError(f"{path}: a JPEG mask, whose compression changes label values; PNG or TIFF is needed.")
    if path.suffix.lower() in raster.SUFFIXES:
        return image_reader.as_labels(path, raster.read_single_band(path)[0], num_classes)
    return image_reader.read_mask(path, num_classes)


def read_blurred_labels(path: Path, num_classes: int) -> np.ndarray:
    """`read_labels` of a set that was published with blurred binary masks: they are cut at 128, if near 0/255.

    Raises `LabelError` where more than 1 % of the pixels are farther than 64 from both.
    """
    if path.suffix.lower() in raster.SUFFIXES:
        return read_labels(path, num_classes)
    values = image_reader.read_image(path).mean(axis=0)
    if values.max(initial=0) <= 1:
        return image_reader.as_labels(path, values.astype(np.uint8), num_classes)
    strays = (values > _FARTHEST_FROM_BINARY) & (values < 255 - _FARTHEST_FROM_BINARY)
    if strays.mean() > _MOST_STRAYS:
        raise LabelError(
            f"{path}: {100 * strays.mean():.3g} % of the values are far from 0 and from 255, from "
            f"{values[strays].min():.0f} to {values[strays].max():.0f}; a mask of changed (255) and unchanged (0) "
            "pixels is needed."
        )
    return (values >= 128).astype(np.int64)


def load_pair(record: Record, read_mask: Callable[[Path, int], np.ndarray] = read_labels) -> ChangeSample:
    """The sample of a record whose dates are a file each.

    Raises:
        DataError, LabelError: a file that cannot be read, or impossible values (the readers say which).
        ShapeError: as `assemble`.
    """
    before, after = read_picture(record.images[0], record.case), read_picture(record.after[0], record.case)
    if before.header is not None and after.header is not None:
        reason = raster.same_place(before.header, after.header)
        if before.array.shape[1:] == after.array.shape[1:] and reason is not None:
            raise ShapeError(
                f"{record.images[0]} and {record.after[0]}: both dates must be on the same pixels, but {reason}. Warp "
                "one to the other's grid."
            )
    return assemble(record, before, after, read_masks(record, read_mask))


def read_masks(
    record: Record, read_mask: Callable[[Path, int], np.ndarray] = read_labels
) -> dict[str, tuple[Path, np.ndarray]]:
    """`{"mask": (its file, int64 [H, W]), ...}` of the masks that the record names."""
    info = record.info if isinstance(record.info, ChangeInfo) else ChangeInfo(("unchanged", "changed"), (), 2)
    named = (
        ("mask", record.mask, info.classes),
        ("before_mask", record.before_mask, info.before_classes),
        ("after_mask", record.after_mask, info.after_classes),
    )
    return {key: (path, read_mask(path, len(classes))) for key, path, classes in named if path is not None}


def assemble(
    record: Record, before: Picture, after: Picture, masks: Mapping[str, tuple[Path, np.ndarray]]
) -> ChangeSample:
    """The sample of images and masks that were read; pixels without data at a date become `UNLABELLED`.

    Raises `ShapeError` for sizes that differ, another number of channels than the dataset's, or than the other date's.
    """
    first, second = record.images[0], record.after[0]
    size = before.array.shape[1:]
    for path, other in ((second, after.array.shape[1:]), *((path, labels.shape) for path, labels in masks.values())):
        if other != size:
            raise ShapeError(
                f"{first} is {size[0]} x {size[1]} pixels but {path} is {other[0]} x {other[1]}: they must have the "
                "same size. Warp one to the other's grid (nearest neighbour for labels), or pair the right files."
            )
    _require_channels(first, len(before.array), record.info)
    if len(before.array) != len(after.array):
        raise ShapeError(
            f"{first} has {len(before.array)} channels but {second} has {len(after.array)}: both dates need the same."
        )
    sample: ChangeSample = {"before": before.array, "after": after.array, "meta": before.meta}
    for key, (_, labels) in masks.items():
        sample[key] = labels  # type: ignore[literal-required]
        for valid in (before.valid, after.valid):
            if valid is not None:
                labels[~valid] = UNLABELLED
    for path, valid in ((first, before.valid), (second, after.valid)):
        if valid is not None and not valid.any():
            raise DataError(f"{path}: no pixel has data.")
    return sample


def _require_channels(path: Path, count: int, info: DatasetInfo | None) -> None:
    if info is not None and info.channels and count != len(info.channels):
        raise ShapeError(
            f"{path}: {count} channels found; the dataset has {len(info.channels)} ({', '.join(info.channels)}). Bring "
            "every case to the same channels."
        )
