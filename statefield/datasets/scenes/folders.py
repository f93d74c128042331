"""A folder for each class: the form that sets of scenes share. Splits are folders, lists beside the data, or drawn."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from statefield.datasets.adapter import require_cases, require_layout, require_split
from statefield.datasets.published import by_case, visible_files
from statefield.datasets.readers.image import channel_names
from statefield.datasets.readers.picture import SUFFIXES, num_channels_of
from statefield.datasets.sample import About, DatasetInfo, Record
from statefield.datasets.scenes.adapter import SCENE_SETS, LabelledScene, label_of, load_scene, scene_record
from statefield.datasets.scenes.lists import LISTED, find_lists, read_lists
from statefield.datasets.splits import FRACTIONS, Split, split_cases
from statefield.errors import DatasetLayoutError, ShapeError

logger = logging.getLogger(__name__)

_Files = Mapping[str, Sequence[Path]]  # class -> its images


@dataclass(frozen=True)
class SceneFolders(ABC):
    """The base of layouts with a folder for each class.

    fractions: shares of train, val and test of every class, where they are drawn; what lists or folders say takes no
        part, and the others share the training scenes in their proportion.
    seed: another seed, another draw.
    lists: the folder of the lists of scenes; None: the dataset's own, where it has any.
    """

    fractions: tuple[float, float, float] = field(default=FRACTIONS, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    lists: Path | None = field(default=None, kw_only=True)

    name: ClassVar[str]
    layout: ClassVar[str]
    about: ClassVar[About]
    embedded: ClassVar[bool] = False

    @abstractmethod
    def mismatch(self, root: Path) -> str | None:
        """Why `root` does not have this layout, or None when it has."""

    @abstractmethod
    def describe(self, root: Path | None) -> DatasetInfo:
        """Classes and channels."""

    @abstractmethod
    def homes(self, root: Path) -> dict[Split, Path]:
        """The folders that hold the classes' folders: {"train": it} where there is one for all splits."""

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        if split == "unlabelled":
            return require_cases([], split, root, "every scene lies in the folder of its class.")
        parts = self._parts(root)
        if split != "train" and parts.get(split):
            return by_case(parts[split])
        shares = [0.0 if name != "train" and parts.get(name) else share for name, share in self._shares()]
        total = sum(shares) or 1.0
        drawn: list[Record] = []
        for label in sorted({label_of(record) for record in parts["train"]}):
            of_class = by_case([record for record in parts["train"] if label_of(record) == label])
            cases = split_cases(
                [record.case for record in of_class],
                fractions=(shares[0] / total, shares[1] / total, shares[2] / total),
                seed=self.seed,
            )
            chosen = set(cases[split])
            drawn += [record for record in of_class if record.case in chosen]
        return require_cases(
            by_case(drawn), split, root, f"{len(parts['train'])} scenes, shares {self.fractions} of each class."
        )

    def load(self, record: Record) -> LabelledScene:
        num_channels = None if record.info is None else len(record.info.channels)
        image, meta = load_scene(record.images[0], record.case, num_channels)
        return {"image": image, "label": label_of(record), "meta": meta}

    def _shares(self) -> list[tuple[Split, float]]:
        return list(zip(LISTED, self.fractions, strict=True))

    def _parts(self, root: Path) -> dict[Split, list[Record]]:
        """The scenes by what folders or lists say; a part that is not in it is drawn from train."""
        info, homes = self.describe(root), self.homes(root)
        files = {part: class_files(home) for part, home in homes.items()}
        for part, found in files.items():
            for name in info.classes if part == "train" else ():
                if not found.get(name):
                    raise DatasetLayoutError(
                        f"{homes[part] / name}: no image in the folder of the class {name!r}. Add images (ending in "
                        f"{', '.join(SUFFIXES)}), or take the folder away."
                    )
            if unknown := sorted(set(found) - set(info.classes)):
                raise DatasetLayoutError(
                    f"{homes[part]}: folders of unknown classes, {', '.join(unknown[:5])}; the classes are "
                    f"{', '.join(info.classes)}. Take them away, or rename them."
                )
        within = len(files) > 1  # splits are folders, whose files may have equal names
        records = {
            part: [
                scene_record(f"{part}/{name}/{path.stem}" if within else f"{name}/{path.stem}", path, label, info)
                for label, name in enumerate(info.classes)
                for path in found.get(name, ())
            ]
            for part, found in files.items()
        }
        places = [self.lists] if self.lists is not None else [root, root / "list", root / "lists", homes["train"]]
        lists = {} if within else find_lists(places, self.name)
        if not lists:
            if self.lists is not None:
                raise DatasetLayoutError(f"{self.lists}: no list of scenes (train.txt, val.txt or test.txt) in it.")
            return records
        named = read_lists(self.meaning(lists), files["train"])
        _tell_of_unlisted(root, len(records["train"]) - sum(map(len, named.values())))
        return {part: [r for r in records["train"] if r.images[0] in paths] for part, paths in named.items()}

    def meaning(self, lists: Mapping[Split, Path]) -> dict[Split, Path]:
        """The lists by the split that they are of."""
        return dict(lists)


@dataclass(frozen=True)
class ClassFolders(SceneFolders):
    """Any pictures in a folder for each class, undivided or in train/, val/ and test/."""

    name = "class_folders"
    about = About(
        title="Folders of classes",
        task="any pictures or GeoTIFFs, a folder for each class",
        split="train/, val/, test/ or lists of scenes, where they are; else by seed, each class in the same shares",
        labels="the name of the folder",
        terms="your own",
        source="your own",
    )
    layout = (
        "DATASET/\n"
        "|-- forest/             a.png b.tif ...    a folder for each class, two or more\n"
        "|-- harbor/             a.png b.jpg ...\n"
        "`-- train.txt           (optional, with val.txt, test.txt) CLASS/FILE a line\n"
        "or, with an official split:\n"
        "DATASET/\n"
        "|-- train/CLASS/\n"
        "|-- val/CLASS/          (optional: else taken from train)\n"
        "`-- test/CLASS/         (optional)"
    )

    def mismatch(self, root: Path) -> str | None:
        homes = self.homes(root)
        classes = class_names(homes["train"])
        if len(classes) < 2:
            where = "train/" if len(homes) > 1 else "it"
            return f"{len(classes)} folders in {where} hold images; a folder for each of two classes or more is needed"
        for name, other in SCENE_SETS.items():
            if not isinstance(other, ClassFolders) and other.mismatch(root) is None:
                return f"its classes are those of {name}, which has a layout of its own"
        return None

    def describe(self, root: Path | None) -> DatasetInfo:
        root = require_layout(self, root)
        home = self.homes(root)["train"]
        classes = tuple(class_names(home))
        firsts = [files[0] for files in class_files(home).values() if files]
        counts = {path: num_channels_of(path) for path in firsts}
        most = max(counts.values())
        odd = [path for path, count in counts.items() if count != most and (count, most) != (1, 3)]
        if odd:
            fullest = next(path for path, count in counts.items() if count == most)
            raise ShapeError(
                f"{odd[0]}: {counts[odd[0]]} channels found, but {fullest} has {most}. Bring every image to the same "
                "channels."
            )
        return DatasetInfo(classes, channel_names(most), 2)

    def homes(self, root: Path) -> dict[Split, Path]:
        split_folders: dict[Split, Path] = {part: root / part for part in LISTED if class_names(root / part)}
        return split_folders if "train" in split_folders else {"train": root}


SCENE_SETS.register("class_folders")(ClassFolders())


def class_names(home: Path) -> list[str]:
    """The folders of `home` with a picture in them, and those without any file: classes, full and empty."""
    if not home.is_dir():
        return []
    folders = [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(path.name for path in folders if _is_class(path))


def _is_class(folder: Path) -> bool:
    empty = True
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            return True
        empty = empty and path.name.startswith(".")
    return empty


def class_files(home: Path) -> dict[str, list[Path]]:
    """Class -> its pictures, sorted, of the folders of `home`."""
    return {
        name: [path for path in visible_files(home / name) if path.suffix.lower() in SUFFIXES]
        for name in class_names(home)
    }


@lru_cache(maxsize=64)  # once a folder
def _tell_of_unlisted(root: Path, count: int) -> None:
    if count:
        logger.warning("%s: %d scenes are in no list, and in no split", root, count)
