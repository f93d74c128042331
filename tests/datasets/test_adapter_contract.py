"""What every registered layout promises; a new adapter is tested by adding its writer to WRITERS."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from functools import partial

import numpy as np
import pytest
from fakes.medical import write_msd, write_nnunet, write_pairs, write_pairs_of_volumes
from fakes.published import (
    write_acdc,
    write_acdc_h5,
    write_btcv,
    write_drive,
    write_isbi2012,
    write_isic,
    write_lits,
    write_montgomery,
    write_shenzhen,
    write_synapse,
    write_umamba,
)

from statefield.datasets import ADAPTERS, SPLITS, DatasetAdapter, mismatches, open_dataset, recognise
from statefield.datasets.sample import UNLABELLED
from statefield.errors import ConfigError, DatasetLayoutError, UnknownName

WRITERS = {
    "pairs": write_pairs,
    "pairs, colour": lambda root: write_pairs(root, num_channels=3, foreground_255=True, classes_file=True),
    "pairs, official split": lambda root: write_pairs(root, split_folders=True, num_classes=3),
    "pairs, volumes": write_pairs_of_volumes,
    "msd": write_msd,
    "msd, 4-D": lambda root: write_msd(root, modalities=("T1", "T2")),
    "nnunet": write_nnunet,
    "nnunet, official test": lambda root: write_nnunet(root, labelled_test=True),
    "nnunet, png": lambda root: write_nnunet(root, shape=(24, 32), file_ending=".png"),
    "drive": write_drive,
    "drive, png": lambda root: write_drive(root, suffix=".png"),
    "acdc_h5": write_acdc_h5,
    "acdc_h5, lists": lambda root: write_acdc_h5(root, lists=True),
    "acdc_h5, at the top": lambda root: write_acdc_h5(root, volumes="."),
    "acdc_h5, slices": lambda root: write_acdc_h5(root, volumes=None, slices="ACDC_training_slices"),
    "acdc": write_acdc,
    "acdc, no test folder": lambda root: write_acdc(root, num_test=0),
    "btcv": write_btcv,
    "btcv, the folder Training itself": lambda root: write_btcv(root, home=".", num_test=0),
    "synapse": write_synapse,
    "lits": write_lits,
    "lits, at the top": lambda root: write_lits(root, batches=False),
    "isic2017": lambda root: write_isic(root, 2017),
    "isic2018": lambda root: write_isic(root, 2018),
    "isic2018, training alone": lambda root: write_isic(root, 2018, counts=(6, 0, 0)),
    "montgomery": write_montgomery,
    "shenzhen": write_shenzhen,
    "nnunet, AbdomenMR": lambda root: write_umamba(root, "Dataset702_AbdomenMR"),
    "nnunet, NeurIPSCell": lambda root: write_umamba(root, "Dataset703_NeurIPSCell"),
    "nnunet, Endovis17": lambda root: write_umamba(root, "Dataset704_Endovis17"),
    "isbi2012": write_isbi2012,
    "isbi2012, a file for each section": lambda root: write_isbi2012(root, stacks=False),
    "mni152": None,
}
WITHOUT_SPACING = {"acdc_h5", "synapse"}
WITH_UNLABELLED = {"drive"}


@pytest.fixture(params=WRITERS)
def dataset(request, tmp_path):
    """(layout name, root) of each fake."""
    write = WRITERS[request.param]
    if write is None:
        pytest.importorskip("nilearn", reason="the mni152 layout reads nilearn's files")
        return request.param, None
    return request.param.split(",")[0], write(tmp_path / "data")


def _records(adapter, root, split):
    try:
        return adapter.records(root, split)
    except DatasetLayoutError as error:
        assert f"{split!r} has no case" in str(error)
        return []


def test_every_registered_layout_has_a_fake():
    assert {name.split(",")[0] for name in WRITERS} == set(ADAPTERS)


def test_layout_is_recognised_and_described(dataset):
    name, root = dataset
    adapter, info = open_dataset(root, name if root is None else "auto")
    assert adapter.name == name
    assert isinstance(adapter, DatasetAdapter)
    assert info == adapter.describe(root)
    assert len(info.classes) >= 2
    assert len(set(info.classes)) == len(info.classes)
    assert info.channels


def test_no_other_layout_claims_the_folder(dataset):
    name, root = dataset
    if root is not None:
        reasons = mismatches(root)
        assert [other for other, reason in reasons.items() if reason is None] == [name]
        assert set(reasons) == {other for other, adapter in ADAPTERS.items() if not adapter.embedded}


def test_records_are_sorted_name_their_files_and_keep_patients_whole(dataset):
    name, root = dataset
    adapter, _ = open_dataset(root, name)
    seen: dict[str, str] = {}
    for split in SPLITS:
        for record in _records(adapter, root, split):
            assert all(path.is_file() for path in record.images)
            assert (record.mask is not None) == (split != "unlabelled")
            assert record.mask is None or record.mask.is_file()
            if record.group:
                assert seen.setdefault(record.group, split) == split


def test_every_layout_says_whose_it_is_and_on_which_terms(dataset):
    name, _ = dataset
    about = dataclasses.asdict(ADAPTERS[name].about)
    assert all(text == text.strip() and text for text in about.values())


def test_labelled_splits_are_filled_disjoint_and_stable(dataset):
    name, root = dataset
    adapter, _ = open_dataset(root, name)
    splits = {split: [record.case for record in _records(adapter, root, split)] for split in SPLITS}
    assert all(splits[split] for split in ("train", "val", "test"))
    everything = list(itertools.chain(*splits.values()))
    assert len(set(everything)) == len(everything)
    assert all(cases == sorted(cases) for cases in splits.values() if name != "mni152")
    assert splits == {split: [record.case for record in _records(adapter, root, split)] for split in SPLITS}


def test_samples_have_the_shapes_types_and_values_of_the_vocabulary(dataset):
    name, root = dataset
    adapter, info = open_dataset(root, name)
    for split in SPLITS:
        for record in _records(adapter, root, split)[:2]:
            sample = adapter.load(record)
            image, meta = sample["image"], sample["meta"]
            assert image.dtype == np.float32
            assert image.ndim == 1 + info.spatial_dims
            assert len(image) == len(info.channels)
            assert len(meta["spacing"]) == info.spatial_dims
            assert (meta["affine"] is None) == (meta["file"] is None) == (info.spatial_dims == 2)
            assert meta["spacing_known"] == (info.spatial_dims == 3 and name not in WITHOUT_SPACING)
            assert meta["case"] == record.case
            assert ("mask" in sample) == (split != "unlabelled")
            if "mask" in sample:
                assert sample["mask"].dtype == np.int64
                assert sample["mask"].shape == image.shape[1:]
                least = UNLABELLED if name in WITH_UNLABELLED else 0
                assert least <= sample["mask"].min() <= sample["mask"].max() < len(info.classes)


def test_records_and_adapters_travel_to_worker_processes(dataset):
    name, root = dataset
    adapter, _ = open_dataset(root, name)
    record = adapter.records(root, "train")[0]
    again, other = pickle.loads(pickle.dumps((record, adapter)))
    np.testing.assert_array_equal(other.load(again)["image"], adapter.load(record)["image"])


def test_unknown_split_and_unknown_option_are_refused(dataset):
    name, root = dataset
    adapter, _ = open_dataset(root, name)
    with pytest.raises(ConfigError, match="'training'"):
        adapter.records(root, "training")
    with pytest.raises(ConfigError, match=r"no option sead"):
        open_dataset(root, name, {"sead": 1})


def test_seed_option_changes_the_split_of_every_layout_that_draws_one(tmp_path):
    of_twelve = [partial(write, num_cases=12) for write in (write_pairs, write_msd, write_nnunet, write_lits)]
    others = (write_acdc, write_acdc_h5, write_btcv, write_drive, write_isbi2012, write_montgomery, write_shenzhen)
    for index, write in enumerate((*of_twelve, *others)):
        root = write(tmp_path / str(index))
        drawn = {
            tuple(r.case for r in open_dataset(root, "auto", {"seed": s})[0].records(root, "train")) for s in range(4)
        }
        assert len(drawn) > 1


@pytest.mark.parametrize("name", [name for name, adapter in ADAPTERS.items() if not adapter.embedded])
def test_folder_of_another_layout_is_refused_with_the_tree(name, tmp_path):
    (tmp_path / "stray.txt").write_text("nothing of use")
    with pytest.raises(DatasetLayoutError) as caught:
        open_dataset(tmp_path, name)
    assert str(tmp_path) in str(caught.value)
    assert ADAPTERS[name].layout in str(caught.value)
    for wrong in (tmp_path / "absent", tmp_path / "stray.txt"):
        with pytest.raises(DatasetLayoutError, match="dataset's folder is needed"):
            open_dataset(wrong, name)
    with pytest.raises(ConfigError, match="folder"):
        open_dataset(None, name)


def test_unrecognised_folder_is_told_every_layouts_reason(tmp_path):
    with pytest.raises(DatasetLayoutError) as caught:
        recognise(tmp_path)
    for name, adapter in ADAPTERS.items():
        assert adapter.embedded or f"{name}: " in str(caught.value)


def test_folder_that_fits_two_layouts_must_be_told_apart(tmp_path):
    write_pairs(tmp_path, num_cases=3)
    write_nnunet(tmp_path, num_cases=3)
    with pytest.raises(DatasetLayoutError, match="nnunet and pairs"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, "pairs")[0].name == "pairs"


def test_misspelt_layout_gets_a_suggestion(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'nnunet'"):
        open_dataset(tmp_path, "nnunett")


def test_channels_of_a_case_that_differ_from_the_datasets_are_refused(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    adapter, info = open_dataset(root)
    record = dataclasses.replace(
        adapter.records(root, "train")[0], info=dataclasses.replace(info, channels=("red", "green", "blue"))
    )
    with pytest.raises(ValueError, match=r"1 channels found; the dataset has 3 \(red, green, blue\)"):
        adapter.load(record)
