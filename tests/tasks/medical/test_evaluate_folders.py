"""Label files against label files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fakes.medical import LPS, blobs, write_nnunet, write_picture, write_volume

from statefield.errors import ConfigError, DataError, DatasetLayoutError, LabelError, ShapeError
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics
from statefield.tasks.medical.evaluate import evaluate_folders

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
DRIVE = DATA / "medical/DRIVE/test"
AFFINE = LPS @ np.diag([0.8, 0.9, 2.5, 1.0])


@pytest.fixture
def folders(tmp_path):
    """(predictions, targets): four volumes each, the predictions moved by one voxel along x."""
    for index in range(4):
        _, labels = blobs((14, 12, 6), num_classes=3, seed=index)
        write_volume(tmp_path / "truth" / f"case_{index}.nii.gz", labels, AFFINE, np.uint8)
        write_volume(tmp_path / "pred" / f"case_{index}.nii.gz", np.roll(labels, 1, axis=0), AFFINE, np.uint8)
    return tmp_path / "pred", tmp_path / "truth"


def test_scores_are_those_of_the_metrics_with_the_files_spacing(folders):
    predictions, targets = folders
    evaluation = evaluate_folders(predictions, targets, classes=("background", "small", "large"))
    metrics = SegmentationMetrics(("background", "small", "large"))
    for index in range(4):
        _, labels = blobs((14, 12, 6), num_classes=3, seed=index)
        expected = metrics.observe(np.roll(labels, 1, axis=0), labels, case="x", spacing=(0.8, 0.9, 2.5)).cases["x"]
        scored = evaluation.state.cases[f"case_{index}"]
        for name in metrics.names:
            np.testing.assert_allclose(scored.values[name], expected.values[name], rtol=1e-6)
        assert scored.values["HD95_mm"][2] == pytest.approx(0.8)


def test_two_processes_score_as_one_does_and_report_progress(folders):
    told = []
    started = []
    parallel = evaluate_folders(*folders, jobs=2, on_start=started.append, on_case=told.append)
    serial = evaluate_folders(*folders, jobs=1)
    np.testing.assert_equal(parallel.summary(), serial.summary())
    assert (started, sorted(told)) == ([4], [f"case_{i}" for i in range(4)])


def test_prediction_in_another_orientation_on_the_same_voxels_is_scored(folders):
    predictions, targets = folders
    before = evaluate_folders(predictions, targets)
    for path in predictions.iterdir():
        image = nib.load(path)
        nib.as_closest_canonical(image).to_filename(path)
    np.testing.assert_equal(evaluate_folders(predictions, targets).summary(), before.summary())


def test_missing_predictions_are_listed_and_extra_ones_reported(folders, caplog):
    predictions, targets = folders
    (targets / "case_3.nii.gz").unlink()
    evaluation = evaluate_folders(predictions, targets)
    assert evaluation.unmatched == ("case_3",)
    assert evaluation.summary()["unmatched_predictions"] == ["case_3"]
    assert "1 predictions have no target" in caplog.text
    (predictions / "case_0.nii.gz").unlink()
    (predictions / "case_2.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match=r"2 of the 3 cases .* have no prediction(.|\n)*case_0\n  case_2"):
        evaluate_folders(predictions, targets)


def test_classes_come_from_the_description_or_the_values(tmp_path, folders):
    predictions, targets = folders
    found = evaluate_folders(predictions, targets, distances=False)
    assert found.metrics.classes == ("background", "class_1", "class_2")
    assert found.classes_from == "the values found in the targets"
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "small": 1, "large": 2, "rare": 3}}))
    described = evaluate_folders(predictions, targets, distances=False)
    assert described.metrics.classes == ("background", "small", "large", "rare")
    assert str(tmp_path / "dataset.json") in described.classes_from


def test_labels_of_an_nnunet_folder_score_one_against_themselves(tmp_path):
    root = write_nnunet(tmp_path, num_cases=3, num_test=0)
    summary = evaluate_folders(root / "labelsTr", root / "labelsTr").summary()
    assert summary["metrics"]["Dice"]["foreground_mean"] == 1.0
    assert summary["metrics"]["HD95_mm"]["foreground_mean"] == 0.0


def test_pictures_are_scored_in_pixels_or_with_a_given_spacing(tmp_path):
    _, labels = blobs((30, 40), seed=1)
    write_picture(tmp_path / "truth" / "a.png", labels * 255)
    write_picture(tmp_path / "pred" / "a.png", np.roll(labels, 2, axis=1))
    in_pixels = evaluate_folders(tmp_path / "pred", tmp_path / "truth")
    assert in_pixels.metrics.names[2] == "HD95_px"
    assert in_pixels.state.cases["a"].values["HD95_px"][1] == 2.0
    in_mm = evaluate_folders(tmp_path / "pred", tmp_path / "truth", spacing_mm=(0.5, 0.5))
    assert in_mm.state.cases["a"].values["HD95_mm"][1] == 1.0
    one_file = evaluate_folders(tmp_path / "pred" / "a.png", tmp_path / "truth" / "a.png")
    np.testing.assert_equal(one_file.summary(), in_pixels.summary())


def _moved(path):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 3
    write_volume(path, np.asarray(image.dataobj), affine, np.uint8)


def _cropped(path):
    image = nib.load(path)
    write_volume(path, np.asarray(image.dataobj)[1:], image.affine, np.uint8)


def _unknown_label(path):
    image = nib.load(path)
    write_volume(path, np.asarray(image.dataobj) * 3, image.affine, np.uint8)


def _truncated(path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (_moved, ShapeError, r"affines differ by up to 3"),
        (_cropped, ShapeError, r"shapes \(D, H, W\) \(6, 12, 13\) and \(6, 12, 14\) differ"),
        (_unknown_label, LabelError, r"label values 3, 6"),
        (_truncated, DataError, r"cut off|damaged"),
    ],
)
def test_a_bad_prediction_is_named(folders, damage, error, reason):
    predictions, targets = folders
    damage(predictions / "case_2.nii.gz")
    with pytest.raises(error, match=reason) as caught:
        evaluate_folders(predictions, targets)
    assert str(predictions / "case_2.nii.gz") in str(caught.value)


def test_an_error_in_another_process_arrives_as_it_is(folders):
    predictions, targets = folders
    _truncated(predictions / "case_0.nii.gz")
    with pytest.raises(DataError, match=r"case_0\.nii\.gz: .*(cut off|damaged)"):
        evaluate_folders(predictions, targets, jobs=2)


def test_folders_without_label_files_and_mixed_kinds_are_refused(tmp_path, folders):
    predictions, targets = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetLayoutError, match="no label file found"):
        evaluate_folders(tmp_path / "empty", targets)
    with pytest.raises(DatasetLayoutError, match="nothing found"):
        evaluate_folders(tmp_path / "absent", targets)
    (predictions / "case_1.nii.gz").unlink()
    write_picture(predictions / "case_1.png", np.eye(4))
    with pytest.raises(DatasetLayoutError, match="mixed"):
        evaluate_folders(predictions, targets)
    write_volume(predictions / "case_1.nii", np.zeros((2, 2, 2)))
    with pytest.raises(DatasetLayoutError, match="name the same case"):
        evaluate_folders(predictions, targets)


def test_settings_that_cannot_work_are_refused(folders):
    with pytest.raises(ConfigError, match="jobs"):
        evaluate_folders(*folders, jobs=0)
    with pytest.raises(ConfigError, match="spacing_mm is for pictures"):
        evaluate_folders(*folders, spacing_mm=(1.0, 1.0))


def _pictures(root, **folders):
    """Folders of one-case pictures: name -> labels."""
    for name, labels in folders.items():
        write_picture(root / name / "case.png", np.array(labels))
    return [root / name for name in folders]


def test_an_ignore_label_and_a_field_of_view_are_scored_nowhere(tmp_path):
    # hand-worked: of 8 pixels one is ignored, one outside the field of view: 6 count, TP 2, FP 1, FN 1, TN 2
    predictions, targets, masks = _pictures(
        tmp_path,
        pred=[[1, 1, 1, 0], [0, 0, 1, 1]],
        truth=[[1, 1, 0, 1], [0, 0, 9, 0]],
        view=[[255, 255, 255, 255], [255, 255, 255, 0]],
    )
    evaluation = evaluate_folders(predictions, targets, ignore_label=9, masks=masks)
    assert evaluation.metrics.classes == ("background", "class_1")
    summary = evaluation.summary()
    assert summary["ignore_label"] == 9
    counts = evaluation.state.cases["case"].confusion.counts
    assert counts.tolist() == [[2, 1], [1, 2]]
    assert summary["metrics"]["Dice"]["classes"]["class_1"]["case_mean"] == pytest.approx(2 * 2 / (4 + 1 + 1))
    assert summary["metrics"]["specificity"]["classes"]["class_1"]["pooled"] == pytest.approx(2 / 3)
    assert summary["accuracy"]["pooled"] == pytest.approx(4 / 6)


def test_fields_of_view_are_found_by_name_and_must_fit(tmp_path):
    predictions, targets = _pictures(tmp_path, pred=[[1, 0]], truth=[[1, 1]])
    write_picture(tmp_path / "view" / "case_mask.png", np.array([[1, 0]]))
    scored = evaluate_folders(predictions, targets, masks=tmp_path / "view", distances=False)
    assert scored.state.cases["case"].confusion.counts.sum() == 1
    write_picture(tmp_path / "view" / "case_mask.png", np.array([[1, 0, 0]]))
    with pytest.raises(ShapeError, match=r"case_mask\.png is 1 x 3 pixels"):
        evaluate_folders(predictions, targets, masks=tmp_path / "view")
    (tmp_path / "view" / "case_mask.png").rename(tmp_path / "view" / "other.png")
    with pytest.raises(DatasetLayoutError, match=r"1 of the 1 cases .* have no mask"):
        evaluate_folders(predictions, targets, masks=tmp_path / "view")


def test_volumes_are_masked_on_their_own_voxels(tmp_path, folders):
    predictions, targets = folders
    views = np.zeros((14, 12, 6), np.uint8)
    views[:7] = 1
    for index in range(4):
        write_volume(tmp_path / "view" / f"case_{index}.nii.gz", views, AFFINE, np.uint8)
    evaluation = evaluate_folders(predictions, targets, masks=tmp_path / "view", distances=False)
    for scores in evaluation.state.cases.values():
        assert scores.confusion.counts.sum() == 7 * 12 * 6
    write_volume(tmp_path / "view" / "case_2.nii.gz", views, np.eye(4), np.uint8)
    with pytest.raises(ShapeError, match=r"view/case_2.*affines differ"):
        evaluate_folders(predictions, targets, masks=tmp_path / "view")


def test_the_ignore_label_of_an_nnunet_description_is_scored_nowhere(tmp_path):
    predictions, targets = _pictures(tmp_path, pred=[[1, 0, 1, 2]], truth=[[1, 1, 3, 2]])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}))
    evaluation = evaluate_folders(predictions, targets, distances=False)
    assert evaluation.metrics.classes == ("background", "a", "b")
    assert evaluation.ignore_label == 3
    assert evaluation.state.cases["case"].confusion.counts.sum() == 3


@pytest.mark.shared_data
def test_second_observer_of_drive_inside_the_field_of_view(tmp_path):
    if not DRIVE.is_dir():
        pytest.skip(f"no DRIVE at {DRIVE} (STATEFIELD_DATA)")
    for folder, ending in (("2nd_manual", "_manual2"), ("1st_manual", "_manual1"), ("mask", "_test_mask")):
        (tmp_path / folder).mkdir()
        for number in range(1, 21):
            (tmp_path / folder / f"{number:02d}.gif").symlink_to(DRIVE / folder / f"{number:02d}{ending}.gif")
    evaluation = evaluate_folders(
        tmp_path / "2nd_manual",
        tmp_path / "1st_manual",
        classes=("background", "vessel"),
        masks=tmp_path / "mask",
        distances=False,
    )
    summary = evaluation.summary()
    assert summary["num_cases"] == 20
    vessel = {name: entry["classes"]["vessel"] for name, entry in summary["metrics"].items()}
    # the reference figures of the data's INDEX.md: accuracy, sensitivity and specificity pooled, Dice over pictures
    assert summary["accuracy"]["pooled"] == pytest.approx(0.9473, abs=5e-5)
    assert vessel["sensitivity"]["pooled"] == pytest.approx(0.7746, abs=5e-5)
    assert vessel["specificity"]["pooled"] == pytest.approx(0.9725, abs=5e-5)
    assert vessel["Dice"]["case_mean"] == pytest.approx(0.7881, abs=5e-5)
