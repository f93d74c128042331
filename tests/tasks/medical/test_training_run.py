"""A whole run: what it writes, what it says when it cannot, and that a net learns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from fakes.medical import (
    blobs,
    write_msd,
    write_nnunet,
    write_pairs,
    write_pairs_of_volumes,
    write_picture,
    write_volume,
)
from lightning.pytorch import Callback

from statefield.errors import (
    CheckpointError,
    ConfigError,
    DatasetLayoutError,
    LabelError,
    StatefieldError,
    TrainingDiverged,
    UnknownName,
)
from statefield.tasks.common.checkpointing import read_checkpoint, read_weights
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig, TrainerConfig, TransformConfig
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.contenders import choose_on_validation
from statefield.tasks.medical.experiment import Dataset
from statefield.tasks.medical.postprocessing import load_postprocessing
from statefield.tasks.medical.recipe import (
    ControlConfig,
    DataConfig,
    ModelConfig,
    SegmentationRecipe,
    read_recipe,
    recipe_text,
)
from statefield.tasks.medical.run import fit, load_run, test, train

test.__test__ = False  # the function that tests a run; nothing for pytest to collect

TINY = ModelConfig(encoder="test_convnext", detail_channels=4, decoder_args={"decoder_channels": [8, 8, 8, 8, 8]})


def _recipe(root: Path, run: Path, **changes) -> SegmentationRecipe:
    recipe = SegmentationRecipe(
        run=run,
        data=DataConfig(root=root, patch_size=(32, 32), batch_size=2),
        model=TINY,
        trainer=TrainerConfig(accelerator="cpu", threads=1, fast_dev_run=True),
    )
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of two epochs with a control, on volumes of two channels and three classes."""
    place = tmp_path_factory.mktemp("run")
    recipe = _recipe(
        write_nnunet(place / "data", num_cases=8, num_test=0),
        place / "run",
        trainer=TrainerConfig(accelerator="cpu", threads=1, max_epochs=2, steps_per_epoch=2),
        inference=InferenceConfig(postprocess_min_cases=1),
        control=ControlConfig("test_efficientnet"),
    )
    train(recipe)
    return place / "run"


def test_the_run_folder_holds_everything(trained):
    folder = RunFolder(trained)
    for path in (folder.config, folder.dataset, folder.history, folder.metrics, folder.weights, folder.report):
        assert path.stat().st_size > 0
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert list(folder.figures.glob("*.png"))
    leftovers = [path for path in trained.rglob("*") if ".partial" in path.name or path.name.startswith(".")]
    assert leftovers == []


def test_the_stored_recipe_is_complete_and_reads_back_as_it_was(trained):
    stored = read_recipe(trained / "config.yaml")
    assert stored.control == ControlConfig("test_efficientnet")
    assert stored.model == TINY
    assert recipe_text(stored) == (trained / "config.yaml").read_text()


def test_the_history_has_a_row_for_each_epoch_with_losses_rates_and_scores(trained):
    rows = read_history(RunFolder(trained).history)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["train_loss"] > 0
        assert 0 <= row["Dice/foreground mean"] <= 1
        assert {"Dice/small", "Dice/large", "learning_rate", "seconds"} <= set(row)


def test_predictions_lie_on_their_images_and_hold_labels_of_the_classes(trained):
    root = read_recipe(trained / "config.yaml").data.root
    written = sorted((trained / "predictions").iterdir())
    cases = json.loads((trained / "dataset.json").read_text())["splits"]["test"]
    assert [path.name for path in written] == [f"{case}.nii.gz" for case in cases]
    for path in written:
        label, image = nib.load(path), nib.load(root / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        assert set(np.unique(label.get_fdata())) <= {0, 1, 2}


def test_the_scores_are_those_of_the_written_predictions(trained):
    """Dice computed here, by its formula, from the files alone."""
    root = read_recipe(trained / "config.yaml").data.root
    stored = json.loads((trained / "metrics.json").read_text())["model"]["test"]["metrics"]["Dice"]["classes"]
    for value, name in ((1, "small"), (2, "large")):
        hits = total = 0
        for path in (trained / "predictions").iterdir():
            predicted = nib.load(path).get_fdata() == value
            target = nib.load(root / "labelsTr" / path.name).get_fdata() == value
            hits, total = hits + (predicted & target).sum(), total + predicted.sum() + target.sum()
        assert stored[name]["pooled"] == pytest.approx(2 * hits / total)


def test_the_control_is_trained_by_the_same_recipe_but_for_its_encoder(trained):
    main, control = read_recipe(trained / "config.yaml"), read_recipe(trained / "control" / "config.yaml")
    assert control.model == dataclasses.replace(main.model, encoder="test_efficientnet")
    assert (control.data, control.trainer, control.seed) == (main.data, main.trainer, main.seed)


def test_the_comparison_shows_model_and_control_with_parameters_seconds_and_dice(trained):
    stored = json.loads((trained / "metrics.json").read_text())
    rows = {row["name"]: row for row in stored["comparison"]}
    assert list(rows) == ["test_convnext", "test_efficientnet"]
    for name, row in rows.items():
        run = load_run(trained if name == "test_convnext" else trained / "control")
        assert row["parameters"] == sum(p.numel() for p in run.net.parameters())
        assert row["training"].endswith(" s")
        assert {"Dice small", "Dice large", "mean Dice"} <= set(row)
    assert "test_efficientnet" in (trained / "report.html").read_text()
    assert torch.__version__.startswith(stored["environment"]["torch"])


def test_load_run_gives_the_best_weights_in_eval_mode_and_what_the_net_expects(trained):
    run = load_run(trained)
    assert not any(module.training for module in run.net.modules())
    assert run.classes == ("background", "small", "large")
    assert run.channels == ("T1", "T2")
    assert run.roi == (32, 32)
    best = read_checkpoint(RunFolder(trained).best)["state_dict"]
    assert all(torch.equal(value, best[f"net.{name}"]) for name, value in run.net.state_dict().items())


def test_weights_of_one_run_start_another(trained, tmp_path):
    recipe = _recipe(read_recipe(trained / "config.yaml").data.root, tmp_path / "run")
    start = RunFolder(trained).weights

    class Check(Callback):
        def on_train_start(self, trainer, pl_module):
            for name, value in read_weights(start).items():
                assert torch.equal(value, pl_module.net.state_dict()[name]), name

    fit(dataclasses.replace(recipe, model=dataclasses.replace(TINY, weights=start)), callbacks=[Check()])


def test_post_processing_is_chosen_on_the_validation_cases_and_applied(trained):
    for run in (trained, trained / "control"):
        stored = json.loads((run / "postprocessing.json").read_text())
        assert stored["cases"] == json.loads((trained / "dataset.json").read_text())["splits"]["val"]
        keep_largest = load_postprocessing(run)
        for path in (run / "predictions").iterdir():
            labels = np.asarray(nib.load(path).dataobj)
            np.testing.assert_array_equal(keep_largest(labels.copy()), labels)


def test_with_few_held_out_cases_no_post_processing_is_looked_for(trained, tmp_path):
    run = load_run(trained)
    few = dataclasses.replace(
        run, folder=RunFolder(tmp_path), recipe=dataclasses.replace(run.recipe, inference=InferenceConfig())
    )
    assert choose_on_validation(few, Dataset.of(run.recipe)) is None
    assert not any(tmp_path.iterdir())


def test_testing_again_gives_the_same_scores_in_a_folder_of_its_own(trained):
    result = test(trained)
    first = json.loads((trained / "metrics.json").read_text())["model"]["test"]["metrics"]
    again = json.loads((trained / "test_test" / "metrics.json").read_text())["model"]["test"]["metrics"]
    assert again == first
    assert result.report == trained / "test_test" / "report.html"


def test_testing_on_a_dataset_of_other_classes_is_refused(trained, tmp_path):
    other = write_nnunet(tmp_path / "other", num_cases=4, num_test=0, num_classes=2)
    with pytest.raises(ConfigError, match=r"was trained on .*'large'.*the two must be equal"):
        test(trained, root=other)


def test_a_net_learns_bright_blobs_and_its_averaged_weights_too(tmp_path):
    recipe = _recipe(
        write_pairs(tmp_path / "data", num_cases=10),
        tmp_path / "run",
        trainer=TrainerConfig(accelerator="cpu", threads=1, max_epochs=4, steps_per_epoch=12),
        model=dataclasses.replace(TINY, lr=1e-2, warmup_steps=4, average_decay=0.8),
    )
    result = train(recipe)
    assert result.summary["metrics"]["Dice"]["foreground_pooled"] > 0.9
    losses = [row["train_loss"] for row in read_history(RunFolder(recipe.run).history)]
    assert losses[-1] < 0.5 * losses[0]
    best = read_checkpoint(RunFolder(recipe.run).best)["state_dict"]
    weights = read_weights(RunFolder(recipe.run).weights)
    assert all(torch.equal(value, best[f"averaged.{name}"]) for name, value in weights.items())
    assert any(not torch.equal(value, best[f"net.{name}"]) for name, value in weights.items())


LAYOUTS = {
    "pairs": lambda root: write_pairs(root, num_channels=3, split_folders=True),
    "pairs of volumes": lambda root: write_pairs_of_volumes(root),
    "msd": lambda root: write_msd(root, modalities=("FLAIR", "T1")),
    "nnunet pictures": lambda root: write_nnunet(root, file_ending=".png", shape=(40, 36)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_and_predicts_in_its_own_format(tmp_path, layout):
    recipe = _recipe(LAYOUTS[layout](tmp_path / "data"), tmp_path / "run")
    result = train(recipe)
    written = [path.suffixes for path in result.folder.predictions.iterdir()]
    assert written == [[".png"] if "pictures" in layout or layout == "pairs" else [".nii", ".gz"]]
    unit = "px" if written[0] == [".png"] else "mm"
    assert f"HD95_{unit}" in result.summary["metrics"]


def test_cases_kept_on_disk_give_the_same_weights_and_leave_nothing_behind(tmp_path):
    data = write_pairs(tmp_path / "data", num_cases=6)
    memory = _recipe(data, tmp_path / "memory")
    disk = dataclasses.replace(memory, run=tmp_path / "disk", data=dataclasses.replace(memory.data, cache="disk"))
    fit(memory)
    fit(disk)
    assert RunFolder(memory.run).weights.read_bytes() == RunFolder(disk.run).weights.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "memory", "disk"}
    assert {path.name for path in disk.run.iterdir()} == {path.name for path in memory.run.iterdir()}


def test_whole_slices_serve_as_patches(tmp_path):
    recipe = _recipe(write_pairs_of_volumes(tmp_path / "data"), tmp_path / "run")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, patch_size=None))
    fit(recipe)
    assert load_run(recipe.run).roi is None


def test_thresholds_are_scored_beside_the_net_when_the_recipe_asks(tmp_path):
    root = write_pairs(tmp_path / "data", num_classes=3, classes_file=True)
    result = train(_recipe(root, tmp_path / "run", threshold_baseline=True))
    baseline = result.comparison[-1]
    assert (baseline.role, baseline.values["parameters"]) == ("baseline", 2)
    assert baseline.values["mean Dice"] > 0.9  # the fakes' classes differ in intensity
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())["threshold_baseline"]
    assert 0 < stored["low"] < stored["high"]


# What a run says when it cannot work: nothing may be half-written, and an old run must survive.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": dataclasses.replace(TINY, encoder="test_convnexxt")}, UnknownName, "did you mean 'test_convnext"),
        ({"model": dataclasses.replace(TINY, decoder="unett")}, UnknownName, "did you mean 'unet"),
        ({"control": ControlConfig("resnet1000")}, UnknownName, "did you mean"),
        ({"model": dataclasses.replace(TINY, lr=float("nan"))}, ConfigError, "model.lr"),
        ({"model": dataclasses.replace(TINY, average_decay=1.5)}, ConfigError, "average_decay"),
        ({"trainer": TrainerConfig(max_epochs=3, val_every_epochs=2)}, ConfigError, "does not divide"),
        ({"trainer": TrainerConfig(max_epochs=0)}, ConfigError, "trainer.max_epochs"),
        pytest.param(
            {"trainer": TrainerConfig(accelerator="gpu")},
            ConfigError,
            "no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path, change, error, message):
    recipe = _recipe(write_pairs(tmp_path / "data"), tmp_path / "run", **change)
    with pytest.raises(error, match=message):
        train(recipe)
    assert not recipe.run.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 5}, ConfigError, "num_classes is 5.*has 2 classes"),
        ({"layout": "mds"}, UnknownName, "did you mean 'msd'"),
        ({"normalisation": NormalisationConfig("range", low=3, high=1)}, ConfigError, "low < high"),
        ({"foreground": 1.5}, ConfigError, "data.foreground"),
        ({"batch_size": 0}, ConfigError, "data.batch_size"),
        ({"augment": [TransformConfig("HorizontalFlop")]}, UnknownName, "HorizontalFlip"),
    ],
)
def test_data_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path, change, error, message):
    recipe = _recipe(write_pairs(tmp_path / "data"), tmp_path / "run")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **change))
    with pytest.raises(error, match=message):
        train(recipe)
    assert not recipe.run.exists()


def test_an_empty_split_is_refused_and_named(tmp_path):
    root = write_pairs(tmp_path / "data", split_folders=True)
    for path in (root / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(StatefieldError, match="val"):
        train(_recipe(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_classes_is_refused_with_its_file(tmp_path):
    root = write_pairs(tmp_path / "data", num_classes=3, classes_file=True)
    (root / "classes.txt").write_text("background\nsmall\n")
    with pytest.raises(LabelError, match=r"case_00\d\.png"):
        train(_recipe(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _cut_in_half(image: Path, mask: Path) -> None:
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])


def _mask_of_another_shape(image: Path, mask: Path) -> None:
    write_volume(mask, np.zeros((20, 24, 7)), nib.load(mask).affine, np.uint8)


def _with_nan(image: Path, mask: Path) -> None:
    values = np.asarray(nib.load(image).dataobj, dtype=np.float32)
    values[3, 2, 1] = np.nan
    write_volume(image, values, nib.load(image).affine, np.float32)


def _foreign_label(image: Path, mask: Path) -> None:
    write_volume(mask, np.full((20, 24, 8), 7), nib.load(mask).affine, np.uint8)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_in_half, "cut off or damaged"),
        (_mask_of_another_shape, "shapes .* differ"),
        (_with_nan, "NaN"),
        (_foreign_label, "label values 7"),
    ],
)
def test_a_bad_file_in_any_split_is_named_before_training_begins(tmp_path, split, damage, message):
    data = write_nnunet(tmp_path / "data", num_cases=6, num_test=0, channels=("T1",))
    recipe = _recipe(data, tmp_path / "run")
    record = Dataset.of(recipe).records(split)[0]
    damage(record.images[0], record.mask)
    with pytest.raises(StatefieldError, match=message) as caught:
        fit(recipe)
    assert f"{record.case}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetLayoutError, match="no known dataset layout"):
        train(_recipe(tmp_path / "data", tmp_path / "run"))


def test_overwriting_with_a_recipe_that_fails_leaves_the_old_run_whole(tmp_path):
    root = write_pairs(tmp_path / "data", num_cases=6)
    recipe = _recipe(root, tmp_path / "run")
    fit(recipe)
    before = {path: path.read_bytes() for path in recipe.run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"--resume.*--overwrite"):
        fit(recipe)
    (root / "masks" / "case_001.png").write_bytes(b"not a picture")
    with pytest.raises(StatefieldError, match=r"case_001\.png"):
        fit(recipe, overwrite=True)
    assert {path: path.read_bytes() for path in recipe.run.rglob("*") if path.is_file()} == before


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_files(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                next(pl_module.net.parameters()).data.fill_(float("nan"))

    recipe = _recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run")
    with pytest.raises(TrainingDiverged, match=r"nan at step 1 .*case_00\d\.png.*--model\.lr"):
        fit(recipe, callbacks=[Poison()])
    assert not RunFolder(recipe.run).weights.exists()


def test_weights_of_another_net_are_refused(trained, tmp_path):
    model = dataclasses.replace(TINY, decoder="fpn", decoder_args={}, weights=RunFolder(trained).weights)
    recipe = _recipe(read_recipe(trained / "config.yaml").data.root, tmp_path / "run", model=model)
    with pytest.raises(CheckpointError, match="does not fit the net"):
        fit(recipe)
    assert not recipe.run.exists()


def test_a_run_whose_weights_are_gone_cannot_be_loaded_and_says_what_to_do(trained, tmp_path):
    for name in ("config.yaml", "dataset.json"):
        (tmp_path / name).write_text((trained / name).read_text())
    with pytest.raises(CheckpointError, match="--resume"):
        load_run(tmp_path)


def test_a_case_without_labels_is_refused_for_training(tmp_path):
    root = write_pairs(tmp_path / "data", num_cases=6)
    image, _ = blobs((40, 48), seed=99)
    write_picture(root / "images" / "case_099.png", image[..., 0])
    with pytest.raises(StatefieldError, match="case_099"):
        train(_recipe(root, tmp_path / "run"))
