"""CT of the abdomen: BTCV (13 organs), its preprocessed form "Synapse" (8 organs), and LiTS (liver and tumours).

Sources: Landman et al. 2015, synapse.org syn3193805; Chen et al. 2021, github.com/Beckschen/TransUNet; Bilic et al.
2023, doi 10.1016/j.media.2022.102680.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from statefield.datasets.adapter import ADAPTERS, require_layout
from statefield.datasets.published import Parts, PublishedDataset, require_partner, visible_files
from statefield.datasets.readers import hdf5, npz, unplaced
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.nifti import integer_labels
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import official_split
from statefield.errors import ConfigError, DataError, DatasetLayoutError, ShapeError

TRANSUNET = "btcv_transunet"
BTCV_CLASSES = (
    "background",
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_veins",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
SYNAPSE_CLASSES = (
    "background",
    "aorta",
    "gallbladder",
    "left_kidney",
    "right_kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)
_BTCV_INFO = DatasetInfo(BTCV_CLASSES, ("CT",), spatial_dims=3)
_LITS_INFO = DatasetInfo(("background", "liver", "tumour"), ("CT",), spatial_dims=3)
_BTCV_IMAGE = re.compile(r"^img(\d+)(\.nii(?:\.gz)?)$")
_LITS_IMAGE = re.compile(r"^(test-)?volume-(\d+)(\.nii(?:\.gz)?)$")
_SLICE = re.compile(r"^(case\d+)_slice(\d+)\.npz$")
_VOLUME_ENDING = ".npy.h5"


@dataclass(frozen=True)
class Btcv(PublishedDataset):
    """ "Beyond the cranial vault", 30 labelled scans in Hounsfield units.

    split: "transunet": the 12 test cases of TransUNet, by which "Synapse" scores are reported, and val from the other
        18; "seed": all drawn.
    """

    split: Literal["transunet", "seed"] = "transunet"

    name = "btcv"
    about = About(
        title="BTCV",
        task="13 abdominal organs, CT, 30 labelled scans",
        split="TransUNet's 18 / 12, val from the 18 by seed; or by seed",
        labels="0 to 13",
        terms="registration and agreement at the source",
        source="Landman et al. 2015; synapse.org, syn3193805",
    )
    layout = (
        "RawData/                (or its folder Training/ itself)\n"
        "|-- Training/\n"
        "|   |-- img/            img0001.nii.gz ...\n"
        "|   `-- label/          label0001.nii.gz ...\n"
        "`-- Testing/            (optional; no public labels)\n"
        "    `-- img/            img0061.nii.gz ..."
    )

    def mismatch(self, root: Path) -> str | None:
        home = _btcv_home(root)
        if not (home / "img").is_dir() or not (home / "label").is_dir():
            return "there is no img/ with label/, neither at the top nor in Training/"
        if not any(_BTCV_IMAGE.match(path.name) for path in visible_files(home / "img")):
            return "there is no imgXXXX.nii.gz in img/"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return _BTCV_INFO

    def parts(self, root: Path) -> Parts:
        if self.split not in ("transunet", "seed"):
            raise ConfigError(f"split = {self.split!r}: 'transunet' or 'seed' is needed.")
        home = _btcv_home(root)
        labelled = []
        for image in visible_files(home / "img"):
            if match := _BTCV_IMAGE.match(image.name):
                labels = require_partner(home / "label" / f"label{match[1]}{match[2]}", image, "labels")
                labelled.append(Record(f"img{match[1]}", (image,), labels, _BTCV_INFO))
        testing = home.parent / "Testing" / "img" if home.name == "Training" else root / "Testing" / "img"
        unlabelled = [
            Record(f"img{match[1]}", (image,), None, _BTCV_INFO)
            for image in visible_files(testing)
            if (match := _BTCV_IMAGE.match(image.name))
        ]
        if self.split == "seed":
            return Parts(labelled, unlabelled=unlabelled)
        split_of = official_split(TRANSUNET)
        test = [record for record in labelled if split_of.get(record.case) == "test"]
        return Parts([record for record in labelled if record not in test], test=test, unlabelled=unlabelled)


@dataclass(frozen=True)
class Synapse(PublishedDataset):
    """BTCV as TransUNet prepared it: 8 organs, Hounsfield units -125 to 275 scaled to 0..1, no spacing kept. The slices
    of a training case are put together to its volume, so that every case is [1, D, 512, 512].

    classes: names by label value. Copies prepared by others number the organs otherwise; give theirs.
    """

    classes: tuple[str, ...] = SYNAPSE_CLASSES

    name = "synapse"
    about = About(
        title="Synapse (TransUNet)",
        task="8 abdominal organs, CT",
        split="train_npz/ (18 scans) and test_vol_h5/ (12); val from the 18 by seed",
        labels="0 to 8, named in TransUNet's order (option classes)",
        terms="those of BTCV; the prepared files on request from TransUNet's authors",
        source="Chen et al. 2021, github.com/Beckschen/TransUNet",
    )
    layout = (
        "Synapse/\n"
        "|-- train_npz/          case0005_slice000.npz ...   image [H, W], label\n"
        "`-- test_vol_h5/        case0001.npy.h5 ...         image [D, H, W], label"
    )

    def mismatch(self, root: Path) -> str | None:
        missing = [name for name in ("train_npz", "test_vol_h5") if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"classes = {self.classes}: two or more distinct names are needed, by label value.")
        return DatasetInfo(tuple(self.classes), ("CT",), spatial_dims=3)

    def parts(self, root: Path) -> Parts:
        info = self.describe(root)
        train = [
            Record(case, (slices[0],), slices[0], info, {"slices": slices})
            for case, slices in _slices_by_case(root / "train_npz").items()
        ]
        test = [
            Record(path.name.removesuffix(_VOLUME_ENDING), (path,), path, info)
            for path in visible_files(root / "test_vol_h5")
            if path.name.endswith(_VOLUME_ENDING)
        ]
        shared = sorted({record.case for record in train} & {record.case for record in test})
        if shared:
            raise DatasetLayoutError(
                f"{root}: {', '.join(shared[:5])} in both train_npz/ and test_vol_h5/: a case may be in one only."
            )
        return Parts(train, test=test)

    def load(self, record: Record) -> Sample:
        path = record.images[0]
        if "slices" in record.extra:
            image, labels = (_stacked(record.extra["slices"], name) for name in ("image", "label"))
        else:
            image, labels = (hdf5.read_array(path, name, 3) for name in ("image", "label"))
        if image.shape != labels.shape:
            raise ShapeError(f"{path}: image of shape {image.shape} and label of {labels.shape} differ.")
        values = image.astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{path}: 'image' holds NaN or infinite values; finite values are needed.")
        num_classes = len(record.info.classes) if record.info else None
        return {
            "image": values[None],
            "mask": integer_labels(path, labels, num_classes),
            "meta": unplaced.meta_of(path, case=record.case, shape=values.shape),
        }


@dataclass(frozen=True)
class Lits(PublishedDataset):
    """The Liver Tumor Segmentation Benchmark: 131 labelled scans in Hounsfield units, in one folder or in batches. Its
    70 test scans have no public labels.
    """

    name = "lits"
    about = About(
        title="LiTS",
        task="liver and its tumours, CT, 131 labelled scans",
        split="by seed; the test scans have no public labels",
        labels="0 to 2",
        terms="Creative Commons, non-commercial; see the source",
        source="Bilic et al. 2023, doi 10.1016/j.media.2022.102680; competitions.codalab.org, 17094",
    )
    layout = (
        "LITS/\n"
        "|-- volume-0.nii ...          (or .nii.gz; at the top or one folder down, as in Training Batch 1/)\n"
        "|-- segmentation-0.nii ...    beside its volume, or in any folder of the same level\n"
        "`-- test-volume-0.nii ...     (optional)"
    )

    def mismatch(self, root: Path) -> str | None:
        images = [path.name for path in _one_level(root) if (m := _LITS_IMAGE.match(path.name)) and not m[1]]
        if not images:
            return "there is no volume-N.nii, neither at the top nor one folder down"
        if not any(path.name.startswith("segmentation-") for path in _one_level(root)):
            return "there is no segmentation-N.nii beside volume-N.nii"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return _LITS_INFO

    def parts(self, root: Path) -> Parts:
        files = _one_level(root)
        labels = {path.name.split(".")[0]: path for path in files if path.name.startswith("segmentation-")}
        train, unlabelled = [], []
        for image in files:
            match = _LITS_IMAGE.match(image.name)
            if match is None:
                continue
            case = f"{match[1] or ''}volume-{int(match[2]):03d}"
            if match[1]:
                unlabelled.append(Record(case, (image,), None, _LITS_INFO))
                continue
            partner = labels.get(f"segmentation-{match[2]}", image.with_name(f"segmentation-{match[2]}{match[3]}"))
            train.append(Record(case, (image,), require_partner(partner, image, "labels"), _LITS_INFO))
        return Parts(train, unlabelled=unlabelled)


ADAPTERS.register("btcv")(Btcv())
ADAPTERS.register("synapse")(Synapse())
ADAPTERS.register("lits")(Lits())


def _btcv_home(root: Path) -> Path:
    homes = (root / "Training", root / "RawData" / "Training")
    return next((home for home in homes if (home / "img").is_dir()), root)


def _one_level(root: Path) -> list[Path]:
    """The files at the top and in its folders, sorted."""
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for folder in (root, *folders) for path in visible_files(folder))


def _slices_by_case(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The slices of each case in order; they must be numbered 0, 1, 2, ..."""
    found: dict[str, dict[int, Path]] = {}
    for path in visible_files(folder):
        if match := _SLICE.match(path.name):
            found.setdefault(match[1], {})[int(match[2])] = path
    for case, numbered in found.items():
        missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
        if missing:
            raise DatasetLayoutError(
                f"{folder}: {case} has {len(numbered)} slices but not number {missing[0]}; a volume needs them all. "
                "Unpack the archive again."
            )
    return {case: tuple(found[case][number] for number in sorted(found[case])) for case in sorted(found)}


def _stacked(paths: tuple[Path, ...], name: str) -> np.ndarray:
    first = npz.read_array(paths[0], name, 2)
    require_memory(paths[0], len(paths) * first.size * max(4, first.itemsize), f"{len(paths)} slices of {first.shape}")
    slices = [first, *(npz.read_array(path, name, 2) for path in paths[1:])]
    for path, values in zip(paths, slices, strict=True):
        if values.shape != first.shape:
            raise ShapeError(f"{paths[0]} and {path}: slices of {first.shape} and {values.shape}; one size is needed.")
    return np.stack(slices)
