"""`statefield medical train` and `test`: options, what is printed, and errors as one paragraph with status 2."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.medical import write_pairs
from rich.console import Console

from statefield.cli.main import main
from statefield.cli.training_progress import TrainingBar
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.medical.recipe import parse, read_recipe, recipe_from, recipe_parser
from statefield.tasks.medical.run import fit


def _options(data: Path, run: Path) -> list[str]:
    return [
        *("--data.root", str(data), "--run", str(run), "--data.patch_size", "[32, 32]", "--data.batch_size", "2"),
        *("--model.encoder", "test_convnext", "--model.decoder_args.decoder_channels", "[8, 8, 8, 8, 8]"),
        *("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--trainer.threads", "1"),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs", num_cases=6)


def test_help_shows_settings_defaults_and_examples_without_importing_torch():
    code = (
        "import sys\nfrom statefield.cli.main import main\ntry:\n    main(['medical', 'train', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\nassert 'torch' not in sys.modules"
    )
    environment = os.environ | {"COLUMNS": "120"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for word in ("--model.lr", "--data.patch_size", "--resume", "--overwrite", "--config", "default: 0.001"):
        assert word in shown.stdout
    assert "statefield medical train --config recipes/medical/demo.yaml\n" in shown.stdout


def test_train_prints_the_comparison_and_where_everything_is(data, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["medical", "train", *_options(data, run), "--control.encoder", "test_efficientnet"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    header = next(line for line in lines if "parameters" in line)
    assert "mean Dice" in header and "training" in header
    rows = [line for line in lines if "(model)" in line or "(control)" in line]
    assert [row.split()[0] for row in rows] == ["test_convnext", "test_efficientnet"]
    for path in (run / "report.html", run / "metrics.json", run / "weights.safetensors", run / "config.yaml"):
        assert any(line.endswith(str(path)) for line in lines)
        assert path.exists()
    assert "epoch 1/1" in shown.err and "Dice/" in shown.err

    assert main(["medical", "test", "--run", str(run), "--split", "val", "--output", str(tmp_path / "val")]) == 0
    assert (tmp_path / "val" / "metrics.json").exists()
    assert str(tmp_path / "val" / "report.html") in capsys.readouterr().out


def test_on_a_terminal_training_is_one_bar_with_loss_and_scores(data, tmp_path):
    shown = io.StringIO()
    bar = TrainingBar(Console(file=shown, force_terminal=True, width=160))
    parser = recipe_parser()
    fit(recipe_from(parser, parse(parser, _options(data, tmp_path / "run"))), callbacks=[bar])
    assert "epoch 1/1" in shown.getvalue()
    assert "2/2" in shown.getvalue()
    assert "loss " in shown.getvalue()


def test_options_override_the_recipe_and_the_run_keeps_what_was_used(data, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\nmodel:\n  lr: 1.0e-2\n  warmup_steps: 7\n")
    run = tmp_path / "run"
    words = ["medical", "train", "--config", str(recipe), *_options(data, run), "--model.lr", "5e-4"]
    assert main(words) == 0
    used = read_recipe(run / "config.yaml")
    assert (used.seed, used.model.lr, used.model.warmup_steps) == (3, 5e-4, 7)


def test_resume_and_overwrite_work_as_bare_flags_and_with_a_value(data, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["medical", "train", *_options(data, run)]
    assert main(words) == 0
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["medical", "train", "--config", str(run / "config.yaml"), "--resume"]) == 0
    assert "already trained" in capsys.readouterr().err
    assert main([*words, "--overwrite", "true", "--resume", "true"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_the_rate_of_the_layer_wise_shuffle_reaches_the_encoder_and_not_the_control(data, tmp_path, monkeypatch):
    from statefield.backbones._isotropic import Isotropic

    built = []
    init = Isotropic.__init__
    monkeypatch.setattr(Isotropic, "__init__", lambda self, **parts: (built.append(self), init(self, **parts))[1])
    words = _options(data, tmp_path / "run")
    words += ["--model.encoder", "vim_tiny_pyramid", "--model.encoder_args", "{dim: 8, num_layers: 4, d_state: 2}"]
    words += ["--model.shuffle_rate", "0.6", "--control.encoder", "test_convnext"]
    assert main(["medical", "train", *words]) == 0
    assert built[-1].shuffle_rates == pytest.approx([0, 0.2, 0.4, 0.6])
    assert read_recipe(tmp_path / "run" / "config.yaml").model.shuffle_rate == 0.6


def test_a_run_can_be_resumed_after_its_folder_was_moved(data, tmp_path):
    assert main(["medical", "train", *_options(data, tmp_path / "old")]) == 0
    (tmp_path / "old").rename(tmp_path / "new")
    RunFolder(tmp_path / "new").metrics.unlink()
    words = ["medical", "train", "--config", str(tmp_path / "new" / "config.yaml"), "--run", str(tmp_path / "new")]
    assert main([*words, "--resume"]) == 0
    assert RunFolder(tmp_path / "new").metrics.exists()
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.lrr", "1"], "Did you mean model.lr"),
        (["--model.lr", "fast"], "float"),
        (["--trainer.precision", "8"], "32-true"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.encoder", "spatial_mamba_nan", "--data.layout", "mni152"], "spatial_mamba_nano"),
        (["--model.shuffle_rate", "0.1", "--data.layout", "mni152"], "'spatial_mamba_tiny' does not read its image as"),
        (["--data.root", "nowhere"], "nowhere"),
        ([], "no folder given"),
    ],
)
def test_an_input_that_cannot_work_is_a_paragraph_and_status_2(words, said, tmp_path, capsys):
    assert main(["medical", "train", "--run", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("statefield: ")
    assert said in error.replace("\n", " ")
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_in_a_recipe_is_refused_with_the_nearest(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("data:\n  batchsize: 3\n")
    assert main(["medical", "train", "--config", str(tmp_path / "recipe.yaml")]) == 2
    assert "data.batch_size" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["data: [1, 2", "- a\n- b\n", "data: 7\n"])
def test_a_recipe_that_is_no_recipe_is_refused(tmp_path, capsys, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["medical", "train", "--config", str(tmp_path / "recipe.yaml")]) == 2
    assert "statefield: ConfigError" in capsys.readouterr().err


def test_testing_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["medical", "test", "--run", str(tmp_path)]) == 2
    assert "not a run folder" in " ".join(capsys.readouterr().err.split())


def test_an_interrupt_from_the_keyboard_ends_with_status_130_and_can_be_resumed(data, tmp_path, monkeypatch, capsys):
    from statefield.tasks.medical.segmentation import SegmentationTask

    run = tmp_path / "run"
    words = ["medical", "train", *_options(data, run)]
    with monkeypatch.context() as patch:

        def interrupt(self):
            raise KeyboardInterrupt

        patch.setattr(SegmentationTask, "on_validation_epoch_start", interrupt)
        assert main(words) == 130
    assert not RunFolder(run).weights.exists()
    assert main([*words, "--resume"]) == 0
