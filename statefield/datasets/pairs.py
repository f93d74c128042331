"""Pairs: a folder of images beside a folder of masks, the simplest layout there is; pictures or NIfTI volumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from statefield.datasets.adapter import ADAPTERS, case_name, load_files, require_cases, require_layout, require_split
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, grouped_by, split_cases
from statefield.errors import ConfigError, DatasetLayoutError, LabelError
from statefield.files import read_text

logger = logging.getLogger(__name__)

CLASSES_FILE = "classes.txt"
_SUFFIXES = (*nifti.SUFFIXES, *image_reader.SUFFIXES)
_MASK_FOLDERS = ("masks", "labels")
_MASK_ENDINGS = ("", "_mask", "_label", "_labels", "_seg", "_segmentation", "_gt")
_MOST_CLASSES_GUESSED = 64  # more distinct values than this look like a soft or resampled mask


@dataclass(frozen=True)
class Pairs:
    """images/ and masks/ (or labels/), matched by name, once at the top or once in each of train/, val/, test/.

    classes: names by label value; () reads classes.txt, or else counts the values in the masks.
    fractions, seed: the split where there are no split folders (and of train/ into train and val where val/ is absent).
    group_pattern: a regular expression whose first group is the patient in a case's name, to keep patients together.
    """

    classes: tuple[str, ...] = ()
    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0
    group_pattern: str = ""

    name = "pairs"
    embedded = False
    about = About(
        title="Pairs of images and masks",
        task="any, pictures or volumes",
        split="train/, val/, test/ where they are; else by seed",
        labels="0, 1, 2, ... or 0/255; names in classes.txt",
        terms="your own",
        source="your own",
    )
    layout = (
        "DATASET/\n"
        "|-- images/             a.png b.jpg ...    or a.nii.gz ...\n"
        "|-- masks/ (or labels/) a.png b_mask.png   label values 0, 1, 2, ...; 0/255 when there are two classes\n"
        "`-- classes.txt         (optional) one class name a line, the first for value 0\n"
        "or, with an official split:\n"
        "DATASET/\n"
        "|-- train/{images,masks}/\n"
        "|-- val/{images,masks}/       (optional: else taken from train)\n"
        "|-- test/{images,masks}/      (optional)\n"
        "|-- unlabelled/images/        (optional)\n"
        "`-- classes.txt               (optional)"
    )

    def mismatch(self, root: Path) -> str | None:
        top = (root / "images").is_dir()
        split = (root / "train" / "images").is_dir()
        if not top and not split:
            return "there is neither images/ nor train/images/"
        if top and split:
            return "there is both images/ and train/images/; only one can be the data"
        home = root if top else root / "train"
        masks = [name for name in _MASK_FOLDERS if (home / name).is_dir()]
        if len(masks) == 1:
            return None
        where = "images/" if top else "train/images/"
        return f"there is {'both' if masks else 'neither'} masks/ {'and' if masks else 'nor'} labels/ beside {where}"

    def describe(self, root: Path | None) -> DatasetInfo:
        root = require_layout(self, root)
        found = {name: _pair_up(home) for name, home in _homes(root).items()}
        pairs = [pair for part in found.values() for pair in part]
        if not pairs:
            raise DatasetLayoutError(f"{root}: no image found; files ending in {', '.join(_SUFFIXES)} are needed.")
        first = pairs[0][1]
        if first.name.endswith(nifti.SUFFIXES):
            num_channels, spatial_dims = nifti.num_channels_of(first), 3
            channels = ("image",) if num_channels == 1 else tuple(f"channel_{i}" for i in range(num_channels))
        else:
            channels, spatial_dims = image_reader.channel_names(image_reader.num_channels_of(first)), 2
        return DatasetInfo(self._classes(root, [mask for _, _, mask in pairs if mask]), channels, spatial_dims)

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        info = self.describe(root)
        homes = _homes(root)
        if split == "unlabelled":
            pairs = [pair for name, home in homes.items() for pair in _pair_up(home) if name == split or not pair[2]]
            reason = "images without masks belong in unlabelled/images/ (or test/images/ without test/masks/)."
        elif "all" in homes or (split in ("train", "val") and "val" not in homes):
            pairs = self._own_split(
                _pair_up(homes.get("all", homes.get("train", root))), split, official_test="all" not in homes
            )
            reason = f"there are too few cases for shares of {self.fractions} (train, val, test)."
        else:
            pairs = [pair for pair in _pair_up(homes[split]) if pair[2]] if split in homes else []
            reason = f"there is no {split}/images/ with {split}/masks/."
        group_of = grouped_by(self.group_pattern)
        records = [Record(case, (image,), mask, info, group=group_of(case)) for case, image, mask in pairs]
        return require_cases(records, split, root, reason)

    def load(self, record: Record) -> Sample:
        return load_files(record.images, record.mask, case=record.case, info=record.info)

    def _own_split(self, pairs: list[_Pair], split: Split, *, official_test: bool) -> list[_Pair]:
        fractions = self.fractions
        if official_test:  # test/ is given, so train and val share the rest in their proportion
            rest = fractions[0] + fractions[1]
            fractions = (fractions[0] / rest, fractions[1] / rest, 0.0) if rest > 0 else (1.0, 0.0, 0.0)
        parts = split_cases(
            [pair[0] for pair in pairs], fractions=fractions, seed=self.seed, group_of=grouped_by(self.group_pattern)
        )
        chosen = set(parts[split])
        return [pair for pair in pairs if pair[0] in chosen]

    def _classes(self, root: Path, masks: Sequence[Path]) -> tuple[str, ...]:
        if self.classes:
            return tuple(self.classes)
        declared = root / CLASSES_FILE
        if declared.is_file():
            names = tuple(line.strip() for line in read_text(declared).splitlines() if line.strip())
            if len(names) < 2 or len(set(names)) < len(names):
                raise ConfigError(f"{declared}: {len(names)} lines found; two or more distinct class names are needed.")
            return names
        return _classes_from_values(root, tuple((mask, mask.stat().st_mtime_ns) for mask in masks))


ADAPTERS.register("pairs")(Pairs())

_Pair = tuple[str, Path, Path | None]  # case, image, mask


def _homes(root: Path) -> dict[str, Path]:
    """The folders that hold images/: "all" for the top, or one per split."""
    if (root / "images").is_dir():
        homes = {"all": root}
        names: tuple[str, ...] = ("unlabelled",)
    else:
        homes, names = {}, ("train", "val", "test", "unlabelled")
    return homes | {name: root / name for name in names if (root / name / "images").is_dir()}


def _mask_folder(home: Path) -> Path | None:
    found = [home / name for name in _MASK_FOLDERS if (home / name).is_dir()]
    if len(found) > 1:
        raise DatasetLayoutError(f"{home}: both masks/ and labels/ found; keep the one that holds the label values.")
    return found[0] if found else None


def _pair_up(home: Path) -> list[_Pair]:
    """Every image of one folder with its mask, by name; without a mask folder, every mask is None."""
    images = _by_case(home / "images")
    folder = _mask_folder(home)
    if folder is None:
        return [(case, image, None) for case, image in images.items()]
    masks = _by_case(folder)
    pairs: list[_Pair] = []
    for case, image in images.items():
        found = [masks[case + ending] for ending in _MASK_ENDINGS if case + ending in masks]
        if len(found) > 1:
            raise DatasetLayoutError(
                f"{image}: two masks fit, {found[0].name} and {found[1].name} in {folder}; keep one."
            )
        pairs.append((case, image, found[0] if found else None))
    without = [image.name for _, image, mask in pairs if mask is None]
    if without:
        raise DatasetLayoutError(
            f"{folder}: {len(without)} of {len(pairs)} images have no mask of the same name, such as "
            f"{', '.join(without[:3])}. Add the masks, or move these images to unlabelled/images/ at the top of the "
            "dataset."
        )
    used = {mask for _, _, mask in pairs}
    unused = [mask.name for mask in masks.values() if mask not in used]
    if unused:
        raise DatasetLayoutError(
            f"{folder}: {len(unused)} masks have no image of the same name in {home / 'images'}, such as "
            f"{', '.join(unused[:3])}. Add the images, or take the masks away."
        )
    jpeg = [mask.name for mask in masks.values() if mask.suffix.lower() in (".jpg", ".jpeg")]
    if jpeg:
        raise DatasetLayoutError(
            f"{folder}: JPEG masks found ({', '.join(jpeg[:3])}), whose compression changes label values; PNG or "
            "another lossless format is needed."
        )
    return pairs


def _by_case(folder: Path) -> dict[str, Path]:
    """The images of a folder by case name, sorted; hidden files (and macOS' ._ twins) are left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(_SUFFIXES):
            continue
        case = case_name(path)
        if case in found:
            raise DatasetLayoutError(f"{folder}: {found[case].name} and {path.name} name the same case; keep one.")
        found[case] = path
    volumes = [path for path in found.values() if path.name.lower().endswith(nifti.SUFFIXES)]
    if volumes and len(volumes) < len(found):
        raise DatasetLayoutError(f"{folder}: NIfTI volumes and pictures are mixed; one kind is needed.")
    return found


@lru_cache(maxsize=16)
def _classes_from_values(root: Path, masks: tuple[tuple[Path, int], ...]) -> tuple[str, ...]:
    """Class names made from the values in every mask; keyed by the files' times: a changed mask is read again."""
    logger.info("%s: reading %d masks to count the classes; write %s to spare this", root, len(masks), CLASSES_FILE)
    values = [_values(path) for path, _ in masks]
    union = set().union(*values)
    if all(found <= {0, 1} or found <= {0, 255} for found in values):
        union = {1 if value == 255 else value for value in union}
    advice = f"declare the classes in {root / CLASSES_FILE}, one name a line, or correct the masks."
    if max(union) == 0:
        raise LabelError(f"{root}: the {len(masks)} masks hold nothing but 0; {advice}")
    expected = set(range(max(union) + 1))
    if len(union) > _MOST_CLASSES_GUESSED:
        raise LabelError(f"{root}: {len(union)} distinct label values found, as in a soft or resampled mask; {advice}")
    if max(union) > _MOST_CLASSES_GUESSED or not expected - {0} <= union:
        example = next(path for (path, _), found in zip(masks, values, strict=True) if max(union) in found)
        raise LabelError(
            f"{root}: the masks hold the values {sorted(union)} ({max(union)} in {example.name}), which leave gaps; "
            f"0, 1, 2, ... are needed: {advice}"
        )
    return (
        ("background", "foreground")
        if max(union) == 1
        else ("background", *(f"class_{i}" for i in range(1, max(union) + 1)))
    )


def _values(path: Path) -> set[int]:
    if path.name.lower().endswith(nifti.SUFFIXES):
        return {int(value) for value in np.unique(nifti.read_labels(path).array)}
    return {int(value) for value in image_reader.mask_values(path)}
