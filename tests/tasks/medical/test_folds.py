"""Cross-validation: which case is where, what is pooled, and that a stopped one ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.medical import write_nnunet
from fakes.published import write_acdc_h5
from lightning.pytorch import Callback

from statefield.datasets import open_dataset
from statefield.datasets.adapter import load_files
from statefield.errors import ConfigError
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.medical.ensemble import Ensemble
from statefield.tasks.medical.experiment import Dataset
from statefield.tasks.medical.postprocessing import load_postprocessing
from statefield.tasks.medical.recipe import ControlConfig, DataConfig, ModelConfig, SegmentationRecipe, read_recipe
from statefield.tasks.medical.run import load_run, test, train

test.__test__ = False  # the function that tests a run; nothing for pytest to collect


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_nnunet(tmp_path_factory.mktemp("data"), num_cases=6, num_test=0, shape=(20, 24, 3), channels=("T1",))


def _recipe(dataset: Path, run: Path, **changes) -> SegmentationRecipe:
    recipe = SegmentationRecipe(
        run=run,
        seed=5,
        data=DataConfig(root=dataset, patch_size=(24, 24), batch_size=2),
        model=ModelConfig(
            encoder="test_convnext", detail_channels=2, decoder_args={"decoder_channels": [8, 8, 8, 8, 8]}
        ),
        trainer=TrainerConfig(accelerator="cpu", threads=1, max_epochs=1, steps_per_epoch=3, save_every_steps=2),
        folds=2,
    )
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def crossed(dataset, tmp_path_factory) -> Path:
    recipe = _recipe(dataset, tmp_path_factory.mktemp("crossed") / "run", control=ControlConfig("test_efficientnet"))
    train(recipe)
    return recipe.run


def _weights(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(run.glob("fold_*/weights.safetensors"))]


class _Stop(BaseException):
    pass


class _StopAt(Callback):
    """Stops the training of a fold after the given step."""

    def __init__(self, fold: int, step: int) -> None:
        self.fold, self.step, self.begun = fold, step, -1

    def on_train_start(self, trainer, pl_module):
        self.begun += 1

    def on_train_batch_end(self, trainer, *_):
        if self.begun == self.fold and trainer.global_step == self.step:
            raise _Stop


def _splits(run: Path) -> dict[str, list[str]]:
    return json.loads((run / "dataset.json").read_text())["splits"]


def test_each_case_is_held_out_once_and_the_test_cases_never(crossed, dataset):
    official = Dataset.of(dataclasses.replace(_recipe(dataset, crossed), folds=None))
    pool = {record.case for split in ("train", "val") for record in official.records(split)}
    tests = {record.case for record in official.records("test")}
    splits = [_splits(crossed / f"fold_{index}") for index in range(2)]
    assert sorted(splits[0]["val"] + splits[1]["val"]) == sorted(pool)
    for split in splits:
        assert set(split["train"]) == pool - set(split["val"])
        assert set(split["test"]) == tests


def test_each_fold_is_an_ordinary_run_and_its_control_has_the_same_cases(crossed):
    for index in range(2):
        place = crossed / f"fold_{index}"
        assert {"weights.safetensors", "metrics.json", "report.html", "config.yaml", "control"} <= {
            path.name for path in place.iterdir()
        }
        assert read_recipe(place / "config.yaml").fold == index
        assert _splits(place / "control") == _splits(place)
        held_out = json.loads((place / "metrics.json").read_text())["model"]["test"]["cases"]
        assert sorted(held_out) == _splits(place)["val"]


def test_the_pooled_scores_are_those_of_the_written_predictions_of_all_folds(crossed, dataset):
    """Dice from the counts of all files together, by its formula."""
    stored = json.loads((crossed / "metrics.json").read_text())["cross_validation"]["out_of_fold"]["model"]["scores"]
    assert stored["num_cases"] == 5
    hits = total = 0
    for path in crossed.glob("fold_*/predictions/*.nii.gz"):
        sample = load_files([dataset / "imagesTr" / path.name.replace(".nii", "_0000.nii")], path)
        target = load_files([path], dataset / "labelsTr" / path.name)["mask"]
        hits += ((sample["mask"] == 1) & (target == 1)).sum()
        total += (sample["mask"] == 1).sum() + (target == 1).sum()
    entry = stored["metrics"]["Dice"]["classes"]["small"]
    assert entry["pooled"] == pytest.approx(2 * hits / total)
    cases = [values["Dice"]["small"] for values in stored["cases"].values()]
    assert entry["case_mean"] == pytest.approx(np.mean([value for value in cases if value is not None]))
    low, high = entry["ci95"]
    assert low <= entry["case_mean"] <= high


def test_the_ensemble_of_the_folds_is_what_the_run_loads_and_tests(crossed):
    run = load_run(crossed)
    assert isinstance(run.net, Ensemble)
    image = torch.randn(1, 1, 24, 24)
    with torch.no_grad():
        members = [load_run(crossed / f"fold_{index}").net(image).softmax(1) for index in range(2)]
        torch.testing.assert_close(run.net(image).softmax(1), torch.stack(members).mean(0))
    stored = json.loads((crossed / "metrics.json").read_text())
    assert [row["role"] for row in stored["comparison"]] == ["model", "control"]
    assert sorted(stored["model"]["test"]["cases"]) == _splits(crossed / "fold_0")["test"]
    assert stored["comparison"][0]["parameters"] == run.task.num_parameters
    again = test(crossed)
    assert again.summary["metrics"]["Dice"]["foreground_pooled"] == pytest.approx(
        stored["model"]["test"]["metrics"]["Dice"]["foreground_pooled"]
    )


def test_the_report_has_a_row_for_each_fold_and_one_for_all(crossed):
    page = (crossed / "report.html").read_text()
    assert "Cross-validation" in page and "Out-of-fold scores" in page
    table = page[page.index("Cross-validation</h2>") : page.index("Out-of-fold scores</h2>")]
    assert [table.count(f'<th class="text">{name}</th>') for name in ("0", "1", "all")] == [1, 1, 1]


def test_post_processing_is_chosen_on_the_cases_of_all_folds(crossed):
    stored = json.loads((crossed / "postprocessing.json").read_text())
    assert stored["cases"] == sorted(_splits(crossed / "fold_0")["val"] + _splits(crossed / "fold_1")["val"])
    assert "out-of-fold" in stored["chosen_on"]
    chosen = load_postprocessing(crossed)
    for path in (crossed / "predictions").glob("*.nii.gz"):
        labels = load_files([path], path)["mask"]
        assert np.array_equal(chosen(labels.copy()), labels)


@pytest.mark.parametrize(("fold", "step"), [pytest.param(0, 1, marks=pytest.mark.slow), (1, 3)])
def test_stopped_in_any_fold_and_resumed_it_ends_with_the_same_bits(crossed, dataset, tmp_path, fold, step):
    recipe = _recipe(dataset, tmp_path / "run")
    with pytest.raises(_Stop):
        train(recipe, callbacks=[_StopAt(fold, step)])
    train(recipe, resume=True)
    assert _weights(recipe.run) == _weights(crossed)
    scores = [json.loads((run / "metrics.json").read_text()) for run in (recipe.run, crossed)]
    assert scores[0]["model"]["test"] == scores[1]["model"]["test"]
    pooled = [score["cross_validation"]["out_of_fold"]["model"] for score in scores]
    assert pooled[0] == pooled[1]


class _Never(Callback):
    def on_train_start(self, trainer, pl_module):
        raise AssertionError("everything is trained")


@pytest.mark.slow
def test_folds_trained_by_several_machines_are_gathered(crossed, dataset, tmp_path):
    whole = _recipe(dataset, tmp_path / "run")
    result = train(dataclasses.replace(whole, fold=1))
    assert result.folder.root == whole.run / "fold_1"
    with pytest.raises(ConfigError, match=r"fold_0 not trained yet.*--resume"):
        load_run(whole.run)
    train(dataclasses.replace(whole, fold=0))
    train(whole, resume=True, callbacks=[_Never()])
    assert _weights(whole.run) == _weights(crossed)


@pytest.mark.slow
def test_without_test_cases_the_out_of_fold_scores_are_the_result(dataset, tmp_path):
    recipe = _recipe(dataset, tmp_path / "run")
    data = dataclasses.replace(recipe.data, options={"fractions": (1.0, 0.0, 0.0)})
    recipe = dataclasses.replace(recipe, data=data, trainer=dataclasses.replace(recipe.trainer, steps_per_epoch=1))
    result = train(recipe)
    assert result.summary["num_cases"] == 6
    stored = json.loads((recipe.run / "metrics.json").read_text())
    assert stored["model"]["test"] == stored["cross_validation"]["out_of_fold"]["model"]["scores"]


def test_patients_stay_in_one_fold(dataset):
    options = {"group_pattern": r"fake_00(\d)", "fractions": (0.9, 0.1, 0.0)}
    recipe = _recipe(dataset, Path("unused"))
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, options=options))
    with pytest.raises(ConfigError, match="folds = 7 with 6 patients"):
        Dataset.of(dataclasses.replace(recipe, folds=7, fold=0)).records("val")
    pairs = dataclasses.replace(recipe.data, options=options | {"group_pattern": r"fake_00[0-9]*?([02468]|[13579])$"})
    held_out = Dataset.of(dataclasses.replace(recipe, data=pairs, fold=0)).records("val")
    assert len(held_out) == 3


def test_an_old_run_survives_a_cross_validation_that_cannot_start(crossed, dataset):
    before = _weights(crossed)
    recipe = _recipe(dataset, crossed, data=DataConfig(root=dataset, patch_size=(24, 24), batch_size=0))
    with pytest.raises(ConfigError, match="batch_size"):
        train(recipe, overwrite=True)
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        train(_recipe(dataset, crossed))
    with pytest.raises(ConfigError, match=r"other settings \(control"):
        train(_recipe(dataset, crossed), resume=True)
    assert _weights(crossed) == before


def test_the_validation_cases_of_an_ensemble_are_refused_as_it_has_none(crossed):
    with pytest.raises(ConfigError, match="out-of-fold scores"):
        test(crossed, split="val")


@pytest.mark.parametrize(("folds", "fold"), [(None, 0), (2, 2), (2, -1)])
def test_a_fold_that_is_not_there_is_refused(dataset, tmp_path, folds, fold):
    with pytest.raises(ConfigError, match=f"fold = {fold} with folds = {folds}"):
        train(_recipe(dataset, tmp_path / "run", folds=folds, fold=fold))
    assert not (tmp_path / "run").exists()


def test_patients_of_a_published_dataset_are_never_divided_by_folds(tmp_path):
    adapter, info = open_dataset(write_acdc_h5(tmp_path))  # two phases a patient, whom no option names
    held_out = []
    for fold in range(3):
        dataset = Dataset(adapter, info, tmp_path, folds=3, fold=fold)
        train_patients, val_patients = ({r.group for r in dataset.records(split)} for split in ("train", "val"))
        assert val_patients
        assert not train_patients & val_patients
        held_out += [record.case for record in dataset.records("val")]
    pool = [record.case for split in ("train", "val") for record in adapter.records(tmp_path, split)]
    assert sorted(held_out) == sorted(pool)
