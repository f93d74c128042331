"""DRIVE: blood vessels in photographs of the retina, 20 for training and 20 for testing.

Source: Staal et al. 2004, doi 10.1109/TMI.2004.825627; https://drive.grand-challenge.org.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from statefield.datasets.adapter import ADAPTERS, load_files, require_layout
from statefield.datasets.published import Parts, PublishedDataset, visible_files
from statefield.datasets.readers.image import read_mask
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.errors import ConfigError, DatasetLayoutError, ShapeError
from statefield.labels import UNLABELLED

_INFO = DatasetInfo(("background", "vessel"), ("red", "green", "blue"), spatial_dims=2)
_PICTURES = (".tif", ".tiff", ".png", ".gif")
_NUMBER = re.compile(r"^(\d+)_")


@dataclass(frozen=True)
class Drive(PublishedDataset):
    """The 40 photographs with vessels as class 1. Pixels outside the field of view are UNLABELLED, as every published
    score leaves them out. test/ is the test split; val is taken from training/ by case name and seed.

    fractions: 18 images to learn from and 2 to choose by, as there are only 20.
    annotator: whose tracing scores the test images, 1 or 2; training images have the first's only.
    """

    annotator: int = 1
    fractions: tuple[float, float, float] = field(default=(0.9, 0.1, 0.0), kw_only=True)

    name = "drive"
    about = About(
        title="DRIVE",
        task="retinal vessels, colour photographs 565 x 584",
        split="official test/ (20); val from training/ (20) by seed",
        labels="0/255 or 0/1, vessel 1; outside the field of view unlabelled; option annotator",
        terms="free for research with citation; registration at the source",
        source="Staal et al. 2004, doi 10.1109/TMI.2004.825627; drive.grand-challenge.org",
    )
    layout = (
        "DRIVE/\n"
        "|-- training/\n"
        "|   |-- images/         21_training.tif ... 40_training.tif      (or .png)\n"
        "|   |-- 1st_manual/     21_manual1.gif ...                      vessels\n"
        "|   `-- mask/           21_training_mask.gif ...                field of view\n"
        "`-- test/\n"
        "    |-- images/         01_test.tif ... 20_test.tif             (or .png)\n"
        "    |-- 1st_manual/     01_manual1.gif ...                      (without it the test images are unlabelled)\n"
        "    |-- 2nd_manual/     01_manual2.gif ...                      (for annotator 2)\n"
        "    `-- mask/           01_test_mask.gif ..."
    )

    def mismatch(self, root: Path) -> str | None:
        needed = ("training/images", "training/1st_manual", "training/mask")
        missing = [name for name in needed if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return _INFO

    def parts(self, root: Path) -> Parts:
        if self.annotator not in (1, 2):
            raise ConfigError(f"annotator = {self.annotator}: DRIVE has annotators 1 and 2.")
        train = _records(root / "training", "1st_manual")
        if (root / "test" / "1st_manual").is_dir():
            tracings = "1st_manual" if self.annotator == 1 else "2nd_manual"
            return Parts(train, test=_records(root / "test", tracings))
        return Parts(train, unlabelled=_records(root / "test", None) if (root / "test").is_dir() else ())

    def load(self, record: Record) -> Sample:
        sample = load_files(record.images, record.mask, case=record.case, info=record.info)
        if "mask" not in sample:
            return sample
        path = record.extra["field_of_view"]
        inside = read_mask(path, 2)
        if inside.shape != sample["mask"].shape:
            raise ShapeError(
                f"{path} is {inside.shape[0]} x {inside.shape[1]} pixels, but the labels {record.mask} are "
                f"{sample['mask'].shape[0]} x {sample['mask'].shape[1]}: a field of view of the same size is needed."
            )
        sample["mask"][inside == 0] = UNLABELLED
        return sample


ADAPTERS.register("drive")(Drive())


def _records(home: Path, labels: str | None) -> list[Record]:
    """The cases of training/ or test/, with the tracings in the folder `labels`; None: without."""
    images = _by_number(home / "images")
    tracings = _by_number(home / labels) if labels else {}
    views = _by_number(home / "mask") if labels else {}
    records = []
    for number, image in images.items():
        if labels and (number not in tracings or number not in views):
            where = home / (labels if number not in tracings else "mask")
            raise DatasetLayoutError(
                f"{where}: no file {number}_* for {image.name}; each image needs a tracing in {labels}/ and a field "
                "of view in mask/. Unpack the archive again."
            )
        extra = {"field_of_view": views[number]} if labels else {}
        records.append(Record(image.stem, (image,), tracings.get(number), _INFO, extra))
    return records


def _by_number(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by the number that their names begin with, sorted."""
    if not folder.is_dir():
        raise DatasetLayoutError(f"{folder}: not found; DRIVE has it. Unpack the archive again.")
    found: dict[str, Path] = {}
    for path in visible_files(folder):
        match = _NUMBER.match(path.name)
        if match is None or path.suffix.lower() not in _PICTURES:
            continue
        if match[1] in found:
            raise DatasetLayoutError(f"{folder}: {found[match[1]].name} and {path.name} are one case twice; keep one.")
        found[match[1]] = path
    return found
