"""`statefield datasets` over all fields: one list, and a hint where a folder belongs to another field."""

from __future__ import annotations

import pytest
from fakes.scenes import write_class_folders, write_uc_merced

from statefield.cli.datasets import FIELDS
from statefield.cli.main import main


def test_list_has_every_layout_of_every_field_once(capsys):
    assert main(["datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line and not line.startswith(" ") and "   " in line]
    assert names == [name for field in FIELDS.values() for name in field.layouts]
    assert [line.split(":")[0] for line in lines if any(line.startswith(f"{name}: ") for name in FIELDS)] == [*FIELDS]


@pytest.mark.parametrize("field", FIELDS)
def test_field_is_listed_alone(field, capsys):
    assert main(["datasets", "--field", field]) == 0
    out = capsys.readouterr().out
    for name, one in FIELDS.items():
        assert all((f"\n{layout}   " in out) == (name == field) for layout in one.layouts)
    assert main(["datasets", "--field", field, "--table"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == sorted(FIELDS[field].layouts)


def test_scenes_are_told_with_their_splits(tmp_path, capsys):
    root = write_uc_merced(tmp_path, per_class=10, home=".")
    for options in (["--field", "scene"], ["--layout", "uc_merced"]):
        assert main(["datasets", str(root), *options]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "layout uc_merced" in out and "classes: 21: 0 agricultural" in out
        assert "│ train │ 126" in out and "│ test │ 63" in out and "not: class_folders (its classes are" in out


def test_folder_of_another_field_is_told_where_to_look(tmp_path, capsys):
    root = write_class_folders(tmp_path, per_class=1)
    assert main(["datasets", str(root)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "layout class_folders" in said and f"statefield datasets --field scene {root}" in said
    assert main(["datasets", str(root), "--field", "change"]) == 2
    assert "--field scene" not in capsys.readouterr().err


def test_embedded_hyperspectral_scene_is_told(capsys):
    assert main(["datasets", "--layout", "indian_pines"]) == 0
    out = capsys.readouterr().out
    assert "classes: 16" in out and "which pixels are trained on is a setting" in out
