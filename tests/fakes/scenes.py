"""Writers of small sets of scenes, each in its publisher's folder layout; they return the folder.

A class is a texture: what is drawn, and in which colour, follows from its number; phase, turn and noise from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fakes.change import write_tiff
from fakes.medical import write_picture

from statefield.datasets.scenes import SCENE_SETS

CLASSES = ("fields", "houses", "trees", "water")


def texture(label: int, *, size: tuple[int, int] = (24, 24), num_channels: int = 3, seed: int = 0) -> np.ndarray:
    """float32 [H, W, C] in 0..255: stripes, a chequerboard, blots or plain ground, in grey; noise on each.

    Four kinds, told apart by their form alone; a further four are coarser, and so on.
    """
    rng = np.random.default_rng((seed, label))
    rows, columns = np.indices(size, dtype=np.float32)
    turn, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi, 2)
    u = rows * np.cos(turn) + columns * np.sin(turn)
    v = columns * np.cos(turn) - rows * np.sin(turn)
    waves = 2 * np.pi / (6.0 * (1 + label // 4))
    kind = label % 4
    if kind == 0:
        pattern = np.sign(np.sin(waves * u + phase[0]))
    elif kind == 1:
        pattern = np.sign(np.sin(waves * u + phase[0]) * np.sin(waves * v + phase[1]))
    elif kind == 2:
        pattern = 2.0 * (np.sin(waves * u + phase[0]) + np.sin(waves * v + phase[1]) > 1.2) - 1
    else:
        pattern = np.zeros(size)
    grey = 120 + 60 * pattern[..., None] + rng.normal(0, 10, (*size, num_channels))
    return grey.clip(0, 255).astype(np.float32)


def write_class_folders(
    root: Path,
    classes: Sequence[str] = CLASSES,
    *,
    per_class: int = 10,
    size: tuple[int, int] = (24, 24),
    num_channels: int = 3,
    suffix: str = ".png",
    seed: int = 0,
) -> Path:
    """A folder for each class, with images CLASS_000, CLASS_001, ..."""
    for label, name in enumerate(classes):
        for index in range(per_class):
            image = texture(label, size=size, num_channels=num_channels, seed=seed * 1000 + index)
            _write(root / name / f"{name}_{index:03d}{suffix}", image)
    return root


def write_split_folders(root: Path, counts: Sequence[tuple[str, int]] = (("train", 6), ("val", 2), ("test", 3))):
    """train/CLASS/, val/CLASS/ and test/CLASS/, whose files have equal names."""
    for seed, (split, count) in enumerate(counts):
        write_class_folders(root / split, per_class=count, seed=seed)
    return root


def write_uc_merced(root: Path, *, per_class: int = 4, home: str = "Images", seed: int = 0) -> Path:
    """agricultural00.tif ...; the last of each class has another size, as 44 of the published ones do."""
    for label, name in enumerate(SCENE_SETS["uc_merced"].classes):
        for index in range(per_class):
            size = (24, 24) if index < per_class - 1 else (22, 25)
            _write(root / home / name / f"{name}{index:02d}.tif", texture(label, size=size, seed=seed * 1000 + index))
    (root / "readme.txt").write_text("a file of the archive\n")
    return root


def write_aid(root: Path, *, per_class: int = 4, seed: int = 0) -> Path:
    """airport_1.jpg ..."""
    for label, name in enumerate(SCENE_SETS["aid"].classes):
        for index in range(per_class):
            _write(root / name / f"{name.lower()}_{index + 1}.jpg", texture(label, seed=seed * 1000 + index))
    return root


def write_resisc45(root: Path, *, per_class: int = 4, seed: int = 0) -> Path:
    """airplane_001.jpg ..."""
    for label, name in enumerate(SCENE_SETS["resisc45"].classes):
        for index in range(per_class):
            _write(root / name / f"{name}_{index + 1:03d}.jpg", texture(label, seed=seed * 1000 + index))
    return root


def write_lists(root: Path, home: Path, splits: Sequence[tuple[str, int, int]], *, with_class: bool = True) -> Path:
    """Lists in `root`, without a last line break: of each class the images from number `first` to before `last`.

    Args: splits: the list's name without .txt, first, last.
    """
    for name, first, last in splits:
        lines = [
            f"{folder.name}/{path.name}" if with_class else path.name
            for folder in sorted(path for path in home.iterdir() if path.is_dir())
            for path in sorted(folder.iterdir())[first:last]
        ]
        (root / f"{name}.txt").write_text("\n".join(lines))
    return root


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        write_tiff(path, image.astype(np.uint8).transpose(2, 0, 1), crs=None)
    else:
        write_picture(path, image[..., 0] if image.shape[2] == 1 else image)
