"""check.py itself: it passes what agrees, and misses everything else by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import case
import check
import numpy as np
import pytest
import recipe
import torch
from case import BrokenGolden, read_case

HERE = Path(__file__).parent
BLOCK = HERE / "spatial_mamba_block.npz"
FUSION = HERE / "spatial_mamba_fusion_3x2.npz"
SHALLOW = HERE / "spatial_mamba_tiny_shallow.npz"


def altered(source: Path, target: Path, change: Callable[[dict, dict[str, np.ndarray]], None]) -> Path:
    """A copy of a golden whose meta and arrays went through `change`."""
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays.pop("meta")))
    change(meta, arrays)
    np.savez(target, meta=np.array(json.dumps(meta)), **arrays)
    return target


def verdict(path: Path, capsys, *options: str) -> tuple[int, str]:
    status = check.main([str(path), *options])
    return status, capsys.readouterr().out


def test_the_script_runs_from_any_folder_and_counts_files(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "check.py", FUSION, "absent.npz", "--kernels", "reference"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[-1] == "1 of 2 files pass"
    assert sum(line.startswith("  ok ") for line in lines) == 6
    assert any("MISS  absent.npz: BrokenGolden" in line for line in lines)


def test_a_file_of_another_size_made_from_our_own_numbers_passes(tmp_path, capsys):
    """Batch 3, 5 channels, 2 x 9 pixels, a scaled and shifted input, every second value stored, two gradients."""

    def resize(meta, arrays):
        meta["kwargs"] = {"dim": 5}
        meta["keys"] = [
            [key, [5, *shape[1:]] if len(shape) == 4 else shape, dtype] for key, shape, dtype in meta["keys"]
        ]
        meta["inputs"]["x"] = {"shape": [3, 5, 2, 9], "key": "other", "scale": 0.5, "offset": 2.0}
        meta["cotangent"] = {"key": "cotangent", "shape": [3, 5, 2, 9]}
        weights = {key: torch.from_numpy(value) for key, value in recipe.state_dict(meta["keys"]).items()}
        x = torch.from_numpy(0.5 * recipe.tensor("other", (3, 5, 2, 9)) + 2.0).requires_grad_()
        alpha = weights["alpha"].requires_grad_()
        total = torch.zeros_like(x)
        for key, scale, dilation in zip(("kernel_3", "kernel_3_1", "kernel_3_2"), alpha, (1, 3, 5), strict=True):
            padded = torch.nn.functional.pad(x, (dilation,) * 4, mode="replicate")
            total = total + scale * torch.nn.functional.conv2d(padded, weights[key], dilation=dilation, groups=5)
        (total * torch.from_numpy(recipe.tensor("cotangent", (3, 5, 2, 9)))).sum().backward()
        full = total.detach().numpy()
        arrays.clear()
        arrays |= {"out.0": full.reshape(-1)[::2], "grad.x": x.grad.numpy(), "grad.alpha": alpha.grad.numpy()}
        meta["outputs"] = [
            {"name": "module output", "shape": [3, 5, 2, 9], "std": float(full.std()), "stored": {"flat_stride": 2}}
        ]
        meta["grad_stats"] = {}

    path = altered(FUSION, tmp_path / "resized.npz", resize)
    status, said = verdict(path, capsys)
    assert status == 0, said
    assert said.count("  ok ") == 3
    assert said.endswith("1 of 1 files pass\n")


def _shift_an_output(meta, arrays):
    arrays["out.0"][0, 0, 0, 0] += 3e-4 * meta["outputs"][0]["std"]


def _put_a_nan(meta, arrays):
    arrays["out.0"][0, 0, 0, 0] = np.nan


def _shift_a_gradient(meta, arrays):
    arrays["grad.alpha"][2] *= 1.01


def _another_system(meta, arrays):
    meta["system"] = "spatial_mamma"


def _another_class(meta, arrays):
    meta["cls"] = "models/spatialmamba.py:StateFission"


def _an_unknown_argument(meta, arrays):
    meta["kwargs"]["gain"] = 2


def _a_key_less(meta, arrays):
    meta["keys"] = meta["keys"][1:]


def _a_key_more(meta, arrays):
    meta["keys"].append(["bias", [24], "float32"])


def _a_key_of_another_shape(meta, arrays):
    meta["keys"][0][1] = [24, 1, 5, 5]


def _an_unknown_gradient(meta, arrays):
    arrays["grad.beta"] = np.zeros(3, np.float32)


def _an_unknown_transform(meta, arrays):
    meta["inputs"]["x"]["transform"] = "cube"


def _an_output_not_stored(meta, arrays):
    del arrays["out.0"]


def _no_outputs(meta, arrays):
    meta["outputs"] = []


def _more_outputs_than_ours(meta, arrays):
    meta["outputs"].append({**meta["outputs"][0], "name": "something else"})
    arrays["out.1"] = arrays["out.0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_shift_an_output, "MISS  3.0e-04 of std, 1.0e-04 allowed  out.0"),
        (_put_a_nan, "MISS  nan of std"),
        (_shift_a_gradient, "allowed  grad.alpha"),
        (
            _another_system,
            "unknown golden system 'spatial_mamma StateFusion': did you mean 'spatial_mamba StateFusion'",
        ),
        (_another_class, "'spatial_mamba StateFission'"),
        (_an_unknown_argument, "official argument gain"),
        (_a_key_less, "1 missing (kernel_d1)"),
        (_a_key_more, "1 unexpected (bias)"),
        (_a_key_of_another_shape, "1 of another shape (kernel_d1: (24, 1, 5, 5)"),
        (_an_unknown_gradient, "grad.beta is neither an input nor a parameter"),
        (_an_unknown_transform, "'cube'"),
        (_an_output_not_stored, "out.0"),
        (_no_outputs, "no outputs"),
        (_more_outputs_than_ours, "out.1 (something else) is not among our outputs"),
    ],
)
def test_a_disagreement_or_a_broken_file_is_a_named_miss(tmp_path, capsys, change, said):
    status, printed = verdict(altered(FUSION, tmp_path / "altered.npz", change), capsys, "--kernels", "reference")
    assert status == 1
    assert any(said in line and "MISS" in line for line in printed.splitlines()), printed
    assert printed.endswith("0 of 1 files pass\n")


@pytest.mark.parametrize("content", [b"", b"no zip", "half"])
def test_a_damaged_file_is_a_named_miss(tmp_path, capsys, content):
    path = tmp_path / "damaged.npz"
    path.write_bytes(FUSION.read_bytes()[:2000] if content == "half" else content)
    status, said = verdict(path, capsys)
    assert status == 1
    assert "MISS  damaged.npz: BrokenGolden: cannot be read as a golden" in said


def test_a_pickle_inside_a_golden_is_not_opened(tmp_path, capsys):
    path = tmp_path / "objects.npz"
    np.savez(path, meta=np.array({"system": "spatial_mamba"}, dtype=object))
    assert "allow_pickle=False" in verdict(path, capsys)[1]


def test_a_suggested_tolerance_widens_the_rule_and_never_narrows_it():
    values = np.zeros(4)
    loose = case.Expected("out.0", "", values, (4,), 1, std=2.0, suggested_atol=1e-2)
    tight = case.Expected("out.0", "", values, (4,), 1, std=2.0, suggested_atol=1e-9)
    assert (loose.tolerance, tight.tolerance) == (1e-2, 2e-4)
    assert tight.error(torch.tensor([0.0, -3.0, 1.0, 0.0])) == 3.0
    with pytest.raises(BrokenGolden, match="shape"):
        tight.error(torch.zeros(2, 2))


def test_the_noise_that_a_golden_declares_of_its_own_gradients_is_allowed_on_top_of_ours(tmp_path):
    """A float32 golden of an ill-conditioned gradient lies further from the exact one than 1e-4 of its std."""

    def declare(meta, arrays):
        meta["checks"] = {"grad_fp32_vs_fp64_max_abs": {"alpha": 0.25}}

    gradients = read_case(altered(FUSION, tmp_path / "noisy.npz", declare)).gradients
    for name, expected in gradients.items():
        noise = 0.25 if name == "alpha" else 0.0
        assert expected.tolerance == pytest.approx(1e-4 * expected.std + noise)


def test_any_subset_of_outputs_in_any_order_is_found_by_name(tmp_path, capsys):
    def only_two_maps(meta, arrays):
        meta["outputs"] = [meta["outputs"][4], meta["outputs"][0]]
        kept = {"out.0": arrays["out.4"], "out.1": arrays["out.0"]}
        arrays.clear()
        arrays |= kept

    status, said = verdict(altered(SHALLOW, tmp_path / "subset.npz", only_two_maps), capsys)
    assert status == 0, said


def test_constants_keep_our_value_and_aliases_share_theirs(tmp_path):
    def declare(meta, arrays):
        meta["constants"] = ["alpha"]
        meta["aliases"] = {"kernel_3_2": "kernel_3"}

    read = read_case(altered(FUSION, tmp_path / "constants.npz", declare))
    assert set(read.weights) == {"kernel_3", "kernel_3_1", "kernel_3_2"}
    assert torch.equal(read.weights["kernel_3_2"], read.weights["kernel_3"])
    assert set(read.shapes) == {"kernel_3", "kernel_3_1", "kernel_3_2", "alpha"}


def test_a_count_of_batches_is_loaded_although_the_recipe_fills_floats_only():
    weights = read_case(SHALLOW).weights
    counts = [key for key in weights if key.endswith("num_batches_tracked")]
    assert len(counts) == 8
    assert all(weights[key].dtype == torch.int64 for key in counts)
