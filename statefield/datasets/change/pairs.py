"""Folders of first images, second images and masks, matched by name: the form that most sets of image pairs share."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from statefield.datasets.adapter import case_name, require_layout
from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.reading import SUFFIXES, load_pair, num_channels_of
from statefield.datasets.published import DividedDataset, Parts, visible_files
from statefield.datasets.readers.image import channel_names
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record
from statefield.datasets.splits import grouped_by
from statefield.errors import DatasetLayoutError
from statefield.files import read_text

logger = logging.getLogger(__name__)

CLASSES = ("unchanged", "changed")
LEVIR_NAME = re.compile(r"(train|val|test)_\d+(_|$)")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Folders:
    """The names of the folders: first images, second images, masks of change; masks of each date, where there are."""

    before: str
    after: str
    mask: str | None
    before_mask: str | None = None
    after_mask: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every folder that has to be there."""
        return tuple(name for name in (self.before, self.after, self.mask, self.before_mask, self.after_mask) if name)

    def are_in(self, home: Path) -> bool:
        """Whether `home` holds them all."""
        return all((home / name).is_dir() for name in self.names)

    def __str__(self) -> str:
        return ", ".join(f"{name}/" for name in self.names)


@dataclass(frozen=True)
class PairFolders(DividedDataset):
    """The base of layouts in which a split is a folder of such folders.

    forms: the folders, in the spellings that are in use. split_folders: by part of `Parts`. needed: the folders that
    have to be there. all_labelled: a pair without its mask is an error, else it is an unlabelled case.
    """

    forms: ClassVar[tuple[Folders, ...]]
    split_folders: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in _SPLITS}
    needed: ClassVar[tuple[str, ...]] = ("train",)
    all_labelled: ClassVar[bool] = True

    def mismatch(self, root: Path) -> str | None:
        for name in self.needed:
            if not any(form.are_in(root / name) for form in self.forms):
                return f"there is no {name}/ with {' or '.join(map(str, self.forms))}"
        return None

    def describe(self, root: Path | None) -> ChangeInfo:
        root = require_layout(self, root)
        for home, form in self._homes(root).values():
            for path in pictures(home / form.before).values():
                return ChangeInfo(CLASSES, channel_names(num_channels_of(path)), 2)
        raise DatasetLayoutError(f"{root}: no image found; files ending in {', '.join(SUFFIXES)} are needed.")

    def parts(self, root: Path) -> Parts:
        info, homes = self.describe(root), self._homes(root)
        found = {name: self._matched(home, form, info) for name, (home, form) in homes.items()}
        cases = [record.case for records in found.values() for record in records]
        if len(set(cases)) < len(cases):  # such as SYSU-CD, which numbers every split from 0
            found = {
                name: [replace(record, case=f"{name}_{record.case}") for record in records]
                for name, records in found.items()
            }
        parts: dict[str, list[Record]] = {
            part: [record for name in names for record in found.get(name, ()) if record.mask or record.before_mask]
            for part, names in self.split_folders.items()
        }
        without = [record for records in found.values() for record in records if not record.mask]
        return Parts(**parts, unlabelled=[record for record in without if not record.before_mask])

    def load(self, record: Record) -> ChangeSample:
        return load_pair(record)

    def _homes(self, root: Path) -> dict[str, tuple[Path, Folders]]:
        """The split folders that are there, and which form each has."""
        homes = {}
        for name in (name for names in self.split_folders.values() for name in names):
            form = next((form for form in self.forms if form.are_in(root / name)), None)
            if form is not None:
                homes[name] = (root / name, form)
            elif (root / name).is_dir():
                raise DatasetLayoutError(
                    f"{root / name}: it has not {' or '.join(map(str, self.forms))}, as {self.name} has it. Unpack "
                    "the archive again, or take the folder away."
                )
        return homes

    def _matched(self, home: Path, form: Folders, info: ChangeInfo) -> list[Record]:
        """Every pair of one home with its masks, by name."""
        found = {name: pictures(home / name) for name in form.names}
        first = found[form.before]
        for name, files in found.items():
            missing = [path.name for case, path in first.items() if case not in files]
            if missing and (self.all_labelled or name != form.mask):
                raise DatasetLayoutError(
                    f"{home / name}: {len(missing)} of {len(first)} images of {form.before}/ have no file of the same "
                    f"name here, such as {', '.join(missing[:3])}. Add them, or take these images away."
                )
            if missing:
                _tell_of_unlabelled(home, len(missing), len(first))
            more = [path.name for case, path in files.items() if case not in first]
            if more:
                raise DatasetLayoutError(
                    f"{home / name}: {len(more)} files have no image of the same name in {home / form.before}, such "
                    f"as {', '.join(more[:3])}. Add the images, or take these files away."
                )

        def of(name: str | None, case: str) -> Path | None:
            return found[name].get(case) if name else None

        return [
            Record(
                case,
                (image,),
                of(form.mask, case),
                info,
                after=(found[form.after][case],),
                before_mask=of(form.before_mask, case),
                after_mask=of(form.after_mask, case),
            )
            for case, image in first.items()
        ]


@dataclass(frozen=True)
class ChangePairs(PairFolders):
    """A/, B/ and label/ (or T1/, T2/ and GT/), once at the top, with lists of names or without, or in split folders.

    Lists are list/train.txt, val.txt, test.txt (or at the top, or named train_list.txt ...): a name a line, with or
    without its suffix. Images that no list names are left out.

    group_pattern: a regular expression whose first group is the scene in a case's name, to keep its tiles together
        where a split is drawn.
    """

    group_pattern: str = ""

    name = "change_pairs"
    about = About(
        title="Pairs of images and masks of change",
        task="any, pictures or GeoTIFFs; also LEVIR-CD and WHU-CD cut into tiles of 256",
        split="train/, val/, test/ or lists of names, where they are; else by seed",
        labels="0/1 or 0/255, changed 1",
        terms="your own",
        source="your own",
    )
    layout = (
        "DATASET/\n"
        "|-- A/ (or T1/)         a.png b.tif ...    first date\n"
        "|-- B/ (or T2/)         a.png b.tif ...    second date\n"
        "|-- label/ (or GT/)     a.png b.tif ...    0 unchanged; 1 or 255 changed\n"
        "`-- list/               (optional) train.txt val.txt test.txt, a name a line\n"
        "or, with an official split:\n"
        "DATASET/\n"
        "|-- train/{A,B,label}/\n"
        "|-- val/{A,B,label}/    (optional: else taken from train)\n"
        "`-- test/{A,B,label}/   (optional)"
    )
    forms = (Folders("A", "B", "label"), Folders("T1", "T2", "GT"))
    all_labelled = False

    def mismatch(self, root: Path) -> str | None:
        top = any(form.are_in(root) for form in self.forms)
        split = any(form.are_in(root / "train") for form in self.forms)
        if not top and not split:
            return f"neither the folder nor its train/ has {' or '.join(map(str, self.forms))}"
        if top and split:
            return "images are both at the top and in train/; only one can be the data"
        official = any((root / name / "A").is_dir() for name in ("val", "test"))
        if split and official and named_as_levir(root / "train" / "A"):
            return "its files are named as those of LEVIR-CD, which has layouts of its own"
        return None

    def parts(self, root: Path) -> Parts:
        found = self._divided(root)
        group_of = grouped_by(self.group_pattern)
        return replace(found, train=[replace(record, group=group_of(record.case)) for record in found.train])

    def _divided(self, root: Path) -> Parts:
        top = self._homes(root).get("")
        if top is None:
            return super().parts(root)
        records = {record.case: record for record in self._matched(*top, self.describe(root))}
        lists = split_lists(root)
        if not lists:
            return Parts(
                [record for record in records.values() if record.mask],
                unlabelled=[record for record in records.values() if not record.mask],
            )
        listed: dict[str, list[Record]] = {}
        owner: dict[str, Path] = {}
        for part, path in lists.items():
            listed[part] = []
            for case in names_of(path):
                if case in owner:
                    raise DatasetLayoutError(
                        f"{path}: {case!r} is named in {owner[case]} already; a pair is in one split, once."
                    )
                if case not in records:
                    raise DatasetLayoutError(f"{path}: it names {case!r}, of which {root} has no image.")
                owner[case] = path
                listed[part].append(records[case])
        labelled = {part: [r for r in found if r.mask] for part, found in listed.items()}
        if "train" not in labelled:
            raise DatasetLayoutError(f"{root}: there are lists of names, but none for train.")
        return Parts(**labelled, unlabelled=[r for found in listed.values() for r in found if not r.mask])

    def _homes(self, root: Path) -> dict[str, tuple[Path, Folders]]:
        for form in self.forms:
            if form.are_in(root):
                return {"": (root, form)}
        return super()._homes(root)


CHANGE_ADAPTERS.register("change_pairs")(ChangePairs())


@lru_cache(maxsize=64)  # once a folder
def _tell_of_unlabelled(home: Path, missing: int, total: int) -> None:
    logger.warning("%s: %d of %d pairs have no mask: they are unlabelled cases", home, missing, total)


def named_as_levir(folder: Path) -> bool:
    """Whether the pictures of a folder are named train_1.png, ..., as LEVIR-CD's."""
    names = [path.stem for path in visible_files(folder) if path.suffix.lower() in SUFFIXES]
    return bool(names) and all(LEVIR_NAME.match(name) for name in names)


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by case name, sorted."""
    found: dict[str, Path] = {}
    for path in visible_files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        case = case_name(path)
        if case in found:
            raise DatasetLayoutError(f"{folder}: {found[case].name} and {path.name} name the same case; keep one.")
        found[case] = path
    return found


def split_lists(root: Path) -> dict[str, Path]:
    """The lists of names of a folder, by split."""
    found = {}
    for name in _SPLITS:
        places = [home / file for home in (root / "list", root) for file in (f"{name}.txt", f"{name}_list.txt")]
        there = [path for path in places if path.is_file()]
        if len(there) > 1:
            raise DatasetLayoutError(f"{there[0]} and {there[1]}: two lists for {name}; keep one.")
        if there:
            found[name] = there[0]
    return found


def names_of(path: Path) -> list[str]:
    """The case names of a list, with or without suffixes there."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return [case_name(line) for line in lines if line]
