"""Predictions lie on their input voxel for voxel, whatever its orientation and format, and bad cases fail alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from PIL import Image
from torch import Tensor, nn

from statefield.datasets.adapter import load_files
from statefield.datasets.sample import DatasetInfo
from statefield.errors import ConfigError, DataError, ShapeError
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.volumes import stack_neighbours
from statefield.tasks.medical.inputs import find_cases, place_outputs
from statefield.tasks.medical.predict import (
    Outcome,
    predict_cases,
    segment_volume,
    write_prediction,
    write_probabilities,
)

GREY = DatasetInfo(classes=("background", "object"), channels=("grey",), spatial_dims=3)
AS_STORED = NormalisationConfig(method="none")
INFERENCE = InferenceConfig(batch_size=3)


def above_fifty(windows: Tensor) -> Tensor:
    """A net for which every pixel above 50 is an object: its answer is known for any file."""
    return torch.cat([torch.zeros_like(windows[:, :1]), windows[:, :1] - 50], dim=1)


def run(inputs: list[Path], output: Path, *, net: Callable[[Tensor], Tensor] = above_fifty, **options) -> list[Outcome]:
    info = options.pop("info", GREY)
    flags = {name: options.pop(name, False) for name in ("probabilities", "overlay")}
    cases = find_cases(inputs, len(info.channels))
    settings = {"normalisation": AS_STORED, "slice_context": 0, "roi": (8, 8), "inference": INFERENCE, **options}
    return list(predict_cases(net, cases, place_outputs(cases, output, **flags), info=info, **settings))


def nifti(path: Path, shape: tuple[int, ...], affine: np.ndarray, *, codes: tuple[int, int] = (1, 1)) -> Path:
    values = np.random.default_rng(1).integers(0, 100, shape).astype(np.int16)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    image.to_filename(path)
    return path


ORIENTATIONS = ["".join(codes) for codes in itertools.product("LR", "AP", "IS")] + ["PIR", "SLA", "IPL", "ALS"]


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_labels_return_to_the_voxels_of_any_orientation(tmp_path: Path, axes: str) -> None:
    spacing = np.diag([0.7, 1.1, 3.0, 1.0])
    spacing[:3, 3] = (-20, 13, 5)
    affine = spacing @ inv_ornt_aff(axcodes2ornt(tuple(axes)), (9, 13, 5))
    path = nifti(tmp_path / "scan.nii.gz", (9, 13, 5), affine, codes=(2, 1))
    (outcome,) = run([path], tmp_path / "out", probabilities=True)
    assert outcome.status == "written"
    given, labels = nib.load(path), nib.load(outcome.files.labels)
    assert np.array_equal(np.asarray(labels.dataobj), np.asarray(given.dataobj) > 50)
    assert labels.shape == given.shape
    assert np.array_equal(labels.affine, given.affine)
    for form in ("sform", "qform"):
        assert int(labels.header[f"{form}_code"]) == int(given.header[f"{form}_code"])
        expected, found = (getattr(image, f"get_{form}")() for image in (given, labels))
        assert np.array_equal(expected, found)
    probabilities = nib.load(outcome.files.probabilities)
    assert np.array_equal(probabilities.affine, given.affine)
    values = np.asarray(probabilities.dataobj)
    assert values.shape == (9, 13, 5, 2)
    expected = 1 / (1 + np.exp(50.0 - np.asarray(given.dataobj)))
    np.testing.assert_allclose(values[..., 1], expected, atol=1e-5)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)


def test_an_oblique_affine_returns_bit_for_bit(tmp_path: Path) -> None:
    turn = nib.eulerangles.euler2mat(0.1, 0.2, -0.15)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.9, 0.9, 2.5])
    affine[:3, 3] = (-31.4, 15.9, 26.5)
    path = nifti(tmp_path / "scan.nii", (6, 7, 4), affine, codes=(4, 0))
    (outcome,) = run([path], tmp_path / "labels.nii")
    given, labels = nib.load(path).header, nib.load(outcome.files.labels).header
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "pixdim", "quatern_b", "qoffset_x"):
        assert np.array_equal(given[field], labels[field]), field


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_pictures_become_pngs_of_label_indices(tmp_path: Path, suffix: str) -> None:
    values = np.kron(np.random.default_rng(0).integers(0, 2, (3, 4)), np.full((8, 8), 200)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / f"slide{suffix}")
    (outcome,) = run([tmp_path / f"slide{suffix}"], tmp_path / "out", overlay=True, probabilities=True)
    with Image.open(outcome.files.labels) as labels, Image.open(outcome.files.overlay) as overlay:
        assert labels.mode == "L"
        assert np.array_equal(np.asarray(labels), values > 50)
        assert np.asarray(overlay).shape == (24, 32, 3)
        assert len(np.unique(np.asarray(overlay).reshape(-1, 3), axis=0)) >= 3  # ground, tint, outline
    with np.load(outcome.files.probabilities, allow_pickle=False) as archive:
        assert archive["probabilities"].shape == (2, 24, 32)
        assert np.array_equal(archive["probabilities"].argmax(0), values > 50)


def test_two_channel_files_are_one_input_in_their_order(tmp_path: Path) -> None:
    first = nifti(tmp_path / "p_0000.nii.gz", (6, 7, 4), np.eye(4))
    nib.Nifti1Image(np.full((6, 7, 4), 60, np.int16), np.eye(4)).to_filename(tmp_path / "p_0001.nii.gz")
    info = DatasetInfo(classes=("background", "object"), channels=("t1", "t2"), spatial_dims=3)

    def first_exceeds_second(windows: Tensor) -> Tensor:
        return windows.flip(1)  # class 1 where channel 0 is larger

    (outcome,) = run([tmp_path], tmp_path / "out", net=first_exceeds_second, info=info)
    assert outcome.files.labels.name == "p.nii.gz"
    expected = np.asarray(nib.load(first).dataobj) > 60
    found = np.asarray(nib.load(outcome.files.labels).dataobj)
    different = np.asarray(nib.load(first).dataobj) != 60  # a tie goes to the first class
    assert np.array_equal(found[different], expected[different])


def test_slices_see_their_neighbours_as_in_training() -> None:
    image = np.random.default_rng(0).normal(size=(2, 5, 8, 8)).astype(np.float32)
    seen: list[np.ndarray] = []

    def net(windows: Tensor) -> Tensor:
        seen.extend(windows.numpy())
        return windows[:, :3]

    prediction = segment_volume(net, image, slice_context=1, roi=None, inference=InferenceConfig(batch_size=2))
    assert len(seen) == 5
    for index, windows in enumerate(seen):
        assert np.array_equal(windows, stack_neighbours(image, index, 1))
        assert np.array_equal(prediction.labels[index], windows[:3].argmax(0))


def test_batches_of_slices_do_not_change_the_result_and_progress_reaches_the_end() -> None:
    image = np.random.default_rng(0).normal(50, 20, (1, 7, 11, 13)).astype(np.float32)
    conv = nn.Conv2d(1, 3, 3, padding=1)
    steps: list[tuple[int, int]] = []
    results = [
        segment_volume(
            conv,
            image,
            slice_context=0,
            roi=(8, 8),
            inference=InferenceConfig(batch_size=size, mirror=True),
            with_probabilities=True,
            progress=lambda *step: steps.append(step),
        )
        for size in (1, 3, 20)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other.probabilities, results[0].probabilities, atol=1e-5)
    assert steps[:7] == [(done, 7) for done in range(1, 8)]
    assert steps[-1] == (7, 7)
    assert all(done <= total == 7 for done, total in steps)
    assert results[0].probabilities is not None
    assert np.array_equal(results[0].probabilities.argmax(0), results[0].labels)


def test_mirroring_makes_the_prediction_of_a_mirrored_image_the_mirrored_prediction() -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Conv2d(1, 2, 3, padding=1)

    def labels(values: np.ndarray, *, mirror: bool) -> np.ndarray:
        inference = InferenceConfig(mirror=mirror)
        return segment_volume(net, values, slice_context=0, roi=(8, 8), inference=inference).labels

    flipped = np.ascontiguousarray(image[..., ::-1])
    assert np.array_equal(labels(flipped, mirror=True), labels(image, mirror=True)[..., ::-1])
    assert not np.array_equal(labels(flipped, mirror=False), labels(image, mirror=False)[..., ::-1])


def test_a_net_in_training_mode_predicts_in_eval_mode_and_returns_to_training() -> None:
    net = nn.Sequential(nn.Dropout(0.9), nn.Conv2d(1, 2, 1)).train()
    image = np.ones((1, 2, 8, 8), np.float32)
    first = segment_volume(net, image, slice_context=0, roi=None, inference=INFERENCE, with_probabilities=True)
    assert first.probabilities is not None
    assert np.ptp(first.probabilities[1]) < 1e-6  # dropout would have made pixels differ
    assert net.training


def test_existing_outputs_are_kept_and_only_missing_ones_are_written(tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii.gz", (6, 7, 4), np.eye(4))
    (outcome,) = run([path], tmp_path / "out")
    before = outcome.files.labels.read_bytes()
    outcome.files.labels.write_bytes(b"edited by a radiologist")
    assert run([path], tmp_path / "out")[0].status == "kept"
    (again,) = run([path], tmp_path / "out", overlay=True)
    assert again.status == "written"
    assert again.files.overlay.exists()
    assert again.files.labels.read_bytes() == b"edited by a radiologist"
    assert run([path], tmp_path / "out", overwrite=True)[0].status == "written"
    assert outcome.files.labels.read_bytes() == before


def test_a_broken_case_fails_alone_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = nifti(data / "a.nii.gz", (6, 7, 4), np.eye(4))
    (data / "b.nii.gz").write_bytes(good.read_bytes()[:200])
    values = np.ones((6, 7, 4), np.float32)
    values[0, 0, 0] = np.nan
    nib.Nifti1Image(values, np.eye(4)).to_filename(data / "c.nii.gz")
    nib.Nifti1Image(np.ones((6, 7, 4, 2), np.int16), np.eye(4)).to_filename(data / "d.nii.gz")
    nifti(data / "e.nii.gz", (6, 7, 4), np.eye(4))
    outcomes = run([data], tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["written", "failed", "failed", "failed", "written"]
    for outcome, says in zip(outcomes[1:4], ("cut off", "NaN", "2 channels"), strict=True):
        assert str(outcome.case.files[0]) in str(outcome.error)
        assert says in str(outcome.error)
    assert isinstance(outcomes[1].error, DataError)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.nii.gz", "e.nii.gz"}


def test_writers_refuse_the_other_kind_of_file_and_the_wrong_shape(tmp_path: Path) -> None:
    scan = load_files([nifti(tmp_path / "scan.nii.gz", (6, 7, 4), np.eye(4))])["meta"]
    Image.fromarray(np.zeros((6, 7), np.uint8)).save(tmp_path / "slide.png")
    slide = load_files([tmp_path / "slide.png"])["meta"]
    labels = np.zeros((4, 7, 6), np.int64)
    with pytest.raises(ConfigError, match=r"scan\.nii\.gz is a volume"):
        write_prediction(tmp_path / "out.png", labels, scan)
    with pytest.raises(ConfigError, match=r"slide\.png is a picture"):
        write_prediction(tmp_path / "out.nii.gz", labels[:1], slide)
    with pytest.raises(ShapeError, match="4 slices"):
        write_prediction(tmp_path / "out.png", labels, slide)
    with pytest.raises(ShapeError, match=r"\(4, 6, 7\)"):
        write_prediction(tmp_path / "out.nii.gz", labels.transpose(0, 2, 1), scan)
    with pytest.raises(ConfigError, match=r"written as \.npz"):
        write_probabilities(tmp_path / "out.nii.gz", np.zeros((2, 1, 6, 7), np.float32), slide)
    with pytest.raises(ConfigError, match=r"written as \.nii\.gz"):
        write_probabilities(tmp_path / "out.npz", np.zeros((2, 4, 7, 6), np.float32), scan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nii.gz", "slide.png"]


SCANS = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
SCANS = SCANS / "medical" / "totalsegmentator_examples"


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["example_ct_sm.nii.gz", "example_mr_sm.nii.gz"])
def test_labels_of_real_scans_lie_on_them(tmp_path: Path, name: str) -> None:
    if not (SCANS / name).exists():
        pytest.skip(f"no {name} in {SCANS} (STATEFIELD_DATA)")
    (outcome,) = run([SCANS / name], tmp_path, roi=(64, 64), inference=InferenceConfig(overlap=0.25))
    given, labels = nib.load(SCANS / name), nib.load(outcome.files.labels)
    expected = np.asarray(given.dataobj) > 50
    assert 0 < expected.mean() < 1
    assert np.array_equal(np.asarray(labels.dataobj), expected)
    assert np.array_equal(labels.affine, given.affine)
    assert labels.header.get_zooms() == given.header.get_zooms()
    for form in ("sform_code", "qform_code"):
        assert labels.header[form] == given.header[form]
