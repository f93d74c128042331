"""Lists of pairs: read whole, or refused with every row that is wrong; and maps made anew where inputs changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from statefield.errors import ConfigError, DataError
from statefield.tasks.remote_sensing.change_archive import ChangeMaps, pair_jobs, read_pairs


@pytest.fixture
def listed(tmp_path):
    """listed(text) -> path of pairs.csv with that text; a.tif and b.tif lie beside it."""
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(b"of a raster")

    def write(text: str, encoding: str = "utf-8") -> Path:
        (tmp_path / "pairs.csv").write_text(text, encoding=encoding)
        return tmp_path / "pairs.csv"

    return write


def test_columns_in_any_order_paths_from_the_list_s_folder_and_empty_lines(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f'day,after,name,before\n3,b.tif,"Lyon, 2",{tmp_path / "a.tif"}\n\n,,,\n4,./b.tif,öst,a.tif\n'
    for path in (listed(text, "utf-8-sig"), Path("pairs.csv")):
        first, second = read_pairs(path)
        assert (first.name, second.name) == ("Lyon, 2", "öst")
        assert first.before == second.before == str(tmp_path / "a.tif")
        assert first.after == second.after == str(tmp_path / "b.tif")


def test_outputs_of_a_pair_are_named_after_it(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = read_pairs(listed("name,before,after\np.1,a.tif,b.tif\n"))
    (job,) = pair_jobs(pairs, Path("maps"), probabilities=True, polygons=True)
    assert job.name == "p.1" and job.inputs == (str(tmp_path / "a.tif"), str(tmp_path / "b.tif"))
    assert [os.path.relpath(path, tmp_path) for path in job.outputs] == [
        "maps/p.1.tif",
        "maps/p.1_probabilities.tif",
        "maps/p.1.gpkg",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a header that names the columns name,before,after is needed"),
        ("name;before;after\np;a.tif;b.tif\n", "with commas between them"),
        ("name,before\np,a.tif\n", "a header that names the columns"),
        ("name,before,after,after\np,a.tif,b.tif,b.tif\n", "a header that names the columns"),
        ("name,before,after\n\n", "no row after the header"),
        ("name,before,after\np,a.tif\n", "line 2: 2 fields where the header has 3"),
        ("name,before,after\np,a.tif,c.tif\n", r"line 2: .*c\.tif does not exist"),
        ("name,before,after\np,,b.tif\n", "line 2: before is empty"),
        ("name,before,after\n,a.tif,b.tif\n", "line 2: the name '' cannot be a file's"),
        ("name,before,after\n../p,a.tif,b.tif\n", "line 2: the name '../p' cannot be a file's"),
        ("name,before,after\n.p,a.tif,b.tif\n", "line 2: the name '.p' cannot be a file's"),
        (f"name,before,after\n{'p' * 101},a.tif,b.tif\n", "cannot be a file's"),
        ("name,before,after\np,https://x/a.tif,b.tif\n", r"https://x/a\.tif is no file on this machine"),
        (
            "name,before,after\np,a.tif,b.tif\nq,a.tif,b.tif\np,a.tif,b.tif\n",
            "line 4: the name 'p' is that of line 2 too",
        ),
        ('name,before,after\n"p\x00",a.tif,b.tif\n', "cannot be a file's|no CSV"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_by_its_line(listed, text, says):
    with pytest.raises(DataError, match=says):
        read_pairs(listed(text))


def test_all_rows_are_looked_at_and_ten_named(listed):
    rows = "".join(f"p{number},a.tif,none{number}.tif\n" for number in range(14))
    with pytest.raises(DataError) as error:
        read_pairs(listed("name,before,after\n" + rows))
    assert str(error.value).count("does not exist") == 10
    assert "line 11: " in str(error.value) and "and 4 more. Nothing was started." in str(error.value)


def test_urls_are_taken_where_they_are_allowed(listed):
    (pair,) = read_pairs(listed("name,before,after\np,/vsicurl/https://x/a.tif,b.tif\n"), allow_remote=True)
    assert pair.before == "/vsicurl/https://x/a.tif"


def test_a_work_without_a_net_is_refused():
    with pytest.raises(ConfigError, match="a net is needed"):
        ChangeMaps().load()
