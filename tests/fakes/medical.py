"""Writers of small datasets that follow the published layouts to the letter. Each returns the dataset's folder.

A case is a few bright balls (volumes) or discs (pictures) on a noisy ground: label k has mean intensity 60 * k, so a
small net can learn it. Everything is decided by `seed`.

Use from a test: `from fakes.medical import write_msd` (pytest puts tests/ on the path).
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # to RAS millimetres from an LPS grid of 1 mm, as many scanners write
CLASS_NAMES = ("background", "small", "large", "third", "fourth")


def blobs(shape: tuple[int, ...], *, num_classes: int = 2, num_channels: int = 1, seed: int = 0):
    """(image float32 [*shape, num_channels], labels uint8 [*shape]): one ball for each class above 0, somewhere."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    labels = np.zeros(shape, np.uint8)
    for label in range(1, num_classes):
        centre = [rng.uniform(0.3 * n, 0.7 * n) for n in shape]
        radius = max(1.5, min(shape) * (0.32 - 0.06 * label))
        labels[np.linalg.norm(grid - centre, axis=-1) <= radius] = label
    image = 60.0 * labels[..., None] + rng.normal(30, 6, (*shape, num_channels))
    return image.clip(0, 255).astype(np.float32), labels


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None, dtype: type = np.int16) -> Path:
    """A NIfTI file of `array` in file order [X, Y, Z(, C)]; sform and qform are `affine` (default: 1 mm RAS)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.to_filename(path)
    return path


def write_picture(path: Path, array: np.ndarray) -> Path:
    """A picture of `array` [H, W] or [H, W, 3], 8 bit, in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array).astype(np.uint8)).save(path)
    return path


def write_pairs(
    root: Path,
    *,
    num_cases: int = 10,
    size: tuple[int, int] = (40, 48),
    num_classes: int = 2,
    num_channels: int = 1,
    foreground_255: bool = False,
    split_folders: bool = False,
    classes_file: bool = False,
    seed: int = 0,
) -> Path:
    """images/*.png and masks/*.png; with `split_folders`, train/, val/ and test/ (6 : 2 : 2). Sizes vary by case."""
    for index in range(num_cases):
        shape = (size[0] + 4 * (index % 3), size[1])
        image, labels = blobs(shape, num_classes=num_classes, num_channels=num_channels, seed=seed * 1000 + index)
        part = ("train", "train", "train", "val", "test")[index % 5] if split_folders else "."
        write_picture(root / part / "images" / f"case_{index:03d}.png", image[..., 0] if num_channels == 1 else image)
        write_picture(root / part / "masks" / f"case_{index:03d}.png", labels * 255 if foreground_255 else labels)
    if classes_file:
        (root / "classes.txt").write_text("\n".join(CLASS_NAMES[:num_classes]) + "\n")
    return root


def write_pairs_of_volumes(
    root: Path, *, num_cases: int = 6, shape: tuple[int, int, int] = (20, 24, 8), num_classes: int = 2, seed: int = 0
) -> Path:
    """images/*.nii.gz and labels/*.nii.gz, file order [X, Y, Z], stored LPS with spacings 0.8, 0.9, 2.5 mm."""
    affine = LPS @ np.diag([0.8, 0.9, 2.5, 1.0])
    for index in range(num_cases):
        image, labels = blobs(shape, num_classes=num_classes, seed=seed * 1000 + index)
        write_volume(root / "images" / f"case_{index:03d}.nii.gz", image[..., 0], affine)
        write_volume(root / "labels" / f"case_{index:03d}.nii.gz", labels, affine, np.uint8)
    return root


def write_msd(
    root: Path,
    *,
    num_cases: int = 8,
    num_test: int = 2,
    shape: tuple[int, int, int] = (20, 24, 8),
    num_classes: int = 3,
    modalities: tuple[str, ...] = ("CT",),
    resource_forks: bool = True,
    seed: int = 0,
) -> Path:
    """A Decathlon task: several modalities are the fourth axis; macOS `._` files lie about, as in the archives."""
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    training, testing = [], []
    for index in range(num_cases + num_test):
        image, labels = blobs(shape, num_classes=num_classes, num_channels=len(modalities), seed=seed * 1000 + index)
        name = f"fake_{index:03d}.nii.gz"
        stored = image[..., 0] if len(modalities) == 1 else image
        if index < num_cases:
            write_volume(root / "imagesTr" / name, stored, affine)
            write_volume(root / "labelsTr" / name, labels, affine, np.uint8)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        else:
            write_volume(root / "imagesTs" / name, stored, affine)
            testing.append(f"./imagesTs/{name}")
    if resource_forks:
        (root / "imagesTr" / "._fake_000.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    description = {
        "name": "Fake",
        "description": "balls on a noisy ground",
        "reference": "none",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "3D" if len(modalities) == 1 else "4D",
        "modality": {str(i): name for i, name in enumerate(modalities)},
        "labels": {str(i): name for i, name in enumerate(CLASS_NAMES[:num_classes])},
        "numTraining": num_cases,
        "numTest": num_test,
        "training": training,
        "test": testing,
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1))
    return root


def write_nnunet(
    root: Path,
    *,
    num_cases: int = 8,
    num_test: int = 2,
    labelled_test: bool = False,
    shape: tuple[int, ...] = (20, 24, 8),
    num_classes: int = 3,
    channels: tuple[str, ...] = ("T1", "T2"),
    file_ending: str = ".nii.gz",
    seed: int = 0,
) -> Path:
    """nnU-Net 2 raw: one file for each case and channel. With file_ending ".png" give a 2-D `shape`."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for index in range(num_cases + num_test):
        image, labels = blobs(shape, num_classes=num_classes, num_channels=len(channels), seed=seed * 1000 + index)
        part = "Tr" if index < num_cases else "Ts"
        for channel in range(len(channels)):
            path = root / f"images{part}" / f"fake_{index:03d}_{channel:04d}{file_ending}"
            if file_ending == ".png":
                write_picture(path, image[..., channel])
            else:
                write_volume(path, image[..., channel], affine)
        if part == "Tr" or labelled_test:
            path = root / f"labels{part}" / f"fake_{index:03d}{file_ending}"
            if file_ending == ".png":
                write_picture(path, labels)
            else:
                write_volume(path, labels, affine, np.uint8)
    description = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {name: i for i, name in enumerate(CLASS_NAMES[:num_classes])},
        "numTraining": num_cases,
        "file_ending": file_ending,
    }
    (root / "dataset.json").write_text(json.dumps(description, indent=1))
    return root
