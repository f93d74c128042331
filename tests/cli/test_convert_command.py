"""`statefield convert`: official files in, safetensors out, and nothing written when a file will not do."""

from __future__ import annotations

import hashlib
import os
import re

import pytest
import torch
from safetensors import safe_open

from statefield import __version__, create_model, load_checkpoint
from statefield.cli.main import main

NANO = "spatial_mamba_nano"


def nano(**kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model(NANO, **kwargs)


@pytest.fixture
def official(tmp_path):
    path = tmp_path / "official.pth"
    torch.save({"model": {f"module.{k}": v for k, v in nano(num_classes=4, in_chans=2).state_dict().items()}}, path)
    return path


def only_file(folder, name: str) -> bool:
    return [path.name for path in folder.iterdir() if path.is_file()] == [name]


def test_a_converted_file_says_what_it_is_and_loads_strictly(official, tmp_path, capsys):
    target = tmp_path / "new" / "nano.safetensors"
    assert main(["convert", str(official), str(target), "--model", NANO]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +310 loaded$", said, re.MULTILINE)
    assert re.search(r"^ +0 missing in the file$", said, re.MULTILINE)
    assert f"wrote {target}" in said
    with safe_open(target, framework="pt") as written:
        notes = written.metadata()
    assert notes["model"] == NANO
    assert notes["model_arguments"] == "num_classes=4, in_chans=2"
    assert notes["source"] == "official.pth"
    assert notes["source_sha256"] == hashlib.sha256(official.read_bytes()).hexdigest()
    assert notes["source_container"] == "model"
    assert notes["statefield_version"] == __version__
    copy = create_model(NANO, num_classes=4, in_chans=2)
    assert len(load_checkpoint(copy, target).loaded) == 310
    assert all(
        torch.equal(value, copy.state_dict()[name])
        for name, value in nano(num_classes=4, in_chans=2).state_dict().items()
    )


@pytest.mark.parametrize(
    ("form", "noted"),
    [
        ({"features_only": True, "feature_norms": True}, "features_only=True, feature_norms=True, in_chans=3"),
        ({"num_classes": 0}, "num_classes=0, in_chans=3"),
    ],
)
def test_the_form_of_the_model_follows_the_file(tmp_path, form, noted):
    whole = nano(**form)
    whole = whole.model if form.get("features_only") else whole
    torch.save(whole.state_dict(), tmp_path / "in.pth")
    assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--model", NANO]) == 0
    with safe_open(tmp_path / "out.safetensors", framework="pt") as written:
        assert set(written.keys()) == set(whole.state_dict())
        assert written.metadata()["model_arguments"] == noted


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def _evil(path):
    torch.save({"model": {"a": torch.zeros(1)}, "extra": _Evil()}, path)


def _truncated(path):
    torch.save({"model": nano(num_classes=4).state_dict()}, path)
    path.write_bytes(path.read_bytes()[:1000])


def _of_another_size(path):
    torch.save({"model": nano(num_classes=4, dims=16).state_dict()}, path)


def _short(path):
    torch.save({"model": dict(list(nano(num_classes=4).state_dict().items())[3:])}, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_evil, "more than weights"),
        (_truncated, "not a whole PyTorch file"),
        (_of_another_size, "of another shape"),
        (_short, "3 missing"),
        (lambda path: None, "no checkpoint file"),
    ],
    ids=["malicious", "truncated", "another size", "entries missing", "absent"],
)
def test_a_bad_file_ends_with_status_2_and_nothing_written(tmp_path, monkeypatch, capsys, spoil, said):
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "bad.pth")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["convert", "bad.pth", "out.safetensors", "--model", NANO]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("statefield: CheckpointError:")
    assert "bad.pth" in error
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_header_bomb_ends_with_status_2_and_nothing_written(tmp_path, capsys):
    bomb = tmp_path / "bomb.safetensors"
    bomb.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert main(["convert", str(bomb), str(tmp_path / "out.safetensors"), "--model", NANO]) == 2
    assert "claims 1152921504606846976 bytes" in " ".join(capsys.readouterr().err.split())
    assert only_file(tmp_path, "bomb.safetensors")


def test_an_existing_output_is_kept_unless_told_otherwise(official, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    assert main(["convert", str(official), str(target), "--model", NANO]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main(["convert", str(official), str(target), "--model", NANO, "--overwrite"]) == 0
    assert load_checkpoint(create_model(NANO, num_classes=4, in_chans=2), target).fits


def test_an_unknown_model_and_a_wrong_suffix_are_refused(official, tmp_path, capsys):
    assert main(["convert", str(official), str(tmp_path / "out.safetensors"), "--model", "spatial_mamba_nono"]) == 2
    assert "did you mean 'spatial_mamba_nano'" in capsys.readouterr().err
    assert main(["convert", str(official), str(tmp_path / "out.pth"), "--model", NANO]) == 2
    assert "must end in .safetensors" in " ".join(capsys.readouterr().err.split())
    assert only_file(tmp_path, "official.pth")
