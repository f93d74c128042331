"""ISIC 2017 and 2018: outlines of skin lesions in dermoscopic photographs, with official train, val and test folders.

Sources: Codella et al. 2018, doi 10.1109/ISBI.2018.8363547; Codella et al. 2019, arXiv 1902.03368;
challenge.isic-archive.com.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from statefield.datasets.adapter import ADAPTERS, require_layout
from statefield.datasets.published import Parts, PublishedDataset, require_partner, visible_files
from statefield.datasets.sample import About, DatasetInfo, Record
from statefield.datasets.splits import Split

_INFO = DatasetInfo(("background", "lesion"), ("red", "green", "blue"), spatial_dims=2)
_Folders = dict[Split, tuple[str, str]]  # images, masks
_FOLDERS_2017: _Folders = {
    "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
    "val": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
    "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
}
_FOLDERS_2018: _Folders = {
    "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
    "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
    "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
}


def _tree(folders: _Folders) -> str:
    lines = ["ISIC/"]
    for split, (images, masks) in folders.items():
        note = "" if split == "train" else "   (optional: else drawn from the training images)"
        lines += [f"|-- {images}/   ISIC_0000000.jpg ...{note}", f"|-- {masks}/   ISIC_0000000_segmentation.png ..."]
    lines[-1] = "`" + lines[-1][1:]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Isic(PublishedDataset):
    """A year's challenge. Validation or test photographs that are not there are drawn from the training photographs."""

    folders: ClassVar[_Folders]

    def mismatch(self, root: Path) -> str | None:
        missing = [name for name in self.folders["train"] if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return _INFO

    def parts(self, root: Path) -> Parts:
        found: dict[Split, list[Record]] = {"train": [], "val": [], "test": [], "unlabelled": []}
        for split, (images, masks) in self.folders.items():
            for image in visible_files(root / images):
                if image.suffix.lower() != ".jpg":  # the archives carry superpixel pictures beside the photographs
                    continue
                if not (root / masks).is_dir():
                    found["unlabelled"].append(Record(image.stem, (image,), None, _INFO))
                    continue
                mask = require_partner(root / masks / f"{image.stem}_segmentation.png", image, "mask")
                found[split].append(Record(image.stem, (image,), mask, _INFO))
        return Parts(found["train"], found["val"], found["test"], found["unlabelled"])


@dataclass(frozen=True)
class Isic2017(_Isic):
    """ISIC 2017, part 1: 2000 training, 150 validation and 600 test photographs."""

    folders = _FOLDERS_2017
    name = "isic2017"
    about = About(
        title="ISIC 2017, part 1",
        task="skin lesions, dermoscopic photographs",
        split="official folders: 2000 / 150 / 600",
        labels="0/255, lesion 1",
        terms="CC0; see the source",
        source="Codella et al. 2018, doi 10.1109/ISBI.2018.8363547; challenge.isic-archive.com",
    )
    layout = _tree(_FOLDERS_2017)


@dataclass(frozen=True)
class Isic2018(_Isic):
    """ISIC 2018, task 1: 2594 training, 100 validation and 1000 test photographs."""

    folders = _FOLDERS_2018
    name = "isic2018"
    about = About(
        title="ISIC 2018, task 1",
        task="skin lesions, dermoscopic photographs",
        split="official folders: 2594 / 100 / 1000",
        labels="0/255, lesion 1",
        terms="CC BY-NC 4.0; see the source",
        source="Codella et al. 2019, arXiv 1902.03368; challenge.isic-archive.com",
    )
    layout = _tree(_FOLDERS_2018)


ADAPTERS.register("isic2017")(Isic2017())
ADAPTERS.register("isic2018")(Isic2018())
