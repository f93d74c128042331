"""ACDC in HDF5: heart MR as semi- and weakly supervised work passes it on, with scribbles beside the full labels.

Intensities are scaled to 0..1 and no spacing is kept.

Source: Bernard et al. 2018, doi 10.1109/TMI.2018.2837502; github.com/HiLab-git/SSL4MIS and WSL4MIS.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from statefield.datasets.adapter import ADAPTERS, require_cases, require_layout, require_split
from statefield.datasets.readers import hdf5, unplaced
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers.nifti import integer_labels
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, grouped_by, official_split, split_cases
from statefield.errors import ConfigError, DataError, DatasetLayoutError, ShapeError
from statefield.files import read_text

logger = logging.getLogger(__name__)

CLASSES = ("background", "right_ventricle", "myocardium", "left_ventricle")
SSL4MIS = "acdc_ssl4mis"
_CHANNELS = ("MR",)
_VOLUME = re.compile(r"^(patient\d+)_frame\d+$")
_SLICE = re.compile(r"^(patient\d+)_frame\d+_slice_(\d+)$")
_VOLUME_HOMES = (".", "data", "ACDC_training_volumes")
_SLICE_HOMES = (".", "slices", "data/slices", "ACDC_training_slices")
_LISTS = {"train": ("train.list", "train_slices.list"), "val": ("val.list",), "test": ("test.list",)}
_SCRIBBLE_UNLABELLED = 4


@dataclass(frozen=True)
class AcdcH5:
    """A file for each patient and phase (or for each slice of it); whole patients go to one split.

    slices: True: a case is a slice, [1, H, W]; False: a volume, [1, D, H, W]; None: volumes where there are any.
    labels: "label": every pixel; "scribble": training cases carry the scribbles alone, and every pixel that they leave
        out is UNLABELLED. Val and test are scored on the full labels either way.
    split: "lists": the folder's own train.list, val.list and test.list; "ssl4mis": the same patients, from our copy of
        the lists; "seed": drawn by patient; "auto": lists where they are, else seed.
    fractions, seed: of the split "seed".
    """

    slices: bool | None = None
    labels: Literal["label", "scribble"] = "label"
    split: Literal["auto", "lists", "ssl4mis", "seed"] = "auto"
    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0

    name = "acdc_h5"
    embedded = False
    about = About(
        title="ACDC, HDF5",
        task="right ventricle, myocardium, left ventricle; cine MR, end of diastole and of systole",
        split="the folder's lists (SSL4MIS: 70 / 10 / 20 patients), else by patient and seed",
        labels="0 to 3; scribbles with 4 = unlabelled: option labels",
        terms="CC BY-NC-SA 4.0",
        source="Bernard et al. 2018, doi 10.1109/TMI.2018.2837502; github.com/HiLab-git/SSL4MIS",
    )
    layout = (
        "ACDC/\n"
        "|-- train.list val.list test.list   (optional) one patientXXX_frameYY a line\n"
        "`-- data/                           (or ACDC_training_volumes/, or at the top)\n"
        "    |-- patient001_frame01.h5 ...   image [Z, H, W], label, and perhaps scribble\n"
        "    `-- slices/                     (optional; or ACDC_training_slices/)\n"
        "        `-- patient001_frame01_slice_1.h5 ...   image [H, W], label, and perhaps scribble"
    )

    def mismatch(self, root: Path) -> str | None:
        if _home(root, _VOLUME_HOMES, _VOLUME) is None and _home(root, _SLICE_HOMES, _SLICE) is None:
            return "there is no patientXXX_frameYY.h5, neither at the top nor in data/ or ACDC_training_volumes/"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        root = require_layout(self, root)
        return DatasetInfo(CLASSES, _CHANNELS, spatial_dims=2 if self._has_slices(root) else 3)

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        if self.labels not in ("label", "scribble"):
            raise ConfigError(f"labels = {self.labels!r}: 'label' or 'scribble' is needed.")
        info = self.describe(root)
        files = _files(root, _SLICE_HOMES, _SLICE) if info.spatial_dims == 2 else _files(root, _VOLUME_HOMES, _VOLUME)
        if split == "unlabelled":
            return require_cases([], split, root, "every case has labels.")
        chosen = self._split(root, list(files))[split]
        extra = {"labels": self.labels if split == "train" else "label"}
        records = [Record(case, (files[case],), files[case], info, extra, group=case.split("_")[0]) for case in chosen]
        return require_cases(records, split, root, f"{len(files)} cases, divided by {self._source_of_split(root)}.")

    def load(self, record: Record) -> Sample:
        path = record.images[0]
        volume = record.info is None or record.info.spatial_dims == 3
        ndim = 3 if volume else 2
        image = hdf5.read_array(path, "image", ndim).astype(np.float32)
        if not np.isfinite(image).all():
            raise DataError(f"{path}: 'image' holds NaN or infinite values; finite values are needed.")
        meta = (
            unplaced.meta_of(path, case=record.case, shape=image.shape)
            if volume
            else image_reader.meta_of(path, case=record.case)
        )
        sample: Sample = {"image": image[None], "meta": meta}
        if record.mask is not None:
            name = record.extra.get("labels", "label")
            values = hdf5.read_array(record.mask, name, ndim)
            if values.shape != image.shape:
                raise ShapeError(f"{path}: image of shape {image.shape} and {name} of {values.shape} differ.")
            unlabelled = _SCRIBBLE_UNLABELLED if name == "scribble" else None
            sample["mask"] = integer_labels(f"{path} ({name})", values, len(CLASSES), unlabelled=unlabelled)
        return sample

    def _has_slices(self, root: Path) -> bool:
        volumes, slices = _home(root, _VOLUME_HOMES, _VOLUME), _home(root, _SLICE_HOMES, _SLICE)
        wanted = volumes is None if self.slices is None else self.slices
        if (slices if wanted else volumes) is None:
            kind, other = ("slices", "false") if wanted else ("volumes", "true")
            raise DatasetLayoutError(f"{root}: there are no {kind}; leave the option slices out, or set it {other}.")
        return wanted

    def _source_of_split(self, root: Path) -> str:
        if self.split == "auto":
            return "lists" if all(_list(root, part) is not None for part in _LISTS) else "seed"
        return self.split

    def _split(self, root: Path, cases: list[str]) -> dict[Split, list[str]]:
        source, patient_of = self._source_of_split(root), grouped_by(r"^(patient\d+)")
        if source == "seed":
            return split_cases(cases, fractions=self.fractions, seed=self.seed, group_of=patient_of)
        if source not in ("lists", "ssl4mis"):
            raise ConfigError(f"split = {source!r}: 'auto', 'lists', 'ssl4mis' or 'seed' is needed.")
        split_of = official_split(SSL4MIS) if source == "ssl4mis" else _listed_patients(root)
        unknown = sorted({patient_of(case) for case in cases} - set(split_of))
        if unknown:
            shown = ", ".join(unknown[:5])
            logger.warning("%s: %d patients are in no list and left out, such as %s", root, len(unknown), shown)
        parts: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
        for case in sorted(cases):
            if patient_of(case) in split_of:
                parts[split_of[patient_of(case)]].append(case)
        return parts


ADAPTERS.register("acdc_h5")(AcdcH5())


def _home(root: Path, homes: tuple[str, ...], pattern: re.Pattern[str]) -> Path | None:
    """The first of the folders that holds a file of this kind."""
    for home in homes:
        folder = root / home
        if folder.is_dir() and any(path.suffix == ".h5" and pattern.match(path.stem) for path in folder.iterdir()):
            return folder
    return None


def _files(root: Path, homes: tuple[str, ...], pattern: re.Pattern[str]) -> dict[str, Path]:
    """The files by case, sorted; a slice's number is given two digits, so that names sort as slices lie."""
    folder = _home(root, homes, pattern)
    assert folder is not None
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        match = pattern.match(path.stem)
        if match is None or path.suffix != ".h5":
            continue
        case = path.stem
        if pattern is _SLICE:
            case = f"{path.stem.rsplit('_', 1)[0]}_{int(match[2]):02d}"
        found[case] = path
    return dict(sorted(found.items()))


def _list(root: Path, part: str) -> Path | None:
    return next((root / name for name in _LISTS[part] if (root / name).is_file()), None)


def _listed_patients(root: Path) -> dict[str, Split]:
    """The split of each patient by the folder's lists (copies of the data number the frames differently)."""
    split_of: dict[str, Split] = {}
    parts: tuple[Split, ...] = ("train", "val", "test")
    for part in parts:
        path = _list(root, part)
        if path is None:
            raise DatasetLayoutError(f"{root}: {_LISTS[part][0]} not found, which split='lists' needs.")
        for line in read_text(path).split():
            patient = line.split("_")[0]
            if split_of.setdefault(patient, part) != part:
                raise DatasetLayoutError(
                    f"{path}: {patient} is listed for {split_of[patient]} too: a patient may be in one split only."
                )
    return split_of
