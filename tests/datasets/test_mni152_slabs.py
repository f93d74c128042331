"""The embedded template, cut into slabs."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest

from statefield.datasets import open_dataset
from statefield.datasets.mni152 import SLABS, template_files
from statefield.datasets.readers.nifti import read_labels, write_nifti
from statefield.errors import ConfigError, DatasetLayoutError

pytest.importorskip("nilearn", reason="the mni152 layout reads nilearn's files")


@pytest.fixture(scope="module")
def slabs():
    """split -> list of (record, sample)."""
    adapter, _ = open_dataset(None, "mni152")
    return {
        split: [(record, adapter.load(record)) for record in adapter.records(None, split)]
        for split in ("train", "val", "test")
    }


def test_four_slices_lie_between_a_training_slab_and_any_other():
    spans = sorted((first, last, split) for split, parts in SLABS.items() for first, last in parts)
    for (_, last, before), (first, _, after) in itertools.pairwise(spans):
        assert first - last - 1 == 4, (before, after)
    count = {split: sum(last - first + 1 for first, last in parts) for split, parts in SLABS.items()}
    assert count == {"train": 66, "val": 12, "test": 30, "unlabelled": 0}


def test_labels_are_the_largest_map_and_pixels_the_templates(slabs):
    files = template_files()
    t1, grey, white = (np.asarray(nib.load(files[k]).dataobj) for k in ("T1", "grey_matter", "white_matter"))
    for parts in slabs.values():
        for record, sample in parts:
            k = slice(record.extra["first_slice"], record.extra["last_slice"] + 1)
            np.testing.assert_array_equal(sample["image"][0], t1[:, :, k].T)
            g, w = (part[:, :, k].T.astype(int) for part in (grey, white))
            np.testing.assert_array_equal(sample["mask"], np.argmax([255 - g - w, g, w], axis=0))
            assert set(np.unique(sample["mask"])) == {0, 1, 2}


def test_a_written_slab_lies_at_its_place_in_the_template(slabs, tmp_path):
    template = nib.load(template_files()["T1"])
    record, sample = slabs["test"][1]
    write_nifti(tmp_path / "slab.nii.gz", sample["mask"], sample["meta"])
    written = nib.load(tmp_path / "slab.nii.gz")
    np.testing.assert_array_equal(written.affine, template.slicer[:, :, record.extra["first_slice"] :].affine)
    assert written.shape == sample["mask"].shape[::-1]
    read = read_labels(tmp_path / "slab.nii.gz", 3)
    np.testing.assert_array_equal(read.array[0], sample["mask"])
    np.testing.assert_array_equal(read.affine, sample["meta"]["affine"])


def test_a_folder_is_refused_as_it_would_not_be_read(tmp_path):
    adapter, _ = open_dataset(None, "mni152")
    with pytest.raises(ConfigError, match="embedded"):
        adapter.records(tmp_path, "train")


def test_absence_of_nilearn_names_the_remedy(monkeypatch):
    monkeypatch.setattr("statefield.datasets.mni152.find_spec", lambda name: None)
    with pytest.raises(DatasetLayoutError, match="pip install nilearn"):
        open_dataset(None, "mni152")
