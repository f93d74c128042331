"""Checkpoint files: whole or refused, openable by plain torch, never executing what they hold."""

from __future__ import annotations

import collections
import os
import zipfile

import pytest
import torch

from statefield.errors import CheckpointError
from statefield.tasks.common import checkpointing
from statefield.tasks.common.checkpointing import (
    keep_previous,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    save_weights,
)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint({"weight": torch.arange(2000.0), "step": 7}, path)
    return path


def test_a_checkpoint_comes_back_as_it_was_saved(checkpoint):
    content = read_checkpoint(checkpoint)
    assert torch.equal(content["weight"], torch.arange(2000.0))
    assert content["step"] == 7


def test_plain_torch_and_plain_zip_open_it(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["step"] == 7
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_anywhere_is_refused(checkpoint, place):
    content = bytearray(checkpoint.read_bytes())
    content[int(len(content) * place)] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged.*SHA-256"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_file_that_is_cut_off_is_refused(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"damaged: its (end is missing|content)"):
        read_checkpoint(checkpoint)


def test_a_damaged_last_checkpoint_points_to_the_one_before_it(checkpoint):
    keep_previous(checkpoint, checkpoint.with_name("previous.ckpt"))
    checkpoint.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"mv .*previous\.ckpt .*last\.ckpt"):
        read_checkpoint(checkpoint)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "nowhere.ckpt")


def test_a_checkpoint_that_holds_more_than_tensors_and_plain_values_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    save_checkpoint({"call": os.system, "more": collections.Counter}, path)
    with pytest.raises(CheckpointError, match="cannot be opened safely"):
        read_checkpoint(path)


def test_when_writing_fails_the_old_checkpoint_stays_and_nothing_else_is_left(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def fail(path, size):
        raise OSError("disk full")

    monkeypatch.setattr(checkpointing, "_sha256", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"weight": torch.zeros(3)}, checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_the_previous_checkpoint_is_kept_while_the_last_one_stays_in_place(checkpoint):
    previous = checkpoint.with_name("previous.ckpt")
    keep_previous(checkpoint, previous)
    save_checkpoint({"step": 8}, checkpoint)
    assert read_checkpoint(previous)["step"] == 7
    assert read_checkpoint(checkpoint)["step"] == 8
    keep_previous(checkpoint, previous)
    assert read_checkpoint(previous)["step"] == 8


def test_where_hard_links_do_not_exist_the_previous_checkpoint_is_a_copy(checkpoint, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    keep_previous(checkpoint, checkpoint.with_name("previous.ckpt"))
    assert read_checkpoint(checkpoint.with_name("previous.ckpt"))["step"] == 7


def test_weights_fill_a_net_exactly(tmp_path):
    torch.manual_seed(0)
    one, two = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    save_weights(one.state_dict(), tmp_path / "w.safetensors", {"encoder": "x"})
    load_weights(two, tmp_path / "w.safetensors")
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


def test_weights_of_another_net_are_refused_with_a_count_and_change_nothing(tmp_path):
    other = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    save_weights(torch.nn.Linear(3, 4).state_dict() | {"0.weight": torch.zeros(1)}, tmp_path / "w.safetensors", {})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of 4 tensors, 3 missing.*2 unknown.*1 of another size \(0\.weight"):
        load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.zeros(100)}, path, {})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
        load_weights(torch.nn.Linear(1, 1), path)


def test_keeping_the_same_checkpoint_twice_as_after_a_kill_in_between_leaves_no_third_name(checkpoint):
    previous = checkpoint.with_name("previous.ckpt")
    for _ in range(2):
        keep_previous(checkpoint, previous)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == sorted([checkpoint.name, "previous.ckpt"])
