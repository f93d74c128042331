"""`statefield change train` and `test`: options, what is printed, and errors as one paragraph with status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.change import write_levir

from statefield.cli.main import main


def _options(data: Path, run: Path) -> list[str]:
    return [
        *("--data.root", str(data), "--run", str(run), "--data.patch_size", "[32, 32]", "--data.batch_size", "2"),
        *("--model.encoder", "test_convnext", "--model.net_args.width", "8"),
        *("--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--trainer.threads", "1"),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_levir(tmp_path_factory.mktemp("data") / "LEVIR-CD")


@pytest.mark.parametrize("verb", ["train", "test", "evaluate"])
def test_help_shows_examples_without_importing_torch(verb):
    code = (
        f"import sys\nfrom statefield.cli.main import main\ntry:\n    main(['change', '{verb}', '--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\nassert 'torch' not in sys.modules"
    )
    environment = os.environ | {"COLUMNS": "120"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert f"statefield change {verb} " in shown.stdout.split("examples:")[1]


def test_train_and_test_print_the_comparison_and_where_everything_is(data, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["change", "train", *_options(data, run), "--control.net", "fc_siam_diff"]
    assert main([*words, "--inference.threshold", "val"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert "F1/change (pooled)" in next(line for line in lines if "parameters" in line)
    rows = [line for line in lines if "(model)" in line or "(control)" in line]
    assert [row.split("(")[0].strip() for row in rows] == ["mamba_bcd test_convnext", "fc_siam_diff"]
    for path in (run / "report.html", run / "metrics.json", run / "weights.safetensors", run / "config.yaml"):
        assert any(line.endswith(str(path)) for line in lines)
        assert path.exists()
    assert "threshold" in shown.err and "epoch 1/1" in shown.err

    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["change", "train", "--config", str(run / "config.yaml"), "--resume"]) == 0
    assert "already trained" in capsys.readouterr().err

    output = tmp_path / "val"
    assert main(["change", "test", "--run", str(run), "--split", "val", "--output", str(output)]) == 0
    assert (output / "metrics.json").exists() and str(output / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.ncoder", "x"], "Did you mean model.encoder"),
        (["--model.net", "mamba_cd"], "mamba_bcd"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        ([], "no folder given"),
    ],
)
def test_an_input_that_cannot_work_is_a_paragraph_and_status_2(words, said, tmp_path, capsys):
    assert main(["change", "train", "--run", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("statefield: ") and "Traceback" not in error
    assert said in error.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_testing_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["change", "test", "--run", str(tmp_path)]) == 2
    assert "not a run folder" in " ".join(capsys.readouterr().err.split())
