"""`statefield medical predict` with a trained run: from files to files, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fakes.medical import write_pairs_of_volumes

from statefield.cli.main import main
from statefield.datasets.adapter import load_files
from statefield.tasks.common.config import InferenceConfig, TrainerConfig
from statefield.tasks.common.resampling import resample_image
from statefield.tasks.common.volumes import Grid, normalise
from statefield.tasks.medical.postprocessing import load_postprocessing
from statefield.tasks.medical.predict import segment_volume
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import load_run, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, folder of volumes): two steps of training with neighbouring slices as channels."""
    folder = tmp_path_factory.mktemp("predict")
    data = write_pairs_of_volumes(folder / "data", num_cases=5)
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, slice_context=1, augment="none"),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    return folder / "run", data / "images"


def test_a_folder_is_predicted_with_the_run_s_own_normalisation_context_and_window(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, images = trained
    words = ["medical", "predict", "--run", str(folder), str(images), "--output", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(tmp_path / f"case_{index:03d}.nii.gz") for index in range(5)]
    run = load_run(folder)
    for path in images.iterdir():
        sample = load_files([path])
        image = normalise(sample["image"], run.normalisation)
        expected = segment_volume(run.net, image, slice_context=1, roi=(16, 16), inference=InferenceConfig())
        written = load_files([path], tmp_path / path.name)
        assert np.array_equal(written["mask"], load_postprocessing(folder)(expected.labels))
        assert np.array_equal(nib.load(tmp_path / path.name).affine, nib.load(path).affine)
    assert main(words) == 0
    assert "5 kept as they were" in capsys.readouterr().out


def test_options_of_the_command_line_take_the_place_of_the_run_s(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, images = trained
    output = tmp_path / "labels.nii.gz"
    words = ["medical", "predict", "--run", str(folder), str(images / "case_000.nii.gz"), "--output", str(output)]
    options = ["--tta", "--overlap", "0.25", "--batch-size", "2", "--probabilities", "--overlay", "--device", "cpu"]
    assert main([*words, *options]) == 0
    run = load_run(folder)
    sample = load_files([images / "case_000.nii.gz"])
    expected = segment_volume(
        run.net,
        normalise(sample["image"], run.normalisation),
        slice_context=1,
        roi=(16, 16),
        inference=InferenceConfig(overlap=0.25, mirror=True),
        with_probabilities=True,
    )
    probabilities = load_files([tmp_path / "labels_probabilities.nii.gz"])["image"]
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
    assert (tmp_path / "labels_overlay.png").stat().st_size > 100


def test_a_broken_file_among_good_ones_is_summarised_at_the_end_with_status_2(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, images = trained
    good = images / "case_000.nii.gz"
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(good.read_bytes()[:500])
    output = tmp_path / "out"
    words = ["medical", "predict", "--run", str(folder), str(broken), str(good), "--output", str(output)]
    assert main([*words, "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(output / good.name)]
    assert str(broken) in told.err
    assert "cut off" in told.err
    assert told.err.rstrip().endswith("statefield: 1 of 2 cases failed: broken")
    assert "Traceback" not in told.err
    assert [path.name for path in output.iterdir()] == [good.name]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--run": "absent"}, "not a run folder"),
        ({"--output": "labels.png"}, "is a volume"),
        ({"--overlap": "1.5"}, "--overlap 1.5"),
        ({"--batch-size": "0"}, "--batch-size 0"),
        ({"--device": "cuda:77"}, "--device cuda:77"),
        ({"--device": "abacus"}, "is no device"),
        ({"": "absent.nii.gz"}, "absent.nii.gz: no such file"),
    ],
)
def test_what_cannot_work_is_a_paragraph_and_status_2(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, str], says: str
) -> None:
    folder, images = trained
    given = {"": str(images / "case_000.nii.gz"), "--run": str(folder), "--output": str(tmp_path / "out")}
    words = [word for name, value in (given | {"--device": "cpu"} | changes).items() for word in (name, value) if word]
    assert main(["medical", "predict", *words]) == 2
    told = capsys.readouterr().err
    assert says in told.replace("\n", " ")
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained_on_volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder, folder of volumes): two steps of training with patches of volumes at another spacing."""
    folder = tmp_path_factory.mktemp("predict3d")
    data = write_pairs_of_volumes(folder / "data", num_cases=5)
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(
            root=data, patch_size=(4, 12, 12), spacing=(2.5, 1.2, 1.2), batch_size=2, foreground=0.5, augment="none"
        ),
        model=ModelConfig(net="residual_unet", net_args={"features": [4, 8], "strides": [[1, 1, 1], [1, 2, 2]]}),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    return folder / "run", data / "images"


def test_a_net_of_volumes_predicts_on_the_grid_of_the_file_with_as_little_memory_as_it_is_given(
    trained_on_volumes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, images = trained_on_volumes
    words = ["medical", "predict", "--run", str(folder), str(images), "--device", "cpu", "--batch-size", "1"]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    assert "memory budget" not in capsys.readouterr().err
    scratch = tmp_path / "scratch"
    assert main([*words, "--output", str(tmp_path / "parts"), "--memory", "10KB", "--scratch", str(scratch)]) == 0
    told = capsys.readouterr().err
    assert "case_000: larger than the memory budget of 1e-05 GB" in told
    assert "bands of columns" in told
    assert list(scratch.iterdir()) == []
    for path in images.iterdir():
        whole, parts = nib.load(tmp_path / "whole" / path.name), nib.load(tmp_path / "parts" / path.name)
        assert np.array_equal(np.asarray(whole.dataobj), np.asarray(parts.dataobj))
        assert whole.shape == nib.load(path).shape
    run = load_run(folder)
    path = images / "case_003.nii.gz"
    sample = load_files([path])
    grid = Grid.of(sample["image"].shape[1:], sample["meta"], run.spacing)
    assert grid.differs
    expected = segment_volume(
        run.net,
        resample_image(normalise(sample["image"], run.normalisation), grid.wanted_shape),
        slice_context=0,
        roi=(4, 12, 12),
        inference=InferenceConfig(batch_size=1),
        grid=grid,
    )
    written = load_files([path], tmp_path / "whole" / path.name)["mask"]
    assert np.array_equal(load_postprocessing(folder)(expected.labels), written)


def test_the_labels_of_the_test_are_those_of_predict(trained_on_volumes: tuple[Path, Path], tmp_path: Path) -> None:
    folder, images = trained_on_volumes
    tested = sorted((folder / "predictions").glob("*.nii.gz"))
    assert tested
    words = ["medical", "predict", "--run", str(folder), *(str(images / path.name) for path in tested)]
    assert main([*words, "--device", "cpu", "--output", str(tmp_path)]) == 0
    for path in tested:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_two_runs_predict_the_mean_of_their_probabilities(
    trained_on_volumes: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, images = trained_on_volumes
    path = images / "case_001.nii.gz"
    words = ["medical", "predict", str(path), "--device", "cpu", "--probabilities"]
    assert main([*words, "--run", str(folder), "--output", str(tmp_path / "one")]) == 0
    assert main([*words, "--run", str(folder), "--run", str(folder), "--output", str(tmp_path / "two")]) == 0
    one, two = (nib.load(tmp_path / name / "case_001_probabilities.nii.gz").get_fdata() for name in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("size", ["4", "GB", "-1GB", "many MB", "0GB"])
def test_a_size_of_memory_has_a_number_and_a_unit(
    trained_on_volumes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, size: str
) -> None:
    folder, images = trained_on_volumes
    words = ["--run", str(folder), str(images), "--output", str(tmp_path / "out"), f"--memory={size}"]
    assert main(["medical", "predict", *words]) == 2
    assert "such as 4GB" in capsys.readouterr().err.replace("\n", " ")
