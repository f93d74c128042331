"""Which pixels of a scene are learnt from, chosen by and tested on.

`block_split`, the default: the scene is cut into square blocks, each is of one part, and a pixel is used only when
its whole window lies in blocks of its own part. So no window of one part shares a pixel with a window of another, and
what is tested is another place, not the neighbour of a training pixel.

`random_leaky_split`, what most papers report: single pixels are drawn at random, so that a test pixel's window holds
training pixels. Its scores tell how well a scene is filled in between known pixels, and little else; the share of test
windows that hold a training pixel is measured and logged as a warning.

`official_split`, for scenes whose publisher says which pixels are for training and which for testing (Houston 2013,
WHU-Hi). Such samples may leak as much as drawn ones do, so the same share is measured.

Sources: Nalepa, Myller and Kawulok 2019, Validating hyperspectral image segmentation (doi 10.1109/LGRS.2019.2895697),
who show how far the two lie apart; the notebook of mahmad000/MorpMamba for the random split 25/25/50.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from statefield.datasets.hyperspectral import Scene
from statefield.errors import ConfigError, UnknownName
from statefield.labels import UNLABELLED
from statefield.registry import Registry
from statefield.tasks.remote_sensing.hyperspectral.windows import margins

__all__ = [
    "FRACTIONS",
    "PARTS",
    "SPLITS",
    "SPLIT_NAMES",
    "PixelSplit",
    "block_split",
    "official_split",
    "random_leaky_split",
    "share_that_sees_training",
    "split_scene",
]

PARTS = ("train", "val", "test")
FRACTIONS = (0.25, 0.25, 0.5)  # train, val and test, as in the notebook of MorpMamba
_ENOUGH = 5  # training pixels without which a class is not said to be learnt
_DRAWS = 40

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PixelSplit:
    """part: int8 [H, W], the index of a pixel in `PARTS`, -1 where it is not used.

    name: of the split. window: side of the windows that it is made for. left_out: the numbers of classes that have no
    pixel to learn from, or none to test on, and so are in no part. notes: what a table must say beside its figures.
    """

    part: np.ndarray
    name: str
    window: int
    left_out: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def pixels(self, part: str) -> np.ndarray:
        """int64 [N, 2]: rows and columns of one part, in raster order."""
        if part not in PARTS:
            raise ConfigError(f"part {part!r} asked for; one of {', '.join(PARTS)} is needed.")
        return np.argwhere(self.part == PARTS.index(part))


SPLITS: Registry[Callable[..., PixelSplit]] = Registry("split of pixels")  # those that labels suffice for


def split_scene(
    name: str,
    scene: Scene,
    *,
    window: int,
    block: int = 16,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> PixelSplit:
    """The split of that name in `SPLIT_NAMES`; `block` is for "blocks" alone, `fractions` not for "official".

    Raises:
        UnknownName: no such split. ConfigError: "official" of a scene without, and as the splits say.
    """
    if name == "official":
        return official_split(scene, window=window, seed=seed)
    if name not in SPLITS:
        raise UnknownName.among("split of pixels", name, SPLIT_NAMES)
    if name == "blocks":
        return block_split(scene.labels, window=window, block=block, fractions=fractions, seed=seed)
    return SPLITS[name](scene.labels, window=window, fractions=fractions, seed=seed)


@SPLITS.register("blocks")
def block_split(
    labels: np.ndarray,
    *,
    window: int,
    block: int = 16,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> PixelSplit:
    """Spatially disjoint parts, by blocks.

    Blocks begin at a corner drawn by the seed, and go, the ones with rare classes first, to the part that lacks most of
    their classes. Of 40 such draws the one is kept in which the most classes have at least five training pixels and a
    test pixel; among equals, the one whose parts are nearest to the fractions. What the guard leaves out is in no part.

    The guard holds for every window that is smaller than a block, but the larger the window, the fewer pixels it
    leaves: of a block alone among others, (block - window + 1)^2. So the share of labelled pixels that is used is among
    the notes, and it is a warning where windows are larger than half a block.

    Args:
        labels: int [H, W], `UNLABELLED` or a class. window: side of the largest window that will be used (1: none).
        block: side of a block in pixels. fractions: of train, val and test in the labelled pixels; they sum to 1.
        seed: another seed, another split.

    Raises:
        ConfigError: fractions that do not sum to 1 or are not above 0; a block that is not larger than the window;
            a scene in which no draw leaves a class to learn and to test.
    """
    _require_fractions(fractions)
    margins(window)
    if block <= window:
        raise ConfigError(
            f"blocks of side {block} for windows of side {window}: larger blocks are needed, since a block alone among "
            "others would keep no pixel whose window lies inside it."
        )
    num_classes = int(labels.max()) + 1
    best: tuple[tuple[int, float], np.ndarray] | None = None
    for draw in range(_DRAWS):
        part = _guarded(_draw_blocks(labels, block, fractions, np.random.default_rng([seed, draw])), window)
        part[labels == UNLABELLED] = -1
        counts = _counts(labels, part, num_classes)
        learnt = int(((counts[0] >= _ENOUGH) & (counts[2] > 0)).sum())
        shares = counts.sum(1) / max(1, counts.sum())
        merit = (learnt, -float(np.abs(shares - fractions).sum()))
        if best is None or merit > best[0]:
            best = merit, part
    assert best is not None
    split = _finished(labels, best[1], "blocks", window)
    used = float((split.part >= 0).sum() / (labels != UNLABELLED).sum())
    note = f"{used:.1%} of the labelled pixels are used: the windows of the others reach into another part"
    if 2 * window > block:
        logger.warning("blocks of side %d, windows of side %d: %s. Use larger blocks.", block, window, note)
    return dataclasses.replace(split, notes=(*split.notes, note))


@SPLITS.register("random-leaky")
def random_leaky_split(
    labels: np.ndarray, *, window: int, fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> PixelSplit:
    """The papers' split: labelled pixels of each class drawn at random, train and test neighbours of each other.

    Arguments and errors as `block_split`. A class gives at least one pixel to training, and then to the test.
    """
    _require_fractions(fractions)
    rng = np.random.default_rng(seed)
    part = np.full(labels.shape, -1, np.int8)
    for number in range(int(labels.max()) + 1):
        places = rng.permutation(np.flatnonzero(labels.ravel() == number))
        if len(places) < 2:
            continue
        train = min(max(1, round(fractions[0] * len(places))), len(places) - 1)
        test = min(max(1, round(fractions[2] * len(places))), len(places) - train)
        part.flat[places[:train]] = 0
        part.flat[places[train : len(places) - test]] = 1
        part.flat[places[len(places) - test :]] = 2
    split = _finished(labels, part, "random-leaky", window)
    share = share_that_sees_training(split)
    note = (
        f"{share:.1%} of the test windows of side {window} hold pixels that were trained on: scores of this split say "
        "nothing about another place."
    )
    logger.warning("random-leaky split: %s", note)
    return dataclasses.replace(split, notes=(note, *split.notes))


def official_split(scene: Scene, *, window: int, seed: int = 0) -> PixelSplit:
    """The publisher's training and test pixels; a quarter of each class's training pixels, drawn, are for validation.

    Publishers give no validation pixels, and choosing by test pixels is no choice. Where the samples were drawn from
    the same fields, test windows hold training pixels: the share is measured, noted and logged.

    Args:
        window: side of the largest window that will be used. seed: of the validation pixels.

    Raises:
        ConfigError: a scene without an official split.
    """
    if scene.official is None:
        raise ConfigError(
            f"{scene.meta['case']} has no official split, or its folder lacks the files of it (`statefield datasets` "
            "shows their names): use --split blocks."
        )
    margins(window)
    train, test = scene.official
    rng = np.random.default_rng(seed)
    part = np.full(scene.labels.shape, -1, np.int8)
    part[test != UNLABELLED] = 2
    for number in range(len(scene.info.classes)):
        places = rng.permutation(np.flatnonzero(train.ravel() == number))
        held_out = len(places) // 4
        part.flat[places[held_out:]] = 0
        part.flat[places[:held_out]] = 1
    split = _finished(scene.labels, part, "official", window)
    # the official training pixels that are held out for validation choose the net, so they count as seen
    share = share_that_sees_training(dataclasses.replace(split, part=np.where(split.part == 1, 0, split.part)))
    note = f"{share:.1%} of the test windows of side {window} hold official training pixels"
    if share:
        logger.warning("official split: %s: its scores say less about another place than they seem to.", note)
    return dataclasses.replace(split, notes=(note, *split.notes))


def share_that_sees_training(split: PixelSplit, window: int | None = None) -> float:
    """Share of the test pixels whose window (of the split's side, or another) holds a training pixel, in [0, 1]."""
    # scipy's windows of an even side lie as ours do: the pixel is the first of the second half
    near = ndimage.maximum_filter(split.part == 0, size=window or split.window, mode="constant", cval=0)
    test = split.part == 2
    return float(near[test].mean()) if test.any() else 0.0


SPLIT_NAMES = (*SPLITS, "official")


def _draw_blocks(
    labels: np.ndarray, block: int, fractions: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """int8 [H, W]: the part of each pixel's block."""
    height, width = labels.shape
    top, left = rng.integers(0, block, 2)
    rows, columns = (np.arange(height) + top) // block, (np.arange(width) + left) // block
    across = int(columns[-1]) + 1
    number = rows[:, None] * across + columns  # of the block, [H, W]
    num_blocks, num_classes = int(number.max()) + 1, int(labels.max()) + 1
    known = labels != UNLABELLED
    counts = np.bincount(number[known] * num_classes + labels[known], minlength=num_blocks * num_classes)
    counts = counts.reshape(num_blocks, num_classes)
    totals = np.maximum(counts.sum(0), 1)
    weights = counts / totals  # [blocks, classes]: the share of a class that lies in the block
    wanted = np.asarray(fractions)[:, None] * np.ones(num_classes)
    lacking = wanted.copy()
    parts = np.empty(num_blocks, np.int8)
    # blocks that hold much of a class come first: they decide whether it is in every part
    for one in np.argsort(-(weights.max(1) + 0.2 * rng.random(num_blocks))):
        if weights[one].any():
            gain = (weights[one] * lacking / wanted).sum(1)
            parts[one] = int(np.argmax(gain + 1e-9 * rng.random(3)))
        else:
            parts[one] = rng.choice(3, p=fractions)
        lacking[parts[one]] -= weights[one]
    return parts[number]


def _guarded(part: np.ndarray, window: int) -> np.ndarray:
    """`part`, -1 where the window of a pixel leaves its part; beyond the scene's border there is no part to meet."""
    kept = np.full_like(part, -1)
    for number in range(len(PARTS)):
        inside = ndimage.minimum_filter(part == number, size=window, mode="constant", cval=1)
        kept[inside] = number
    return kept


def _finished(labels: np.ndarray, part: np.ndarray, name: str, window: int) -> PixelSplit:
    num_classes = int(labels.max()) + 1
    counts = _counts(labels, part, num_classes)
    present = np.bincount(labels[labels != UNLABELLED], minlength=num_classes) > 0
    out = present & ((counts[0] == 0) | (counts[2] == 0))
    left_out = tuple(int(number) for number in np.flatnonzero(out))
    part = np.where(np.isin(labels, left_out), -1, part).astype(np.int8)
    counts = _counts(labels, part, num_classes)
    if not (counts[0] > 0).any():
        raise ConfigError(
            f"split {name!r} of {labels.shape[0]} x {labels.shape[1]} pixels, windows of side {window}: no class has "
            "pixels both to learn from and to test on. Use smaller windows or blocks."
        )
    notes = []
    if left_out:
        notes.append(f"classes {', '.join(map(str, left_out))} lie too close together to be learnt and tested apart")
    few = np.flatnonzero((counts[0] > 0) & (counts[0] < _ENOUGH))
    if len(few):
        notes.append(f"classes {', '.join(map(str, few))} have fewer than {_ENOUGH} training pixels")
    unchosen = np.flatnonzero((counts[0] > 0) & (counts[1] == 0))
    if len(unchosen):
        notes.append(f"classes {', '.join(map(str, unchosen))} have no validation pixel")
    return PixelSplit(part, name, window, left_out, tuple(notes))


def _counts(labels: np.ndarray, part: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [3, K]: pixels of each part and class."""
    return np.stack(
        [np.bincount(labels[(part == number) & (labels >= 0)], minlength=num_classes) for number in range(len(PARTS))]
    )


def _require_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions {fractions} given; three above 0 that sum to 1 are needed: train, val, test.")
