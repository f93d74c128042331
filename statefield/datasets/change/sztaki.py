"""SZTAKI AirChange: 13 pairs of aerial photographs, of which two are the usual test.

Source: Benedek and Sziranyi 2009, doi 10.1109/TGRS.2009.2022633; the test pairs: Zhan et al. 2017, doi
10.1109/LGRS.2017.2738149, who test on their upper left 784 x 448 pixels and train on the rest; here they are whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from statefield.datasets.adapter import require_layout
from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import CLASSES
from statefield.datasets.change.reading import load_pair
from statefield.datasets.published import DividedDataset, Parts
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record
from statefield.errors import DatasetLayoutError

_AREAS = ("Szada", "Tiszadob", "Archieve")
_TEST = ("Szada_1", "Tiszadob_3")


@dataclass(frozen=True)
class Sztaki(DividedDataset):
    """The pairs of Szada (7), Tiszadob (5) and of the archive (1)."""

    name = "sztaki"
    about = About(
        title="SZTAKI AirChange",
        task="new buildings, ground work, ploughed land and trees, aerial, 13 pairs 952 x 640, 1.5 m",
        split="test: Szada 1 and Tiszadob 3, whole; val from the others by seed",
        labels="0/255, changed 1",
        terms="free for science with citation; password from the authors",
        source="Benedek and Szirányi 2009, doi 10.1109/TGRS.2009.2022633; mplab.sztaki.hu/remotesensing",
    )
    layout = (
        "SZTAKI_AirChange_Benchmark/\n"
        "|-- Szada/1/ ... 7/     im1.bmp im2.bmp gt.bmp\n"
        "|-- Tiszadob/1/ ... 5/  im1.bmp im2.bmp gt.bmp\n"
        "`-- Archieve/1/         im1.bmp im2.bmp gt.bmp   (optional)"
    )

    def mismatch(self, root: Path) -> str | None:
        missing = [name for name in _AREAS[:2] if not (root / name).is_dir()]
        return f"there is no {' and no '.join(name + '/' for name in missing)}" if missing else None

    def describe(self, root: Path | None) -> ChangeInfo:
        require_layout(self, root)
        return ChangeInfo(CLASSES, ("red", "green", "blue"), 2)

    def parts(self, root: Path) -> Parts:
        info, records = self.describe(root), []
        for area in _AREAS:
            for home in sorted(path for path in (root / area).glob("*") if path.is_dir()):
                first, second, mask = (home / name for name in ("im1.bmp", "im2.bmp", "gt.bmp"))
                for path in (first, second, mask):
                    if not path.is_file():
                        raise DatasetLayoutError(f"{path}: not found; a pair is im1.bmp, im2.bmp and gt.bmp.")
                records.append(Record(f"{area}_{home.name}", (first,), mask, info, after=(second,)))
        return Parts(
            [record for record in records if record.case not in _TEST],
            test=[record for record in records if record.case in _TEST],
        )

    def load(self, record: Record) -> ChangeSample:
        return load_pair(record)


CHANGE_ADAPTERS.register("sztaki")(Sztaki())
