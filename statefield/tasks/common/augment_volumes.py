"""Augmentation of volumes: nnU-Net's, on patches of any channel count and intensity range, without clipping.

    pipeline = build_volume_augmentation("medical")
    image_cdhw, mask_dhw = pipeline(image_cdhw, mask_dhw, seed=7, spacing=(2.5, 0.8, 0.8))

The same seed gives the same result in any process. Chances and amounts are those of nnU-Net v2 (Isensee et al. 2021;
MIC-DKFZ/nnUNet, `nnUNetTrainer.get_training_transforms`); mirroring of "medical" is not, see `PRESETS`. Three things
differ: rotations are true ones in millimetres, as volumes come with their spacing; a patch is rotated as it is and not
cut out of a larger one, and repeats by reflection at its borders, as slices do here; and contrast keeps what leaves the
patch's former range.

Where one axis is coarse (`coarse_axis` of the spacing, or the patch three times as wide as it is deep), nothing is
interpolated along it: rotation, zoom, blur and lower resolution stay within its planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import AdjustContrast
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from torch.nn import functional

from statefield.errors import ConfigError, UnknownName
from statefield.tasks.common.config import AugmentPreset, TransformConfig
from statefield.tasks.common.resampling import coarse_axis

Image = NDArray[np.float32]  # [C, D, H, W], or one channel [D, H, W]
Step = Callable[[Image, np.random.Generator, int | None], Image]

_FLAT = 3  # a patch so many times wider than deep is rotated within its slices


def add_noise(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """x + n, n normal of a variance of 0 to 0.1 of the channel's."""
    deviation = image.std(axis=(1, 2, 3), keepdims=True) * np.float32(math.sqrt(rng.uniform(0, 0.1)))
    return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)


def blur(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """Every second channel, Gaussian, of 0.5 to 1 voxel."""

    def blurred(channel: Image) -> Image:
        sigma = [rng.uniform(0.5, 1.0)] * 3
        if coarse is not None:
            sigma[coarse] = 0.0
        return gaussian_filter(channel, sigma)

    return _some_channels(image, rng, blurred)


def brighten(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """0.75 to 1.25 times x."""
    return image * np.float32(rng.uniform(0.75, 1.25))


def change_contrast(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """0.75 to 1.25 times the difference from the channel's mean."""
    mean = image.mean(axis=(1, 2, 3), keepdims=True)
    return (image - mean) * np.float32(rng.uniform(0.75, 1.25)) + mean


def lower_resolution(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """Every second channel at 0.5 to 1 of its resolution (nearest voxels), and back (linearly)."""

    def lowered(channel: Image) -> Image:
        zoom = rng.uniform(0.5, 1.0)
        sides = [n if axis == coarse else max(round(n * zoom), 1) for axis, n in enumerate(channel.shape)]
        small = functional.interpolate(torch.from_numpy(channel)[None, None], sides, mode="nearest-exact")
        return functional.interpolate(small, channel.shape, mode="trilinear")[0, 0].numpy()

    return _some_channels(image, rng, lowered)


def change_gamma(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """A power of 0.7 to 1.5 of each channel within its range; mean and deviation stay (MONAI's `AdjustContrast`)."""
    return _gamma(image, rng, invert=False)


def change_gamma_inverted(image: Image, rng: np.random.Generator, coarse: int | None) -> Image:
    """The same of -x: it spreads the bright end and not the dark one."""
    return _gamma(image, rng, invert=True)


def _gamma(image: Image, rng: np.random.Generator, *, invert: bool) -> Image:
    gamma = rng.uniform(0.7, 1.5)
    result = np.empty_like(image)
    for channel, values in enumerate(image):
        changed = AdjustContrast(gamma, invert_image=invert, retain_stats=True)(values[None])
        result[channel] = np.asarray(changed)[0]
    return result


def _some_channels(image: Image, rng: np.random.Generator, change: Callable[[Image], Image]) -> Image:
    result = image.copy()
    for channel in range(len(image)):
        if rng.random() < 0.5:
            result[channel] = change(np.ascontiguousarray(image[channel]))
    return result


NNUNET_INTENSITY: tuple[tuple[float, Step], ...] = (
    (0.1, add_noise),
    (0.2, blur),
    (0.15, brighten),
    (0.15, change_contrast),
    (0.25, lower_resolution),
    (0.1, change_gamma_inverted),
    (0.3, change_gamma),
)


@dataclass(frozen=True)
class VolumeAugmentation:
    """A pipeline whose result is a function of (image, mask, seed, spacing) and nothing else.

    Args:
        flip_axes: spatial axes (0 slices, 1 rows, 2 columns), each mirrored with a chance of one half.
        quarter_turns: turn slices with as many rows as columns by 0, 90, 180 or 270 degrees.
        rotate: largest angle, degrees, around each axis, with a chance of 0.2. zoom: range of sizes, with a chance of
            0.2.
        intensity: steps on the image alone, each with its chance.
    """

    flip_axes: tuple[int, ...] = ()
    quarter_turns: bool = False
    rotate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    intensity: tuple[tuple[float, Step], ...] = ()

    def __call__(
        self, image: NDArray[np.float32], mask: NDArray[np.int64], seed: int, *, spacing: Sequence[float]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Augment `image` float32 [C, D, H, W] and `mask` int64 [D, H, W] together; shapes and dtypes stay.

        Args: spacing: mm between slices, rows and columns (1 each where it is unknown).
        """
        rng = np.random.default_rng(seed)
        coarse = _coarse(mask.shape, spacing)
        for axis in self.flip_axes:
            if rng.random() < 0.5:
                image, mask = np.flip(image, axis + 1), np.flip(mask, axis)
        if self.quarter_turns and mask.shape[1] == mask.shape[2]:
            turns = int(rng.integers(4))
            image, mask = np.rot90(image, turns, (2, 3)), np.rot90(mask, turns, (1, 2))
        image, mask = self._turned(np.ascontiguousarray(image), np.ascontiguousarray(mask), rng, coarse, spacing)
        for chance, step in self.intensity:
            if rng.random() < chance:
                image = step(image, rng, coarse)
        return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(mask, dtype=np.int64)

    def _turned(
        self,
        image: NDArray[np.float32],
        mask: NDArray[np.int64],
        rng: np.random.Generator,
        coarse: int | None,
        spacing: Sequence[float],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Rotated and zoomed, when the dice say so; drawn in one interpolation."""
        angles, zoom = np.zeros(3), 1.0
        if self.rotate and rng.random() < 0.2:
            angles = rng.uniform(-self.rotate, self.rotate, 3)
            if coarse is not None:
                angles[[axis for axis in range(3) if axis != coarse]] = 0.0
        if self.zoom != (1.0, 1.0) and rng.random() < 0.2:
            zoom = math.exp(rng.uniform(math.log(self.zoom[0]), math.log(self.zoom[1])))
        if zoom == 1.0 and not angles.any():
            return image, mask
        mm = np.diag(np.asarray(spacing, dtype=np.float64))
        source = np.linalg.inv(mm) @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ mm / zoom
        labels = warp(mask[None].astype(np.float32), source, coarse, nearest=True)[0]
        return warp(image, source, coarse), labels.astype(np.int64)


def warp(
    volume: NDArray[np.float32], source: NDArray[np.float64], coarse: int | None, *, nearest: bool = False
) -> NDArray[np.float32]:
    """`volume` [C, D, H, W] where voxel x, from the centre, shows what was at `source` x; [3, 3], in voxels.

    Beyond its borders the volume repeats by reflection. Planes across the axis `coarse` are warped by themselves: that
    takes four neighbours in place of eight, and none of another plane.

    Args: nearest: take the nearest voxel (labels), else interpolate linearly.
    """
    values = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    axes = [axis for axis in range(3) if axis != coarse]
    if coarse is not None:
        values = values.movedim(coarse + 1, 1).flatten(0, 1)
    sides = values.shape[1:]
    # affine_grid speaks of columns first, and calls half a volume 1
    half = np.array([max(side - 1, 1) / 2 for side in sides])
    matrix = (source[np.ix_(axes, axes)] * half[None, :] / half[:, None])[::-1, ::-1]
    theta = torch.from_numpy(np.concatenate([matrix, np.zeros((len(axes), 1))], axis=1)).float()
    grid = functional.affine_grid(theta[None], [1, 1, *sides], align_corners=True)
    mode = "nearest" if nearest else "bilinear"
    warped = functional.grid_sample(values[None], grid, mode, "reflection", align_corners=True)[0]
    if coarse is not None:
        warped = warped.unflatten(0, (volume.shape[0], volume.shape[coarse + 1])).movedim(1, coarse + 1)
    return warped.contiguous().numpy()


def _coarse(shape: Sequence[int], spacing: Sequence[float]) -> int | None:
    """The axis along which nothing is interpolated."""
    found = coarse_axis(spacing)
    if found is None and max(shape) > _FLAT * min(shape):
        found = int(np.argmin(shape))
    return found


PRESETS: dict[AugmentPreset, VolumeAugmentation] = {
    "none": VolumeAugmentation(),
    "flips": VolumeAugmentation(flip_axes=(0, 1, 2)),
    # A patient has a left and a right but hardly an upside down: only columns are mirrored, where nnU-Net mirrors all.
    "medical": VolumeAugmentation(flip_axes=(2,), rotate=30, zoom=(0.7, 1.4), intensity=NNUNET_INTENSITY),
    "natural": VolumeAugmentation(
        flip_axes=(0, 1, 2), quarter_turns=True, rotate=30, zoom=(0.7, 1.4), intensity=NNUNET_INTENSITY
    ),
}


def build_volume_augmentation(choice: AugmentPreset | Sequence[TransformConfig]) -> VolumeAugmentation:
    """The pipeline of a preset's name.

    Raises: UnknownName: no such preset. ConfigError: a list of transforms, which are albumentations' and for slices.
    """
    if not isinstance(choice, str):
        raise ConfigError(
            f"data.augment is a list of transforms ({', '.join(config.name for config in choice) or 'empty'}), and "
            "those are albumentations' for slices; data.patch_size has three numbers, so patches are volumes. Choose "
            f"one of the presets {', '.join(PRESETS)}."
        )
    if choice not in PRESETS:
        raise UnknownName.among("augmentation preset", choice, PRESETS)
    return PRESETS[choice]
