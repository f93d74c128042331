"""Where a prediction writes: every name and folder is checked before the first window, not after the last."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from statefield.errors import ConfigError, DataError

RASTER_SUFFIXES = (".tif", ".tiff")
POLYGON_SUFFIXES = (".gpkg", ".geojson", ".json")

Target = str | os.PathLike[str] | None


def require_outputs(inputs: Sequence[str], output: Target, probabilities: Target, polygons: Target) -> None:
    """Raise unless the outputs can be written: names that tell their format and differ, in folders that take files.

    Folders that do not exist yet are not made here.

    Raises:
        ConfigError: a name of another format; one file for two purposes.
        DataError: a place where no file can be written; the message names it.
    """
    for path in (output, probabilities):
        if path is not None and Path(path).suffix.lower() not in RASTER_SUFFIXES:
            raise ConfigError(f"{path}: a GeoTIFF is written; give a name that ends in .tif.")
    if polygons is not None and Path(polygons).suffix.lower() not in POLYGON_SUFFIXES:
        raise ConfigError(
            f"{polygons}: polygons are written as GeoPackage or GeoJSON; give a name that ends in .gpkg or .geojson."
        )
    targets = [Path(path) for path in (output, probabilities, polygons) if path is not None]
    places = [path.resolve() for path in targets]
    if len(set(places)) != len(places) or {Path(path).resolve() for path in inputs}.intersection(places):
        raise ConfigError(f"{', '.join(map(str, targets))}: outputs must differ from each other and from the inputs.")
    for path in targets:
        _require_writable(path)


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the name of a file to write.")
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f"{path} cannot be written: {folder} is no folder. Name another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(
            f"{path} cannot be written: {folder} takes no files (no permission, or read-only). Name another place."
        )
