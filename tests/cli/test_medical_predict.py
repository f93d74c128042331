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
from statefield.tasks.common.volumes import normalise
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
        assert np.array_equal(written["mask"], expected.labels)
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
