"""Writers of small copies of published medical datasets, each in its publisher's folder layout; they return the folder.

Pictures and label values as in `fakes.medical`: label k has mean intensity 60 * k.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from fakes.medical import LPS, blobs, write_picture, write_volume
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
        write_grey_gif(home / "mask" / f"{number:02d}_{part}_mask.gif", view)
        if part == "training" or labelled_test:
            write_grey_gif(home / "1st_manual" / f"{number:02d}_manual1.gif", labels * 255)
        if part == "test" and labelled_test:
            write_palette(home / "2nd_manual" / f"{number:02d}_manual2.gif", np.roll(labels, 1, axis=1))
    return root


def write_grey_gif(path: Path, array: np.ndarray) -> Path:
    """A GIF whose palette is all 256 greys, as DRIVE's: Pillow would else keep the greys in use, and renumber them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array).astype(np.uint8)).save(path, optimize=False)
    return path


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


def write_acdc(
    root: Path, *, num_patients: int = 6, num_test: int = 3, shape: tuple[int, int, int] = (20, 24, 3), seed: int = 0
) -> Path:
    """ACDC as NIfTI: two frames and the whole cine a patient; labelled testing/ when `num_test` is above 0."""
    affine = np.diag([1.5, 1.5, 10.0, 1.0])
    for index in range(num_patients + num_test):
        part, number = ("training", 1 + index) if index < num_patients else ("testing", 101 + index - num_patients)
        home = root / part / f"patient{number:03d}"
        for frame in (1, 12):
            image, labels = blobs(shape, num_classes=4, seed=seed * 1000 + index * 20 + frame)
            write_volume(home / f"patient{number:03d}_frame{frame:02d}.nii.gz", image[..., 0], affine)
            write_volume(home / f"patient{number:03d}_frame{frame:02d}_gt.nii.gz", labels, affine, np.uint8)
        write_volume(home / f"patient{number:03d}_4d.nii.gz", np.zeros((4, 4, 2, 5)), affine)
        (home / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\nHeight: 170.0\nNbFrame: 30\nWeight: 70.0\n")
    return root


def write_btcv(
    root: Path, *, home: str = "Training", shape: tuple[int, int, int] = (20, 24, 8), num_test: int = 2, seed: int = 0
) -> Path:
    """BTCV: ten labelled scans of the real numbers, four of them in TransUNet's test list."""
    affine = LPS @ np.diag([0.8, 0.8, 3.0, 1.0])
    for index, number in enumerate((1, 2, 3, 4, 5, 6, 7, 9, 10, 21)):
        image, labels = blobs(shape, num_classes=5, seed=seed * 1000 + index)
        write_volume(root / home / "img" / f"img{number:04d}.nii.gz", image[..., 0] - 100, affine)
        write_volume(root / home / "label" / f"label{number:04d}.nii.gz", labels, affine, np.uint8)
    for index in range(num_test):
        image, _ = blobs(shape, seed=seed * 1000 + 100 + index)
        write_volume(root / "Testing" / "img" / f"img{61 + index:04d}.nii.gz", image[..., 0] - 100, affine)
    return root


def write_synapse(
    root: Path, *, num_train: int = 5, num_test: int = 2, shape: tuple[int, int, int] = (4, 24, 20), seed: int = 0
) -> Path:
    """Synapse as TransUNet has it: slices as .npz for training, volumes as .npy.h5 for testing."""
    for index in range(num_train + num_test):
        image, labels = blobs(shape, num_classes=5, seed=seed * 1000 + index)
        pixels = (image[..., 0] / 255).astype(np.float32)
        if index < num_train:
            (root / "train_npz").mkdir(parents=True, exist_ok=True)
            for z in range(shape[0]):
                path = root / "train_npz" / f"case{5 + index:04d}_slice{z:03d}.npz"
                np.savez(path, image=pixels[z], label=labels[z].astype(np.float32))
        else:
            path = root / "test_vol_h5" / f"case{1 + index - num_train:04d}.npy.h5"
            write_hdf5(path, image=pixels, label=labels.astype(np.float32))
    return root


def write_lits(
    root: Path, *, num_cases: int = 6, shape: tuple[int, int, int] = (20, 24, 8), batches: bool = True, seed: int = 0
) -> Path:
    """LiTS: volume-N.nii and segmentation-N.nii in two batches or at the top, and a test scan."""
    affine = np.diag([0.7, 0.7, 1.5, 1.0])
    for index in range(num_cases):
        image, labels = blobs(shape, num_classes=3, seed=seed * 1000 + index)
        home = root / f"Training Batch {1 + index % 2}" if batches else root
        write_volume(home / f"volume-{index}.nii", image[..., 0] - 100, affine)
        write_volume(home / f"segmentation-{index}.nii", labels, affine, np.uint8)
    write_volume(root / "Test" / "test-volume-0.nii", image[..., 0] - 100, affine)
    return root


def write_isic(
    root: Path, year: int, *, counts: tuple[int, int, int] = (4, 2, 2), size: tuple[int, int] = (24, 32), seed: int = 0
) -> Path:
    """ISIC 2017 or 2018: photographs as JPEG, masks 0/255 as PNG; 2017 has superpixel pictures besides."""
    names = {
        2017: ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", ("Training", "Validation", "Test_v2")),
        2018: ("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", ("Training", "Validation", "Test")),
    }
    image_folder, mask_folder, parts = names[year]
    number = 0
    for part, count in zip(parts, counts, strict=True):
        for _ in range(count):
            image, labels = blobs(size, num_channels=3, seed=seed * 1000 + number)
            case = f"ISIC_{number:07d}"
            number += 1
            write_picture(root / image_folder.format(part) / f"{case}.jpg", image)
            write_picture(root / mask_folder.format(part) / f"{case}_segmentation.png", labels * 255)
            if year == 2017:
                write_picture(root / image_folder.format(part) / f"{case}_superpixels.png", image)
    return root


def write_montgomery(root: Path, *, num_cases: int = 6, size: tuple[int, int] = (24, 32), seed: int = 0) -> Path:
    """Montgomery: each lung in a mask of its own, 0/255."""
    for index in range(num_cases):
        image, labels = blobs(size, seed=seed * 1000 + index)
        left = np.where(np.arange(size[1]) < size[1] // 2, labels, 0)
        name = f"MCUCXR_{index + 1:04d}_{index % 2}.png"
        write_picture(root / "CXR_png" / name, image[..., 0])
        write_picture(root / "ManualMask" / "leftMask" / name, left * 255)
        write_picture(root / "ManualMask" / "rightMask" / name, (labels - left) * 255)
    return root


def write_shenzhen(root: Path, *, num_cases: int = 7, size: tuple[int, int] = (24, 32), seed: int = 0) -> Path:
    """Shenzhen: the last radiograph has no mask; every second one repeats its grey in three channels."""
    for index in range(num_cases):
        image, labels = blobs(size, seed=seed * 1000 + index)
        case = f"CHNCXR_{index + 1:04d}_{index % 2}"
        grey = image if index % 2 else image.repeat(3, axis=-1)
        write_picture(root / "CXR_png" / f"{case}.png", grey[..., 0] if index % 2 else grey)
        if index < num_cases - 1:
            write_picture(root / "mask" / f"{case}_mask.png", labels * 255)
    return root


def write_umamba(root: Path, name: str, *, seed: int = 0) -> Path:
    """A set of the U-Mamba benchmark: nnU-Net's raw layout with the publisher's own dataset.json."""
    channels, labels = UMAMBA[name]
    colour = len(channels) == 3
    for index in range(6):
        part = "Tr" if index < 5 else "Ts"
        image, values = blobs(
            (24, 32) if colour else (20, 24, 6), num_classes=3, num_channels=len(channels), seed=index
        )
        if colour:
            write_picture(root / f"images{part}" / f"case_{index}_0000.png", image)
            write_picture(root / f"labels{part}" / f"case_{index}.png", values)
        else:
            write_volume(root / f"images{part}" / f"amos_{index}_0000.nii.gz", image[..., 0])
            write_volume(root / f"labels{part}" / f"amos_{index}.nii.gz", values, dtype=np.uint8)
    description = {
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {label: i for i, label in enumerate(labels)},
        "numTraining": 5,
        "file_ending": ".png" if colour else ".nii.gz",
        "name": name,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


UMAMBA = {  # of github.com/bowang-lab/U-Mamba, data/nnUNet_raw/*/dataset.json
    "Dataset702_AbdomenMR": (
        ("MR",),
        (
            *("background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava"),
            *("right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum"),
            "left kidney",
        ),
    ),
    "Dataset703_NeurIPSCell": (("R", "G", "B"), ("background", "interior", "boundary")),
    "Dataset704_Endovis17": (
        ("R", "G", "B"),
        (
            *("background", "Bipolar Forceps", "Prograsp Forceps", "Large Needle Driver", "Vessel Sealer"),
            *("Grasping Retractor", "Monopolar Curved Scissors", "Ultrasound Probe"),
        ),
    ),
}
