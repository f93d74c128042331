"""What every registered layout of image pairs promises; a new adapter is tested by adding its writer to WRITERS."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from fakes.change import (
    write_cdd,
    write_change_pairs,
    write_dsifn,
    write_levir,
    write_levir_plus,
    write_oscd,
    write_second,
    write_split_folders,
    write_sysu,
    write_sztaki,
    write_whu,
    write_xbd,
)

from statefield.cli.datasets import table
from statefield.datasets import ADAPTERS, SPLITS, mismatches
from statefield.datasets.change import CHANGE_ADAPTERS, ChangeAdapter, open_change_dataset
from statefield.datasets.sample import UNLABELLED
from statefield.errors import ConfigError, DatasetLayoutError, EmptySplit, UnknownName

DOCUMENT = Path(__file__).parents[2] / "docs" / "datasets.md"
TILED = {"tile": 48}
WRITERS = {
    "change_pairs": write_change_pairs,
    "change_pairs, lists": lambda root: write_change_pairs(root, lists=True),
    "change_pairs, GeoTIFF": lambda root: write_change_pairs(root, suffix=".tif"),
    "change_pairs, split folders": write_split_folders,
    "change_pairs, ChangeMamba's names": lambda root: write_split_folders(root, ("T1", "T2", "GT")),
    "levir_cd": write_levir,
    "levir_cd_plus": write_levir_plus,
    "sysu_cd": write_sysu,
    "cdd": write_cdd,
    "cdd, the archive": lambda root: write_cdd(root, inner="ChangeDetectionDataset/Real/subset"),
    "dsifn": write_dsifn,
    "second": write_second,
    "second, ChangeMamba's numbers": lambda root: write_second(root, colours=False),
    "xbd": write_xbd,
    "xbd, ChangeMamba's crops": lambda root: write_xbd(root, masks="masks", crops=True),
    "sztaki": write_sztaki,
    "whu_cd": write_whu,
    "whu_cd, undivided": lambda root: write_whu(root, divided=False),
    "oscd": write_oscd,
    "oscd, 13 bands": lambda root: write_oscd(root, form="bands"),
    "oscd, the archive": lambda root: write_oscd(root, form="official"),
}


@pytest.fixture(params=WRITERS)
def dataset(request, tmp_path):
    """(layout name, root, adapter, info) of each fake; rasters are cut into several tiles."""
    name, root = request.param.split(",")[0], WRITERS[request.param](tmp_path / "data")
    adapter, info = open_change_dataset(root, "auto", TILED if name == "whu_cd" else None)
    assert adapter.name == name
    return name, root, adapter, info


def _records(adapter, root, split):
    try:
        return adapter.records(root, split)
    except EmptySplit:
        return []


def test_every_registered_layout_has_a_fake():
    assert {name.split(",")[0] for name in WRITERS} == set(CHANGE_ADAPTERS)
    assert not set(CHANGE_ADAPTERS) & set(ADAPTERS)


def test_layout_is_described_and_no_other_claims_the_folder(dataset):
    name, root, adapter, info = dataset
    assert isinstance(adapter, ChangeAdapter)
    assert info == adapter.describe(root) and info.spatial_dims == 2 and info.channels
    assert len(set(info.classes)) == len(info.classes) >= 2
    assert [other for other, reason in mismatches(root, CHANGE_ADAPTERS).items() if reason is None] == [name]
    # nor one of single images, except that crops of xBD lie in images/ and masks/, as pairs of image and mask do
    single = [other for other, reason in mismatches(root).items() if reason is None]
    assert single == (["pairs"] if (root / "train" / "masks").is_dir() else [])
    about = dataclasses.asdict(adapter.about)
    assert all(text == text.strip() and text for text in about.values())


def test_splits_are_filled_disjoint_sorted_and_stable(dataset):
    _, root, adapter, _ = dataset
    splits = {split: [record.case for record in _records(adapter, root, split)] for split in SPLITS}
    assert all(splits[split] for split in ("train", "val", "test"))
    everything = list(itertools.chain(*splits.values()))
    assert len(set(everything)) == len(everything)
    assert all(cases == sorted(cases) for cases in splits.values())
    assert splits == {split: [record.case for record in _records(adapter, root, split)] for split in SPLITS}


def test_records_name_their_files_and_keep_scenes_whole(dataset):
    _, root, adapter, _ = dataset
    seen: dict[str, str] = {}
    for split in SPLITS:
        for record in _records(adapter, root, split):
            assert len(record.images) == len(record.after) > 0
            files = [*record.images, *record.after, record.mask, record.before_mask, record.after_mask]
            assert all(path.is_file() for path in files if path is not None)
            assert not set(record.images) & set(record.after)
            assert (record.mask is None and record.before_mask is None) == (split == "unlabelled")
            if record.group:
                assert seen.setdefault(record.group, split) == split


def test_samples_have_the_shapes_types_and_values_of_the_vocabulary(dataset):
    _, root, adapter, info = dataset
    found = set()
    for split in SPLITS:
        for record in _records(adapter, root, split)[:3]:
            sample = adapter.load(record)
            before, after = sample["before"], sample["after"]
            assert before.dtype == after.dtype == np.float32
            assert before.shape == after.shape and len(before) == len(info.channels)
            assert np.isfinite(before).all() and np.isfinite(after).all()
            assert sample["meta"]["case"] == record.case
            named = (("mask", info.classes), ("before_mask", info.before_classes), ("after_mask", info.after_classes))
            for key, classes in named:
                assert (key in sample) == bool(classes) or split == "unlabelled"
                if key in sample:
                    labels = sample[key]
                    assert labels.dtype == np.int64 and labels.shape == before.shape[1:]
                    assert UNLABELLED <= labels.min() <= labels.max() < len(classes)
            # the fakes' second image is brighter where, and only where, it has changed
            rise = (after - before).mean(axis=0)
            changed = sample.get("before_mask", sample["mask"]) > 0
            if changed.any():
                assert rise[changed].mean() > 2 * abs(rise[~changed]).mean()
                found.add(split)
    assert {"train", "val", "test"} <= found


def test_records_and_adapters_travel_to_worker_processes(dataset):
    _, root, adapter, _ = dataset
    record = adapter.records(root, "train")[0]
    again, other = pickle.loads(pickle.dumps((record, adapter)))
    np.testing.assert_array_equal(other.load(again)["after"], adapter.load(record)["after"])


def test_unknown_split_and_unknown_option_are_refused(dataset):
    name, root, adapter, _ = dataset
    with pytest.raises(ConfigError, match="'training'"):
        adapter.records(root, "training")
    with pytest.raises(ConfigError, match=r"no option sead"):
        open_change_dataset(root, name, {"sead": 1})


@pytest.mark.parametrize("name", list(CHANGE_ADAPTERS))
def test_folder_of_another_layout_is_refused_with_the_tree(name, tmp_path):
    (tmp_path / "stray.txt").write_text("nothing of use")
    with pytest.raises(DatasetLayoutError) as caught:
        open_change_dataset(tmp_path, name)
    assert CHANGE_ADAPTERS[name].layout in str(caught.value)
    with pytest.raises(DatasetLayoutError, match="dataset's folder is needed"):
        open_change_dataset(tmp_path / "absent", name)
    with pytest.raises(ConfigError, match="folder"):
        open_change_dataset(None, name)


def test_unrecognised_folder_is_told_every_layouts_reason(tmp_path):
    with pytest.raises(DatasetLayoutError) as caught:
        open_change_dataset(tmp_path)
    assert all(f"{name}: " in str(caught.value) for name in CHANGE_ADAPTERS)
    with pytest.raises(ConfigError, match="no folder given"):
        open_change_dataset(None)
    with pytest.raises(UnknownName, match="did you mean 'levir_cd"):
        open_change_dataset(tmp_path, "levir-cd")


def test_seed_changes_the_split_of_every_layout_that_draws_one(tmp_path):
    for index, write in enumerate(
        (write_change_pairs, write_levir_plus, write_second, write_sztaki, write_oscd, write_whu)
    ):
        root = write(tmp_path / str(index))
        options = TILED if write is write_whu else {}
        drawn = {
            tuple(r.case for r in open_change_dataset(root, "auto", options | {"seed": s})[0].records(root, "train"))
            for s in range(4)
        }
        assert len(drawn) > 1


def test_table_of_the_documents_is_the_registrys():
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- statefield datasets --change --table -->\n", "\n<!-- end of pairs -->"
    written = text[text.index(begin) + len(begin) : text.index(end)]
    assert written == table(CHANGE_ADAPTERS), (
        "replace the table in docs/datasets.md by what `statefield datasets --change --table` prints"
    )


def test_options_of_the_documents_are_those_of_the_layouts():
    text = DOCUMENT.read_text(encoding="utf-8")
    told = text[text.index("<!-- end of pairs -->") : text.index("<!-- statefield datasets --field scene")]
    for name, adapter in CHANGE_ADAPTERS.items():
        for option in (field.name for field in dataclasses.fields(adapter)):
            (row,) = [line for line in told.splitlines() if line.count("|") > 3 and f"`{option}`" in line.split("|")[1]]
            layouts = row.split("|")[2]
            assert f"`{name}`" in layouts or layouts.strip() == "all", (name, option)
