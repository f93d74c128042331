"""ACDC as its challenge ships it: NIfTI volumes of the heart at the end of diastole and of systole.

Source: Bernard et al. 2018, doi 10.1109/TMI.2018.2837502; https://www.creatis.insa-lyon.fr/Challenge/acdc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from statefield.datasets.acdc_h5 import CLASSES, SSL4MIS
from statefield.datasets.adapter import ADAPTERS, require_layout
from statefield.datasets.published import Parts, PublishedDataset, require_partner, visible_files
from statefield.datasets.sample import About, DatasetInfo, Record
from statefield.datasets.splits import Split, official_split
from statefield.errors import ConfigError

_INFO = DatasetInfo(CLASSES, ("MR",), spatial_dims=3)
_PATIENT = re.compile(r"^patient\d+$")
_FRAME = re.compile(r"^patient\d+_frame\d+\.nii(?:\.gz)?$")


@dataclass(frozen=True)
class Acdc(PublishedDataset):
    """Two labelled frames for each patient, who goes to one split with both; the cine (patientXXX_4d) is left out.

    split: "official": testing/ is the test split where it is, and val is drawn from training/ by patient; "ssl4mis":
        the 70 / 10 / 20 patients of training/ into which semi-supervised work divides them; testing/ is left out.
    """

    split: Literal["official", "ssl4mis"] = "official"

    name = "acdc"
    about = About(
        title="ACDC",
        task="right ventricle, myocardium, left ventricle; cine MR, end of diastole and of systole",
        split="official testing/ (50 patients); val from training/ (100) by patient and seed; or SSL4MIS",
        labels="0 to 3",
        terms="CC BY-NC-SA 4.0; registration at the source",
        source="Bernard et al. 2018, doi 10.1109/TMI.2018.2837502; creatis.insa-lyon.fr/Challenge/acdc",
    )
    layout = (
        "ACDC/\n"
        "|-- training/\n"
        "|   `-- patient001/ ...\n"
        "|       |-- Info.cfg\n"
        "|       |-- patient001_4d.nii.gz              (not read)\n"
        "|       |-- patient001_frame01.nii.gz         and another frame\n"
        "|       `-- patient001_frame01_gt.nii.gz\n"
        "`-- testing/                                  (optional)\n"
        "    `-- patient101/ ...                       without *_gt they are unlabelled"
    )

    def mismatch(self, root: Path) -> str | None:
        if not (root / "training").is_dir():
            return "there is no training/"
        if not _patients(root / "training"):
            return "there is no training/patientXXX/"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return _INFO

    def parts(self, root: Path) -> Parts:
        train = _records(root / "training", must_have_labels=True)
        if self.split == "ssl4mis":
            split_of = official_split(SSL4MIS)
            part: dict[Split, list[Record]] = {"train": [], "val": [], "test": [], "unlabelled": []}
            for record in train:
                part[split_of.get(record.group, "unlabelled")].append(record)
            return Parts(part["train"], part["val"], part["test"])
        if self.split != "official":
            raise ConfigError(f"split = {self.split!r}: 'official' or 'ssl4mis' is needed.")
        test = _records(root / "testing", must_have_labels=False)
        return Parts(
            train,
            test=[record for record in test if record.mask is not None],
            unlabelled=[record for record in test if record.mask is None],
        )


ADAPTERS.register("acdc")(Acdc())


def _patients(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _PATIENT.match(path.name))


def _records(folder: Path, *, must_have_labels: bool) -> list[Record]:
    records = []
    for patient in _patients(folder):
        for image in visible_files(patient):
            if not _FRAME.match(image.name):
                continue
            stem, _, ending = image.name.partition(".")
            labels = patient / f"{stem}_gt.{ending}"
            if must_have_labels:
                require_partner(labels, image, "labels")
            mask = labels if labels.is_file() else None
            records.append(Record(stem, (image,), mask, _INFO, group=patient.name))
    return records
