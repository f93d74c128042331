"""Ground truth and results of single-object benchmarks in their publishers' layouts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets.tracking.number_rows import read_rows
from statefield.datasets.tracking.single_object import find_sequences
from statefield.datasets.tracking.single_object_results import find_trackers, read_boxes
from statefield.errors import ConfigError, DataError, DatasetLayoutError

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
BOXES = "10,20,30,40\n11,20,30,40\n12,20,30,40\n"


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


LAYOUT_FILES = {
    "lasot": {
        "airplane/airplane-1/groundtruth.txt": BOXES,
        "airplane/airplane-1/full_occlusion.txt": "0,1,0",
        "airplane/airplane-1/out_of_view.txt": "0,0,0\n",
        "attributes/airplane-1.txt": "1,0,0,0,0,0,0,0,0,0,0,0,0,1",
    },
    "got10k": {
        "list.txt": "GOT-10k_Val_000001\n",
        "GOT-10k_Val_000001/groundtruth.txt": BOXES,
        "GOT-10k_Val_000001/meta_info.ini": "[METAINFO]\nurl: x\nresolution: (1920, 1080)\n",
        "GOT-10k_Val_000001/cover.label": "8\n0\n3\n",
    },
    "eventvot": {"test/rec1/groundtruth.txt": BOXES, "test/rec1/absent.txt": "1\n0\n1\n", "att/rec1.txt": "0\n" * 14},
    "visevent": {"gt_rect/a.txt": BOXES, "absent/a.txt": "0\n1\n0\n", "att/a.txt": "0\n1\n" + "0\n" * 15},
    "otb": {"Jogging/groundtruth_rect.1.txt": BOXES.replace(",", "\t"), "Jogging/groundtruth_rect.2.txt": BOXES},
    "uav123": {
        "anno/UAV123/bike1.txt": BOXES + "NaN,NaN,NaN,NaN\n",
        "anno/UAV123/att/bike1.txt": "1," + "0," * 10 + "1",
    },
    "trackingnet": {"TEST/anno/vid.txt": BOXES},
    "fe240hz": {"FE108/dove/groundtruth_rect.txt": BOXES},
    "plain": {"one.txt": BOXES},
}


@pytest.mark.parametrize("name", LAYOUT_FILES)
def test_a_layout_is_recognised_by_its_names(tmp_path, name):
    root = _write(tmp_path, LAYOUT_FILES[name])
    layout, sequences = find_sequences(root / "FE108" if name == "fe240hz" else root)
    assert layout.name == name
    assert sequences[0].boxes[0].tolist() == [10, 20, 30, 40]


def test_flags_sizes_and_attributes_are_read(tmp_path):
    def first(name):
        return find_sequences(_write(tmp_path / name, LAYOUT_FILES[name]))[1][0]

    lasot = first("lasot")
    assert (lasot.name, lasot.attributes) == ("airplane-1", ("IV", "ARC"))
    assert lasot.present.tolist() == [True, False, True]
    got10k = first("got10k")
    assert got10k.image_size == (1920, 1080)
    assert got10k.present.tolist() == [True, False, True]
    assert first("eventvot").present.tolist() == [True, False, True]  # 1 is present
    visevent = first("visevent")
    assert visevent.present.tolist() == [True, False, True]  # 1 is absent
    assert visevent.attributes == ("ROT",)
    uav123 = first("uav123")
    assert uav123.attributes == ("SV", "SOB")
    assert np.isnan(uav123.boxes[3]).all()
    assert [one.name for one in find_sequences(_write(tmp_path / "otb", LAYOUT_FILES["otb"]))[1]] == [
        "Jogging-1",
        "Jogging-2",
    ]


def test_an_unknown_folder_is_answered_with_the_layouts(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetLayoutError, match=r"groundtruth_rect\.txt"):
        find_sequences(tmp_path / "empty")
    with pytest.raises(DatasetLayoutError, match="no such folder"):
        find_sequences(tmp_path / "nowhere")
    with pytest.raises(DatasetLayoutError, match="'two'"):
        find_sequences(_write(tmp_path / "plain", LAYOUT_FILES["plain"]), names=("two",))


def test_flags_of_another_length_are_refused(tmp_path):
    root = _write(tmp_path, {**LAYOUT_FILES["visevent"], "absent/a.txt": "0\n1\n"})
    with pytest.raises(DataError, match=r"absent.a\.txt: 2 flags for the 3 boxes"):
        find_sequences(root)


@pytest.mark.parametrize("separator", [",", "\t", " ", ", ", ";"])
def test_columns_are_separated_in_any_usual_way(tmp_path, separator):
    path = tmp_path / "boxes.txt"
    path.write_text("\ufeff" + separator.join(["1", "2.5", "3e1", "4"]) + "\r\n\n", encoding="utf-8")
    assert read_rows(path, 4, "a box").tolist() == [[1, 2.5, 30, 4]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty file"),
        ("1,2,3,4\n1,2,3\n", r"line 2: 3 columns"),
        ("1,2,3,4\n\n1,2,3,4\n", r"line 2: 0 columns"),
        ("1,2,3,4\n1,2,x,4\n", r"line 2: 'x' is no number"),
        ("1,2,3,4\n1,2,inf,4\n", r"line 2: an infinite value"),
        ("1,2,3,4+2i\n", r"line 1: '4\+2i' is no number"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, text, said):
    path = tmp_path / "boxes.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"boxes\.txt.*{said}"):
        read_rows(path, 4, "a box")


def test_no_text_is_refused(tmp_path):
    path = tmp_path / "boxes.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="no text file"):
        read_rows(path, 4, "a box")


def test_results_are_found_where_toolkits_put_them(tmp_path):
    names = ["a-1", "b", "c", "d"]
    root = _write(
        tmp_path / "ours",
        {
            "A_1.txt": BOXES,
            "A_1_time.txt": "1\n",
            "uav_b.txt": BOXES,
            "c/c_001.txt": BOXES,
            "c/c_002.txt": BOXES,
            "c/c_time.txt": "1\n",
        },
    )
    (tracker,) = find_trackers([root], names)
    assert tracker.name == "ours"
    assert {name: [path.name for path in paths] for name, paths in tracker.files.items()} == {
        "a-1": ["A_1.txt"],
        "b": ["uav_b.txt"],
        "c": ["c_001.txt", "c_002.txt"],
    }
    two = _write(tmp_path / "all", {"first/b.txt": BOXES, "second/b.txt": BOXES, "notes/x.md": ""})
    assert [one.name for one in find_trackers([two], names)] == ["first", "second"]
    with pytest.raises(ConfigError, match="called 'ours'"):
        find_trackers([root, root], names)
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetLayoutError, match=r"none: no result of any of the 4 sequences"):
        find_trackers([tmp_path / "none"], names)


def test_corners_become_sizes(tmp_path):
    path = tmp_path / "boxes.txt"
    path.write_text("10 20 40 60\n")
    assert read_boxes(path, "xyxy").tolist() == [[10, 20, 30, 40]]
