"""Numbers are read as `float` reads them, whatever their form, and what is none is told by its line."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.number_table import _read_quickly, read_number_table
from statefield.errors import DataError


def read(path: Path, *, columns=8, at_least=1, on_bad="error"):
    bad = BadRows(path, on_bad)
    return read_number_table(path, columns=columns, at_least=at_least, bad=bad), bad


def some_number(rng: random.Random) -> str:
    value = rng.uniform(-2000, 2000)
    return rng.choice(
        [
            str(int(value)),
            f"{value:.3f}",
            repr(value),
            f"{value:.0f}.",
            f"{abs(value) % 1:.5f}".lstrip("0"),
            "-0",
            f"{value * 1e-20:e}",
            str(rng.randrange(10**20)),
            f"{value:.17f}",
            str(2**53 + 1),
        ]
    )


def test_every_form_is_read_as_python_reads_it(tmp_path):
    rng = random.Random(1)
    for _ in range(120):
        num_columns = rng.randrange(1, 12)
        rows = [[some_number(rng) for _ in range(num_columns)] for _ in range(rng.randrange(1, 30))]
        expected = np.array([[float(cell) for cell in row[:8]] for row in rows])
        table = _read_quickly("\n".join(",".join(row) for row in rows).encode(), 8)
        assert table is not None, "the fast way takes every number"
        assert np.array_equal(table.values, expected)
        assert np.array_equal(np.signbit(table.values), np.signbit(expected))
        assert table.num_columns == num_columns


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,5,6\n",
        "1,2,3\n4,5,6",
        "1 2 3\n4 5   6\n",
        "1\t2\t3\r\n4\t5\t6\r\n",
        "1;2;3\n4;5;6\n",
        "1, 2, 3\n4, 5, 6\n\n\n",
        "\ufeff1,2,3\n4,5,6\n",
        "1.0,2e0,+3\n4,.5e1,6.000\n",
        "\n1,2,3\n\n4,5,6\n",
    ],
)
def test_separators_ends_of_lines_and_blanks_do_not_matter(text, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes(text.encode())
    table, _ = read(path)
    assert table.values.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_lines_are_counted_with_the_empty_ones(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("1,2\n\n3,x\n5,6\n")
    table, bad = read(path, on_bad="skip")
    assert table.lines.tolist() == [1, 4]
    assert bad.counts == {"not a number": 1}
    assert bad.told() == [f"{path}: 1 row left out, not a number (line 3)"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,2", "line 2: 2 columns, line 1 has 3"),
        ("1,2,3,4", "line 2: 4 columns"),
        ("1,,3", "column 2 is ''"),
        ("1,abc,3", "column 2 is 'abc', which is no number"),
        ("1,1-2,3", "column 2 is '1-2'"),
        ("1,1.2.3,3", "column 2 is '1.2.3'"),
        ("1,2 3,3", "column 2 is '2 3'"),
        ("1,nan,3", "column 2 is nan, which is not finite"),
        ("1,-inf,3", "column 2 is -inf"),
        ("1,1e999,3", "not finite"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_and_line(row, words, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text(f"1,2,3\n{row}\n7,8,9\n")
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert "line 2" in str(raised.value)
    assert words in str(raised.value)
    table, bad = read(path, on_bad="skip")
    assert table.values.tolist() == [[1, 2, 3], [7, 8, 9]]
    assert bad.counts.total() == 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="not a file that can be read"):
        read(tmp_path / "missing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\0\0\0")
    with pytest.raises(DataError, match="no text file"):
        read(tmp_path / "binary.txt")
    (tmp_path / "narrow.txt").write_text("1,2\n")
    with pytest.raises(DataError, match="2 columns, 6 or more are needed"):
        read(tmp_path / "narrow.txt", at_least=6)
    (tmp_path / "empty.txt").write_text("")
    table, _ = read(tmp_path / "empty.txt")
    assert table.values.shape == (0, 8)
