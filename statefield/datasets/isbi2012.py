"""ISBI 2012: membranes in 30 serial sections of a fly larva's nerve cord, seen by electron microscopy.

A section is 50 nm thick and a pixel 4 nm wide. Neighbouring sections resemble each other, so the splits are blocks of
neighbours and not drawn section by section.

Source: Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142;
Cardona et al. 2010, doi 10.1371/journal.pbio.1000502.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets.adapter import ADAPTERS, require_cases, require_layout, require_split
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import unplaced
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, split_into_blocks
from statefield.errors import DatasetLayoutError, LabelError, ShapeError

_CLASSES, _CHANNELS = ("cell", "membrane"), ("grey",)
_STACKS = {"train": "train-volume.tif", "labels": "train-labels.tif", "test": "test-volume.tif"}
_SECTION = re.compile(r"^(\d+)\.(?:png|tif|tiff)$")

_Section = tuple[Path, int | None]  # a file, and the page in it; None: a file of one page


@dataclass(frozen=True)
class Isbi2012:
    """The stack as 30 pictures, or with `volume` as one volume for each block. Membranes (0 in the files) are class 1,
    so that they are the foreground; cells (255) are class 0. The challenge's own test labels are not public: its test
    stack is the split "unlabelled".

    volume: True: a case is a block of neighbouring sections, [1, D, 512, 512]; False: a section, [1, 512, 512].
    fractions: shares of train, val and test, which follow one another in the stack.
    seed: 0 begins train at the first section; s moves all blocks on by s times the length of test, around the end.
    """

    volume: bool = False
    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0

    name = "isbi2012"
    embedded = False
    about = About(
        title="ISBI 2012 EM",
        task="neuronal membranes, electron microscopy, 30 sections 512 x 512",
        split="blocks of neighbouring sections; the challenge's test stack has no public labels",
        labels="255 cell, 0 membrane; membrane becomes class 1",
        terms="free for research with citation",
        source="Cardona et al. 2010; Arganda-Carreras et al. 2015, doi 10.3389/fnana.2015.00142",
    )
    layout = (
        "ISBI2012/                      as the challenge ships it:\n"
        "|-- train-volume.tif           30 pages of 512 x 512\n"
        "|-- train-labels.tif           255 cell, 0 membrane\n"
        "`-- test-volume.tif            (optional)\n"
        "or, as many U-Net repositories have it:\n"
        "membrane/\n"
        "|-- train/image/               0.png ... 29.png\n"
        "|-- train/label/               0.png ... 29.png\n"
        "`-- test/                      (optional) 0.png ..."
    )

    def mismatch(self, root: Path) -> str | None:
        if all((root / _STACKS[key]).is_file() for key in ("train", "labels")):
            return None
        if all((root / "train" / name).is_dir() for name in ("image", "label")):
            return None
        return "there is neither train-volume.tif with train-labels.tif nor train/image/ with train/label/"

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return DatasetInfo(_CLASSES, _CHANNELS, spatial_dims=3 if self.volume else 2)

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        info = self.describe(root)
        if split == "unlabelled":
            images = _test_sections(root)
            blocks = [range(len(images))] if images else []
            records = self._records("test", images, None, blocks, info)
            return require_cases(records, split, root, "there is no test stack.")
        images, labels = _training_sections(root)
        blocks = split_into_blocks(len(images), fractions=self.fractions, seed=self.seed)[split]
        records = self._records("train", images, labels, blocks, info)
        return require_cases(records, split, root, f"{len(images)} sections, shares {self.fractions}.")

    def load(self, record: Record) -> Sample:
        images = _read(record.extra["images"])
        volume = record.info is None or record.info.spatial_dims == 3
        path = record.images[0]
        sample: Sample = {
            "image": images.astype(np.float32)[None] if volume else images.astype(np.float32),
            "meta": unplaced.meta_of(path, case=record.case, shape=images.shape)
            if volume
            else image_reader.meta_of(path, case=record.case),
        }
        if record.mask is not None:
            values = _read(record.extra["labels"])
            if values.shape != images.shape:
                raise ShapeError(
                    f"{path} and {record.mask}: sections of {images.shape[1:]} and {values.shape[1:]} pixels; labels "
                    "of the image's size are needed."
                )
            odd = np.setdiff1d(values, (0, 255))
            if odd.size:
                raise LabelError(
                    f"{record.mask}: label values {', '.join(str(v) for v in odd[:8])} found; 255 (cell) and 0 "
                    "(membrane) are needed. Was the file resampled, or saved as JPEG?"
                )
            mask = (values == 0).astype(np.int64)
            sample["mask"] = mask if volume else mask[0]
        return sample

    def _records(
        self, part: str, images: list[_Section], labels: list[_Section] | None, blocks: list[range], info: DatasetInfo
    ) -> list[Record]:
        runs = blocks if self.volume else [range(index, index + 1) for block in blocks for index in block]
        records = []
        for run in runs:
            name = f"{part}_{run[0]:02d}" + (f"-{run[-1]:02d}" if self.volume else "")
            extra = {"images": tuple(images[i] for i in run)}
            if labels is not None:
                extra["labels"] = tuple(labels[i] for i in run)
            files = dict.fromkeys(path for path, _ in extra["images"])
            records.append(Record(name, tuple(files), labels[run[0]][0] if labels else None, info, extra))
        return sorted(records, key=lambda record: record.case)


ADAPTERS.register("isbi2012")(Isbi2012())


def _training_sections(root: Path) -> tuple[list[_Section], list[_Section]]:
    stack, labels = root / _STACKS["train"], root / _STACKS["labels"]
    if stack.is_file():
        images, masks = _pages(stack), _pages(labels)
    else:
        images, masks = _files(root / "train" / "image"), _files(root / "train" / "label")
        stack, labels = root / "train" / "image", root / "train" / "label"
    without = [path.name for path, _ in images if path.stem not in {mask.stem for mask, _ in masks}]
    if len(images) != len(masks) or (stack.is_dir() and without):
        raise DatasetLayoutError(
            f"{labels}: {len(masks)} sections of labels found for {len(images)} in {stack}"
            f"{f' (none for {without[0]})' if without and stack.is_dir() else ''}; one for each is needed."
        )
    return images, masks


def _test_sections(root: Path) -> list[_Section]:
    if (root / _STACKS["test"]).is_file():
        return _pages(root / _STACKS["test"])
    return _files(root / "test") if (root / "test").is_dir() else []


def _pages(path: Path) -> list[_Section]:
    return [(path, page) for page in range(image_reader.num_pages_of(path))]


def _files(folder: Path) -> list[_Section]:
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := _SECTION.match(path.name))}
    return [(numbered[number], None) for number in sorted(numbered)]


def _read(sections: tuple[_Section, ...]) -> np.ndarray:
    """The sections [N, H, W] in the files' own dtype; pages of one file are read at once."""
    path, first = sections[0]
    if first is not None:
        last = sections[-1][1]
        assert last is not None
        return image_reader.read_pages(path, first, last)
    pictures = [image_reader.read_pages(path, 0, 0)[0] for path, _ in sections]
    for (other, _), picture in zip(sections, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ShapeError(
                f"{path} and {other}: sections of {pictures[0].shape} and {picture.shape} pixels; one size is needed."
            )
    return np.stack(pictures)
