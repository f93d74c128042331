"""`statefield bench inference`: its quick run measures what it says, and its computed memory is that of the buffers."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from statefield.bench.inference import FITTING, LARGE, Case, monai_bytes
from statefield.bench.inference.cases import write_volume
from statefield.cli.main import main


@pytest.mark.slow
def test_a_quick_run_measures_both_and_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "numbers.json"
    assert main(["bench", "inference", "--quick", "--json", str(target), "--scratch", str(tmp_path)]) == 0
    found = json.loads(target.read_text())
    assert [(row["by"], row["how"]) for row in found["rows"]] == [
        ("statefield", "measured"),
        ("MONAI", "computed"),
        ("statefield", "measured"),
        ("MONAI", "measured"),
    ]
    assert found["rows"][2]["agreement"] > 0.9999
    assert found["rows"][0]["volume"] == "64 x 64 x 64, 5 classes"
    assert found["goals"] == []
    for row in found["rows"]:
        assert row["peak_gb"] > 0
        assert (row["seconds"] is None) == (row["how"] == "computed")
    assert "computed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]


def test_computed_bytes_are_those_of_logits_weights_image_and_labels() -> None:
    assert monai_bytes(Case(side=10, num_classes=3, roi=(4, 4, 4), memory_gb=None)) == 1000 * (12 + 4 + 4 + 8)
    assert monai_bytes(LARGE) > 50e9
    assert monai_bytes(FITTING) < 1e9


def test_the_volume_is_a_nifti_file_with_structure(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.nii", 9)
    image = nib.load(tmp_path / "volume.nii")
    values = np.asarray(image.dataobj)
    assert values.shape == (9, 9, 9)
    assert values.dtype == np.int16
    assert values.std() > 50
    assert np.array_equal(image.affine, np.eye(4))
