"""An evaluation as one HTML page: tables and curves, which holds its pictures, loads nothing and can be mailed."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from statefield.files import write_text
from statefield.tasks.tracking.score_plots import CurvePlot, draw
from statefield.tasks.tracking.score_tables import ScoreTable


def write_score_report(
    path: Path,
    *,
    title: str,
    tables: Sequence[ScoreTable],
    plots: Sequence[CurvePlot] = (),
    notes: Sequence[str] = (),
    command: str = "",
) -> None:
    """Write the page, whole or not at all. Text from outside (names of trackers and sequences) is escaped.

    Args:
        title: the heading.
        tables: in their order; the first is the result, and those of more than forty rows are folded.
        plots: drawn as pictures within the page.
        notes: sentences for the reader: what a number does not mean, what was left out.
        command: what repeats the evaluation.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("score_report.html.j2").render(
        title=title,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tables=[(table, {column: table.best(column) for column in table.columns}) for table in tables],
        pictures=[(plot, _embedded(plot)) for plot in plots],
        notes=notes,
        command=command,
        versions=f"statefield {version('statefield')}, Python {platform.python_version()}, numpy {version('numpy')}",
    )
    write_text(path, page)


def _embedded(plot: CurvePlot) -> str:
    content = io.BytesIO()
    draw(plot).savefig(content, format="png", dpi=130)
    return base64.b64encode(content.getvalue()).decode()
