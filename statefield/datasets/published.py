"""What adapters of published datasets share: cases that lie in official parts, and parts that have to be drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from statefield.datasets.adapter import load_files, require_cases, require_layout, require_split
from statefield.datasets.sample import About, DatasetInfo, Record, Sample
from statefield.datasets.splits import FRACTIONS, Split, split_cases
from statefield.errors import DatasetLayoutError


@dataclass(frozen=True)
class Parts:
    """The records of a folder by the publisher's division. Empty `val` or `test`: there is none, it is drawn."""

    train: Sequence[Record]
    val: Sequence[Record] = ()
    test: Sequence[Record] = ()
    unlabelled: Sequence[Record] = ()


@dataclass(frozen=True)
class DividedDataset(ABC):
    """The base of such adapters, which give `mismatch`, `describe`, `parts` and `load`.

    fractions: shares of train, val and test, where they are drawn; what is official takes no part, and the others
        share the training cases in their proportion.
    seed: another seed, another draw.
    """

    fractions: tuple[float, float, float] = field(default=FRACTIONS, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    name: ClassVar[str]
    layout: ClassVar[str]
    about: ClassVar[About]
    embedded: ClassVar[bool] = False

    @abstractmethod
    def mismatch(self, root: Path) -> str | None:
        """Why `root` does not have this layout, or None when it has."""

    @abstractmethod
    def describe(self, root: Path | None) -> DatasetInfo:
        """Classes, channels and dimensions."""

    @abstractmethod
    def parts(self, root: Path) -> Parts:
        """Every case of the folder; looks at names only."""

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        root = require_layout(self, root)
        parts = self.parts(root)
        official = {"val": parts.val, "test": parts.test, "unlabelled": parts.unlabelled}.get(split, ())
        if official or split == "unlabelled":
            return require_cases(by_case(official), split, root, "every case has labels.")
        shares = [self.fractions[0], 0.0 if parts.val else self.fractions[1], 0.0 if parts.test else self.fractions[2]]
        total = sum(shares) or 1.0
        groups = {record.case: record.group or record.case for record in parts.train}
        drawn = split_cases(
            list(groups),
            fractions=(shares[0] / total, shares[1] / total, shares[2] / total),
            seed=self.seed,
            group_of=groups.__getitem__,
        )
        chosen = set(drawn[split])
        records = by_case([record for record in parts.train if record.case in chosen])
        return require_cases(records, split, root, f"{len(parts.train)} labelled cases, shares {self.fractions}.")


@dataclass(frozen=True)
class PublishedDataset(DividedDataset):
    """A `DividedDataset` whose samples are single images, which `load_files` reads."""

    def load(self, record: Record) -> Sample:
        return load_files(record.images, record.mask, case=record.case, info=record.info)


def by_case(records: Sequence[Record]) -> list[Record]:
    """Sorted by case name, each of which must be there once."""
    ordered = sorted(records, key=lambda record: record.case)
    for first, second in pairwise(ordered):
        if first.case == second.case:
            raise DatasetLayoutError(
                f"{first.images[0]} and {second.images[0]}: both are the case {first.case!r}; keep one."
            )
    return ordered


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder, sorted; hidden ones and macOS' `._` twins are left out; none when it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def require_partner(partner: Path, image: Path, what: str) -> Path:
    """`partner`, or a `DatasetLayoutError` that says which file `image` lacks."""
    if not partner.is_file():
        raise DatasetLayoutError(
            f"{partner}: not found, the {what} of {image.name}. Unpack the archive again, or take the image away."
        )
    return partner
