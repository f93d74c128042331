"""Scenes as a net sees them: read, cut out, varied in training, normalised.

Shape legend: C channels, H x W pixels of the file, S the side of the net's input.

Training draws an endless numbered list of scenes. Scene n belongs to pass `n // len(scenes)` over the data, in an order
of (seed, pass), and all that is random in it follows from (seed, n): any run that comes to number n sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import albumentations
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import transforms

from statefield.datasets.sample import DatasetInfo, Record
from statefield.datasets.scenes import SceneSet, label_of
from statefield.errors import ConfigError, DataError, ShapeError
from statefield.tasks.common.augment import Augmentation, IntensityJitter
from statefield.tasks.common.data import NumberedBatches, require_cases
from statefield.tasks.remote_sensing.scene_recipe import SceneAugmentConfig, SceneRecipe

Array = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
_SHOWN = 5  # broken files that an error names


@dataclass(frozen=True)
class SceneInfo(DatasetInfo):
    """`DatasetInfo`, with what becomes 0 (`mean`) and one unit (`std`) of each channel, in the files' units."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def normalised(self, image: Array) -> Array:
        """(image - mean) / std of [C, H, W]."""
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


class SceneItem(TypedDict):
    """A training example: `image` float32 [C, S, S], its class, where it is from, its number n."""

    image: Tensor
    label: int
    origin: str
    number: int


class SceneBatch(TypedDict):
    """Scenes to be classified together: `image` float32 [B, C, S, S], `label` int64 [B], and the cases' names."""

    image: Tensor
    label: Tensor
    cases: list[str]


class SceneReader:
    """The pictures of records, kept in memory if asked for: as bytes, where their values are whole and up to 255."""

    def __init__(self, adapter: SceneSet, *, keep: bool) -> None:
        self.adapter, self.keep = adapter, keep
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, record: Record) -> Array:
        """float32 [C, H, W]; errors name the file."""
        kept = self._kept.get(record.case)
        if kept is not None:
            return kept.astype(np.float32)
        image = self.adapter.load(record)["image"]
        if self.keep:
            small = image.astype(np.uint8)
            self._kept[record.case] = small if np.array_equal(small, image) else image
        return image


def inspect(
    reader: SceneReader, records: Sequence[Record], train: Sequence[Record], progress: Progress | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Decode every scene once, so that a broken one is told before the training and not hours into it.

    Args: records: all of them. train: those among them whose values are counted.

    Returns: mean and standard deviation [C] of the training scenes' pixels, each pixel counting alike; whether all
        training scenes hold whole values of 0 to 255.

    Raises: DataError: files that cannot be read, the first five by name.
    """
    counted = {record.case for record in train}
    sums: list[NDArray[np.float64]] = []
    count, eight_bit = 0, True
    broken: list[str] = []
    for number, record in enumerate(records):
        try:
            image = reader(record)
        except (DataError, ShapeError) as error:
            broken.append(str(error))
            continue
        if record.case in counted:
            pixels = image.reshape(len(image), -1).astype(np.float64)
            sums.append(np.stack([pixels.sum(1), (pixels**2).sum(1)]))
            count += pixels.shape[1]
            eight_bit = eight_bit and bool((image >= 0).all() and (image <= 255).all() and (image % 1 == 0).all())
        if progress is not None:
            progress("reading", number + 1, len(records))
    if broken:
        more = f"\n... and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        one = len(broken) == 1
        raise DataError(
            f"{len(broken)} of {len(records)} scenes cannot be used; replace {'it' if one else 'them'}, or take "
            f"{'it' if one else 'them'} away:\n" + "\n".join(broken[:_SHOWN]) + more
        )
    total, squares = np.sum(sums, axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean, np.where(std > 0, std, 1.0), eight_bit


def centre(image: Array, *, edge: int, side: int) -> Array:
    """The centre [C, side, side] of a scene whose shorter side was resized to `edge` (bicubic, without aliasing)."""
    height, width = image.shape[1:]
    scale = edge / min(height, width)
    size = (max(round(height * scale), side), max(round(width * scale), side))
    resized = _resized(torch.from_numpy(image), size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return np.ascontiguousarray(resized[:, top : top + side, left : left + side].numpy())


class SceneVariation:
    """A scene [C, H, W] at random as a net input [C, S, S], as a function of (scene, seed).

    Crops are resized by torch, as `centre` does it: albumentations takes every so manieth pixel where it shrinks, so
    that training and test would see different textures.
    """

    def __init__(self, config: SceneAugmentConfig, info: SceneInfo, side: int) -> None:
        self.config, self.info, self.side = config, info, side
        turned: list[albumentations.BasicTransform] = []
        if config.flips:
            turned += [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
        if config.turns:
            turned.append(albumentations.RandomRotate90(p=1.0))
        jitter = [IntensityJitter(config.gain, config.shift, p=0.5)] if config.gain or config.shift else []
        self.turned, self.jittered = Augmentation(turned), Augmentation(jitter)
        self.policy: Callable[[Tensor], Tensor] | None = None
        if config.auto_augment:
            self.policy = transforms.AutoAugment(
                transforms.AutoAugmentPolicy.IMAGENET,
                transforms.InterpolationMode.BILINEAR,
                fill=[float(round(value)) for value in info.mean],
            )

    def __call__(self, image: Array, seed: int) -> Array:
        with torch.random.fork_rng(devices=[]):  # what torchvision draws from
            torch.manual_seed(seed)
            low, high = self.config.crop_scale
            values = torch.from_numpy(image)
            if low < 1:
                top, left, height, width = transforms.RandomResizedCrop.get_params(
                    values, scale=[low, high], ratio=[3 / 4, 4 / 3]
                )
                values = values[:, top : top + height, left : left + width]
            varied = self._turn(_resized(values, (self.side, self.side)).numpy(), seed)
            if self.policy is not None:
                bytes_ = torch.from_numpy(varied).clamp(0, 255).round().to(torch.uint8)
                varied = self.policy(bytes_).numpy().astype(np.float32)
        varied = self.info.normalised(varied)
        return self.jittered(varied, _no_mask(varied), seed + 1)[0]

    def _turn(self, image: Array, seed: int) -> Array:
        return self.turned(np.ascontiguousarray(image), _no_mask(image), seed)[0]


class SceneExamples(Dataset[SceneItem]):
    """The endless numbered list of training scenes; `scenes[n]` depends on the data, the seed and n alone."""

    def __init__(self, records: Sequence[Record], read: SceneReader, vary: SceneVariation, *, seed: int) -> None:
        self.records, self.read, self.vary, self.seed = list(records), read, vary, seed

    def __len__(self) -> int:
        """Scenes of one pass; numbers go on beyond it."""
        return len(self.records)

    def __getitem__(self, number: int) -> SceneItem:
        count = len(self.records)
        order = np.random.default_rng((self.seed, 0, number // count)).permutation(count)
        record = self.records[order[number % count]]
        seed = int(np.random.default_rng((self.seed, 1, number)).integers(1 << 31))
        return {
            "image": torch.from_numpy(self.vary(self.read(record), seed)),
            "label": label_of(record),
            "origin": str(record.images[0]),
            "number": number,
        }


class SceneBatches(Dataset[SceneBatch]):
    """Scenes as they are tested, `batch_size` at a time, in the order of the records."""

    def __init__(
        self, records: Sequence[Record], read: SceneReader, info: SceneInfo, *, edge: int, side: int, batch_size: int
    ) -> None:
        self.parts = [list(records[first : first + batch_size]) for first in range(0, len(records), batch_size)]
        self.read, self.info, self.edge, self.side = read, info, edge, side

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[SceneBatch]:
        return (self[index] for index in range(len(self.parts)))

    def __getitem__(self, index: int) -> SceneBatch:
        images = [self.prepared(self.read(record)) for record in self.parts[index]]
        return {
            "image": torch.from_numpy(np.stack(images)),
            "label": torch.tensor([label_of(record) for record in self.parts[index]]),
            "cases": [record.case for record in self.parts[index]],
        }

    def prepared(self, image: Array) -> Array:
        """A scene [C, H, W] as the net sees it outside training, [C, S, S]."""
        return self.info.normalised(centre(image, edge=self.edge, side=self.side))


class SceneData(NumberedBatches):
    """Training scenes and validation batches of a recipe.

    Raises: DataError: an empty split. ConfigError: AutoAugment on other than 8-bit colour pictures.
    """

    def __init__(
        self,
        recipe: SceneRecipe,
        info: SceneInfo,
        reader: SceneReader,
        train: Sequence[Record],
        val: Sequence[Record],
    ) -> None:
        data = recipe.data
        require_cases(train, val)
        vary = SceneVariation(data.augment, info, data.image_size)
        super().__init__(
            SceneExamples(train, reader, vary, seed=recipe.seed),
            tested(recipe, val, reader, info),
            batch_size=data.batch_size,
            steps_per_epoch=recipe.trainer.steps_per_epoch,
            workers=data.workers,
        )


def tested(recipe: SceneRecipe, records: Sequence[Record], reader: SceneReader, info: SceneInfo) -> SceneBatches:
    """Batches of scenes as the recipe prepares them outside training."""
    data = recipe.data
    return SceneBatches(records, reader, info, edge=data.resized_edge, side=data.image_size, batch_size=data.batch_size)


def require_auto_augment(config: SceneAugmentConfig, channels: Sequence[str], *, eight_bit: bool) -> None:
    """Raise `ConfigError` where AutoAugment is asked for and cannot work: it knows 8-bit colour pictures alone."""
    if config.auto_augment and (len(channels) != 3 or not eight_bit):
        what = f"{len(channels)} channels" if len(channels) != 3 else "values beyond 0 to 255, or broken ones"
        raise ConfigError(
            f"data.augment.auto_augment is true, and the scenes have {what}: it works on 8-bit colour pictures alone. "
            "Set it to false; gain and shift vary intensities of any kind."
        )


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[1:] == size:
        return image
    return functional.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def _no_mask(image: Array) -> NDArray[np.int64]:
    return np.zeros(image.shape[1:], np.int64)
