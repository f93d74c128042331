"""Scenes as a net sees them: functions of (scene, seed), cut out as told, normalised by the training scenes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fakes.scenes import texture, write_class_folders
from PIL import Image

from statefield.datasets.scenes import label_of, open_scenes
from statefield.errors import ConfigError, DataError
from statefield.tasks.remote_sensing.scene_images import (
    SceneBatches,
    SceneExamples,
    SceneInfo,
    SceneReader,
    SceneVariation,
    centre,
    inspect,
    require_auto_augment,
)
from statefield.tasks.remote_sensing.scene_recipe import SceneAugmentConfig

INFO = SceneInfo(("a", "b"), ("red", "green", "blue"), 2, mean=(100.0, 110.0, 120.0), std=(50.0, 40.0, 60.0))


def _scene(seed: int = 0, size: tuple[int, int] = (30, 36)) -> np.ndarray:
    return np.ascontiguousarray(texture(1, size=size, seed=seed).transpose(2, 0, 1))


@pytest.fixture
def scenes(tmp_path):
    """(reader, training records, all records) of a small set."""
    root = write_class_folders(tmp_path, per_class=5)
    adapter, _ = open_scenes(root)
    splits = {split: adapter.records(root, split) for split in ("train", "val", "test")}
    return SceneReader(adapter, keep=False), splits["train"], [r for records in splits.values() for r in records]


@pytest.mark.parametrize(
    "config",
    [
        SceneAugmentConfig(),
        SceneAugmentConfig(crop_scale=(1.0, 1.0), turns=True, gain=0.2, shift=0.2),
        SceneAugmentConfig(auto_augment=True),
    ],
)
def test_variation_is_a_function_of_scene_and_seed_and_leaves_the_generators_alone(config):
    vary, image = SceneVariation(config, INFO, 24), _scene()
    kept = image.copy()
    torch.manual_seed(1)
    state, python_state = torch.random.get_rng_state(), random.getstate()
    first = vary(image, 7)
    assert torch.equal(torch.random.get_rng_state(), state) and random.getstate() == python_state
    torch.manual_seed(2)
    np.testing.assert_array_equal(SceneVariation(config, INFO, 24)(image, 7), first)
    np.testing.assert_array_equal(image, kept)
    assert first.shape == (3, 24, 24) and first.dtype == np.float32
    assert len({vary(image, seed).tobytes() for seed in range(8)}) > 4


def test_without_variation_a_scene_is_resized_and_normalised_alone():
    config = SceneAugmentConfig(crop_scale=(1.0, 1.0), flips=False)
    image = _scene(size=(24, 24))
    varied = SceneVariation(config, INFO, 24)(image, 3)
    np.testing.assert_allclose(varied[1], (image[1] - 110) / 40, rtol=1e-6)


def test_flips_and_turns_move_pixels_and_change_none():
    config = SceneAugmentConfig(crop_scale=(1.0, 1.0), turns=True)
    image = _scene(size=(24, 24))
    seen = {SceneVariation(config, INFO, 24)(image, seed).tobytes() for seed in range(60)}
    assert len(seen) == 8  # the symmetries of a square
    expected = np.sort(INFO.normalised(image).ravel())
    np.testing.assert_allclose(np.sort(SceneVariation(config, INFO, 24)(image, 5).ravel()), expected, rtol=1e-5)


def test_centre_is_that_of_pillows_bicubic():
    image = _scene(size=(60, 84))
    picture = Image.fromarray(image.transpose(1, 2, 0).round().astype(np.uint8))
    ours = centre(np.asarray(picture, np.float32).transpose(2, 0, 1), edge=32, side=28)
    theirs = np.asarray(picture.resize((45, 32), Image.Resampling.BICUBIC), np.float32)[2:30, 8:36].transpose(2, 0, 1)
    assert ours.shape == (3, 28, 28)
    assert abs(ours.clip(0, 255) - theirs).max() <= 1.5  # Pillow rounds to bytes after each direction


@pytest.mark.parametrize("size", [(8, 90), (90, 8), (1, 1), (28, 28)])
def test_centre_of_any_size_has_the_nets_side(size):
    assert centre(_scene(size=size), edge=32, side=28).shape == (3, 28, 28)


def test_examples_are_a_function_of_seed_and_number(scenes):
    reader, train, _ = scenes
    vary = SceneVariation(SceneAugmentConfig(), INFO, 16)
    examples, again = (SceneExamples(train, reader, vary, seed=3) for _ in range(2))
    numbers = [*range(len(train)), 3 * len(train) + 5]
    for number in reversed(numbers):
        assert torch.equal(examples[number]["image"], again[number]["image"])
    assert sorted(examples[n]["origin"] for n in range(len(train))) == sorted(str(r.images[0]) for r in train)
    orders = {tuple(examples[p * len(train) + n]["origin"] for n in range(len(train))) for p in range(3)}
    assert len(orders) == 3
    other = SceneExamples(train, reader, vary, seed=4)
    assert any(not torch.equal(other[n]["image"], examples[n]["image"]) for n in range(4))


def test_inspection_gives_the_moments_of_the_training_pixels_alone(scenes):
    reader, train, every = scenes
    mean, std, eight_bit = inspect(reader, every, train)
    pixels = np.concatenate([reader(record).reshape(3, -1) for record in train], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(1), rtol=1e-9)
    assert eight_bit


def test_inspection_names_every_broken_scene_up_to_five(scenes):
    reader, train, every = scenes
    for record in every[:7]:
        record.images[0].write_bytes(record.images[0].read_bytes()[:60])
    with pytest.raises(DataError, match="7 of 20 scenes cannot be used") as raised:
        inspect(reader, every, train)
    said = str(raised.value)
    assert sum(str(record.images[0]) in said for record in every[:7]) == 5 and "and 2 more" in said


def test_reader_keeps_bytes_as_bytes_and_gives_the_same(scenes):
    reader, _, every = scenes
    keeping = SceneReader(reader.adapter, keep=True)
    first = keeping(every[0])
    np.testing.assert_array_equal(first, reader(every[0]))
    every[0].images[0].unlink()
    again = keeping(every[0])
    np.testing.assert_array_equal(again, first)
    assert again.dtype == np.float32 and keeping._kept[every[0].case].dtype == np.uint8


def test_batches_hold_every_scene_once_in_order(scenes):
    reader, _, every = scenes
    batches = list(SceneBatches(every, reader, INFO, edge=18, side=16, batch_size=8))
    assert [len(batch["cases"]) for batch in batches] == [8, 8, 4]
    assert [case for batch in batches for case in batch["cases"]] == [record.case for record in every]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [label_of(record) for record in every]
    expected = INFO.normalised(centre(reader(every[9]), edge=18, side=16))
    np.testing.assert_array_equal(batches[1]["image"][1].numpy(), expected)


def test_auto_augment_is_refused_where_it_cannot_work():
    config = SceneAugmentConfig(auto_augment=True)
    require_auto_augment(config, INFO.channels, eight_bit=True)
    require_auto_augment(SceneAugmentConfig(), ("a",) * 13, eight_bit=False)
    with pytest.raises(ConfigError, match="4 channels"):
        require_auto_augment(config, ("a",) * 4, eight_bit=True)
    with pytest.raises(ConfigError, match="values beyond 0 to 255"):
        require_auto_augment(config, INFO.channels, eight_bit=False)
