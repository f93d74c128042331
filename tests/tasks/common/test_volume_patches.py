"""Patches of volumes as a function of (seed, number), foreground by class, and stores of mixed spacings."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from statefield.datasets.sample import DatasetInfo, Record
from statefield.errors import ConfigError, DataError
from statefield.tasks.common.augment_volumes import build_volume_augmentation
from statefield.tasks.common.config import UNLABELLED, NormalisationConfig
from statefield.tasks.common.data import PatchData
from statefield.tasks.common.patches import VolumePatches, cut_patch, foreground_voxels
from statefield.tasks.common.resampling import resample_image, resample_labels
from statefield.tasks.common.volumes import Volume, VolumeStore

INFO = DatasetInfo(("background", "large", "small"), ("CT",), 3)


def _meta(case: str, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), *, known: bool = True) -> dict:
    return {
        "case": case,
        "path": f"/data/{case}.nii.gz",
        "spacing": spacing,
        "spacing_known": known,
        "affine": None,
        "file": None,
    }


def _volume(shape=(12, 20, 24), *, case="a", empty=False) -> Volume:
    mask = np.zeros(shape, np.int16)
    if not empty:
        mask[2:8, 4:12, 5:15] = 1
        mask[9, 15, 20] = 2
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    present = np.stack([(mask == k).any(axis=(1, 2)) for k in range(3)], axis=1)
    return Volume(image, mask, present, _meta(case))


def _patches(volumes, **settings) -> VolumePatches:
    augment = settings.pop("augment", "medical")
    defaults = {"patch_size": (4, 8, 8), "foreground": 0.5, "seed": 3}
    return VolumePatches(volumes, augmentation=build_volume_augmentation(augment), **(defaults | settings))


def test_a_patch_depends_on_seed_and_number_only():
    volumes = [_volume(case="a"), _volume(case="b")]
    one, two = _patches(volumes), _patches(volumes)
    later = [two[number] for number in (40, 7, 0)]
    for number, item in zip((40, 7, 0), later, strict=True):
        again = one[number]
        assert torch.equal(again["image"], item["image"])
        assert torch.equal(again["mask"], item["mask"])
        assert (again["origin"], again["number"]) == (item["origin"], number)
    different = _patches(volumes, seed=4)
    assert any(not torch.equal(one[n]["image"], different[n]["image"]) for n in range(4))


def test_a_pass_takes_as_many_patches_of_a_case_as_cover_it():
    patches = _patches([_volume(case="a"), _volume((4, 9, 8), case="b", empty=True)], foreground=0.0)
    assert len(patches) == 3 * 3 * 3 + 2
    passes = [[patches[n]["origin"].split()[2] for n in range(start, start + 29)] for start in (0, 29)]
    assert sorted(passes[0]) == sorted(passes[1]) == ["a,"] * 27 + ["b,"] * 2
    assert passes[0] != passes[1]


def test_with_foreground_one_every_patch_holds_foreground_and_classes_are_drawn_evenly():
    """Class 1 has 480 voxels and class 2 a single one; each centres about half of 80 patches."""
    volumes = [_volume(), _volume(case="b", empty=True)]
    patches = _patches(volumes, patch_size=(1, 1, 1), foreground=1.0, augment="none")
    labels = [int(patches[n]["mask"]) for n in range(80)]
    assert set(labels) == {1, 2}
    assert 25 <= labels.count(2) <= 55
    assert all("case a, around voxel" in patches[n]["origin"] for n in range(10))


def test_without_foreground_patches_come_from_anywhere():
    starts = {_patches([_volume()], foreground=0.0, augment="none")[n]["image"].numpy().tobytes() for n in range(20)}
    assert len(starts) == 20


def test_the_index_of_foreground_voxels_is_bounded_and_names_voxels_of_the_class():
    mask = np.zeros((30, 30, 30), np.int16)
    mask[5:25, 5:25, 5:25] = 1
    mask[0, 0, :4] = 2
    mask[29] = UNLABELLED
    found = foreground_voxels(mask, seed=(0,), limit=100)
    assert {label: len(voxels) for label, voxels in found.items()} == {1: 100, 2: 4}
    for label, voxels in found.items():
        assert (mask.reshape(-1)[voxels] == label).all()
    assert len(set(found[1].tolist())) == 100
    again = foreground_voxels(mask, seed=(0,), limit=100)
    np.testing.assert_array_equal(found[1], again[1])
    assert foreground_voxels(np.zeros((2, 2, 2), np.int16), seed=(0,)) == {}


def test_a_patch_is_cut_around_its_centre_and_moved_inside_the_volume():
    mask = np.arange(10 * 12 * 14).reshape(10, 12, 14).astype(np.int16)
    image = np.stack([mask, -mask]).astype(np.float32)
    rng = np.random.default_rng(0)
    for centre, corner in (((5, 6, 7), (3, 3, 3)), ((0, 0, 0), (0, 0, 0)), ((9, 11, 13), (6, 6, 6))):
        values, labels = cut_patch(image, mask, (4, 6, 8), centre, rng)
        box = tuple(slice(start, start + side) for start, side in zip(corner, (4, 6, 8), strict=True))
        np.testing.assert_array_equal(labels, mask[box])
        np.testing.assert_array_equal(values, image[(slice(None), *box)])


def test_a_volume_smaller_than_the_patch_is_padded_with_unlabelled_voxels():
    item = _patches([_volume((2, 6, 30), empty=True)], patch_size=(5, 10, 12), augment="none")[0]
    assert item["image"].shape == (2, 5, 10, 12)
    inner = (slice(1, 3), slice(2, 8))
    assert (item["mask"][inner] == 0).all()
    assert int((item["mask"] == 0).sum()) == 2 * 6 * 12
    assert int((item["mask"] == UNLABELLED).sum()) == (5 * 10 - 2 * 6) * 12
    outside = item["mask"] == UNLABELLED
    assert item["image"][:, outside].abs().max() == 0


class _Adapter:
    """Cases by name: (image [1, D, H, W], mask [D, H, W], spacing, whether it is known)."""

    name = "made up"

    def __init__(self, cases: dict[str, tuple]) -> None:
        self.cases = cases

    def load(self, record: Record) -> dict:
        image, mask, spacing, known = self.cases[record.case]
        return {"image": image, "mask": mask, "meta": _meta(record.case, spacing, known=known)}


def _case(shape, spacing, *, known=True, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.int64)
    mask[tuple(slice(side // 3, 2 * side // 3) for side in shape)] = 1
    mask[0] = UNLABELLED
    return rng.normal(100, 20, (1, *shape)).astype(np.float32), mask, spacing, known


def _store(cases, spacing=(2.0, 1.0, None), folder=None) -> VolumeStore:
    return VolumeStore(_Adapter(cases), INFO, NormalisationConfig("zscore"), folder, spacing=spacing)  # type: ignore[arg-type]


def test_cases_of_mixed_spacings_come_to_one_and_what_carries_no_label_stays_so(caplog):
    cases = {
        "fine": _case((12, 20, 24), (1.0, 0.5, 0.7)),
        "fits": _case((6, 10, 24), (2.0, 1.0, 0.9)),
    }
    store = _store(cases)
    fine, fits = store.load(Record("fine", ())), store.load(Record("fits", ()))
    assert fine.image.shape == (1, 6, 10, 24) and fine.mask.shape == (6, 10, 24)
    assert fine.spacing == (2.0, 1.0, 0.7)
    assert fits.spacing == (2.0, 1.0, 0.9)
    image, mask, *_ = cases["fine"]
    normal = (image - image.mean()) / image.std()
    np.testing.assert_allclose(fine.image, resample_image(normal, (6, 10, 24)), atol=1e-4)
    np.testing.assert_array_equal(fine.mask, resample_labels(mask, (6, 10, 24)))
    assert (fine.mask[0] == UNLABELLED).any() and set(np.unique(fine.mask)) == {UNLABELLED, 0, 1}
    np.testing.assert_array_equal(fits.mask, cases["fits"][1])
    np.testing.assert_array_equal(fine.present[:, 1], (fine.mask == 1).any(axis=(1, 2)))
    assert fine.meta["spacing"] == (1.0, 0.5, 0.7)  # of the file
    with caplog.at_level(logging.INFO, logger="statefield"):
        store.report()
    assert caplog.messages == ["1 of 2 cases resampled to 2 x 1 x as stored mm (slices, rows, columns)"]


def test_a_case_that_is_only_looked_at_stays_on_its_own_grid():
    store = _store({"fine": _case((12, 20, 24), (1.0, 0.5, 0.7))})
    assert store.load(Record("fine", ()), keep=False).mask.shape == (12, 20, 24)


def test_a_case_that_does_not_state_its_spacing_is_refused_by_name_when_one_is_asked_for():
    cases = {"blind": _case((6, 10, 12), (1.0, 1.0, 1.0), known=False)}
    for keep in (True, False):
        with pytest.raises(DataError, match=r"/data/blind\.nii\.gz.*'blind'.*data\.spacing = \(2\.0, 1\.0, None\)"):
            _store(cases).load(Record("blind", ()), keep=keep)
    assert _store(cases, spacing=None).load(Record("blind", ())).mask.shape == (6, 10, 12)
    assert _store(cases, spacing=(None, None, None)).load(Record("blind", ())).mask.shape == (6, 10, 12)


def test_cases_on_disk_are_mapped_and_hold_what_those_in_memory_do(tmp_path):
    cases = {"fine": _case((12, 20, 24), (1.0, 0.5, 0.7))}
    memory, disk = (_store(cases, folder=folder).load(Record("fine", ())) for folder in (None, tmp_path))
    assert isinstance(disk.image, np.memmap) and isinstance(disk.mask, np.memmap)
    np.testing.assert_array_equal(disk.image, memory.image)
    np.testing.assert_array_equal(disk.mask, memory.mask)


def test_cases_whose_names_differ_by_a_slash_have_files_of_their_own(tmp_path):
    cases = {"a/b": _case((4, 6, 6), (1.0, 1.0, 1.0), seed=0), "a_b": _case((4, 6, 6), (1.0, 1.0, 1.0), seed=1)}
    store = _store(cases, spacing=None, folder=tmp_path)
    first, second = (store.load(Record(name, ())) for name in cases)
    assert not np.array_equal(first.image, second.image)
    assert len(list(tmp_path.rglob("*.npy"))) == 4


def _data(workers: int, **settings) -> PatchData:
    cases = {name: _case((8, 16, 16), (1.0, 1.0, 1.0), seed=seed) for seed, name in enumerate("abc")}
    defaults = {"patch_size": (4, 8, 8), "slice_context": 0, "augment": "medical", "foreground": 0.5}
    return PatchData(
        _store(cases, spacing=None),
        [Record("a", ()), Record("b", ())],
        [Record("c", ())],
        batch_size=2,
        steps_per_epoch=4,
        workers=workers,
        seed=7,
        **(defaults | settings),
    )


def test_patches_are_the_same_for_any_number_of_workers():
    batches = []
    for workers in (0, 2):
        data = _data(workers)
        loader = DataLoader(data._patches, batch_size=2, sampler=range(8), num_workers=workers)
        batches.append(list(loader))
    for mine, theirs in zip(*batches, strict=True):
        assert torch.equal(mine["image"], theirs["image"])
        assert torch.equal(mine["mask"], theirs["mask"])
        assert mine["origin"] == theirs["origin"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slice_context": 1}, r"slice_context = 1 with data\.patch_size = \(4, 8, 8\)"),
        ({"patch_size": (8,)}, r"data\.patch_size = \(8,\).*two numbers"),
        ({"patch_size": (0, 8, 8)}, "each 1 or more"),
    ],
)
def test_settings_that_cannot_work_for_volumes_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        _data(0, **settings)
