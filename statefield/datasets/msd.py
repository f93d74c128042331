"""Medical Segmentation Decathlon: `dataset.json` lists every case; several modalities are the fourth axis of one file.

Source: Antonelli et al. 2022, doi 10.1038/s41467-022-30695-9; http://medicaldecathlon.com.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.datasets.adapter import ADAPTERS, case_name, load_files, require_cases, require_layout, require_split
from statefield.datasets.description import DESCRIPTION, inside, names_by_number, read_description
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, grouped_by, split_cases
from statefield.errors import DatasetLayoutError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Msd:
    """A task folder of the Decathlon. Its test cases have no public labels, so all three labelled splits come from
    the training list, by case name and seed; the published test images are the split "unlabelled".
    """

    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0
    group_pattern: str = ""

    name = "msd"
    embedded = False
    about = About(
        title="Medical Segmentation Decathlon",
        task="ten tasks, CT and MR",
        split="by seed; the published test images have no labels",
        labels="named in dataset.json",
        terms="CC BY-SA 4.0",
        source="Antonelli et al. 2022, doi 10.1038/s41467-022-30695-9; medicaldecathlon.com",
    )
    layout = (
        "Task09_Spleen/\n"
        '|-- dataset.json        "training": [{"image", "label"}], "test": [...], "labels": {"0": "background", ...},\n'
        '|                       "modality": {"0": "CT"}, "numTraining", "numTest"\n'
        "|-- imagesTr/           spleen_2.nii.gz ...   3-D, or 4-D with one modality a step of the last axis\n"
        "|-- labelsTr/           spleen_2.nii.gz ...\n"
        "`-- imagesTs/           spleen_1.nii.gz ..."
    )

    def mismatch(self, root: Path) -> str | None:
        if not (root / DESCRIPTION).is_file():
            return f"there is no {DESCRIPTION}"
        try:
            content = read_description(root)
        except DatasetLayoutError as error:
            return str(error)
        missing = [key for key in ("training", "labels", "modality") if key not in content]
        if missing:
            return f"{DESCRIPTION} has no {', '.join(missing)}"
        if is_nnunet_version_1(root, content):
            return "the images are named CASE_0000, one file a channel, as nnU-Net has them"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        root = require_layout(self, root)
        content = read_description(root)
        path = root / DESCRIPTION
        return DatasetInfo(
            names_by_number(path, "labels", content["labels"]),
            names_by_number(path, "modality", content["modality"]),
            spatial_dims=3,
        )

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        content, info = read_description(root), self.describe(root)
        if split == "unlabelled":
            records = [Record(case, (image,), None, info) for case, image in _test_images(root, content)]
            return require_cases(records, split, root, f'"test" in {DESCRIPTION} is empty.')
        pairs = _training_pairs(root, content)
        group_of = grouped_by(self.group_pattern)
        chosen = split_cases(list(pairs), fractions=self.fractions, seed=self.seed, group_of=group_of)[split]
        records = [Record(case, (pairs[case][0],), pairs[case][1], info, group=group_of(case)) for case in chosen]
        return require_cases(records, split, root, f"{len(pairs)} labelled cases, shares {self.fractions}.")

    def load(self, record: Record) -> Sample:
        return load_files(record.images, record.mask, case=record.case, info=record.info)


ADAPTERS.register("msd")(Msd())


def is_nnunet_version_1(root: Path, content: dict[str, Any]) -> bool:
    """True for nnU-Net's first layout: MSD's description, but a file for each channel (CASE_0000.nii.gz)."""
    training = content.get("training")
    if not isinstance(training, list) or not training or not isinstance(training[0], dict):
        return False
    image = training[0].get("image")
    if not isinstance(image, str) or (root / image).is_file():
        return False
    return any((root / "imagesTr").glob(f"{case_name(image)}_0000.*"))


def _training_pairs(root: Path, content: dict[str, Any]) -> dict[str, tuple[Path, Path]]:
    path = root / DESCRIPTION
    entries = content["training"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) and {"image", "label"} <= set(e) for e in entries):
        raise DatasetLayoutError(f'{path}: "training" must be a list of {{"image": ..., "label": ...}}.')
    pairs: dict[str, tuple[Path, Path]] = {}
    for entry in entries:
        image, label = inside(root, path, entry["image"]), inside(root, path, entry["label"])
        if image.name.startswith("._"):  # the archives carry macOS' resource forks
            continue
        case = case_name(image)
        if case in pairs:
            raise DatasetLayoutError(f"{path}: the case {case!r} is listed twice in training; list it once.")
        pairs[case] = (image, label)
    _require_files(path, [file for pair in pairs.values() for file in pair])
    _compare_count(path, content, "numTraining", len(pairs))
    return pairs


def _test_images(root: Path, content: dict[str, Any]) -> list[tuple[str, Path]]:
    path = root / DESCRIPTION
    entries = content.get("test", [])
    if not isinstance(entries, list):
        raise DatasetLayoutError(f'{path}: "test" must be a list of files.')
    # most tasks list names, some list {"image": name}
    images = [inside(root, path, entry.get("image") if isinstance(entry, dict) else entry) for entry in entries]
    images = [image for image in images if not image.name.startswith("._")]
    _require_files(path, images)
    _compare_count(path, content, "numTest", len(images))
    return sorted((case_name(image), image) for image in images)


def _require_files(path: Path, files: list[Path]) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetLayoutError(
            f"{path}: {len(missing)} of the {len(files)} files it lists are not there, such as {missing[0]}. Unpack "
            "the archive again, or take the cases out of the list."
        )


def _compare_count(path: Path, content: dict[str, Any], key: str, count: int) -> None:
    declared = content.get(key)
    if isinstance(declared, int) and declared != count:
        logger.warning("%s: %s is %d, but %d cases are listed; the list is used", path, key, declared, count)
