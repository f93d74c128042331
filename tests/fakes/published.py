"""Writers of small copies of published medical datasets, each in its publisher's folder layout; they return the folder.

Pictures and label values as in `fakes.medical`: label k has mean intensity 60 * k.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from fakes.medical import blobs, write_picture
from PIL import Image


def write_drive(
    root: Path,
    *,
    num_train: int = 10,
    num_test: int = 4,
    size: tuple[int, int] = (36, 40),
    suffix: str = ".tif",
    labelled_test: bool = True,
    seed: int = 0,
) -> Path:
    """DRIVE: the first annotator codes 0/255, the second 0/1 in a palette; the field of view leaves out the rim."""
    for index in range(num_train + num_test):
        part, number = ("training", 21 + index) if index < num_train else ("test", 1 + index - num_train)
        image, labels = blobs(size, num_channels=3, seed=seed * 1000 + index)
        view = np.zeros(size, np.uint8)
        view[2:-2, 3:-3] = 255
        home = root / part
        write_picture(home / "images" / f"{number:02d}_{part}{suffix}", image)
        write_picture(home / "mask" / f"{number:02d}_{part}_mask.gif", view)
        if part == "training" or labelled_test:
            write_picture(home / "1st_manual" / f"{number:02d}_manual1.gif", labels * 255)
        if part == "test" and labelled_test:
            write_palette(home / "2nd_manual" / f"{number:02d}_manual2.gif", np.roll(labels, 1, axis=1))
    return root


def write_palette(path: Path, labels: np.ndarray) -> Path:
    """A palette picture whose indices are `labels` [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 255, 255, *([128] * 3 * 254)])
    picture.save(path)
    return path


def write_isbi2012(
    root: Path, *, num_sections: int = 10, size: tuple[int, int] = (36, 40), stacks: bool = True, seed: int = 0
) -> Path:
    """ISBI 2012: stacks as multi-page TIFF, or a PNG for each section; 255 = cell, 0 = membrane."""
    image, labels = blobs((num_sections, *size), seed=seed)
    cells = (255 * (1 - labels)).astype(np.uint8)
    pixels = image[..., 0].astype(np.uint8)
    if stacks:
        for name, pages in (("train-volume", pixels), ("train-labels", cells), ("test-volume", pixels[:3])):
            write_pages(root / f"{name}.tif", pages)
        return root
    for index in range(num_sections):
        write_picture(root / "train" / "image" / f"{index}.png", pixels[index])
        write_picture(root / "train" / "label" / f"{index}.png", cells[index])
    for index in range(3):
        write_picture(root / "test" / f"{index}.png", pixels[index])
        write_picture(root / "test" / f"{index}_predict.png", cells[index])  # left there by a popular repository
    return root


def write_pages(path: Path, pages: np.ndarray) -> Path:
    """A multi-page TIFF of `pages` [N, H, W], 8 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(page.astype(np.uint8)) for page in pages]
    first.save(path, save_all=True, append_images=rest)
    return path


def write_acdc_h5(
    root: Path,
    *,
    num_patients: int = 8,
    shape: tuple[int, int, int] = (3, 36, 40),
    volumes: str | None = "data",
    slices: str | None = None,
    lists: bool = False,
    seed: int = 0,
) -> Path:
    """ACDC in HDF5: two phases a patient, in the folders `volumes` and `slices`; scribbles leave out 4 of 5 pixels."""
    names = []
    for index in range(num_patients * 2):
        image, labels = blobs(shape, num_classes=4, seed=seed * 1000 + index)
        pixels = (image[..., 0] / 255).astype(np.float32)
        keep = np.random.default_rng(index).random(shape) < 0.2
        scribble = np.where(keep, labels, 4).astype(np.uint16)
        name = f"patient{1 + index // 2:03d}_frame{(1, 12)[index % 2]:02d}"
        names.append(name)
        if volumes is not None:
            write_hdf5(root / volumes / f"{name}.h5", image=pixels, label=labels, scribble=scribble)
        for z in range(shape[0] if slices is not None else 0):
            path = root / str(slices) / f"{name}_slice_{z + 1}.h5"
            write_hdf5(path, image=pixels[z], label=labels[z], scribble=scribble[z])
    if lists:
        for part, chosen in (("test", names[:4]), ("val", names[4:6]), ("train", names[6:])):
            (root / f"{part}.list").write_text("\n".join(chosen) + "\n")
    return root


def write_hdf5(path: Path, **arrays: np.ndarray) -> Path:
    """An HDF5 file with one compressed data set for each array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")
    return path
