"""Files appear whole or not at all."""

import json
import math
import stat

import pytest

from statefield.files import atomic_path, remove_partials, write_json, write_text


def test_a_finished_block_replaces_the_target(tmp_path):
    target = tmp_path / "deep" / "metrics.json"
    write_text(target, "old")
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["metrics.json"]


def test_a_failed_block_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "weights.safetensors"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError("disk")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_partial_file_keeps_the_double_suffix_that_writers_choose_a_format_by(tmp_path):
    with atomic_path(tmp_path / "scan.nii.gz") as partial:
        assert partial.name.endswith(".nii.gz")
        assert partial.parent == tmp_path


def test_written_files_are_readable_by_others_as_the_umask_allows(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "ours", "x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_nan_becomes_null_in_json(tmp_path):
    write_json(tmp_path / "m.json", {"dice": math.nan, "per_case": [1.0, (math.nan, "a")]})
    assert json.loads((tmp_path / "m.json").read_text()) == {"dice": None, "per_case": [1.0, [None, "a"]]}


def test_what_killed_writers_left_is_removed_of_a_file_or_of_a_folder_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    names = ["a.json", ".a.json.partial", ".a.json.b.json.abcd1234.partial.json", ".b.json.abcd1234.partial.json"]
    left = [".a.json.abcd1234.partial.json", "deep/.c.ckpt.zz_09xyz.partial.ckpt"]
    for name in names + left:
        (tmp_path / name).write_text("half")
    remove_partials(tmp_path / "a.json")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [*names, left[1]]
    )
    remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".a.json.partial", "a.json", "deep"]
