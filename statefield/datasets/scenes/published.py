"""UC Merced, AID and NWPU-RESISC45: the three sets that papers on scene classification report on.

Sources: Yang and Newsam 2010, doi 10.1145/1869790.1869829; Xia et al. 2017, doi 10.1109/TGRS.2017.2685945; Cheng et al.
2017, doi 10.1109/JPROC.2017.2675998. Shares of the splits are those of RSMamba (Chen et al. 2024, arXiv 2403.19654),
whose lists of scenes are read where they lie beside the data.

RSMamba's authors choose the epoch on the scenes that they report on. Here a tenth of the training scenes is set apart
for that instead, and the test scenes are looked at once. So training sees a tenth less than the paper's did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from statefield.datasets.adapter import require_layout
from statefield.datasets.sample import About, DatasetInfo
from statefield.datasets.scenes.adapter import SCENE_SETS
from statefield.datasets.scenes.folders import SceneFolders, class_names
from statefield.datasets.splits import Split
from statefield.errors import ConfigError

logger = logging.getLogger(__name__)

_COLOURS = ("red", "green", "blue")
_NEARLY = 0.8  # with so many of a set's classes, a folder is meant to be it

# the classes of each set, in the order of RSMamba's code
_UC_MERCED = """
    harbor parkinglot buildings mediumresidential sparseresidential forest agricultural overpass golfcourse
    freeway baseballdiamond beach intersection runway mobilehomepark chaparral airplane river storagetanks
    tenniscourt denseresidential
"""
_AID = """
    Port Square River Pond Playground Mountain Park Airport SparseResidential Stadium Industrial Church
    DenseResidential Parking Farmland Desert Viaduct Forest StorageTanks Center Meadow MediumResidential School
    BareLand Commercial BaseballField RailwayStation Resort Bridge Beach
"""
_RESISC45 = """
    river terrace snowberg stadium parking_lot thermal_power_station rectangular_farmland cloud intersection
    meadow palace ground_track_field commercial_area beach church baseball_diamond ship industrial_area bridge
    freeway medium_residential circular_farmland mobile_home_park railway forest sparse_residential harbor
    wetland mountain airport golf_course overpass dense_residential chaparral basketball_court airplane
    tennis_court runway storage_tank island railway_station lake sea_ice desert roundabout
"""


@dataclass(frozen=True)
class PublishedScenes(SceneFolders):
    """The base of the three: RGB pictures in a folder for each class of a closed list.

    class_order: "name" numbers the classes by name; "rsmamba" as the authors' checkpoints do, whose classifier fits no
        other order.
    """

    class_order: Literal["name", "rsmamba"] = field(default="name", kw_only=True)

    classes: ClassVar[tuple[str, ...]]  # in the order of RSMamba's code
    inner: ClassVar[tuple[str, ...]]  # where the archive has the folders of the classes

    def mismatch(self, root: Path) -> str | None:
        if self.class_order not in ("name", "rsmamba"):
            raise ConfigError(f"class_order = {self.class_order!r}: 'name' or 'rsmamba' is needed.")
        home = self.homes(root)["train"]
        there = set(class_names(home))
        missing = sorted(set(self.classes) - there)
        if missing:
            if len(there & set(self.classes)) >= _NEARLY * len(self.classes):
                _tell_of_missing(home, self.about.title, tuple(missing))
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            return f"there is no folder of the class {', '.join(missing[:3])}{more}"
        unknown = sorted(there - set(self.classes))
        return f"{', '.join(unknown[:3])} is no class of it" if unknown else None

    def describe(self, root: Path | None) -> DatasetInfo:
        require_layout(self, root)
        return DatasetInfo(self.classes if self.class_order == "rsmamba" else tuple(sorted(self.classes)), _COLOURS, 2)

    def homes(self, root: Path) -> dict[Split, Path]:
        places = [root, *(root / name for name in self.inner)]
        return {"train": max(places, key=lambda place: len(set(class_names(place)) & set(self.classes)))}

    def meaning(self, lists: Mapping[Split, Path]) -> dict[Split, Path]:
        """With train.txt and val.txt alone, which is how RSMamba's lists come, val.txt has the scenes of the test."""
        if "val" in lists and "test" not in lists:
            return {"train": lists["train"], "test": lists["val"]}
        return dict(lists)


@dataclass(frozen=True)
class UCMerced(PublishedScenes):
    """2100 scenes, 100 of each class; 44 of them are not 256 x 256."""

    fractions: tuple[float, float, float] = field(default=(0.63, 0.07, 0.3), kw_only=True)

    name = "uc_merced"
    about = About(
        title="UC Merced Land Use",
        task="21 classes of land, aerial, 2100 scenes about 256 x 256, 0.3 m",
        split="lists of scenes where they are; else by seed 63 / 7 / 30 % of each class (RSMamba: 70 / 30)",
        labels="the name of the folder",
        terms="imagery of the U.S. Geological Survey, public domain; see the source",
        source="Yang and Newsam 2010, doi 10.1145/1869790.1869829; weegee.vision.ucmerced.edu/datasets",
    )
    layout = (
        "UCMerced_LandUse/\n"
        "`-- Images/             (or this folder itself)\n"
        "    |-- agricultural/   agricultural00.tif ... agricultural99.tif\n"
        "    `-- ...             21 classes\n"
        "(optional: train.txt with test.txt or, as RSMamba has them, val.txt, here or in Images/: CLASS/FILE a line)"
    )
    inner = ("Images", "UCMerced_LandUse/Images")
    classes = tuple(_UC_MERCED.split())


@dataclass(frozen=True)
class Aid(PublishedScenes):
    """10000 scenes of 600 x 600 pixels, 220 to 420 of each class."""

    fractions: tuple[float, float, float] = field(default=(0.45, 0.05, 0.5), kw_only=True)

    name = "aid"
    about = About(
        title="AID",
        task="30 classes of scenes, Google Earth, 10000 scenes 600 x 600, 0.5 to 8 m",
        split="lists of scenes where they are; else by seed 45 / 5 / 50 % of each class (RSMamba: 50 / 50)",
        labels="the name of the folder",
        terms="for research; see the source",
        source="Xia et al. 2017, doi 10.1109/TGRS.2017.2685945; captain-whu.github.io/AID",
    )
    layout = (
        "AID/                    (or the folder above it)\n"
        "|-- Airport/            airport_1.jpg ...\n"
        "`-- ...                 30 classes\n"
        "(optional: train.txt with test.txt or, as RSMamba has them, val.txt: CLASS/FILE a line)"
    )
    inner = ("AID", "AID_dataset/AID")
    classes = tuple(_AID.split())


@dataclass(frozen=True)
class Resisc45(PublishedScenes):
    """31500 scenes of 256 x 256 pixels, 700 of each class."""

    fractions: tuple[float, float, float] = field(default=(0.63, 0.07, 0.3), kw_only=True)

    name = "resisc45"
    about = About(
        title="NWPU-RESISC45",
        task="45 classes of scenes, Google Earth, 31500 scenes 256 x 256, 0.2 to 30 m",
        split="lists of scenes where they are; else by seed 63 / 7 / 30 % of each class (RSMamba: 70 / 30)",
        labels="the name of the folder",
        terms="for research; see the source",
        source="Cheng et al. 2017, doi 10.1109/JPROC.2017.2675998",
    )
    layout = (
        "NWPU-RESISC45/          (or the folder above it)\n"
        "|-- airplane/           airplane_001.jpg ... airplane_700.jpg\n"
        "`-- ...                 45 classes\n"
        "(optional: train.txt with test.txt or, as RSMamba has them, val.txt: CLASS/FILE a line)"
    )
    inner = ("NWPU-RESISC45",)
    classes = tuple(_RESISC45.split())


for _set in (UCMerced(), Aid(), Resisc45()):
    SCENE_SETS.register(_set.name)(_set)


@lru_cache(maxsize=64)  # once a folder
def _tell_of_missing(home: Path, title: str, missing: tuple[str, ...]) -> None:
    logger.warning(
        "%s: it has the folders of %s but for %s; it is read as folders of any classes, with another split, unless "
        "they are added",
        home,
        title,
        ", ".join(missing),
    )
