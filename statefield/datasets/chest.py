"""Lungs in chest radiographs: the Montgomery County and the Shenzhen sets for tuberculosis screening.

Sources: Jaeger et al. 2014, doi 10.3978/j.issn.2223-4292.2014.11.20; Shenzhen's masks: Stirenko et al. 2018, arXiv
1803.01199.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets.adapter import ADAPTERS, require_layout
from statefield.datasets.published import Parts, PublishedDataset, require_partner, visible_files
from statefield.datasets.readers.image import meta_of, read_image, read_mask
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.errors import DataError, ShapeError

_SIDES = ("leftMask", "rightMask")


@dataclass(frozen=True)
class Montgomery(PublishedDataset):
    """138 radiographs, the lungs of each traced in two files.

    sides: True: left and right lung are classes 1 and 2, as the publisher names them; False: both are class 1.
    """

    sides: bool = False

    name = "montgomery"
    about = About(
        title="Montgomery County chest X-rays",
        task="lungs, radiographs, 138",
        split="by seed",
        labels="a 0/255 mask for each lung; option sides",
        terms="free for research with citation",
        source="Jaeger et al. 2014, doi 10.3978/j.issn.2223-4292.2014.11.20; U.S. National Library of Medicine",
    )
    layout = (
        "MontgomerySet/\n"
        "|-- CXR_png/            MCUCXR_0001_0.png ...\n"
        "`-- ManualMask/\n"
        "    |-- leftMask/       MCUCXR_0001_0.png ...\n"
        "    `-- rightMask/      MCUCXR_0001_0.png ..."
    )

    def mismatch(self, root: Path) -> str | None:
        needed = ("CXR_png", *(f"ManualMask/{side}" for side in _SIDES))
        missing = [name for name in needed if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        classes = ("background", "left_lung", "right_lung") if self.sides else ("background", "lung")
        return DatasetInfo(classes, ("grey",), spatial_dims=2)

    def parts(self, root: Path) -> Parts:
        info, records = self.describe(root), []
        for image in _pictures(root / "CXR_png"):
            left, right = (
                require_partner(root / "ManualMask" / side / image.name, image, f"{side} of the lungs")
                for side in _SIDES
            )
            records.append(Record(image.stem, (image,), left, info, {"right": right}))
        return Parts(records)

    def load(self, record: Record) -> Sample:
        sample = _radiograph(record)
        if record.mask is not None:
            left, right = _mask(record.mask, sample), _mask(record.extra["right"], sample)
            second = 2 if record.info is not None and len(record.info.classes) == 3 else 1
            sample["mask"] = np.where(left == 1, 1, second * right)
        return sample


@dataclass(frozen=True)
class Shenzhen(PublishedDataset):
    """662 radiographs, of which 566 have masks; the others are the split "unlabelled"."""

    name = "shenzhen"
    about = About(
        title="Shenzhen chest X-rays",
        task="lungs, radiographs, 566 of 662 labelled",
        split="by seed",
        labels="0/255, lung 1",
        terms="free for research with citation",
        source="Jaeger et al. 2014, as Montgomery; masks: Stirenko et al. 2018, arXiv 1803.01199",
    )
    layout = (
        "ChinaSet_AllFiles/\n"
        "|-- CXR_png/            CHNCXR_0001_0.png ...\n"
        "`-- mask/               CHNCXR_0001_0_mask.png ..."
    )

    def mismatch(self, root: Path) -> str | None:
        missing = [name for name in ("CXR_png", "mask") if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return DatasetInfo(("background", "lung"), ("grey",), spatial_dims=2)

    def parts(self, root: Path) -> Parts:
        info = self.describe(root)
        records = []
        for image in _pictures(root / "CXR_png"):
            mask = root / "mask" / f"{image.stem}_mask.png"
            records.append(Record(image.stem, (image,), mask if mask.is_file() else None, info))
        return Parts(
            [record for record in records if record.mask is not None],
            unlabelled=[record for record in records if record.mask is None],
        )

    def load(self, record: Record) -> Sample:
        sample = _radiograph(record)
        if record.mask is not None:
            sample["mask"] = _mask(record.mask, sample)
        return sample


ADAPTERS.register("montgomery")(Montgomery())
ADAPTERS.register("shenzhen")(Shenzhen())


def _pictures(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if path.suffix.lower() == ".png"]


def _radiograph(record: Record) -> Sample:
    """The picture as one grey channel: some files of both sets repeat it in three."""
    image = read_image(record.images[0])
    if len(image) == 3:
        if not (image[0] == image[1]).all() or not (image[0] == image[2]).all():
            raise DataError(f"{record.images[0]}: real colours found; a grey radiograph is needed.")
        image = image[:1].copy()
    return {"image": image, "meta": meta_of(record.images[0], case=record.case)}


def _mask(path: Path, sample: Sample) -> np.ndarray:
    mask = read_mask(path, 2)
    if mask.shape != sample["image"].shape[1:]:
        height, width = sample["image"].shape[1:]
        raise ShapeError(
            f"{path} is {mask.shape[0]} x {mask.shape[1]} pixels but {sample['meta']['path']} is {height} x {width}: "
            "they must have the same size. Resize the mask with nearest neighbour."
        )
    return mask
