"""What the three screens share: the way in for files, the way back for errors, tables, and the look of the page."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from statefield.app.change_job import MAP_CSS
from statefield.app.results import ResultFolders
from statefield.app.uploads import Uploads
from statefield.errors import StatefieldError
from statefield.tasks.tracking.score_tables import ScoreTable

_LOG = logging.getLogger(__name__)

PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # of events: not in an API, not for other programs
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work", **PRIVATE}  # one net, one memory
PROGRESS = gr.Progress()

CSS = (
    """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.sf-error { border-left: 4px solid #d55e00; padding: 10px 14px; background: rgba(213, 94, 0, 0.09); border-radius: 4px;
  overflow-wrap: anywhere; }
.sf-how { border-left: 4px solid #0072b2; padding: 10px 14px; background: rgba(0, 114, 178, 0.08); border-radius: 4px; }
.sf-table { border: 0 !important; border-collapse: collapse; white-space: nowrap; margin: 4px 0 2px; font-size: 13px;
  font-variant-numeric: tabular-nums; }
.sf-table th, .sf-table td { padding: 5px 7px !important; text-align: right; border: 0 !important;
  border-bottom: 1px solid rgba(128, 128, 128, 0.3) !important; background: none !important; }
.sf-table th:first-child, .sf-table td:first-child { text-align: left; }
.sf-table tr { border: 0 !important; }
.sf-table i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 7px;
  vertical-align: -2px; }
.sf-lead { font-size: 13px; opacity: 0.8; margin: 2px 0 12px; }
.sf-scroll { overflow-x: auto; }
details summary { cursor: pointer; margin: 2px 0 10px; }
"""
    + MAP_CSS
)


def upload_box(label: str, **how: Any) -> gr.File:
    """A file chooser whose value is never fetched from an address: a request can name one in place of a path.

    Not a class of its own, since Gradio writes a stub file beside the module of each.
    """
    box: Any = gr.File(label=label, **how)
    keep = box.async_move_resource_to_block_cache

    async def keep_files_alone(url_or_file_path: str | Path | None) -> str | None:
        _require_no_address(url_or_file_path)
        return await keep(url_or_file_path)

    box.async_move_resource_to_block_cache = keep_files_alone
    return box


def _require_no_address(value: Any) -> None:
    if isinstance(value, str) and "://" in value:
        raise gr.Error("An address was given in place of an uploaded file, and addresses are not opened.")


@dataclass(frozen=True)
class Desk:
    """Where the work of a request is done: files come through `uploads`, results go to a folder of their own."""

    uploads: Uploads
    folders: ResultFolders

    def run(self, work: Callable[[Path], tuple[Any, ...]], failed: Callable[[str], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What `work(folder)` returns; where it cannot be done, `failed(paragraph)` with the reason as HTML.

        A reason is one of our own errors. Any other is a bug: its traceback goes to the terminal, and the page says so.
        """
        folder = self.folders.new()
        try:
            return work(folder)
        except StatefieldError as error:
            return failed(self._paragraph(f"{type(error).__name__}: {error}"))
        except gr.Error:
            raise
        except Exception:
            _LOG.exception("a request could not be answered")
            return failed(self._paragraph("Something unexpected went wrong here; the terminal of the app shows it."))

    def named(self, text: str) -> str:
        """`text` with the names of files in place of where they lie on this machine."""
        return re.sub(rf"{re.escape(str(self.folders.root))}/(?:[^\s:,;()]*/)?", "", text)

    def _paragraph(self, text: str) -> str:
        return f'<div class="sf-error" role="alert">{html.escape(self.named(text))}</div>'


def how_to(command: str, run: str, what: str, example: str) -> str:
    """A screen without a model: how to make one."""
    return (
        f'<p class="sf-how">No model was given, so this screen has nothing to run. <code>{html.escape(command)}</code> '
        f"makes one, {html.escape(what)}; then start the app with <code>{html.escape(example)}</code>, or, when "
        f"<code>{html.escape(run)}</code> is below the folder you start it in, with <code>statefield app</code> alone. "
        "Any other run folder does as well. The tracks need no model.</p>"
    )


def told(said: str) -> gr.HTML:
    """The place of a screen's errors, which takes no room while there are none."""
    return gr.HTML(said, visible=bool(said))


def score_tables(tables: Sequence[ScoreTable]) -> str:
    """Tables of scores as HTML: the first, and all others folded."""
    first, *others = map(_score_table, tables)
    return first + (f"<details><summary>All scores</summary>{''.join(others)}</details>" if others else "")


def _score_table(table: ScoreTable) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in (table.heading, *table.columns))
    rows = "".join(
        f"<tr><td>{html.escape(row)}</td>"
        + "".join(f"<td>{html.escape(table.cell(row, column))}</td>" for column in table.columns)
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<strong>{html.escape(table.title)}</strong><div class="sf-scroll"><table class="sf-table"><tr>{head}</tr>'
        f'{rows}</table></div><p class="sf-lead">{html.escape(table.lead)}</p>'
    )
