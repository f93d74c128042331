"""OSCD: 24 cities seen by Sentinel-2 at two dates, as 8-bit colour pictures or with all 13 bands.

Source: Caye Daudt et al. 2018, IGARSS, doi 10.1109/IGARSS.2018.8518015; rcdaudt.github.io/oscd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, cast

import numpy as np

from statefield.datasets.adapter import require_layout
from statefield.datasets.change.adapter import CHANGE_ADAPTERS
from statefield.datasets.change.pairs import CLASSES
from statefield.datasets.change.reading import Picture, assemble, load_pair, read_blurred_labels, read_masks
from statefield.datasets.published import DividedDataset, Parts, visible_files
from statefield.datasets.readers import raster
from statefield.datasets.sample import About, ChangeInfo, ChangeSample, Record
from statefield.datasets.splits import Split, official_split
from statefield.errors import ConfigError, DatasetLayoutError, LabelError, ShapeError

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_FINEST = BANDS.index("B02")  # one of the bands of 10 m, whose grid is the sample's
_BAND = re.compile(r"(?:^|_)(B\d[\dA])\.tif$")


@dataclass(frozen=True)
class Oscd(DividedDataset):
    """A folder for each city.

    bands: "rgb": the pictures of pair/; "all": the 13 bands of imgs_1_rect/ and imgs_2_rect/, which the publisher has
        brought to 10 m, or else of imgs_1/ and imgs_2/, whose pixels of 20 and 60 m are repeated to 10 m, as one array
        cannot hold three grids; "auto": "rgb" where it is there.
    val_cities, test_cities: cities that are set apart by name, whatever the official split says, for archives without
        the labels of the official test cities; where none is named, they are drawn by seed.
    """

    bands: Literal["auto", "rgb", "all"] = "auto"
    val_cities: tuple[str, ...] = ()
    test_cities: tuple[str, ...] = ()

    name = "oscd"
    about = About(
        title="OSCD",
        task="urban change, Sentinel-2, 24 cities at 10 m, RGB or 13 bands (option bands)",
        split="official cities: 14 / 10, val from train by seed or name; without a test city, test too",
        labels="cm.png 0/255, cut at 128 (one is blurred); CITY-cm.tif 1 unchanged, 2 changed; changed 1",
        terms="labels CC BY-NC-SA; images: modified Copernicus Sentinel data",
        source="Caye Daudt et al. 2018, doi 10.1109/IGARSS.2018.8518015; rcdaudt.github.io/oscd",
    )
    layout = (
        "OSCD/\n"
        "`-- CITY/                          (or below the folders '... - Images', '... - Train Labels', '... - Test "
        "Labels')\n"
        "    |-- pair/                      img1.png img2.png\n"
        "    |-- imgs_1_rect/, imgs_2_rect/ B01.tif ... B12.tif   (or imgs_1/, imgs_2/ with ..._B01.tif ...)\n"
        "    `-- cm/                        cm.png or CITY-cm.tif"
    )

    def mismatch(self, root: Path) -> str | None:
        if self.bands not in ("auto", "rgb", "all"):
            raise ConfigError(f"bands = {self.bands!r}: one of auto, rgb, all is needed.")
        if not _cities(root, "rgb") and not _cities(root, "all"):
            return "no folder in it has pair/img1.png or imgs_1/"
        if not _cities(root, self._wanted(root)):
            return f"no folder in it has the files of bands = {self.bands!r}"
        return None

    def describe(self, root: Path | None) -> ChangeInfo:
        root = require_layout(self, root)
        return ChangeInfo(CLASSES, ("red", "green", "blue") if self._wanted(root) == "rgb" else BANDS, 2)

    def parts(self, root: Path) -> Parts:
        info, wanted = self.describe(root), self._wanted(root)
        cities = _cities(root, wanted)
        official = official_split("oscd") | self._set_apart({city.name for city in cities})
        found: dict[str, list[Record]] = {"train": [], "val": [], "test": [], "unlabelled": []}
        for city in cities:
            first, second = _dates(city, wanted)
            mask = _mask_of(root, city.name)
            record = Record(city.name, first, mask, info, after=second)
            found["unlabelled" if mask is None else official.get(city.name, "train")].append(record)
        return Parts(**found)

    def load(self, record: Record) -> ChangeSample:
        if len(record.images) == 1:
            return load_pair(record, _read_change)
        before = _stack(record.images, record.case, None)
        after = _stack(record.after, record.case, before.header)
        return assemble(record, before, after, read_masks(record, _read_change))

    def _set_apart(self, there: set[str]) -> dict[str, Split]:
        """The splits of the cities that the options name."""
        chosen: dict[str, Split] = {}
        for split, cities in (("val", self.val_cities), ("test", self.test_cities)):
            for city in cities:
                if city in chosen or city not in there:
                    problem = "is in both lists, or twice in one" if city in chosen else "has no folder there"
                    raise ConfigError(
                        f"option {split}_cities of the layout 'oscd': {city!r} {problem}. Name cities among "
                        f"{', '.join(sorted(there))}, each once."
                    )
                chosen[city] = cast(Split, split)
        return chosen

    def _wanted(self, root: Path) -> Literal["rgb", "all"]:
        if self.bands != "auto":
            return self.bands
        return "rgb" if _cities(root, "rgb") else "all"


CHANGE_ADAPTERS.register("oscd")(Oscd())


def _cities(root: Path, wanted: Literal["rgb", "all"]) -> list[Path]:
    """The cities' folders, at the top or below the publisher's '... - Images'."""
    homes = [root, *(path for path in root.glob("*Images") if path.is_dir())]
    return sorted(
        (path for home in homes for path in home.iterdir() if path.is_dir() and _has(path, wanted)),
        key=lambda path: path.name,
    )


def _has(city: Path, wanted: Literal["rgb", "all"]) -> bool:
    if wanted == "rgb":
        return (city / "pair" / "img1.png").is_file()
    return (city / "imgs_1").is_dir() or (city / "imgs_1_rect").is_dir()


def _dates(city: Path, wanted: Literal["rgb", "all"]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    if wanted == "all":
        rectified = "_rect" if (city / "imgs_1_rect").is_dir() else ""
        return _band_files(city / f"imgs_1{rectified}"), _band_files(city / f"imgs_2{rectified}")
    first, second = city / "pair" / "img1.png", city / "pair" / "img2.png"
    if not second.is_file():
        raise DatasetLayoutError(f"{second}: not found, the second date of {city.name}. Unpack the archive again.")
    return (first,), (second,)


def _band_files(folder: Path) -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    for path in visible_files(folder):
        match = _BAND.search(path.name)
        if match and match[1] in found:
            raise DatasetLayoutError(f"{folder}: {found[match[1]].name} and {path.name} are one band; keep one.")
        if match:
            found[match[1]] = path
    missing = [band for band in BANDS if band not in found]
    if missing:
        raise DatasetLayoutError(f"{folder}: no file of {', '.join(missing)}; the 13 bands of Sentinel-2 are needed.")
    return tuple(found[band] for band in BANDS)


def _mask_of(root: Path, city: str) -> Path | None:
    for home in (root, *sorted(root.glob("*Images")), *sorted(root.glob("*Labels"))):
        for name in ("cm.png", f"{city}-cm.tif"):
            if (home / city / "cm" / name).is_file():
                return home / city / "cm" / name
    return None


def _stack(paths: tuple[Path, ...], case: str, place: raster.RasterHeader | None) -> Picture:
    """The 13 bands of a date on its grid of 10 m, or on that of `place`."""
    grid = raster.read_header(paths[_FINEST])
    if place is not None and (grid.height, grid.width) != (place.height, place.width):
        raise ShapeError(
            f"{paths[_FINEST]} is {grid.height} x {grid.width} pixels but {place.path} is {place.height} x "
            f"{place.width}: both dates must have the same size, as in imgs_1_rect/ and imgs_2_rect/."
        )
    parts = []
    for path in paths:
        part = raster.read_raster(path, shape=(grid.height, grid.width))
        if part.header.num_bands != 1:
            raise ShapeError(f"{path}: {part.header.num_bands} bands found; OSCD has a file for each band.")
        _require_extent(part.header, place or grid)
        parts.append(part)
    valid = reduce(np.logical_and, (part.valid for part in parts))
    array = np.concatenate([part.array for part in parts])
    return Picture(array, None if valid.all() else valid, raster.meta_of(grid, case=case), grid)


def _require_extent(band: raster.RasterHeader, grid: raster.RasterHeader) -> None:
    """A band covers the ground that the grid covers, to one pixel of its own."""
    if band.transform is None or grid.transform is None:
        return
    reason = None
    if band.crs != grid.crs:
        reason = "their coordinate reference systems differ"
    else:
        corners = [
            (c, f, c + a * header.width, f + e * header.height)
            for header, (a, _, c, _, e, f) in ((band, band.transform), (grid, grid.transform))
        ]
        apart = max(abs(one - other) for one, other in zip(*corners, strict=True))
        if apart > max(abs(band.transform[0]), abs(band.transform[4])):
            reason = f"their corners lie {apart:g} units of the reference system apart"
    if reason is not None:
        raise ShapeError(f"{band.path} and {grid.path}: bands must cover the same ground, but {reason}.")


def _read_change(path: Path, num_classes: int) -> np.ndarray:
    """1 where changed, of cm.png (0/255, blurred in one city) and of CITY-cm.tif (1 unchanged, 2 changed)."""
    if path.suffix.lower() != ".tif":
        return read_blurred_labels(path, num_classes)
    values, _ = raster.read_single_band(path)
    found = {int(value) for value in np.unique(values)}
    if found == {1, 2}:
        return (values == 2).astype(np.int64)
    if found in ({0, 1}, {0}):  # as the README has it
        return values.astype(np.int64)
    raise LabelError(
        f"{path}: label values {sorted(found)[:6]} found; 1 unchanged and 2 changed, or 0 and 1, are needed. Use "
        "cm.png."
    )
