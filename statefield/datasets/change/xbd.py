"""xBD: buildings before a disaster, and how badly each was hit; the set of the xView2 challenge.

Source: Gupta et al. 2019, arXiv 1911.09296.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from statefield.datasets.adapter import require_layout
from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import pictures
from statefield.datasets.change.reading import load_pair, num_channels_of
from statefield.datasets.published import DividedDataset, Parts
from statefield.datasets.readers.image import channel_names
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record
from statefield.errors import DatasetLayoutError

CLASSES = ("background", "no damage", "minor damage", "major damage", "destroyed")
_MASKS = ("targets", "masks")
_PARTS = {"train": ("train", "tier3"), "val": ("hold",), "test": ("test",)}
_CROP = re.compile(r"(.+_pre_disaster_\d+)_\d+$")  # of a scene that was cut


@dataclass(frozen=True)
class Xbd(DividedDataset):
    """Pairs of 1024 x 1024 pixels, or crops of them; crops of one scene never part."""

    name = "xbd"
    about = About(
        title="xBD",
        task="buildings and their damage after 19 disasters, satellite, 11034 pairs 1024 x 1024",
        split="official folders: train and tier3, hold as val, test",
        labels="pre: building 1; post: damage 1 to 4",
        terms="CC BY-NC-SA 4.0; registration at the source",
        source="Gupta et al. 2019, arXiv 1911.09296; xview2.org",
    )
    layout = (
        "xBD/\n"
        "|-- train/\n"
        "|   |-- images/   guatemala-volcano_00000000_pre_disaster.png, ..._post_disaster.png\n"
        "|   `-- targets/  guatemala-volcano_00000000_pre_disaster_target.png, ..._post_disaster_target.png\n"
        "|-- tier3/  hold/  test/{images,targets}/   (each optional; targets/ may be called masks/, and its files\n"
        "|                                           be named as the images)"
    )

    def mismatch(self, root: Path) -> str | None:
        home = root / "train"
        if not (home / "images").is_dir() or _mask_folder(home) is None:
            return "there is no train/images/ with train/targets/ (or masks/)"
        if not any("_pre_disaster" in name for name in pictures(home / "images")):
            return "no file of train/images/ is named ..._pre_disaster..."
        return None

    def describe(self, root: Path | None) -> ChangeInfo:
        root = require_layout(self, root)
        first = next(path for name, path in pictures(root / "train" / "images").items() if "_pre_disaster" in name)
        return ChangeInfo(CLASSES, channel_names(num_channels_of(first)), 2, before_classes=("background", "building"))

    def parts(self, root: Path) -> Parts:
        info = self.describe(root)
        found = {
            part: [record for name in names for record in _records(root / name, info)] for part, names in _PARTS.items()
        }
        labelled = {part: [r for r in records if r.mask] for part, records in found.items()}
        return Parts(**labelled, unlabelled=[r for records in found.values() for r in records if not r.mask])

    def load(self, record: Record) -> ChangeSample:
        return load_pair(record)


CHANGE_ADAPTERS.register("xbd")(Xbd())


def _mask_folder(home: Path) -> Path | None:
    return next((home / name for name in _MASKS if (home / name).is_dir()), None)


def _records(home: Path, info: ChangeInfo) -> list[Record]:
    if not (home / "images").is_dir():
        return []
    images, folder = pictures(home / "images"), _mask_folder(home)
    masks = pictures(folder) if folder else {}
    records = []
    for name, image in images.items():
        if "_pre_disaster" not in name:
            continue
        later = name.replace("_pre_disaster", "_post_disaster")
        if later not in images:
            raise DatasetLayoutError(f"{home / 'images'}: no {later}, the second date of {image.name}.")
        building, damage = (masks.get(f"{stem}_target", masks.get(stem)) for stem in (name, later))
        if (building is None) != (damage is None) or (folder and building is None):
            raise DatasetLayoutError(f"{folder}: {image.name} needs two masks, of before and of after the disaster.")
        crop = _CROP.match(name)
        records.append(
            Record(
                name.replace("_pre_disaster", ""),
                (image,),
                damage,
                info,
                group=crop[1].replace("_pre_disaster", "") if crop else "",
                after=(images[later],),
                before_mask=building,
            )
        )
    return records
