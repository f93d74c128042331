"""Many cases with a ledger: the files are those of `medical predict`, in this process and by workers."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from fakes.archive import RAY_TOKEN
from fakes.medical import write_pairs_of_volumes

from statefield.cli.main import main
from statefield.errors import DataError
from statefield.tasks.common.archive import Ledger, run_archive
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.medical.archive import MedicalLabels, case_jobs
from statefield.tasks.medical.inputs import find_cases, place_outputs
from statefield.tasks.medical.predict import Memory
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(run folder, folder of volumes, what the command makes of them): two steps of training."""
    folder = tmp_path_factory.mktemp("archive")
    data = write_pairs_of_volumes(folder / "data", num_cases=5)
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="none"),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    words = ["medical", "predict", "--run", str(folder / "run"), str(data / "images"), "--output"]
    assert main([*words, str(folder / "expected"), "--device", "cpu", "--overlap", "0.25", *MORE]) == 0
    return folder / "run", data / "images", folder / "expected"


MORE = ["--probabilities", "--overlay"]


def same_files(found: Path, expected: Path) -> None:
    names = sorted(path.name for path in expected.iterdir())
    assert len(names) == 15
    for name in names:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_an_archive_of_cases_has_the_files_of_the_command_and_fails_case_by_case(trained, tmp_path):
    run, images, expected = trained
    output = tmp_path / "out"
    cases = find_cases([images], 1)
    jobs = case_jobs(cases, place_outputs(cases, output, probabilities=True, overlay=True))
    assert [job.name for job in jobs] == [f"case_{number:03d}.nii.gz" for number in range(5)]
    work = MedicalLabels((run,), {"overlap": 0.25}, probabilities=True, overlay=True, memory=Memory(budget=10**9))
    result = run_archive(work, jobs, output)
    assert len(result.done) == 5 and not result.failed
    same_files(output, expected)
    assert set(work.settings["models"][0]) >= {"config.yaml", "dataset.json", "weights.safetensors"}
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((images / "case_000.nii.gz").read_bytes()[:500])
    cases = find_cases([images, broken], 1)
    jobs = case_jobs(cases, place_outputs(cases, output, probabilities=True, overlay=True))
    result = run_archive(work, jobs, output)
    assert len(result.kept) == 5 and [one.name for one in result.failed] == ["broken.nii.gz"]
    assert (result.failed[0].error or "").startswith(f"{DataError.__name__}: {broken}")


def test_the_budget_of_a_worker_is_its_part_of_the_machine(monkeypatch):
    monkeypatch.setattr("statefield.tasks.medical.archive.available_bytes", lambda: 1000)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert MedicalLabels((), cpus=2)._memory().budget == 150
    assert MedicalLabels((), cpus=16)._memory().budget == 600
    assert MedicalLabels((), memory=Memory(budget=7), cpus=2)._memory().budget == 7


def test_workers_need_a_folder(trained, tmp_path, capsys):
    run, images, _ = trained
    words = ["medical", "predict", "--run", str(run), str(images / "case_000.nii.gz"), "--workers", "2", "--output"]
    assert main([*words, str(tmp_path / "labels.nii.gz")]) == 2
    assert "with workers a folder is needed" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore:.*(subprocess|unclosed).*:ResourceWarning")
def test_two_workers_write_what_one_process_does_and_a_second_run_does_nothing(trained, tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
    run, images, expected = trained
    words = ["medical", "predict", "--run", str(run), str(images), "--output", str(tmp_path / "out")]
    words += ["--overlap", "0.25", *MORE, "--workers", "2"]
    assert main(words) == 0
    assert "5 of 5 cases done" in capsys.readouterr().out
    same_files(tmp_path / "out", expected)
    assert {Ledger(tmp_path / "out").record(f"case_{number:03d}.nii.gz").attempts for number in range(5)} == {1}
    assert main(words) == 0
    assert "0 of 5 cases done" in (out := capsys.readouterr().out) and "5 kept" in out
    gc.collect()  # what Ray leaves to the collector, where its warnings are filtered
