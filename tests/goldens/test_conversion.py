"""`statefield convert` takes every family's files: the names of the authors' models, in the containers they come in.

The names and shapes are those that goldens recorded of the authors' models, the values the goldens' recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import case
import pytest
import torch
from safetensors.torch import safe_open
from torch import Tensor

from statefield import create_model, load_checkpoint
from statefield.backbones import BACKBONES
from statefield.cli.main import main

HERE = Path(__file__).parent
Entries = Mapping[str, Tensor]


def prefixed(prefix: str, entries: Entries) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in entries.items()}


def plain(entries: Entries) -> dict:
    """DeiT, Swin and their heirs: the weights and a copy that is averaged."""
    zeros = {key: torch.zeros_like(value) for key, value in entries.items()}
    return {"model": dict(entries), "model_ema": zeros, "epoch": 299, "optimizer": {"state": {}}}


def averaged(entries: Entries) -> dict:
    """A timm trainer's average, wrapped for several processes and once more by the average."""
    return {"state_dict": prefixed("module.module.", entries), "state_dict_ema": {}, "arch": "tiny"}


def toolbox(entries: Entries) -> dict:
    """OpenMMLab's classifiers: the backbone under its name, the head beside it, settings."""
    head = {key: value for key, value in entries.items() if key.startswith("head.")}
    inside = {key.removeprefix("backbone."): value for key, value in entries.items() if key not in head}
    return {"state_dict": prefixed("backbone.", inside) | head, "meta": {"epoch": 300}}


def bare(entries: Entries) -> dict:
    return {"state_dict": dict(entries)}


# golden with the authors' names -> our model, how their files hold them, and what differs from the published model
FILES: dict[str, tuple[str, Callable[[Entries], dict], tuple[str, ...]]] = {
    "spatial_mamba_tiny_shallow": ("spatial_mamba_tiny", plain, ("depths=(1, 1, 1, 1)",)),
    "vmamba_tiny_s1l8": ("vmamba_tiny_s1l8", plain, ()),
    "vmamba_vanilla_tiny": ("vmamba_vanilla_tiny", plain, ()),
    "vmamba_tiny_m2": ("vmamba_tiny_m2", plain, ()),
    "msvmamba_nano": ("msvmamba_nano", plain, ()),
    "efficientvmamba_tiny": ("efficientvmamba_tiny", averaged, ()),
    "vssd_micro": ("vssd_micro", plain, ()),
    "res_vmamba_tiny": ("res_vmamba_small", plain, ("depths=(2, 2, 9, 2)",)),
    "vim_tiny": ("vim_tiny", plain, ()),
    "plainmamba_l1": ("plainmamba_l1", toolbox, ()),
    "vil2_tiny_depth2": ("vil2_tiny", bare, ("num_layers=4",)),
    "vil_v1_tiny": ("vil_tiny", bare, ()),
    "vision_rwkv_tiny": ("vision_rwkv_tiny", toolbox, ()),
    "rwkv_sam_tiny": ("rwkv_sam_tiny", toolbox, ("final_layer=False",)),
    "patch_scaling_tiny_p16": ("adventurer_tiny_patch16", plain, ()),
    "shufflemamba_tiny": ("shufflemamba_tiny", plain, ()),
    "shufflemamba_reg_tiny": ("shufflemamba_reg_tiny", plain, ()),
    "hrvmamba_nano": ("hrvmamba_nano", plain, ()),
    "efficientvim_m1": ("efficientvim_m1_pyramid", plain, ()),
    "mobilemamba_t2": ("mobilemamba_t2", plain, ()),
}


def convert(source: Path, target: Path, name: str, differences: tuple[str, ...], *more: str) -> int:
    options = [option for difference in differences for option in ("--set", difference)]
    return main(["convert", str(source), str(target), "--model", name, *options, *more])


@pytest.mark.parametrize("golden", FILES)
def test_an_official_file_is_converted_strictly_and_counted(golden, tmp_path, capsys):
    name, container, differences = FILES[golden]
    recorded = case.read_case(HERE / f"{golden}.npz")
    # what the recipe does not fill (frozen filters) is in the authors' files all the same
    official = {key: recorded.weights.get(key, torch.ones(shape)) for key, shape in recorded.shapes.items()}
    source, target = tmp_path / "official.pth", tmp_path / "ours.safetensors"
    torch.save(container(official), source)
    assert convert(source, target, name, differences) == 0
    said = capsys.readouterr().out
    assert f"{len(official):5d} loaded\n" in said
    assert "    0 missing in the file\n" in said
    with safe_open(target, framework="pt") as written:
        notes = written.metadata()
        assert len(list(written.keys())) == len(official)
        # renamed and reshaped, no more: the same values, however they are called
        ours = sorted(float(written.get_tensor(key).double().sum()) for key in written.keys())  # noqa: SIM118
    assert ours == sorted(float(value.double().sum()) for value in official.values())
    assert notes["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert notes["source_container"] in ("model", "state_dict")


def test_every_family_has_an_official_file_here():
    without_files = {"ViM2", "MambaOut"}  # of the one nothing was released, the other's are timm's own
    tried = {BACKBONES[name].family for name, _, _ in FILES.values()}
    assert {info.family for info in BACKBONES.values()} - without_files == tried


@pytest.mark.parametrize(
    ("wrap", "ignored"),
    [
        (lambda e: dict(e), 0),
        (lambda e: {"model": prefixed("module.", e)}, 0),
        (lambda e: {"model": prefixed("_orig_mod.module.", e)}, 0),
        (lambda e: {"model_ema": prefixed("module.", e)}, 0),
        (lambda e: {"state_dict_ema": dict(e)}, 0),
        (lambda e: {"ema_state_dict": prefixed("module.backbone.", e) | {"steps": torch.tensor(7)}}, 1),
        (lambda e: {"model": dict(e) | {"total_ops": torch.zeros(1), "stages.0.total_params": torch.zeros(1)}}, 2),
        (lambda e: {"state_dict": prefixed("module.backbone.", e) | {"module.decode_head.c.weight": torch.ones(2)}}, 1),
        (lambda e: {"state_dict": prefixed("backbone.", e) | {"head.final_layer.weight": torch.ones(2, 2, 1, 1)}}, 1),
        (lambda e: {"model": prefixed("backbone.net.", e) | {"backbone.simfp_2.0.bias": torch.ones(2)}}, 1),
    ],
    ids=[
        "bare",
        "several processes",
        "compiled",
        "average",
        "timm's average",
        "OpenMMLab's average",
        "profiled",
        "segmenter",
        "pose estimator",
        "detectron2",
    ],
)
def test_containers_and_wrappers_of_the_field_are_taken_off_and_the_rest_is_counted(wrap, ignored, tmp_path):
    options = {"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 0}
    torch.manual_seed(0)
    whole = create_model("vmamba_tiny_s1l8", **options)
    torch.save(wrap(whole.state_dict()), tmp_path / "wrapped.pth")
    target = create_model("vmamba_tiny_s1l8", **options)
    report = load_checkpoint(target, tmp_path / "wrapped.pth")
    assert len(report.loaded) == len(whole.state_dict())
    assert sum(len(names) for names in report.ignored.values()) == ignored
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in whole.state_dict().items())


def test_positions_for_another_image_size_shape_the_model(tmp_path, capsys):
    source = tmp_path / "large.pth"
    torch.manual_seed(0)
    torch.save({"model": create_model("vim_tiny_plus", img_size=64, num_layers=1, num_classes=3).state_dict()}, source)
    assert convert(source, tmp_path / "out.safetensors", "vim_tiny_plus", ("num_layers=1",)) == 0
    with safe_open(tmp_path / "out.safetensors", framework="pt") as written:
        assert written.metadata()["model_arguments"] == "num_layers=1, num_classes=3, in_chans=3, img_size=64"
    capsys.readouterr()


def test_an_entry_that_is_there_twice_is_refused(tmp_path):
    weights = create_model("vim_tiny", num_layers=1, num_classes=3).state_dict()
    twice = weights | {"norm_f.weight": weights["norm.weight"]}
    torch.save(twice, tmp_path / "twice.pth")
    with pytest.raises(RuntimeError, match=r"twice.pth holds 2\d entries that become 2\d under our names"):
        load_checkpoint(create_model("vim_tiny", num_layers=1, num_classes=3), tmp_path / "twice.pth")


def test_an_argument_that_the_model_does_not_take_is_refused(tmp_path, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save({"model": {"a": torch.zeros(1)}}, source)
    assert convert(source, target, "vim_tiny", ("num_layer=1",)) == 2
    assert "vim_tiny does not take these arguments" in " ".join(capsys.readouterr().err.split())
    for given in ("depths", "source=3"):
        with pytest.raises(SystemExit):
            convert(source, target, "vim_tiny", (given,))
        assert f"{given!r} is not NAME=VALUE" in capsys.readouterr().err
    assert not target.exists()


def test_what_a_net_says_of_an_argument_itself_is_passed_on_whole(tmp_path, capsys):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save({"model": {"a": torch.zeros(1)}}, source)
    assert convert(source, target, "vim_tiny", ("num_layers=1", "shuffle_rate=2")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "shuffle_rate 2: a probability, from 0 to 1, is needed." in said
    assert "does not take these arguments" not in said
    assert not target.exists()
