"""Nets of volumes: windows, mirrors, the way back to the grid of the file, and volumes larger than memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from nibabel.orientations import axcodes2ornt, inv_ornt_aff
from torch import Tensor, nn

from statefield.datasets.sample import DatasetInfo
from statefield.errors import CheckpointError, ConfigError, DataError, ShapeError
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.resampling import resample_image, resample_logits
from statefield.tasks.common.volumes import Grid, normalise
from statefield.tasks.medical.inputs import find_cases, place_outputs
from statefield.tasks.medical.logit_rows import bands_needed, most_probable
from statefield.tasks.medical.predict import Memory, Outcome, predict_cases, segment_volume

THREE = DatasetInfo(classes=("background", "a", "b"), channels=("ct",), spatial_dims=3)
ONE_AT_A_TIME = InferenceConfig(overlap=0.25, batch_size=1)
TINY = 1000  # bytes: no array fits


def conv(num_classes: int = 3, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(channels, num_classes, 3, padding=1).eval()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grid_of(shape: tuple[int, ...], to: tuple[int, ...] | None = None, coarse: int | None = None) -> Grid:
    return Grid(shape, (1.0,) * 3, to or shape, (1.0,) * 3, coarse)


@pytest.mark.parametrize("shape", [(13, 10, 9), (3, 10, 4)])
def test_probabilities_are_those_of_monai(shape: tuple[int, ...]) -> None:
    image, net, roi = noise(2, *shape), conv(channels=2), (6, 4, 5)
    made = segment_volume(
        net, image, slice_context=0, roi=roi, inference=InferenceConfig(overlap=0.5), with_probabilities=True
    )
    with torch.no_grad():
        theirs = sliding_window_inference(torch.from_numpy(image)[None], roi, 4, net, overlap=0.5, mode="gaussian")[0]
    np.testing.assert_allclose(made.probabilities, theirs.softmax(0).numpy(), atol=1e-5)
    assert made.labels.dtype == np.uint8
    assert np.array_equal(made.labels, theirs.argmax(0).numpy())


def test_mirroring_averages_all_eight_flips() -> None:
    image, net = noise(1, 6, 5, 4), conv()
    inference = InferenceConfig(mirror=True, weighting="constant", overlap=0)
    made = segment_volume(
        net, image, slice_context=0, roi=(6, 5, 4), inference=inference, with_probabilities=True
    ).probabilities
    flips = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]
    assert len(flips) == 8
    with torch.no_grad():
        logits = torch.stack([net(torch.from_numpy(image)[None].flip(axes)).flip(axes) for axes in flips]).mean(0)
    np.testing.assert_allclose(made, logits[0].softmax(0).numpy(), atol=1e-6)


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_labels_take_the_smallest_type_that_holds_the_classes(num_classes: int, dtype: type) -> None:
    def last(windows: Tensor) -> Tensor:
        return torch.arange(num_classes).reshape(1, -1, 1, 1, 1) + windows * 0

    labels = segment_volume(last, noise(1, 4, 4, 4), slice_context=0, roi=(4, 4, 4), inference=ONE_AT_A_TIME).labels
    assert labels.dtype == dtype
    assert (labels == num_classes - 1).all()


@pytest.mark.parametrize("shape", [(1,), (5, 4, 3)])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_the_running_maximum_is_numpys_argmax_with_its_ties(shape: tuple[int, ...], num_classes: int) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (num_classes, *shape)).astype(np.float32)
    labels = np.full(shape, 77, dtype=np.uint8)
    most_probable(logits, labels)
    assert np.array_equal(labels, logits.argmax(0))


def test_nan_logits_are_an_error() -> None:
    logits = noise(3, 4, 4)
    logits[1, 2, 2] = np.nan
    with pytest.raises(CheckpointError, match="NaN in 1 of 16"):
        most_probable(logits, np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    ("stored", "seen", "coarse"),
    [((9, 12, 10), (14, 9, 10), None), ((8, 20, 18), (8, 9, 10), 0), ((5, 11, 13), (12, 23, 21), 0)],
)
@pytest.mark.parametrize("bands", [1, 2, 5])
def test_labels_return_as_from_all_logits_resampled_at_once(
    stored: tuple[int, ...], seen: tuple[int, ...], coarse: int | None, bands: int
) -> None:
    image, net, roi = noise(1, *seen), conv(), (6, 7, 8)
    made = segment_volume(
        net,
        image,
        slice_context=0,
        roi=roi,
        inference=ONE_AT_A_TIME,
        with_probabilities=True,
        grid=grid_of(stored, seen, coarse),
        num_bands=bands,
    )
    with torch.no_grad():
        whole = sliding_window_inference(torch.from_numpy(image)[None], roi, 1, net, overlap=0.25, mode="gaussian")
    back = resample_logits(whole[0].numpy(), stored, coarse_axis=coarse)
    np.testing.assert_allclose(made.probabilities, torch.from_numpy(back).softmax(0).numpy(), atol=1e-5)
    ordered = np.sort(back, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    assert clear.mean() > 0.99
    assert np.array_equal(made.labels[clear], back.argmax(0)[clear])


def test_slices_return_to_the_files_grid_too() -> None:
    torch.manual_seed(0)
    net, image = nn.Conv2d(3, 4, 3, padding=1), noise(1, 5, 9, 8)
    made = segment_volume(
        net,
        image,
        slice_context=1,
        roi=None,
        inference=InferenceConfig(batch_size=2),
        grid=grid_of((9, 13, 16), (5, 9, 8)),
    )
    stack = np.stack([image[0, np.clip([d - 1, d, d + 1], 0, 4)] for d in range(5)])
    with torch.no_grad():
        logits = net(torch.from_numpy(stack)).transpose(0, 1).numpy()
    assert np.array_equal(made.labels, resample_logits(logits, (9, 13, 16)).argmax(0))


def test_what_does_not_fit_together_is_refused() -> None:
    image = noise(1, 4, 4, 4)
    with pytest.raises(ConfigError, match="slice_context = 1"):
        segment_volume(conv(), image, slice_context=1, roi=(4, 4, 4), inference=ONE_AT_A_TIME)
    with pytest.raises(ShapeError, match="its grid"):
        segment_volume(
            conv(), image, slice_context=0, roi=(4, 4, 4), inference=ONE_AT_A_TIME, grid=grid_of((4, 4, 4), (5, 4, 4))
        )
    with pytest.raises(ShapeError, match=r"\[C, D, H, W\]"):
        segment_volume(conv(), image[0], slice_context=0, roi=(4, 4, 4), inference=ONE_AT_A_TIME)


def test_bands_are_as_many_as_the_logits_of_a_row_of_windows_need() -> None:
    grid = grid_of((512, 512, 512))
    # 100 classes x (16 + 4) rows x 512 x 512 x 4 bytes = 2.1 GB
    assert bands_needed(grid, (16, 128, 128), 100, 3_000_000_000) == 1
    assert bands_needed(grid, (16, 128, 128), 100, 1_000_000_000) == 3
    assert bands_needed(grid, (16, 128, 128), 100, 1) == 512
    assert bands_needed(grid, (128, 128), 100, 1) == 1
    assert bands_needed(grid, None, 100, 1) == 1
    assert bands_needed(grid_of((512, 512, 512), (128, 128, 128)), (16, 64, 64), 100, 500_000_000) == 1


def write(path: Path, values: np.ndarray, affine: np.ndarray, *, scaled: bool = False) -> Path:
    image = nib.Nifti1Image(values, affine)
    if scaled:
        image.header.set_slope_inter(0.5, -7)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    image.to_filename(path)
    return path


def predict(inputs: list[Path], output: Path, *, info: DatasetInfo = THREE, **options: Any) -> list[Outcome]:
    flags = {name: options.pop(name, False) for name in ("probabilities", "overlay")}
    cases = find_cases(inputs, len(info.channels))
    settings = {
        "normalisation": NormalisationConfig(clip_percentiles=(1, 99)),
        "slice_context": 0,
        "roi": (5, 6, 7),
        "inference": ONE_AT_A_TIME,
        **options,
    }
    net = settings.pop("net", conv(len(info.classes), len(info.channels)))
    return list(predict_cases(net, cases, place_outputs(cases, output, **flags), info=info, **settings))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("spacing", [None, (1.6, 1.0, None)])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_volume_larger_than_memory_gets_the_same_bytes(
    tmp_path: Path, suffix: str, spacing: tuple | None, scaled: bool
) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, (11, 13, 9)).astype(np.int16)
    path = write(tmp_path / f"scan{suffix}", values, np.diag([-0.8, 0.8, 2.0, 1]), scaled=scaled)
    told: list[str] = []
    options = {"spacing": spacing, "probabilities": True, "overlay": True}
    (whole,) = predict([path], tmp_path / "whole", memory=Memory(10**9), tell=told.append, **options)
    assert told == []
    (mapped,) = predict([path], tmp_path / "mapped", memory=Memory(TINY), tell=told.append, **options)
    assert whole.status == mapped.status == "written"
    assert len(told) == 1
    assert "temporary files" in told[0]
    assert "bands of columns" in told[0]
    # to the byte: one window a batch, so a band's windows give the logits they give in the whole
    assert whole.files.labels.read_bytes() == mapped.files.labels.read_bytes()
    assert whole.files.overlay.read_bytes() == mapped.files.overlay.read_bytes()
    found, expected = (nib.load(outcome.files.probabilities).get_fdata() for outcome in (mapped, whole))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sorted(file.name for file in (tmp_path / "mapped").iterdir()) == sorted(
        file.name for file in mapped.files.wanted()
    )


def test_labels_on_disk_are_those_of_the_arrays_in_memory(tmp_path: Path) -> None:
    values = np.random.default_rng(1).gamma(2, 100, (10, 9, 8)).astype(np.float32)
    path = write(tmp_path / "scan.nii.gz", values, np.eye(4))  # canonical: (W, H, D) as stored
    net, config = conv(), NormalisationConfig(clip_percentiles=(1, 99))
    (outcome,) = predict([path], tmp_path / "out", net=net, spacing=(1.5, None, 0.9), memory=Memory(TINY))
    seen = resample_image(normalise(values.T[None].copy(), config), (5, 9, 11))
    expected = segment_volume(
        net, seen, slice_context=0, roi=(5, 6, 7), inference=ONE_AT_A_TIME, grid=grid_of((8, 9, 10), (5, 9, 11))
    )
    assert np.array_equal(nib.load(outcome.files.labels).get_fdata().T, expected.labels)


EVERY_ORIENTATION = [
    "".join(codes) for order in itertools.permutations(("LR", "AP", "IS")) for codes in itertools.product(*order)
]


@pytest.mark.parametrize("memory", [10**9, TINY])
def test_labels_return_to_each_of_the_48_orientations(tmp_path: Path, memory: int) -> None:
    assert len(set(EVERY_ORIENTATION)) == 48
    info = DatasetInfo(classes=("background", "object"), channels=("grey",), spatial_dims=3)

    def above_fifty(windows: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(windows), windows - 50], dim=1)

    spacing = np.diag([0.7, 1.1, 3.0, 1.0])
    spacing[:3, 3] = (-20, 13, 5)
    for number, axes in enumerate(EVERY_ORIENTATION):
        shape = (4, 6, 5)
        values = np.random.default_rng(number).integers(0, 100, shape).astype(np.uint8)
        write(tmp_path / f"{axes}.nii", values, spacing @ inv_ornt_aff(axcodes2ornt(tuple(axes)), shape))
    outcomes = predict(
        sorted(tmp_path.glob("*.nii")),
        tmp_path / "out",
        info=info,
        net=above_fifty,
        roi=(3, 4, 4),
        normalisation=NormalisationConfig(method="none"),
        memory=Memory(memory),
    )
    assert len(outcomes) == 48
    for outcome in outcomes:
        given, labels = nib.load(outcome.case.files[0]), nib.load(outcome.files.labels)
        assert np.array_equal(np.asarray(labels.dataobj), np.asarray(given.dataobj) > 50)
        assert labels.shape == given.shape
        assert np.array_equal(labels.affine, given.affine)
        assert labels.header.get_zooms() == given.header.get_zooms()
        for form in ("sform", "qform"):
            assert int(labels.header[f"{form}_code"]) == int(given.header[f"{form}_code"])
            assert np.array_equal(getattr(labels, f"get_{form}")(), getattr(given, f"get_{form}")())


@pytest.mark.parametrize("memory", [10**9, TINY])
def test_several_channel_files_are_one_image(tmp_path: Path, memory: int) -> None:
    info = DatasetInfo(classes=("background", "a", "b"), channels=("t1", "t2"), spatial_dims=3)
    values = noise(2, 6, 7, 8)
    for channel, one in enumerate(values):
        write(tmp_path / f"p_{channel:04d}.nii.gz", one, np.eye(4))
    net = conv(channels=2)
    (outcome,) = predict(
        [tmp_path], tmp_path / "out", info=info, net=net, memory=Memory(memory), normalisation=NormalisationConfig()
    )
    image = normalise(values.transpose(0, 3, 2, 1), NormalisationConfig())
    expected = segment_volume(net, image, slice_context=0, roi=(5, 6, 7), inference=ONE_AT_A_TIME).labels
    assert np.array_equal(nib.load(outcome.files.labels).get_fdata().T, expected)


def test_postprocessing_sees_the_labels_on_the_files_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", noise(7, 8, 9), np.eye(4))
    seen: list[tuple[int, ...]] = []

    def only_b(labels: np.ndarray) -> np.ndarray:
        seen.append(labels.shape)
        labels[labels == 1] = 0
        return labels

    (outcome,) = predict([path], tmp_path / "out", postprocess=only_b, spacing=(2.0, 2.0, 2.0), roi=(4, 4, 4))
    assert seen == [(9, 8, 7)]
    assert set(np.unique(nib.load(outcome.files.labels).get_fdata())) == {0, 2}


def test_mapped_files_are_judged_as_those_in_memory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    good = write(data / "a.nii.gz", noise(6, 7, 8), np.eye(4))
    (data / "b.nii.gz").write_bytes(good.read_bytes()[:-200])
    values = noise(6, 7, 8)
    values[0, 0, 0] = np.inf
    write(data / "c.nii.gz", values, np.eye(4))
    write(data / "d.nii", noise(6, 7, 8), np.eye(4))
    (data / "d.nii").write_bytes((data / "d.nii").read_bytes()[:-4])
    write(data / "e.nii", np.ones((6, 7, 8, 2), np.int16), np.eye(4))
    outcomes = predict([data], tmp_path / "out", memory=Memory(TINY))
    assert [outcome.status for outcome in outcomes] == ["written", "failed", "failed", "failed", "failed"]
    for outcome, says in zip(outcomes[1:], ("cut off", "infinite", "cut off", "2 channels"), strict=True):
        assert str(outcome.case.files[0]) in str(outcome.error)
        assert says in str(outcome.error)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]


def test_a_disk_without_room_is_said_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "scan.nii.gz", noise(6, 7, 8), np.eye(4))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 28})())
    (outcome,) = predict([path], tmp_path / "out", memory=Memory(TINY, tmp_path / "scratch"))
    assert isinstance(outcome.error, DataError)
    assert "--scratch" in str(outcome.error)
    assert not list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "out").glob("*"))
