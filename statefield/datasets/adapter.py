"""What every dataset layout offers, the table of layouts, and how a folder finds its own.

adapter, info = open_dataset("data/Task09_Spleen")
for record in adapter.records(Path("data/Task09_Spleen"), "train"):
    sample = adapter.load(record)
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.datasets.sample import About, DatasetInfo, Meta, Record, Sample
from statefield.datasets.splits import SPLITS, Split
from statefield.errors import ConfigError, DataError, DatasetLayoutError, EmptySplit, ShapeError
from statefield.registry import Registry

logger = logging.getLogger(__name__)


class Layout(Protocol):
    """What every layout says of itself, whatever its samples are.

    name: the name in its registry. layout: a text that shows the folder tree. embedded: True when the data comes with
    an installed package, so that `root` is not looked at. about: what is in it, whose it is and on which terms.
    """

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def embedded(self) -> bool: ...
    @property
    def about(self) -> About: ...

    def mismatch(self, root: Path) -> str | None:
        """Why `root` does not have this layout, in one clause, or None when it has. Looks at names only."""


@runtime_checkable
class DatasetAdapter(Layout, Protocol):
    """A folder layout, exactly as its publisher ships it. Adapters are frozen dataclasses: their fields are options."""

    def describe(self, root: Path | None) -> DatasetInfo:
        """Classes, channels and dimensions; may read a description file or, where there is none, the masks."""

    def records(self, root: Path | None, split: Split) -> list[Record]:
        """The cases of one split, sorted by name; looks at names, never into images.

        Raises `DatasetLayoutError` when a file is missing, and its `EmptySplit` when the split has no case.
        """

    def load(self, record: Record) -> Sample:
        """Read one case's files, nothing else."""


ADAPTERS: Registry[DatasetAdapter] = Registry("dataset layout")
L = TypeVar("L", bound=Layout)


def open_dataset(
    root: str | os.PathLike[str] | None, layout: str = "auto", options: Mapping[str, Any] | None = None
) -> tuple[DatasetAdapter, DatasetInfo]:
    """The adapter for the data at `root`, and what the dataset says of itself.

    Args:
        root: the dataset's folder; None for an embedded layout such as "mni152".
        layout: a name in `ADAPTERS`, or "auto": the one layout that `root` has.
        options: fields of the adapter to set, such as {"seed": 1} or {"fractions": (0.8, 0.1, 0.1)}.

    Raises:
        UnknownName: no such layout.
        DatasetLayoutError: the folder has no known layout, or not the one named.
        ConfigError: an option the adapter does not have, or `root` None where a folder is needed.
    """
    folder = None if root is None else Path(root)
    adapter = choose_layout(folder, layout, options, ADAPTERS)
    return adapter, adapter.describe(folder)


def choose_layout(folder: Path | None, layout: str, options: Mapping[str, Any] | None, among: Registry[L]) -> L:
    """The layout of a registry that `open_dataset` opens, its options set; arguments and errors are those."""
    adapter = among[layout] if layout != "auto" else recognise_among(folder, among)
    if options:
        known = [field.name for field in dataclasses.fields(adapter) if field.init]  # type: ignore[arg-type]
        unknown = sorted(set(options) - set(known))
        if unknown:
            offered = ", ".join(known) or "none"
            raise ConfigError(f"layout {adapter.name!r} has no option {', '.join(unknown)}; its options: {offered}.")
        adapter = dataclasses.replace(adapter, **options)  # type: ignore[type-var]
    if not adapter.embedded:
        require_layout(adapter, folder)
    return adapter


def recognise(root: Path | None) -> DatasetAdapter:
    """The one layout that `root` has; `DatasetLayoutError` with every layout's reason when there is none."""
    return recognise_among(root, ADAPTERS)


def recognise_among(root: Path | None, among: Registry[L]) -> L:
    """`recognise`, of the layouts of one registry."""
    if root is None:
        embedded = ", ".join(name for name, adapter in among.items() if adapter.embedded) or "none does"
        raise ConfigError(f"no folder given: name one, or a layout that needs none ({embedded}).")
    reasons = mismatches(root, among)
    fitting = [name for name, reason in reasons.items() if reason is None]
    if len(fitting) == 1:
        return among[fitting[0]]
    if fitting:
        raise DatasetLayoutError(f"{root}: fits the layouts {' and '.join(fitting)}; say which one with layout=NAME.")
    why = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
    raise DatasetLayoutError(
        f"{root}: no known dataset layout. Arrange the files as one of them (`statefield datasets` shows the "
        f"trees):\n{why}"
    )


def mismatches(root: Path, among: Mapping[str, Layout] = ADAPTERS) -> dict[str, str | None]:
    """For each layout of a registry that lives in a folder: why `root` does not have it, or None when it has."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetLayoutError(f"{root}: {found} found where a dataset's folder is needed.")
    return {name: adapter.mismatch(root) for name, adapter in among.items() if not adapter.embedded}


def require_layout(adapter: Layout, root: Path | None) -> Path:
    """`root` as a folder with the adapter's layout; `DatasetLayoutError` showing the tree when it is not."""
    if root is None:
        raise ConfigError(f"layout {adapter.name!r} needs the dataset's folder; none was given.")
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetLayoutError(f"{root}: {found} found where a dataset's folder is needed.")
    reason = adapter.mismatch(root)
    if reason is not None:
        raise DatasetLayoutError(
            f"{root}: not the layout {adapter.name!r}: {reason}. It needs these files:\n{adapter.layout}"
        )
    return root


def require_split(split: str) -> None:
    """`ConfigError` unless `split` is one of train, val, test, unlabelled."""
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} given; one of {', '.join(SPLITS)} is needed.")


def require_cases(records: list[Record], split: str, root: Path | None, reason: str) -> list[Record]:
    """`records`, or an `EmptySplit` that says why."""
    if not records:
        raise EmptySplit(f"{root}: the split {split!r} has no case: {reason}")
    return records


def load_files(
    images: Sequence[str | os.PathLike[str]],
    mask: str | os.PathLike[str] | None = None,
    *,
    case: str | None = None,
    info: DatasetInfo | None = None,
) -> Sample:
    """One sample from image files (one per channel, or one that holds all), with an optional mask.

    NIfTI gives [C, D, H, W] in canonical orientation, pictures [C, H, W] as stored. With `info`, the number of channels
    and the label values are checked.

    Raises:
        DataError, LabelError: a file that cannot be read, or impossible values (the readers say which).
        ShapeError: files of one case that are not on the same grid, or another number of channels than declared.
    """
    paths = [Path(path) for path in images]
    if not paths:
        raise ConfigError("no image file given: one per channel, or one that holds every channel, is needed.")
    name = case if case is not None else case_name(paths[0])
    if all(path.name.lower().endswith(nifti.SUFFIXES) for path in paths):
        sample = _load_volume(paths, mask, name, info)
    elif all(path.name.lower().endswith(image_reader.SUFFIXES) for path in paths):
        sample = _load_picture(paths, mask, name, info)
    else:
        kinds = ", ".join((*nifti.SUFFIXES, *image_reader.SUFFIXES))
        raise DataError(f"{', '.join(map(str, paths))}: images of one kind are needed, ending in one of {kinds}.")
    if info is not None and len(sample["image"]) != len(info.channels):
        raise ShapeError(
            f"{paths[0]}: {len(sample['image'])} channels found; the dataset has {len(info.channels)} "
            f"({', '.join(info.channels)}). Bring every case to the same channels."
        )
    for number, channel in enumerate(sample["image"]):
        if channel.size and channel.min() == channel.max():
            _tell_of_blank(paths[0], number, float(channel.flat[0]))
    return sample


@lru_cache(maxsize=1024)  # once a file
def _tell_of_blank(path: Path, channel: int, value: float) -> None:
    logger.warning("%s: every value of channel %d is %g: it shows nothing", path, channel, value)


def case_name(path: str | os.PathLike[str]) -> str:
    """The file's name without its image suffix (`.nii.gz` counts as one).

    >>> case_name("labels/case.12.nii.gz")
    'case.12'
    """
    name = Path(path).name
    for suffix in (*nifti.SUFFIXES, *image_reader.SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _load_volume(paths: list[Path], mask: str | os.PathLike[str] | None, case: str, info: DatasetInfo | None) -> Sample:
    volumes = [nifti.read_volume(path) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        _require_same_grid(paths[0], volumes[0], path, volume, "channels")
    image = volumes[0].array if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
    sample: Sample = {"image": image, "meta": nifti.meta_of(volumes[0], case=case, path=paths[0])}
    if mask is not None:
        labels = nifti.read_labels(mask, len(info.classes) if info else None)
        _require_same_grid(paths[0], volumes[0], Path(mask), labels, "image and mask")
        sample["mask"] = labels.array[0]
    return sample


def _load_picture(
    paths: list[Path], mask: str | os.PathLike[str] | None, case: str, info: DatasetInfo | None
) -> Sample:
    pictures = [image_reader.read_image(path) for path in paths]
    size = pictures[0].shape[1:]
    for path, picture in zip(paths[1:], pictures[1:], strict=True):
        _require_same_size(paths[0], size, path, picture.shape[1:])
    meta: Meta = image_reader.meta_of(paths[0], case=case)
    sample: Sample = {"image": np.concatenate(pictures), "meta": meta}
    if mask is not None:
        labels = image_reader.read_mask(mask, len(info.classes) if info else None)
        _require_same_size(paths[0], size, Path(mask), labels.shape)
        sample["mask"] = labels
    return sample


def _require_same_grid(first: Path, volume: nifti.Volume, second: Path, other: nifti.Volume, what: str) -> None:
    reason = nifti.same_place(volume, other)
    if reason is not None:
        raise ShapeError(
            f"{first} and {second}: {what} must be on the same voxels, but {reason}. Resample one to the other's grid "
            "(nearest neighbour for labels), or pair the right files."
        )


def _require_same_size(first: Path, size: tuple[int, ...], second: Path, other: tuple[int, ...]) -> None:
    if size != other:
        raise ShapeError(
            f"{first} is {size[0]} x {size[1]} pixels but {second} is {other[0]} x {other[1]}: they must have the same "
            "size. Resize one (nearest neighbour for labels), or pair the right files."
        )
