"""What a plan knows of a dataset: sizes, spacings, intensities and classes of its training cases, and its bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.medical import write_msd, write_pairs, write_volume

from statefield.datasets import DatasetInfo, Record, Sample, open_dataset
from statefield.errors import ConfigError, DataError
from statefield.tasks.medical import fingerprint as module
from statefield.tasks.medical.fingerprint import fingerprint_case, fingerprint_dataset

INFO = DatasetInfo(("background", "organ", "tumour"), ("CT",), 3)


def _fingerprint(root: Path, **options):
    adapter, info = open_dataset(root)
    return fingerprint_dataset(adapter, info, root, **options)


def _sample(image: np.ndarray, mask: np.ndarray, case: str = "a") -> Sample:
    return {
        "image": image.astype(np.float32),
        "mask": mask.astype(np.int64),
        "meta": {
            "case": case,
            "path": f"{case}.nii.gz",
            "spacing": (3.0, 0.5, 0.5),
            "spacing_known": True,
            "affine": None,
            "file": None,
        },
    }


def test_a_case_worked_by_hand():
    image, mask = np.zeros((1, 2, 4, 5)), np.zeros((2, 4, 5))
    image[0, 1, 1:3, 1:5] = [[1, 2, 3, 4], [5, 6, 7, -8]]
    mask[1, 1, 1:4], mask[1, 2, 4], mask[0, 0, 0] = 1, 2, -1
    case = fingerprint_case(Record("a", ()), _sample(image, mask), INFO)
    assert case.shape == (2, 4, 5) and case.spacing == (3.0, 0.5, 0.5) and case.spacing_known
    assert case.box == ((1, 2), (1, 3), (1, 5))
    assert case.box_share == pytest.approx(8 / 40)
    assert (case.low, case.high) == ((-8.0,), (7.0,))
    assert (case.voxels, case.unlabelled) == ((35, 3, 1), 1)
    assert case.foreground.tolist() == [[1, 2, 3, -8]]
    assert case.voxel_mm == 0.75


def test_the_nonzero_box_counts_a_voxel_that_any_channel_shows():
    image = np.zeros((2, 1, 4, 4))
    image[0, 0, 1, 1], image[1, 0, 2, 3] = 5, 5
    info = replace(INFO, channels=("a", "b"))
    assert fingerprint_case(Record("a", ()), _sample(image, np.ones((1, 4, 4))), info).box == ((0, 1), (1, 3), (1, 4))


def test_no_more_voxels_are_kept_than_asked_for_and_always_the_same():
    values = np.arange(4000.0).reshape(1, 4, 20, 50)
    sample = _sample(values, np.ones((4, 20, 50)))
    first, again, other = (fingerprint_case(Record(name, ()), sample, INFO, most=500) for name in ("a", "a", "b"))
    assert first.foreground.shape == (1, 500) and len(np.unique(first.foreground)) == 500
    np.testing.assert_array_equal(first.foreground, again.foreground)
    assert not np.array_equal(first.foreground, other.foreground)
    assert abs(first.foreground.mean() - 1999.5) < 150  # three standard errors of the mean of 500


def test_sampled_intensities_are_those_of_the_whole_foreground(tmp_path, monkeypatch):
    root = write_msd(tmp_path, shape=(40, 40, 16))
    exact = _fingerprint(root).intensities(0)
    monkeypatch.setattr(module, "VOXELS_SAMPLED", 5 * 300)
    sampled = _fingerprint(root)
    assert sum(case.foreground.shape[1] for case in sampled.cases) == 5 * 300
    assert sampled.intensities(0).mean == pytest.approx(exact.mean, rel=0.03)
    assert sampled.intensities(0).percentile_99_5 == pytest.approx(exact.percentile_99_5, rel=0.03)


def test_only_training_cases_are_read_each_once_and_reported(tmp_path):
    root = write_msd(tmp_path)
    adapter, info = open_dataset(root)
    loaded = []

    class Counting:
        def __getattr__(self, name):
            return getattr(adapter, name)

        def load(self, record):
            loaded.append(record.case)
            return adapter.load(record)

    shown = []
    found = fingerprint_dataset(Counting(), info, root, jobs=2, progress=lambda *report: shown.append(report))
    training = [record.case for record in adapter.records(root, "train")]
    assert sorted(loaded) == training == [case.case for case in found.cases]
    assert [report[:2] for report in shown] == [(n + 1, len(training)) for n in range(len(training))]
    assert sorted(report[2] for report in shown) == training


def test_the_result_does_not_depend_on_how_many_read_at_once_or_on_the_parts(tmp_path):
    root = write_msd(tmp_path)
    one, three = _fingerprint(root, jobs=1), _fingerprint(root, jobs=3)
    assert one.text() == three.text()
    parts = replace(one, cases=one.cases[3:]) + replace(one, cases=one.cases[:3])
    assert parts.text() == one.text()
    with pytest.raises(ConfigError, match="share cases"):
        one + parts
    with pytest.raises(ConfigError, match="classes or channels differ"):
        one + replace(one, info=INFO)


def test_the_file_holds_what_the_cases_are_in_millimetres(tmp_path):
    root = write_msd(tmp_path / "data")
    found = _fingerprint(root)
    found.write(tmp_path / "fingerprint.json")
    stored = json.loads((tmp_path / "fingerprint.json").read_text())
    assert stored["dataset"]["num_training_cases"] == len(stored["cases"]) == 5
    assert stored["shape"]["median"] == [8, 24, 20]  # slices, rows, columns
    assert stored["spacing_mm"]["median"] == [3, 0.8, 0.8]
    foreground = stored["intensities"]["CT"]["foreground"]
    assert foreground["percentile_00_5"] < foreground["median"] < foreground["percentile_99_5"]
    assert list(stored["classes"]) == ["background", "small", "large"]
    case = next(iter(stored["cases"].values()))
    assert case["nonzero_box"] == [[0, 8], [0, 24], [0, 20]]
    assert stored["classes"]["small"]["median_mm3"] == pytest.approx(
        np.median([c["voxels"]["small"] * 3 * 0.8 * 0.8 for c in stored["cases"].values()])
    )
    assert sum(case["voxels"].values()) == 8 * 24 * 20
    assert '"median": [3, 0.8, 0.8]' in (tmp_path / "fingerprint.json").read_text()  # on one line


def test_pictures_have_no_spacing_and_class_sizes_in_pixels(tmp_path):
    found = _fingerprint(write_pairs(tmp_path))
    assert not found.spacing_known
    stored = found.summary()
    assert stored["spacing_mm"] is None and stored["axes"] == ["rows", "columns"]
    assert all("median_voxels" in entry for entry in stored["classes"].values())


def test_every_bad_case_is_named_with_its_reason_whatever_else_is_good(tmp_path):
    root = write_msd(tmp_path)
    training = [record.case for record in open_dataset(root)[0].records(root, "train")]
    (root / "imagesTr" / f"{training[0]}.nii.gz").write_bytes(b"")
    write_volume(root / "labelsTr" / f"{training[2]}.nii.gz", np.full((20, 24, 8), 7), np.diag([0.8, 0.8, 3.0, 1.0]))
    with pytest.raises(DataError, match="2 of 5 training cases cannot be used") as caught:
        _fingerprint(root, jobs=2)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [training[0], training[2]]
    assert "cut off or empty" in lines[1] or "damaged" in lines[1]
    assert "label values 7" in lines[2]


def test_a_dataset_without_any_foreground_is_refused(tmp_path):
    root = write_msd(tmp_path)
    for path in (root / "labelsTr").glob("fake*"):
        write_volume(path, np.zeros((20, 24, 8)), np.diag([0.8, 0.8, 3.0, 1.0]))
    with pytest.raises(
        DataError, match=r"none of 5 training cases shows a class other than 'background' \(small, large\)"
    ):
        _fingerprint(root)


def test_values_of_a_case_that_cannot_be_used_are_refused():
    image, mask = np.ones((1, 2, 2, 2)), np.ones((2, 2, 2))
    with pytest.raises(DataError, match="NaN"):
        fingerprint_case(Record("a", ()), _sample(image * np.nan, mask), INFO)
    with pytest.raises(DataError, match="label value 3 found; the declared classes are 0 to 2"):
        fingerprint_case(Record("a", ()), _sample(image, mask * 3), INFO)
    unlabelled = _sample(image, mask)
    del unlabelled["mask"]
    with pytest.raises(DataError, match="no labels"):
        fingerprint_case(Record("a", ()), unlabelled, INFO)
    with pytest.raises(ConfigError, match="jobs = 0"):
        fingerprint_dataset(None, INFO, None, jobs=0)
