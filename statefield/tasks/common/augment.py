"""Augmentation with albumentations, on images of any channel count and any intensity range.

Geometry is albumentations' own. Its intensity transforms are not used by our presets: for float images they clip to
[0, 1], which would destroy z-scores and CT values; `IntensityJitter` and `GaussianNoise` here do not clip, and a
transform that clips is refused when the pipeline is built.

    pipeline = build_augmentation("medical")
    image_chw, mask_hw = pipeline(image_chw, mask_hw, seed=7)   # the same seed, the same result, in any process
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer version on the network when imported

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from statefield.errors import ConfigError, UnknownName
from statefield.tasks.common.config import AugmentPreset, TransformConfig

# Its threads would compete with torch's for the same cores, and crops are small.
cv2.setNumThreads(0)


class IntensityJitter(albumentations.ImageOnlyTransform):
    """x -> x * (1 + gain) + shift * std(x), both drawn evenly from +-`gain` and +-`shift`; no clipping."""

    def __init__(self, gain: float = 0.1, shift: float = 0.1, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.gain, self.shift = gain, shift

    def get_params(self) -> dict[str, Any]:
        return {
            "gain": 1 + self.py_random.uniform(-self.gain, self.gain),
            "shift": self.py_random.uniform(-self.shift, self.shift),
        }

    def apply(self, img: NDArray[np.float32], gain: float = 1.0, shift: float = 0.0, **_: Any) -> NDArray[np.float32]:
        return (img * np.float32(gain) + np.float32(shift * float(img.std()))).astype(np.float32)


class GaussianNoise(albumentations.ImageOnlyTransform):
    """x -> x + level * std(x) * n, with n normal per pixel and level drawn evenly from 0 to `level`; no clipping."""

    def __init__(self, level: float = 0.1, p: float = 0.2) -> None:
        super().__init__(p=p)
        self.level = level

    def get_params(self) -> dict[str, Any]:
        return {"level": self.py_random.uniform(0, self.level)}

    def apply(self, img: NDArray[np.float32], level: float = 0.0, **_: Any) -> NDArray[np.float32]:
        noise = self.random_generator.standard_normal(img.shape, dtype=np.float32)
        return img + np.float32(level * float(img.std())) * noise


def _affine(rotate: float, scale: float, p: float) -> albumentations.BasicTransform:
    return albumentations.Affine(
        rotate=(-rotate, rotate),
        scale=(1 - scale, 1 + scale),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


PRESETS: dict[AugmentPreset, Callable[[], list[albumentations.BasicTransform]]] = {
    "none": list,
    "flips": lambda: [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)],
    # A patient has a left and a right but hardly an upside down: no vertical flip.
    "medical": lambda: [
        albumentations.HorizontalFlip(p=0.5),
        _affine(rotate=15, scale=0.15, p=0.5),
        IntensityJitter(p=0.5),
        GaussianNoise(p=0.2),
    ],
    "natural": lambda: [
        albumentations.HorizontalFlip(p=0.5),
        albumentations.VerticalFlip(p=0.5),
        albumentations.RandomRotate90(p=0.5),
        _affine(rotate=30, scale=0.25, p=0.5),
        IntensityJitter(gain=0.2, shift=0.2, p=0.5),
    ],
}


class Augmentation:
    """A pipeline whose result is a function of (image, mask, seed) and nothing else."""

    def __init__(self, transforms: Sequence[albumentations.BasicTransform]) -> None:
        self.transforms = list(transforms)
        self._pipeline = albumentations.Compose(self.transforms, seed=0) if self.transforms else None

    def __call__(
        self, image: NDArray[np.float32], mask: NDArray[np.int64], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Augment `image` float32 [C, H, W] and `mask` int64 [H, W] together; shapes and dtypes stay."""
        if self._pipeline is None:
            return image, mask
        # One stream for all transforms: `set_random_seed` would give each the same one, and a horizontal flip would
        # always come with a vertical one.
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        result = self._pipeline(
            image=np.ascontiguousarray(image.transpose(1, 2, 0)), mask=np.ascontiguousarray(mask.astype(np.int16))
        )
        augmented = result["image"]
        if augmented.ndim == 2:  # OpenCV drops a single channel's axis
            augmented = augmented[..., None]
        if augmented.shape[:2] != mask.shape or result["mask"].shape != mask.shape:
            raise ConfigError(
                f"the augmentation turned a patch of {mask.shape} pixels into {augmented.shape[:2]}: "
                "leave transforms that change the size (crops, resizes) out of data.augment; data.patch_size sets it."
            )
        return np.ascontiguousarray(augmented.transpose(2, 0, 1), dtype=np.float32), result["mask"].astype(np.int64)


def build_augmentation(choice: AugmentPreset | Sequence[TransformConfig]) -> Augmentation:
    """The pipeline of a preset's name, or of an explicit list of transforms.

    Raises:
        UnknownName: no such preset or transform. ConfigError: wrong arguments, a transform that clips intensities, or
            the package albumentationsx (another licence, same import name) in the place of albumentations.
    """
    _require_albumentations()
    if isinstance(choice, str):
        if choice not in PRESETS:
            raise UnknownName.among("augmentation preset", choice, PRESETS)
        return Augmentation(PRESETS[choice]())
    transforms = [_build(config) for config in choice]
    for transform in transforms:
        _require_no_clipping(transform)
    return Augmentation(transforms)


def _build(config: TransformConfig) -> albumentations.BasicTransform:
    module_name, _, attribute = config.name.rpartition(".")
    try:
        found = getattr(import_module(module_name or "albumentations"), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"data.augment: the module {module_name!r} of {config.name!r} cannot be imported: {error}"
        ) from error
    if found is None:
        raise UnknownName.among("transform", config.name, [n for n in dir(albumentations) if n[0].isupper()])
    try:
        return found(**config.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data.augment: {config.name} refuses args={config.args}: {error}") from error


def _require_no_clipping(transform: albumentations.BasicTransform) -> None:
    """Push an image of z-scores (-3 to 3) through an intensity transform: what comes back in [0, 1] was clipped."""
    if not isinstance(transform, albumentations.ImageOnlyTransform):
        return
    ramp = np.linspace(-3, 3, 64 * 64, dtype=np.float32).reshape(64, 64, 1)
    chance, transform.p = transform.p, 1.0
    try:
        with np.errstate(invalid="ignore"):  # a power of a negative number: refused below
            result = albumentations.Compose([transform], seed=0)(image=ramp)["image"]
    except (TypeError, ValueError, cv2.error) as error:
        raise ConfigError(
            f"data.augment: {type(transform).__name__} cannot work on a float32 image: {error}"
        ) from error
    finally:
        transform.p = chance
    if not np.isfinite(result).all():
        raise ConfigError(
            f"data.augment: {type(transform).__name__} makes NaN of negative intensities, and normalised images have "
            "them. Use statefield.tasks.common.augment.IntensityJitter instead."
        )
    if result.min() >= 0 and result.max() <= 1:
        raise ConfigError(
            f"data.augment: {type(transform).__name__} clips float images to [0, 1] and would destroy normalised "
            "intensities. Use statefield.tasks.common.augment.IntensityJitter or GaussianNoise, or a transform that "
            "does not clip."
        )


def _require_albumentations() -> None:
    try:
        other = version("albumentationsx")
    except PackageNotFoundError:
        return
    raise ConfigError(
        f"the package albumentationsx {other} is installed over albumentations under the same import name, with "
        "another licence (AGPL) and other behaviour: run `pip uninstall albumentationsx; pip install --force-reinstall "
        "'albumentations>=2.0.8,<2.1'`."
    )
