"""Writers of small sets of image pairs, each in its publisher's folder layout; they return the folder.

Two noisy images are alike but for a bright disc in the second, which is what has changed.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from fakes.medical import write_picture
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from statefield.datasets.change.oscd import BANDS
from statefield.datasets.change.second import COLOURS

PLACE = Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)


def pair(size: tuple[int, int] = (32, 40), *, num_channels: int = 3, seed: int = 0):
    """(before, after float32 [H, W, C], changed uint8 [H, W] of 0 and 1)."""
    rng = np.random.default_rng(seed)
    before = rng.normal(80, 10, (*size, num_channels)).clip(0, 255).astype(np.float32)
    rows, columns = np.indices(size)
    centre = [rng.uniform(0.3 * n, 0.7 * n) for n in size]
    changed = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= (min(size) / 5) ** 2).astype(np.uint8)
    after = (before + rng.normal(0, 4, before.shape) + 90 * changed[..., None]).clip(0, 255).astype(np.float32)
    return before, after, changed


def write_tiff(path: Path, array: np.ndarray, *, crs: str | None = "EPSG:32633", transform=PLACE, **profile) -> Path:
    """A GeoTIFF of `array` [C, H, W] or [H, W] in its own dtype; crs None leaves out the place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = array[None] if array.ndim == 2 else array
    where = {} if crs is None else {"crs": crs, "transform": transform}
    shape = dict(zip(("count", "height", "width"), bands.shape, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **shape, **where, **profile) as file:
            file.write(bands)
    return path


def _write(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".tif":
        bands = array.transpose(2, 0, 1) if array.ndim == 3 else array
        write_tiff(path, bands.astype(np.uint8))
    else:
        write_picture(path, array)


def write_pairs_in(
    home: Path,
    folders: tuple[str, str, str],
    names: list[str],
    *,
    suffix: str = ".png",
    mask_suffix: str | None = None,
    changed_value: int = 255,
    seed: int = 0,
) -> Path:
    """A pair for each name in the folders (first date, second date, mask)."""
    for index, name in enumerate(names):
        before, after, changed = pair(seed=seed * 1000 + index)
        _write(home / folders[0] / f"{name}{suffix}", before)
        _write(home / folders[1] / f"{name}{suffix}", after)
        _write(home / folders[2] / f"{name}{mask_suffix or suffix}", changed * changed_value)
    return home


def write_split_folders(
    root: Path,
    folders: tuple[str, str, str] = ("A", "B", "label"),
    *,
    counts: tuple[tuple[str, int], ...] = (("train", 6), ("val", 2), ("test", 3)),
    name: str = "{index:05d}",
    **how,
) -> Path:
    """Split folders of such folders; `name` is filled with the split and the index."""
    for number, (split, count) in enumerate(counts):
        names = [name.format(split=split, index=index) for index in range(1, count + 1)]
        write_pairs_in(root / split, folders, names, seed=number, **how)
    return root


def write_change_pairs(root: Path, *, num_cases: int = 10, lists: bool = False, suffix: str = ".png") -> Path:
    """A/, B/, label/ at the top, with lists of names (some with a suffix) or without."""
    names = [f"tile_{index}" for index in range(num_cases)]
    write_pairs_in(root, ("A", "B", "label"), names, suffix=suffix, changed_value=1)
    if lists:
        (root / "list").mkdir()
        for split, part in (("train", slice(0, -4)), ("val", slice(-4, -3)), ("test", slice(-3, None))):
            lines = [name + ("" if split == "val" else suffix) for name in names[part]]
            (root / "list" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_levir(root: Path) -> Path:
    """LEVIR-CD."""
    return write_split_folders(root, name="{split}_{index}")


def write_levir_plus(root: Path) -> Path:
    """LEVIR-CD+, whose test images go on with the numbers of train, under the same name."""
    write_pairs_in(root / "train", ("A", "B", "label"), [f"train_{index}" for index in range(1, 11)])
    return write_pairs_in(root / "test", ("A", "B", "label"), [f"train_{i}" for i in (638, 639)], seed=1).parent


def write_sysu(root: Path) -> Path:
    """SYSU-CD: every split is numbered from 0."""
    return write_split_folders(root, ("time1", "time2", "label"))


def write_cdd(root: Path, *, inner: str = "") -> Path:
    """CDD: everything JPEG, the masks too."""
    write_split_folders(root / inner, ("A", "B", "OUT"), suffix=".jpg")
    return root


def write_dsifn(root: Path) -> Path:
    """DSIFN: JPEG images, PNG masks, and TIFF masks in test."""
    folders = ("t1", "t2", "mask")
    write_split_folders(root, folders, counts=(("train", 6), ("val", 2)), suffix=".jpg", mask_suffix=".png")
    names = [f"{index}_test" for index in range(3)]
    write_pairs_in(root / "test", folders, names, suffix=".jpg", mask_suffix=".tif", seed=3)
    return root


def write_second(root: Path, *, colours: bool = True, counts: tuple[int, int] = (8, 3)) -> Path:
    """SECOND: as published, or with the numbers of ChangeMamba."""
    for number, (split, count) in enumerate(zip(("train", "test"), counts, strict=True)):
        for index in range(count):
            before, after, changed = pair(seed=number * 1000 + index)
            name = f"{5 * index + number:05d}.png"
            first, second = changed * (1 + index % 6), changed * (1 + (index + 2) % 6)
            home = root / split
            images, masks = (("im1", "im2"), ("label1", "label2")) if colours else (("T1", "T2"), ("GT_T1", "GT_T2"))
            palette = np.array(list(COLOURS.values()), np.uint8)
            write_picture(home / images[0] / name, before)
            write_picture(home / images[1] / name, after)
            write_picture(home / masks[0] / name, palette[first] if colours else first)
            write_picture(home / masks[1] / name, palette[second] if colours else second)
            if not colours:
                write_picture(home / "GT_CD" / name, changed * 255)
    return root


def write_xbd(root: Path, *, masks: str = "targets", crops: bool = False) -> Path:
    """xBD: train/, tier3/, hold/ and test/, with the challenge's targets; or as ChangeMamba cuts it, with masks/."""
    ending = "_target" if masks == "targets" else ""
    for number, (part, count) in enumerate((("train", 4), ("tier3", 4), ("hold", 2), ("test", 3))):
        for index in range(count):
            scene, crop = (index // 2, f"_{index % 2}") if crops else (index, "")
            before, after, buildings = pair(seed=number * 1000 + index)
            for date, image, mask in (("pre", before, buildings), ("post", after, buildings * (1 + index % 4))):
                name = (
                    f"disaster-{number}_{date}_disaster_{scene:08d}{crop}"
                    if crops
                    else (f"disaster-{number}_{scene:08d}_{date}_disaster")
                )
                write_picture(root / part / "images" / f"{name}.png", image)
                write_picture(root / part / masks / f"{name}{ending}.png", mask)
    return root


def write_sztaki(root: Path) -> Path:
    """SZTAKI AirChange: 13 pairs of bitmaps."""
    seed = 0
    for area, count in (("Szada", 7), ("Tiszadob", 5), ("Archieve", 1)):
        for index in range(1, count + 1):
            seed += 1
            before, after, changed = pair(seed=seed)
            for name, array in (("im1", before), ("im2", after), ("gt", changed * 255)):
                write_picture(root / area / str(index) / f"{name}.bmp", array)
    return root


def write_whu(root: Path, *, divided: bool = True) -> Path:
    """WHU-CD: 2012, 2016 and the mask as large images, in train and test or undivided."""
    home = root / "1. The two-period image data"
    for number, (part, size) in enumerate((("train", (96, 250)), ("test", (96, 100)))):
        repeats = (size[0] // 48, size[1] // 50)  # a disc in every 48 x 50 pixels
        before, after = (np.tile(array, (*repeats, 1)) for array in pair((48, 50), seed=number)[:2])
        changed = np.tile(pair((48, 50), seed=number)[2], repeats)
        images = [array.astype(np.uint8).transpose(2, 0, 1) for array in (before, after)]
        if divided:
            for year, array in zip((2012, 2016), images, strict=True):
                write_tiff(home / f"{year}" / "whole_image" / part / "image" / f"{year}_{part}.tif", array)
            write_tiff(home / "change_label" / part / "change_label.tif", changed * np.uint8(255))
        elif part == "train":
            write_tiff(home / "before" / "before.tif", images[0])
            write_tiff(home / "before" / "before_label.tif", changed)
            write_tiff(home / "after" / "after.tif", images[1])
            write_tiff(home / "change label" / "change_label.tif", changed)
    return root


OSCD_CITIES = ("aguasclaras", "bercy", "bordeaux", "nantes", "paris", "rennes", "brasilia", "rio")


def write_oscd(root: Path, *, form: str = "rgb") -> Path:
    """OSCD. form: "rgb", pictures alone; "bands", 13 files a date at 10, 20 and 60 m; "official", all of it in the
    publisher's folders, rectified, with test labels."""
    for seed, city in enumerate(OSCD_CITIES):
        labels_of = "Test" if city in ("brasilia", "rio") else "Train"
        named = "Onera Satellite Change Detection dataset - {}"
        official = form == "official"
        home = root / named.format("Images") / city if official else root / city
        label_home = root / named.format(f"{labels_of} Labels") / city if official else home
        before, after, changed = pair((36, 42), num_channels=13, seed=seed)
        if form != "bands":
            write_picture(home / "pair" / "img1.png", before[..., :3])
            write_picture(home / "pair" / "img2.png", after[..., :3])
            write_picture(label_home / "cm" / "cm.png", np.dstack([changed * 255] * 3 + [np.full_like(changed, 255)]))
        if form == "rgb":
            continue
        for date, image in ((1, before), (2, after)):
            for index, band in enumerate(BANDS):
                step = (
                    1 if official or band in ("B02", "B03", "B04", "B08") else 6 if band in ("B01", "B09", "B10") else 2
                )
                folder = f"imgs_{date}_rect" if official else f"imgs_{date}"
                name = f"{band}.tif" if official else f"T31UDQ_2017110{date}T105229_{band}.tif"
                array = (100 * image[::step, ::step, index]).astype(np.uint16)
                place = Affine(10.0 * step, 0.0, 500_000.0, 0.0, -10.0 * step, 4_000_000.0)
                write_tiff(home / folder / name, array, transform=place)
        write_tiff(label_home / "cm" / f"{city}-cm.tif", changed + np.uint8(1), crs=None)
    return root
