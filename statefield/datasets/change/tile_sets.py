"""Published sets of image pairs cut into pictures: LEVIR-CD, LEVIR-CD+, SYSU-CD, CDD and DSIFN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import Folders, PairFolders, named_as_levir
from statefield.datasets.change.reading import load_pair, read_blurred_labels
from statefield.datasets.published import Parts
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record


@dataclass(frozen=True)
class LevirCd(PairFolders):
    """637 pairs of 1024 x 1024 pixels."""

    name = "levir_cd"
    about = About(
        title="LEVIR-CD",
        task="buildings that came or went, Google Earth, 637 pairs 1024 x 1024, 0.5 m",
        split="official folders: 445 / 64 / 128",
        labels="0/255, changed 1",
        terms="academic use only",
        source="Chen and Shi 2020, doi 10.3390/rs12101662; justchenhao.github.io/LEVIR",
    )
    layout = (
        "LEVIR-CD/\n"
        "|-- train/{A,B,label}/  train_1.png ...\n"
        "|-- val/{A,B,label}/    val_1.png ...\n"
        "`-- test/{A,B,label}/   test_1.png ..."
    )
    forms = (Folders("A", "B", "label"),)
    needed = ("train", "val")

    def mismatch(self, root: Path) -> str | None:
        reason = super().mismatch(root)
        if reason is None and not named_as_levir(root / "train" / "A"):
            return "the files of train/A/ are not named train_1.png, ..."
        return reason


@dataclass(frozen=True)
class LevirCdPlus(PairFolders):
    """985 pairs of 1024 x 1024 pixels; LEVIR-CD and more, without a val/ of its own."""

    name = "levir_cd_plus"
    about = About(
        title="LEVIR-CD+",
        task="buildings that came or went, Google Earth, 985 pairs 1024 x 1024, 0.5 m",
        split="official folders: 637 / 348; val from train by seed",
        labels="0/255, changed 1",
        terms="academic use only",
        source="Shen et al. 2021, doi 10.3390/rs13245094; github.com/S2Looking/Dataset",
    )
    layout = "LEVIR-CD+/\n|-- train/{A,B,label}/  train_1.png ...\n`-- test/{A,B,label}/   train_638.png ..."
    forms = (Folders("A", "B", "label"),)
    split_folders: ClassVar[Mapping[str, tuple[str, ...]]] = {"train": ("train",), "test": ("test",)}
    needed = ("train", "test")

    def mismatch(self, root: Path) -> str | None:
        reason = super().mismatch(root)
        if reason is None and (root / "val").is_dir():
            return "there is a val/, as LEVIR-CD has it"
        if reason is None and not named_as_levir(root / "train" / "A"):
            return "the files of train/A/ are not named train_1.png, ..."
        return reason


@dataclass(frozen=True)
class SysuCd(PairFolders):
    """20000 pairs of 256 x 256 pixels; every split is numbered from 0."""

    name = "sysu_cd"
    about = About(
        title="SYSU-CD",
        task="changes of cities, vegetation, roads and sea, aerial, 20000 pairs 256 x 256, 0.5 m",
        split="official folders: 12000 / 4000 / 4000",
        labels="0/255, changed 1",
        terms="for research; see the source",
        source="Shi et al. 2022, doi 10.1109/TGRS.2021.3085870; github.com/liumency/SYSU-CD",
    )
    layout = (
        "SYSU-CD/\n"
        "|-- train/{time1,time2,label}/  00000.png ...\n"
        "|-- val/{time1,time2,label}/    00000.png ...\n"
        "`-- test/{time1,time2,label}/   00000.png ..."
    )
    forms = (Folders("time1", "time2", "label"),)


@dataclass(frozen=True)
class Cdd(PairFolders):
    """16000 pairs of 256 x 256 pixels, changes of the season left out; its masks are JPEG."""

    name = "cdd"
    about = About(
        title="CDD, season-varying",
        task="changes but those of the season, Google Earth, 16000 pairs 256 x 256, 0.03 to 1 m",
        split="official folders: 10000 / 3000 / 3000",
        labels="0/255 as JPEG, cut at 128, changed 1; far values are refused",
        terms="see the source",
        source="Lebedev et al. 2018, doi 10.5194/isprs-archives-XLII-2-565-2018",
    )
    layout = (
        "ChangeDetectionDataset/Real/subset/\n"
        "|-- train/{A,B,OUT}/  00000.jpg ...\n"
        "|-- val/{A,B,OUT}/    00000.jpg ...\n"
        "`-- test/{A,B,OUT}/   00000.jpg ..."
    )
    forms = (Folders("A", "B", "OUT"),)

    def mismatch(self, root: Path) -> str | None:
        return super().mismatch(_subset(root))

    def describe(self, root: Path | None) -> ChangeInfo:
        return super().describe(root if root is None else _subset(root))

    def parts(self, root: Path) -> Parts:
        return super().parts(_subset(root))

    def load(self, record: Record) -> ChangeSample:
        return load_pair(record, read_blurred_labels)


@dataclass(frozen=True)
class Dsifn(PairFolders):
    """Pairs of 512 x 512 pixels of six Chinese cities; test is a city of its own."""

    name = "dsifn"
    about = About(
        title="DSIFN",
        task="changes of six Chinese cities, Google Earth, 3988 pairs 512 x 512, 2 m",
        split="official folders: 3600 / 340 / 48, test is a city of its own",
        labels="0/255 or 0/1, changed 1",
        terms="for research; see the source",
        source="Zhang et al. 2020, doi 10.1016/j.isprsjprs.2020.06.003; github.com/GeoZcx, IFN",
    )
    layout = (
        "DSIFN/\n"
        "|-- train/{t1,t2,mask}/  0_0.jpg ... in t1/ and t2/, 0_0.png ... in mask/\n"
        "|-- val/{t1,t2,mask}/    0.jpg ..., 0.png ...\n"
        "`-- test/{t1,t2,mask}/   0.jpg ..., 0.tif ..."
    )
    forms = (Folders("t1", "t2", "mask"),)


for _adapter in (LevirCd(), LevirCdPlus(), SysuCd(), Cdd(), Dsifn()):
    CHANGE_ADAPTERS.register(_adapter.name)(_adapter)


def _subset(root: Path) -> Path:
    """The folder of the splits: `root`, or where the archive has it."""
    inner = (root, root / "Real" / "subset", root / "ChangeDetectionDataset" / "Real" / "subset")
    return next((home for home in inner if (home / "train").is_dir()), root)
