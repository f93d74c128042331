"""Tables, curves and pages that every tracking evaluation ends in."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from statefield.tasks.tracking.score_plots import CurvePlot, draw, save_plots
from statefield.tasks.tracking.score_report import write_score_report
from statefield.tasks.tracking.score_tables import ScoreTable, csv_text, json_tables, latex_text, screen_table

TABLE = ScoreTable(
    title="Scores & such",
    lead="percent",
    heading="tracker",
    rows={
        "a_1": {"AUC": 50.123, "errors": 3, "frames": 10},
        "<b>": {"AUC": float("nan"), "errors": 1, "frames": 11},
        "c": {"AUC": 50.12, "errors": 2, "frames": 12},
    },
    lower_is_better=frozenset({"errors"}),
    unranked=frozenset({"frames"}),
)


def test_the_best_are_those_that_look_alike_and_best():
    assert TABLE.best("AUC") == {"a_1", "c"}
    assert TABLE.best("errors") == {"<b>"}
    assert TABLE.best("frames") == frozenset()


def test_where_columns_are_trackers_the_best_is_sought_in_each_row():
    rows = {"rain": {"ours": 3.0, "theirs": 4.0}, "fog": {"ours": 9.0, "theirs": 8.0}}
    table = ScoreTable("t", "", "attribute", rows, best_by_row=True)
    assert (table.best("ours"), table.best("theirs")) == ({"fog"}, {"rain"})
    lower = ScoreTable("t", "", "attribute", rows, lower_is_better=frozenset({"ours", "theirs"}), best_by_row=True)
    assert lower.best("ours") == {"rain"}


def test_a_table_on_screen_and_in_files():
    console = Console(file=io.StringIO(), width=90)
    console.print(screen_table(TABLE))
    assert "50.12" in console.file.getvalue()
    narrow = Console(file=io.StringIO(), width=30)
    wide = ScoreTable("t", "", "tracker", {"ours": {f"score {n}": float(n) for n in range(12)}})
    narrow.print(screen_table(wide, narrow.width))
    assert "score 11 │ 11.00" in narrow.file.getvalue()  # turned on its side, nothing is cut
    rows = list(csv.DictReader(io.StringIO(csv_text([TABLE]))))
    assert rows[0] == {"table": "Scores & such", "row": "a_1", "score": "AUC", "value": "50.123"}
    assert rows[3]["value"] == ""
    latex = latex_text([TABLE])
    assert r"a\_1 & \textbf{50.12} & 3 & 10 \\" in latex
    assert r"\caption{Scores \& such}" in latex
    assert json_tables([TABLE])[0]["rows"]["c"] == {"AUC": 50.12, "errors": 2, "frames": 12}


@pytest.mark.parametrize("count", [2, 13])
def test_lines_stand_in_the_legend_from_high_to_low(count):
    lines = {f"tracker {n}": np.linspace(1, 0, 21) * n / count for n in range(1, count + 1)}
    scores = {f"tracker {n}": 10.0 * n for n in range(1, count + 1)}
    plot = CurvePlot("success", "Success", "threshold", "rate", np.linspace(0, 1, 21), lines, scores)
    figure = draw(plot)
    legend = (figure.axes[0].get_legend() or figure.legends[0]).get_texts()
    assert legend[0].get_text() == f"tracker {count}  [{10.0 * count:.1f}]"
    assert len(figure.axes[0].lines) == count


def test_a_tracker_has_the_same_colour_in_every_figure():
    lines = {"one": [0, 50], "other": [0, 60]}
    colours = []
    for scores in ({"one": 4.23, "other": 3.1}, {"one": 4.0, "other": 55.0}):
        figure = draw(CurvePlot("p", "P", "x", "y", [0, 1], lines, scores, y_range=(0.0, 100.0)))
        legend = figure.axes[0].get_legend()
        assert legend is not None
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts[0].startswith(max(scores, key=lambda name: scores[name]))
        assert all(text.endswith(f"[{scores[text.split()[0]]:.1f}]") for text in texts), "per cent have one decimal"
        colours.append({line.get_label().split()[0]: line.get_color() for line in figure.axes[0].lines})
    assert colours[0] == colours[1]


def test_plots_are_written_as_pictures_and_for_papers(tmp_path):
    plot = CurvePlot("p", "P", "x", "y", [0, 1], {"a": [0, 1]}, band=(0.2, 0.4), mark=0.5)
    written = save_plots(tmp_path, [plot])
    assert [path.name for path in written] == ["p.png", "p.pdf"]
    with Image.open(written[0]) as picture:
        assert picture.size[0] > 600
    assert written[1].read_bytes().startswith(b"%PDF")


def test_a_page_holds_its_pictures_and_escapes_names(tmp_path):
    plot = CurvePlot("p", "P", "x", "y", [0, 1], {"a": [0, 1]})
    page = tmp_path / "report.html"
    write_score_report(page, title="a & b", tables=[TABLE], plots=[plot], notes=["left out: 1"], command="run <x>")
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "run &lt;x&gt;" in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
