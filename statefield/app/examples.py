"""Inputs to try the screens with, made from what is installed: no data is needed, and none is fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rasterio.transform import Affine

from statefield.datasets import open_dataset
from statefield.datasets.readers.nifti import restore, write_voxels
from statefield.errors import DataError
from statefield.files import atomic_path

_FRAMES, _FIELD = 60, (480, 270)  # width, height


def medical_example(folder: Path) -> Path:
    """A slab of the ICBM152 T1 template, twelve slices that no recipe trains on.

    Raises: DatasetLayoutError where the package nilearn, which ships it, is not installed.
    """
    adapter, _ = open_dataset(None, "mni152", {})
    sample = adapter.load(adapter.records(None, "val")[0])
    meta = sample["meta"]
    if meta["file"] is None:
        raise DataError(f"{meta['path']}: the template is no NIfTI volume; install nilearn again.")
    path = folder / "icbm152_t1_slab.nii.gz"
    voxels = restore(sample["image"][0], meta)
    write_voxels(path, voxels, meta["file"], dtype=np.dtype(np.uint8), description="ICBM152 T1, a slab")
    return path


def change_example(folder: Path, side: int = 512) -> tuple[Path, Path]:
    """A made-up town at two dates: fields change their colour with the season, and some houses are new or gone."""
    rng = np.random.default_rng(7)
    parcels = rng.integers(0, 6, (-(-side // 64), -(-side // 64))).repeat(64, 0).repeat(64, 1)[:side, :side]
    dates = [rng.integers(60, 150, (6, 3))[parcels] + rng.normal(0, 8, (side, side, 3)) for _ in range(2)]
    taken = np.zeros((side, side), bool)
    for _ in range(side * side // 900):
        (row, column), (height, width) = rng.integers(0, side - 20, 2), rng.integers(8, 20, 2)
        stands = rng.choice([(True, True), (True, False), (False, True)], p=[0.7, 0.1, 0.2])
        house = np.s_[row : row + height, column : column + width]
        if taken[house].any():
            continue
        taken[house] = True
        roof = rng.integers(150, 230) * np.array([1, 0.8, 0.75])
        for date, there in zip(dates, stands, strict=True):
            if there:
                date[house] = roof + rng.normal(0, 8, (height, width, 3))
                date[row + height - 2 : row + height, column : column + width] = 40  # a shadow in the south
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)}  # pixels of 0.5 m
    shape = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    paths = folder / "town_before.tif", folder / "town_after.tif"
    for path, date in zip(paths, dates, strict=True):
        with (
            atomic_path(path) as partial,
            rasterio.open(partial, "w", driver="GTiff", compress="DEFLATE", **shape, **place) as raster,
        ):
            raster.write(date.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
    return paths


def tracking_example(folder: Path) -> tuple[Path, Path, list[Path]]:
    """A made-up street: results of a tracker that loses, confuses and invents people, the truth, and the frames."""
    rng = np.random.default_rng(3)
    truth, found = [], []
    tracks = _walks(rng)
    for frame in range(1, _FRAMES + 1):
        for track, boxes in enumerate(tracks, start=1):
            x, y, width, height = boxes[frame - 1]
            if x + width < 4 or x > _FIELD[0] - 4:
                continue
            truth.append(f"{frame},{track},{x:.1f},{y:.1f},{width:.1f},{height:.1f},1,1,1")
            lost = (track * 17 + frame) % 37 < 4  # a few frames of each, now and then
            told = 100 + track if track != 2 or frame < 35 else 120  # one is given a new number
            if not lost:
                moved = np.array([x, y, width, height]) + rng.normal(0, 1.5, 4)
                found.append(f"{frame},{told}," + ",".join(f"{value:.1f}" for value in moved) + ",0.9,-1,-1,-1")
        if 20 <= frame < 32:
            found.append(f"{frame},150,{40 + frame * 2:.1f},30,26,60,0.4,-1,-1,-1")  # nobody is there
    results, ground_truth = folder / "street.txt", folder / "gt.txt"
    results.write_text("\n".join(found) + "\n", encoding="utf-8")
    ground_truth.write_text("\n".join(truth) + "\n", encoding="utf-8")
    return results, ground_truth, _drawn_street(tracks, folder, rng)


def _walks(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Boxes [frames, 4] (left, top, width, height) of five people; those farther down are nearer and larger."""
    walks = []
    for start, speed, feet in ((10, 5.2, 215), (430, -4.6, 225), (-40, 7.0, 250), (250, 1.2, 190), (380, -2.4, 200)):
        height = feet - 110.0
        steps = np.arange(_FRAMES)
        left = start + speed * steps + rng.normal(0, 0.4, _FRAMES).cumsum()
        top = feet - height + 1.5 * np.sin(steps * 0.9)
        walks.append(np.stack([left, top, np.full(_FRAMES, height * 0.38), np.full(_FRAMES, height)], axis=1))
    return walks


def _drawn_street(walks: list[NDArray[np.float64]], folder: Path, rng: np.random.Generator) -> list[Path]:
    colours = ("#7A8CA8", "#A87A7A", "#7AA889", "#A8A07A", "#977AA8")
    wall = (rng.normal(0, 3, (_FIELD[1], _FIELD[0], 1)) + np.linspace(120, 95, _FIELD[1])[:, None, None]).repeat(3, 2)
    wall[150:] = rng.normal(70, 3, (_FIELD[1] - 150, _FIELD[0], 1))
    ground = Image.fromarray(wall.clip(0, 255).astype(np.uint8))
    paths = []
    for frame in range(_FRAMES):
        picture = ground.copy()
        pen = ImageDraw.Draw(picture)
        for number in sorted(range(len(walks)), key=lambda one: walks[one][frame, 1] + walks[one][frame, 3]):
            x, y, width, height = walks[number][frame].tolist()
            pen.ellipse([x + 0.3 * width, y, x + 0.7 * width, y + 0.2 * height], fill="#D9B99B")
            pen.rounded_rectangle([x, y + 0.2 * height, x + width, y + 0.65 * height], 6, fill=colours[number])
            pen.rectangle([x + 0.1 * width, y + 0.65 * height, x + 0.42 * width, y + height], fill="#303848")
            pen.rectangle([x + 0.58 * width, y + 0.65 * height, x + 0.9 * width, y + height], fill="#303848")
        path = folder / f"{frame + 1:06d}.jpg"
        picture.save(path, format="JPEG", quality=88)
        paths.append(path)
    return paths
