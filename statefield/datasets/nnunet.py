"""nnU-Net's raw layout: a file for each case and channel, `CASE_0000`, `CASE_0001`, ..., in imagesTr.

Reads version 2 (`channel_names`, labels as name to value, `file_ending`) and version 1 (`modality`, labels as value to
name).
Source: Isensee et al. 2021, doi 10.1038/s41592-020-01008-z; documentation/dataset_format.md of nnU-Net 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.datasets.adapter import ADAPTERS, load_files, require_cases, require_layout, require_split
from statefield.datasets.description import DESCRIPTION, names_by_number, read_description
from statefield.datasets.msd import is_nnunet_version_1
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, grouped_by, split_cases
from statefield.errors import DatasetLayoutError

_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class NnunetRaw:
    """`nnUNet_raw/DatasetXXX_NAME`. With labelsTs the test split is official; else it is taken from the training cases,
    by case name and seed, as val is. Images in imagesTs without labels are the split "unlabelled".
    """

    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0
    group_pattern: str = ""

    name = "nnunet"
    embedded = False
    about = About(
        title="nnU-Net raw, versions 1 and 2",
        task="any, among them AbdomenMR, NeurIPSCell and Endovis17 of the U-Mamba benchmark",
        split="labelsTs/ where it is; else by seed",
        labels="named in dataset.json",
        terms="of each dataset",
        source="Isensee et al. 2021, doi 10.1038/s41592-020-01008-z; U-Mamba's sets: github.com/bowang-lab/U-Mamba",
    )
    layout = (
        "Dataset001_NAME/\n"
        '|-- dataset.json        "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, ...},\n'
        '|                       "numTraining": 20, "file_ending": ".nii.gz" (or ".nii", ".png", ".tif", ...)\n'
        "|-- imagesTr/           case_0000.nii.gz  case_0001.nii.gz ...   a file for each case and channel\n"
        "|-- labelsTr/           case.nii.gz ...\n"
        "|-- imagesTs/           (optional) case_0000.nii.gz ...\n"
        "`-- labelsTs/           (optional) case.nii.gz ..."
    )

    def mismatch(self, root: Path) -> str | None:
        if not (root / DESCRIPTION).is_file():
            return f"there is no {DESCRIPTION}"
        try:
            content = read_description(root)
        except DatasetLayoutError as error:
            return str(error)
        if "labels" not in content:
            return f"{DESCRIPTION} has no labels"
        if "channel_names" not in content and not is_nnunet_version_1(root, content):
            return f"{DESCRIPTION} has no channel_names"
        missing = [name for name in ("imagesTr", "labelsTr") if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        root = require_layout(self, root)
        content = read_description(root)
        path = root / DESCRIPTION
        key = "channel_names" if "channel_names" in content else "modality"
        channels = names_by_number(path, key, content[key])
        classes = names_by_number(path, "labels", content["labels"])
        if "ignore" in classes:
            raise DatasetLayoutError(
                f'{path}: "labels" declares an ignore label ({classes.index("ignore")}), which is not available: '
                "give those voxels a class, or leave the cases out."
            )
        if _ending(path, content).lower() in nifti.SUFFIXES:
            return DatasetInfo(classes, channels, spatial_dims=3)
        return DatasetInfo(classes, _picture_channels(root, content, channels), spatial_dims=2)

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        content, info = read_description(root), self.describe(root)
        ending = _ending(root / DESCRIPTION, content)
        key = "channel_names" if "channel_names" in content else "modality"
        num_files = len(content[key])
        training = _images(root / "imagesTr", ending, num_files)
        testing = _images(root / "imagesTs", ending, num_files)
        labelled_tests = _labels(root / "labelsTs", ending)
        if split == "unlabelled":
            records = [Record(c, images, None, info) for c, images in testing.items() if c not in labelled_tests]
            return require_cases(records, split, root, "there are no images in imagesTs/ without labels in labelsTs/.")
        group_of = grouped_by(self.group_pattern)
        if split == "test" and labelled_tests:
            _require_partners(root / "labelsTs", labelled_tests, root / "imagesTs", testing, "imagesTs")
            return [Record(c, testing[c], label, info, group=group_of(c)) for c, label in labelled_tests.items()]
        labels = _labels(root / "labelsTr", ending)
        _require_partners(root / "imagesTr", training, root / "labelsTr", labels, "labelsTr")
        _require_partners(root / "labelsTr", labels, root / "imagesTr", training, "imagesTr")
        chosen = set(self._split(list(training), has_official_test=bool(labelled_tests))[split])
        records = [
            Record(case, images, labels[case], info, group=group_of(case))
            for case, images in training.items()
            if case in chosen
        ]
        return require_cases(records, split, root, f"{len(training)} labelled cases, shares {self.fractions}.")

    def load(self, record: Record) -> Sample:
        return load_files(record.images, record.mask, case=record.case, info=record.info)

    def _split(self, cases: list[str], *, has_official_test: bool) -> dict[Split, list[str]]:
        fractions = self.fractions
        if has_official_test:
            rest = fractions[0] + fractions[1]
            fractions = (fractions[0] / rest, fractions[1] / rest, 0.0) if rest > 0 else (1.0, 0.0, 0.0)
        return split_cases(cases, fractions=fractions, seed=self.seed, group_of=grouped_by(self.group_pattern))


ADAPTERS.register("nnunet")(NnunetRaw())


def _ending(path: Path, content: dict[str, Any]) -> str:
    ending = content.get("file_ending", ".nii.gz")  # version 1 knows no other
    known = (*nifti.SUFFIXES, *image_reader.MASK_SUFFIXES)
    if ending not in known:
        raise DatasetLayoutError(f'{path}: "file_ending" is {ending!r}; one of {", ".join(known)} can be read.')
    return ending


def _picture_channels(root: Path, content: dict[str, Any], channels: tuple[str, ...]) -> tuple[str, ...]:
    """The channels of pictures: nnU-Net stores an RGB picture as one file, yet names its three channels or just one."""
    folder, ending = root / "imagesTr", _ending(root / DESCRIPTION, content)
    first = next((path for path in sorted(folder.glob(f"*_0000{ending}")) if not path.name.startswith(".")), None)
    if first is None:
        raise DatasetLayoutError(f"{folder}: no file CASE_0000{ending} found.")
    num_channels = image_reader.num_channels_of(first)
    if num_channels == 1 or len(channels) == num_channels:
        return channels
    if len(channels) == 1:
        return image_reader.channel_names(num_channels)
    raise DatasetLayoutError(
        f"{first}: {num_channels} channels found in one file of {len(channels)} declared channels."
    )


def _images(folder: Path, ending: str, num_channels: int) -> dict[str, tuple[Path, ...]]:
    """Per case its channel files in order; every case must have every channel."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.name.endswith(ending):
            continue
        match = _CHANNEL_SUFFIX.match(path.name[: -len(ending)])
        if match is None:
            raise DatasetLayoutError(
                f"{path}: the name has no channel number; CASE_0000{ending} is needed (0000 for the first channel)."
            )
        found.setdefault(match["case"], {})[int(match["channel"])] = path
    one_file_for_all = ending not in nifti.SUFFIXES and num_channels == 3
    for case, files in found.items():
        if sorted(files) != list(range(num_channels)) and not (one_file_for_all and sorted(files) == [0]):
            raise DatasetLayoutError(
                f"{folder}: the case {case!r} has the channels {sorted(files)}; {num_channels} are declared in "
                f"{DESCRIPTION}, so {case}_0000{ending} to {case}_{num_channels - 1:04d}{ending} are needed."
            )
    return {case: tuple(files[i] for i in sorted(files)) for case, files in found.items()}


def _labels(folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(ending) and not path.name.startswith(".")]
    return {path.name[: -len(ending)]: path for path in files}


def _require_partners(home: Path, cases: dict[str, Any], other: Path, partners: dict[str, Any], wanted: str) -> None:
    missing = [case for case in cases if case not in partners]
    if missing:
        raise DatasetLayoutError(
            f"{home}: {len(missing)} of {len(cases)} cases have no file in {other.name}/, such as "
            f"{', '.join(missing[:3])}. Add the files to {wanted}/, or take the cases out of {home.name}/."
        )
