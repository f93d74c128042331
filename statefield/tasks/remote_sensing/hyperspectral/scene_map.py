"""The class of every pixel of a scene, as a picture (PNG) and as a raster with its place (GeoTIFF or ENVI)."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from statefield.datasets.sample import Meta
from statefield.errors import ConfigError, LabelError
from statefield.files import atomic_path
from statefield.labels import UNLABELLED

_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".dat": "ENVI", ".img": "ENVI"}
# in a picture of a split; those of Okabe and Ito, and grey
PART_COLOURS = {
    "not used": (96, 96, 96),
    "training": (230, 159, 0),
    "validation": (240, 228, 66),
    "test": (86, 180, 233),
}
_ROWS = 16  # of a scene that are classified at a time


def predict_scene(
    predict: Callable[[np.ndarray], np.ndarray],
    size: tuple[int, int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """int64 [H, W]: the class of every pixel, labelled or not.

    Args:
        predict: a `Classifier`'s, [N, 2] -> [N]. progress: called with the rows that are done and that there are.
    """
    height, width = size
    found = np.empty(size, np.int64)
    for first in range(0, height, _ROWS):
        if progress is not None:
            progress(first, height)
        last = min(first + _ROWS, height)
        rows, columns = np.mgrid[first:last, :width]
        found[first:last] = predict(np.stack([rows.ravel(), columns.ravel()], 1)).reshape(last - first, width)
    return found


def palette(num_classes: int) -> np.ndarray:
    """uint8 [K + 1, 3]: black for no class, then a colour for each class, repeating after 20."""
    colours = np.asarray(matplotlib.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    # dark shades first: neighbours in the list are then far apart
    order = np.r_[0:20:2, 1:20:2]
    return np.vstack([[0, 0, 0], np.round(255 * colours[order[np.arange(num_classes) % 20]])]).astype(np.uint8)


def write_parts(target: str | os.PathLike[str], labels: np.ndarray, part: np.ndarray) -> None:
    """A PNG of a split: the colours of `PART_COLOURS`, black where there is no label.

    Args:
        labels: int [H, W]. part: int8 [H, W], of a `PixelSplit`.
    """
    codes = np.where(labels == UNLABELLED, 0, np.where(part < 0, 1, part + 2)).astype(np.uint8)
    picture = Image.fromarray(codes)
    picture.putpalette([value for colour in ((0, 0, 0), *PART_COLOURS.values()) for value in colour])
    with atomic_path(target) as partial:
        picture.save(partial, format="PNG")


def write_picture(target: str | os.PathLike[str], labels: np.ndarray, num_classes: int) -> None:
    """A PNG with one colour a class (`palette`) and black where labels are `UNLABELLED`.

    Args:
        labels: int [H, W]. Raises `ConfigError` for another suffix, `LabelError` for labels outside the classes.
    """
    if Path(target).suffix.lower() != ".png":
        raise ConfigError(f"{target}: a picture's name has to end in .png.")
    picture = Image.fromarray(_codes(labels, num_classes))
    picture.putpalette(palette(num_classes).tobytes())
    with atomic_path(target) as partial:
        picture.save(partial, format="PNG")


def write_raster(target: str | os.PathLike[str], labels: np.ndarray, classes: Sequence[str], meta: Meta) -> None:
    """A GeoTIFF (.tif) or an ENVI file with its header (.dat, .img), in the place that `meta` says, if any.

    Values are 0 for no class (nodata), and 1 to K, as the published label maps have them; colours are `palette`. An
    ENVI header (a classification) names the classes; a GeoTIFF has them as tags CLASS_0, CLASS_1 and so on.

    Args:
        labels: int [H, W]. Raises `ConfigError` for another suffix, `LabelError` for labels outside the classes.
    """
    path = Path(target)
    driver = _DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise ConfigError(f"{path}: a raster's name has to end in one of {', '.join(_DRIVERS)}.")
    codes = _codes(labels, len(classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    # ENVI writes a header beside the data, so the file is made in a folder of its own
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        _write(draft, driver, codes, ("no_class", *classes), meta)
        for made in sorted(Path(folder).iterdir(), key=lambda each: each.suffix == ".hdr"):  # the header last
            with atomic_path(path.parent / made.name) as partial:
                made.replace(partial)


def _write(path: Path, driver: str, codes: np.ndarray, names: Sequence[str], meta: Meta) -> None:
    place = {}
    if "transform" in meta:
        place["transform"] = Affine(*meta["transform"])
    if "crs" in meta:
        place["crs"] = rasterio.CRS.from_wkt(meta["crs"])
    options = {"compress": "deflate"} if driver == "GTiff" else {}
    colours = palette(len(names) - 1).tolist()
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO"):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a scene without a place gives a map without one
        with rasterio.open(
            path,
            "w",
            driver=driver,
            height=codes.shape[0],
            width=codes.shape[1],
            count=1,
            dtype="uint8",
            nodata=0,
            **place,
            **options,
        ) as file:
            if driver == "GTiff":  # before the pixels: the TIFF's header cannot be changed behind them
                file.write_colormap(1, {value: (*colour, 255) for value, colour in enumerate(colours)})
                file.update_tags(1, **{f"CLASS_{value}": name for value, name in enumerate(names)})
            file.write(codes, 1)
    if driver == "ENVI":  # GDAL's driver writes classes only from category names, which rasterio cannot set
        header = path.with_suffix(".hdr")
        text = header.read_text(encoding="utf-8").replace("ENVI Standard", "ENVI Classification")
        # GDAL describes the file by its path, which is that of a draft
        text = re.sub(r"description = \{[^}]*\}", f"description = {{map of classes, {path.name}}}", text)
        plain = [name.translate(str.maketrans("{},", "()/")) for name in names]
        header.write_text(
            f"{text.rstrip()}\nclasses = {len(names)}\nclass names = {{{', '.join(plain)}}}\n"
            f"class lookup = {{{', '.join(str(part) for colour in colours for part in colour)}}}\n",
            encoding="utf-8",
        )


def _codes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """uint8 [H, W]: 0 where there is no class, else the class + 1."""
    if num_classes > 255:
        raise ConfigError(f"{num_classes} classes do not fit a map of bytes, which holds 255.")
    if labels.size and not UNLABELLED <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise LabelError(
            f"labels {int(labels.min())} to {int(labels.max())} found; the {num_classes} classes allow "
            f"{UNLABELLED} to {num_classes - 1}."
        )
    return (labels + 1).astype(np.uint8)
