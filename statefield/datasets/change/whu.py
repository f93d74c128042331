"""WHU-CD: one aerial pair of Christchurch, so large that it is read in tiles.

Source: Ji et al. 2019, doi 10.1109/TGRS.2018.2858817; gpcv.whu.edu.cn/data/building_dataset.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets.adapter import require_layout
from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import CLASSES
from statefield.datasets.change.reading import Picture, assemble
from statefield.datasets.published import DividedDataset, Parts, visible_files
from statefield.datasets.readers import raster
from statefield.datasets.readers.image import as_labels, channel_names
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record
from statefield.errors import ConfigError, DatasetLayoutError, ShapeError

_INNER = "1. The two-period image data"


@dataclass(frozen=True)
class WhuCd(DividedDataset):
    """Tiles of the pair, the last of a row and of a column smaller; tiles above one another never part.

    tile: rows and columns of a tile, in pixels.
    """

    tile: int = 512

    name = "whu_cd"
    about = About(
        title="WHU-CD",
        task="buildings that came or went, aerial, one pair 32507 x 15354, 0.2 m, read in tiles",
        split="official folders train/ and test/ where they are; else, as val, by column of tiles and seed",
        labels="0/255 or 0/1, changed 1; cut into tiles of 256 it is the layout change_pairs",
        terms="for research with citation; see the source",
        source="Ji et al. 2019, doi 10.1109/TGRS.2018.2858817; gpcv.whu.edu.cn/data/building_dataset.html",
    )
    layout = (
        "Building change detection dataset_add/\n"
        "`-- 1. The two-period image data/            (or this folder itself)\n"
        "    |-- 2012/whole_image/{train,test}/image/  2012_train.tif ...\n"
        "    |-- 2016/whole_image/{train,test}/image/  2016_train.tif ...\n"
        "    `-- change_label/{train,test}/            change_label.tif\n"
        "or, undivided:\n"
        "1. The two-period image data/\n"
        "|-- before/before.tif\n"
        "|-- after/after.tif\n"
        "`-- change label/change_label.tif"
    )

    def mismatch(self, root: Path) -> str | None:
        home = _home(root)
        divided, whole = home / "change_label" / "train", home / "change label"
        if divided.is_dir() or (whole.is_dir() and (home / "before").is_dir()):
            return None
        return "there is neither change_label/train/ nor before/ with 'change label/'"

    def describe(self, root: Path | None) -> ChangeInfo:
        root = require_layout(self, root)
        _, first, _, _ = next(_scenes(_home(root)))
        return ChangeInfo(CLASSES, channel_names(raster.read_header(first).num_bands), 2)

    def parts(self, root: Path) -> Parts:
        if self.tile < 1:
            raise ConfigError(f"tile = {self.tile}: a size in pixels is needed, such as 512.")
        info = self.describe(root)
        found = {scene[0]: list(_tiles(scene, self.tile, info)) for scene in _scenes(_home(root))}
        return Parts(found.get("train", found.get("all", [])), test=found.get("test", []))

    def load(self, record: Record) -> ChangeSample:
        window = record.extra["window"]
        pictures = []
        for path in (record.images[0], record.after[0]):
            found = raster.read_raster(path, window=window)
            meta = raster.meta_of(found.header, case=record.case, corner=window[:2])
            pictures.append(Picture(found.array, None if found.valid.all() else found.valid, meta, found.header))
        assert record.mask is not None  # every scene has its own
        values, header = raster.read_single_band(record.mask, window=window)
        first = pictures[0].header
        if first is not None and (header.height, header.width) != (first.height, first.width):
            raise ShapeError(
                f"{record.images[0]} is {first.height} x {first.width} pixels but {record.mask} is {header.height} x "
                f"{header.width}: they must have the same size."
            )
        labels: np.ndarray = as_labels(record.mask, values, len(CLASSES))
        return assemble(record, pictures[0], pictures[1], {"mask": (record.mask, labels)})


CHANGE_ADAPTERS.register("whu_cd")(WhuCd())

_Scene = tuple[str, Path, Path, Path]  # part, first image, second image, mask


def _home(root: Path) -> Path:
    return root / _INNER if (root / _INNER).is_dir() else root


def _scenes(home: Path) -> Iterator[_Scene]:
    if not (home / "change_label" / "train").is_dir():
        yield "all", _only(home / "before"), _only(home / "after"), _only(home / "change label")
        return
    for part in ("train", "test"):
        if (home / "change_label" / part).is_dir():
            first, second = (_only(home / year / "whole_image" / part / "image") for year in ("2012", "2016"))
            yield part, first, second, _only(home / "change_label" / part)


def _only(folder: Path) -> Path:
    """The one raster of a folder; in before/ and after/ masks of buildings lie beside it."""
    found = [path for path in visible_files(folder) if path.suffix.lower() in raster.SUFFIXES]
    if folder.name in ("before", "after"):
        found = [path for path in found if path.stem == folder.name]
    if len(found) != 1:
        raise DatasetLayoutError(f"{folder}: {len(found)} rasters found where WHU-CD has one. Unpack it again.")
    return found[0]


def _tiles(scene: _Scene, tile: int, info: ChangeInfo) -> Iterator[Record]:
    part, first, second, mask = scene
    header = raster.read_header(first)
    for row in range(0, header.height, tile):
        for column in range(0, header.width, tile):
            window = (row, column, min(tile, header.height - row), min(tile, header.width - column))
            yield Record(
                f"{part}_r{row:05d}_c{column:05d}",
                (first,),
                mask,
                info,
                {"window": window},
                group=f"{part}_c{column:05d}",
                after=(second,),
            )
