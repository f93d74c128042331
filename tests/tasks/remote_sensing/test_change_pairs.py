"""Pairs and their training patches: functions of (seed, number), aligned, and scaled as prediction scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from statefield.datasets.change import ChangeInfo
from statefield.errors import ConfigError, DataError
from statefield.labels import UNLABELLED
from statefield.tasks.remote_sensing.change_kinds import change_kind
from statefield.tasks.remote_sensing.change_pairs import (
    Pair,
    PairPatches,
    Scaler,
    as_pair,
    augmented,
    band_numbers,
    measured,
)
from statefield.tasks.remote_sensing.change_recipe import BandScalingConfig, PairAugmentConfig

INFO = ChangeInfo(("unchanged", "changed"), ("red", "green"), 2)
LAND = ("unchanged", "water", "tree")
SEMANTIC = replace(INFO, before_classes=LAND, after_classes=LAND)
DAMAGE = ChangeInfo(
    ("background", "no", "minor", "major", "destroyed"), ("red",), 2, before_classes=("background", "building")
)
STILL = PairAugmentConfig(flips=False, turns=False, gain=0.0, shift=0.0)


def _meta(case):
    return {
        "case": case,
        "path": f"{case}.png",
        "spacing": (1.0, 1.0),
        "spacing_known": False,
        "affine": None,
        "file": None,
    }


def _pair(shape=(20, 30), *, case="a", seed=0, changed=0.1) -> Pair:
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < changed).astype(np.int16)
    before = rng.integers(1, 200, (2, *shape)).astype(np.uint8)
    return Pair(before, (before + 40 * mask).astype(np.uint8), {"mask": mask}, _meta(case))


def _patches(pairs, *, kind=None, size=(8, 8), foreground=0.5, augment=None, seed=3) -> PairPatches:
    kind = kind or change_kind("binary", INFO, {})
    scaler = Scaler.of(BandScalingConfig("none"), len(pairs[0].before), pairs)
    return PairPatches(
        pairs,
        kind,
        scaler,
        patch_size=size,
        foreground=foreground,
        augment=augment or PairAugmentConfig(swap_dates=kind.swaps),
        seed=seed,
    )


def _equal(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in ("before", "after", "mask"))


def test_a_patch_is_a_function_of_seed_and_number():
    pairs = [_pair(), _pair((16, 9), case="b", seed=1)]
    first, again = _patches(pairs), _patches(pairs)
    for number in (7, 0, 40, 3):  # whatever was asked before
        assert _equal(first[number], again[number])
    other = _patches(pairs, seed=4)
    assert not all(_equal(first[number], other[number]) for number in range(4))


def test_a_pass_takes_as_many_patches_of_each_pair_as_cover_it():
    pairs = [_pair(), _pair((8, 8), case="b", seed=1)]
    patches = _patches(pairs, foreground=0.0)
    assert len(patches) == 3 * 4 + 1
    for first in (0, 13):
        cases = [patches[first + n]["origin"].split("case ")[1][0] for n in range(13)]
        assert cases.count("b") == 1


def test_dates_and_masks_stay_upon_each_other():
    patches = _patches([_pair(changed=0.3)], augment=PairAugmentConfig(gain=0.0, shift=0.0))
    for number in range(20):
        item = patches[number]
        assert torch.equal(item["after"] - item["before"], 40.0 * item["mask"].expand(2, -1, -1))


def test_all_eight_turns_and_flips_occur():
    corner = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    seen = set()
    for seed in range(100):
        masks = {"mask": np.zeros((2, 2), np.int64)}
        config = PairAugmentConfig(gain=0.0, shift=0.0)
        before, _ = augmented([corner, corner], masks, config, np.random.default_rng(seed))
        seen.add(tuple(before.ravel()))
    assert len(seen) == 8


def test_swapped_dates_swap_the_masks_of_the_dates():
    kind = change_kind("semantic", SEMANTIC, {})
    pair = _pair(changed=1.0)
    masks = {"mask": pair.masks["mask"], "before_mask": pair.masks["mask"], "after_mask": 2 * pair.masks["mask"]}
    patches = _patches([replace(pair, masks=masks)], kind=kind, augment=replace(STILL, swap_dates=True), size=(20, 30))
    swapped = 0
    for number in range(16):
        item = patches[number]
        is_swapped = bool((item["before_mask"] == 2).all())
        earlier, later = ("after", "before") if is_swapped else ("before", "after")
        assert (item[f"{earlier}_mask"] == 1).all() and (item[f"{later}_mask"] == 2).all()
        assert (item[later] - item[earlier] == 40).all()
        swapped += is_swapped
    assert 0 < swapped < 16


def test_colours_of_the_dates_and_bands_are_changed_independently():
    pair = replace(_pair(), after=_pair().before)
    item = _patches([pair], augment=replace(STILL, gain=0.2))[0]
    ratios = {round(float(item[date][band].sum()), 3) for date in ("before", "after") for band in range(2)}
    assert len(ratios) == 4


def test_foreground_patches_are_centred_on_change_and_pairs_without_give_their_place():
    rare = np.zeros((40, 40), np.int16)
    rare[30, 9] = 1
    pair = replace(_pair((40, 40)), masks={"mask": rare})
    empty = replace(_pair((40, 40), case="b", seed=1), masks={"mask": np.zeros((40, 40), np.int16)})
    patches = _patches([pair, empty], foreground=1.0, augment=STILL, size=(9, 9))
    for number in range(12):
        assert patches[number]["mask"][4, 4] == 1


def test_a_pair_smaller_than_the_patch_is_padded_with_zeros_that_count_nowhere():
    item = _patches([_pair((5, 6))], augment=replace(STILL, shift=0.5))[0]
    assert item["mask"].shape == (8, 8)
    outside = item["mask"] == UNLABELLED
    assert outside.sum() == 64 - 30
    assert (item["before"][:, outside] == 0).all() and (item["after"][:, outside] == 0).all()


def test_scaling_of_training_images_is_that_of_their_pixels_together():
    rng = np.random.default_rng(0)
    images = [rng.normal(5, 2, (2, 4, 7)), rng.normal(-3, 1, (2, 9, 2))]
    valid = [np.ones((4, 7), bool), rng.random((9, 2)) < 0.5]
    together = np.concatenate([image[:, keep] for image, keep in zip(images, valid, strict=True)], axis=1)
    scaling = measured(list(zip(images, valid, strict=True)))
    np.testing.assert_allclose(scaling.offset, together.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scaling.scale, together.std(axis=1), rtol=1e-12)


def test_pixels_without_data_are_zero_for_the_net_whatever_the_scaling():
    mask = np.zeros((20, 30), np.int16)
    mask[:4] = UNLABELLED
    pair = replace(_pair(), masks={"mask": mask})
    for method in ("training", "image"):
        before, after = Scaler.of(BandScalingConfig(method), 2, [pair]).scaled(pair)
        assert (before[:, :4] == 0).all() and (after[:, :4] == 0).all()
        assert abs(float(before[:, 4:].mean())) < 0.2


def test_a_constant_band_is_not_divided_by_zero():
    scaling = measured([(np.full((1, 3, 3), 7.0), np.ones((3, 3), bool))])
    assert scaling.apply(np.full((1, 1, 1), 7.0, np.float32)).item() == 0.0


@pytest.mark.parametrize(
    ("values", "kind"), [([0, 255], np.uint8), ([0, 256], np.uint16), ([0.5, 1], np.float32), ([-1, 1], np.float32)]
)
def test_pairs_are_kept_in_the_smallest_type_that_holds_them(values, kind):
    image = np.array(values, np.float32).reshape(1, 1, 2)
    sample = {"before": image, "after": image, "mask": np.zeros((1, 2), np.int64), "meta": _meta("a")}
    pair = as_pair(sample, change_kind("binary", replace(INFO, channels=("red",)), {}), [0])
    assert pair.before.dtype == kind
    np.testing.assert_array_equal(pair.before, image)


def test_a_pair_without_the_labels_that_a_question_needs_is_refused():
    image = np.zeros((2, 3, 3), np.float32)
    sample = {"before": image, "after": image, "mask": np.zeros((3, 3), np.int64), "meta": _meta("a")}
    with pytest.raises(DataError, match="no before_mask and no after_mask"):
        as_pair(sample, change_kind("semantic", SEMANTIC, {}), [0, 1])


def test_bands_are_chosen_by_name_in_the_order_given():
    assert band_numbers(["green", "red"], INFO) == [1, 0]
    assert band_numbers(None, INFO) == [0, 1]
    for wrong in (["blue"], ["red", "red"], []):
        with pytest.raises(ConfigError, match="red, green"):
            band_numbers(wrong, INFO)


def test_settings_that_cannot_work_are_refused():
    damage = change_kind("damage", DAMAGE, {})
    pair = _pair()
    with pytest.raises(ConfigError, match="swap_dates"):
        _patches([pair], kind=damage, augment=PairAugmentConfig(swap_dates=True))
    with pytest.raises(ConfigError, match="square"):
        _patches([pair], size=(8, 16))
    with pytest.raises(ConfigError, match="foreground"):
        _patches([pair], foreground=1.5)
    with pytest.raises(ConfigError, match="low < high"):
        Scaler.of(BandScalingConfig("range", low=3), 2, [pair])
    with pytest.raises(ConfigError, match="0 or more"):
        _patches([pair], augment=PairAugmentConfig(noise=-1))
