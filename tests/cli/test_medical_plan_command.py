"""`statefield medical plan`, and `train` on a bare dataset folder: what is printed, written, kept and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes.medical import write_msd, write_pairs

from statefield.cli.main import main
from statefield.tasks.medical.recipe import read_recipe

SMOKE = ("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--trainer.threads", "1")
SHARED = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[2] / "../shared/data"))


def _shared(name: str) -> Path:
    folder = SHARED / "medical" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder} (STATEFIELD_DATA)")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return write_msd(tmp_path_factory.mktemp("data") / "Task99_Balls", num_cases=5, num_test=0, shape=(16, 20, 16))


@pytest.fixture(scope="module")
def planned(volumes, tmp_path_factory) -> Path:
    """A recipe for the volumes, for a CPU."""
    recipe = tmp_path_factory.mktemp("planned") / "balls.yaml"
    words = ("--device", "cpu", "--memory", "0.1", "--control", "--data.batch_size", "1")
    assert main(["medical", "plan", str(volumes), "-o", str(recipe), *words]) == 0
    return recipe


def test_help_shows_examples_without_importing_torch():
    code = (
        "import sys\nfrom statefield.cli.main import main\ntry:\n    main(['medical', 'plan', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\nassert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for word in ("--memory", "--device", "--control", "--layout", "--output", "statefield medical plan data/"):
        assert word in shown


def test_every_decision_is_printed_with_its_reason_and_both_files_are_written(volumes, tmp_path, capsys):
    recipe = tmp_path / "balls.yaml"
    assert main(["medical", "plan", str(volumes), "--output", str(recipe), "--device", "cpu", "--memory", "500MB"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "Planned from 3 training cases",
        "budget cpu, 0.5 GB as given",
        "dimensions 3 volumes of 16 slices that lie 3.8 x as far apart as pixels",
        "data.spacing [3.0, 0.8, 0.8] all of 3 training cases have it",
        "data.normalisation.method ct the channel is named 'CT'",
        "data.patch_size [16, 20, 16] the whole of it",
        "model.net u_mamba a U-Net whose strides and kernels can follow the spacing",
        f"written: {recipe}, {tmp_path / 'fingerprint.json'}",
        f"statefield medical train --config {recipe}",
    ):
        assert words in shown
    assert read_recipe(recipe).data.root == volumes
    assert json.loads((tmp_path / "fingerprint.json").read_text())["dataset"]["layout"] == "msd"
    assert set(yaml.safe_load(recipe.read_text())) == {"run", "data", "model", "inference", "trainer"}


def test_a_recipe_that_is_there_is_replaced_only_when_told(volumes, planned, capsys):
    before = planned.read_text()
    assert main(["medical", "plan", str(volumes), "-o", str(planned)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert planned.read_text() == before
    other = planned.with_name("other.yaml")
    assert main(["medical", "plan", str(volumes), "-o", str(other), "--memory", "1"]) == 0  # the same fingerprint
    assert main(["medical", "plan", str(volumes), "-o", str(other), "--memory", "2", "--overwrite"]) == 0


def test_settings_given_are_kept_and_named(planned):
    recipe = read_recipe(planned)
    assert recipe.data.batch_size == 1
    assert "# given\n  batch_size: 1\n" in planned.read_text()
    assert recipe.control.net == "residual_unet"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere"),
        (["DATA", "--memory", "much"], "'much' is no size of memory"),
        (["DATA", "--memory", "1KB"], "1e-06 GB of memory are too few"),
        (["DATA", "--layout", "nnunett"], "nnunet"),
        (["DATA", "--data.root", "elsewhere"], "give the dataset's folder as DATA"),
        (["DATA", "--modle.lr", "1"], "Did you mean model.lr"),
        (["DATA", "--model.net", "u_mumba"], "u_mamba"),
    ],
)
def test_what_cannot_be_planned_is_a_paragraph_and_leaves_nothing(volumes, tmp_path, capsys, words, said):
    words = [str(volumes) if word == "DATA" else word for word in words]
    assert main(["medical", "plan", *words, "-o", str(tmp_path / "recipe.yaml"), "--device", "cpu"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("statefield: ") and said in error
    assert not list(tmp_path.iterdir())


def test_bad_cases_are_all_named(tmp_path, capsys):
    root = write_msd(tmp_path / "data", num_cases=5, num_test=0)
    bad = sorted((root / "imagesTr").glob("fake*"))[:4]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    assert main(["medical", "plan", str(root), "-o", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "of 3 training cases cannot be used" in " ".join(error.split())
    named = [line.split(":")[0].strip() for line in error.splitlines() if line.startswith("  fake")]
    training = [line for line in named if any(path.name.startswith(line) for path in bad)]
    assert len(training) >= 2 and training == named == sorted(named)


def test_a_written_recipe_trains_its_net_of_volumes_and_the_control(planned, tmp_path):
    run = tmp_path / "run"
    assert main(["medical", "train", "--config", str(planned), "--run", str(run), *SMOKE]) == 0
    used = read_recipe(run / "config.yaml")
    assert used.data.patch_size == read_recipe(planned).data.patch_size
    assert (run / "report.html").exists() and (run / "control" / "weights.safetensors").exists()
    assert not (run / "plan.yaml").exists()  # with --config nothing is planned


def test_train_on_a_bare_folder_plans_keeps_the_plan_and_resumes_by_it(volumes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["medical", "train", "--data.root", str(volumes), *SMOKE]
    small = ["--data.patch_size", "[8, 16, 16]", "--model.net_args", "{features: [4, 8], strides: [1, 2]}"]
    assert main([*words, *small]) == 0
    run = Path("runs") / "Task99_Balls"
    shown = " ".join(capsys.readouterr().err.split())
    assert "data.normalisation.method ct the channel is named 'CT'" in shown
    assert "data.patch_size [8, 16, 16] given; the median case has 16 x 20 x 16" in shown
    assert "trainer.fast_dev_run true given" in shown
    used, plan = read_recipe(run / "config.yaml"), read_recipe(run / "plan.yaml")
    assert used.data == plan.data and used.model == plan.model
    assert used.data.normalisation.method == "ct" and used.data.spacing == (3.0, 0.8, 0.8)
    assert json.loads((run / "fingerprint.json").read_text())["dataset"]["num_training_cases"] == 3

    assert main([*words, *small]) == 2  # said before anything is read
    assert "--resume" in capsys.readouterr().err
    (run / "plan.yaml").unlink()  # as after a kill before the first step
    assert main([*words, "--resume"]) == 0
    shown = capsys.readouterr().err
    assert str(run / "config.yaml") in shown and "already trained" in shown
    assert main([*words, "--resume", "--model.lr", "0.5"]) == 2
    assert "model.lr" in capsys.readouterr().err


def test_plan_false_leaves_the_defaults(tmp_path):
    data = write_pairs(tmp_path / "data", num_cases=6)
    run = tmp_path / "run"
    words = ["--data.root", str(data), "--run", str(run), "--data.patch_size", "[32, 32]", "--plan", "false", *SMOKE]
    words += ["--model.encoder", "test_convnext", "--model.decoder_args.decoder_channels", "[8, 8, 8, 8, 8]"]
    assert main(["medical", "train", *words]) == 0
    assert read_recipe(run / "config.yaml").model.schedule == "cosine"
    assert not (run / "plan.yaml").exists()


@pytest.mark.parametrize(
    "words", [("--trainer.devices", "2"), ("--trainer.num_nodes", "2"), ("--folds", "2", "--fold", "1")]
)
def test_processes_that_share_a_training_need_one_plan(volumes, tmp_path, capsys, words):
    run = tmp_path / "run"
    assert main(["medical", "train", "--data.root", str(volumes), "--run", str(run), *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"statefield medical plan {volumes}" in error and "--plan false" in error
    assert not run.exists()


# real data


def test_embedded_data_are_planned_without_a_folder(tmp_path):
    pytest.importorskip("nilearn", reason="ships the data (pip install statefield[demo])")
    recipe = tmp_path / "brain.yaml"
    assert main(["medical", "plan", "--layout", "mni152", "-o", str(recipe), "--device", "cpu", "--memory", "1"]) == 0
    data = read_recipe(recipe).data
    assert (data.root, data.layout, data.num_classes, data.spacing) == (None, "mni152", 3, (1.0, 1.0, 1.0))
    assert data.normalisation.method == "zscore_nonzero"  # the template's ground is 0


@pytest.mark.shared_data
def test_real_ct_and_mr_volumes(tmp_path):
    import shutil

    source = _shared("totalsegmentator_examples")
    for kind, image, labels in (("ct", "example_ct_sm", "example_seg"), ("mr", "example_mr_sm", "example_seg_mr")):
        root = tmp_path / kind
        for index in range(3):
            for folder, name in (("images", image), ("labels", labels)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / f"{name}.nii.gz", root / folder / f"case_{index}.nii.gz")
        (root / "classes.txt").write_text("\n".join(f"organ_{k}" for k in range(118)) + "\n")
        assert main(["medical", "plan", str(root), "-o", str(root / "recipe.yaml"), "--device", "cpu"]) == 0
    ct, mr = (read_recipe(tmp_path / kind / "recipe.yaml") for kind in ("ct", "mr"))
    assert ct.data.spacing == mr.data.spacing == (3.0, 3.0, 3.0)
    assert ct.data.normalisation.method == "ct" and mr.data.normalisation.method.startswith("zscore")
    assert -1024 <= ct.data.normalisation.low < 0 < ct.data.normalisation.high < 2000
    assert ct.data.spatial_dims == mr.data.spatial_dims == 3


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "sides"), [("DRIVE", 2), ("acdc_h5", 2)])
def test_real_datasets_of_other_layouts(name, sides, tmp_path):
    root = _shared(name)
    assert main(["medical", "plan", str(root), "-o", str(tmp_path / "recipe.yaml"), "--device", "cpu"]) == 0
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert len(recipe.data.patch_size) == sides and recipe.model.encoder == "spatial_mamba_nano"
    assert recipe.data.spacing is None
    assert recipe.data.num_classes == {"DRIVE": 2, "acdc_h5": 4}[name]
