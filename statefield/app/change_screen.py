"""The second screen: two dates of a place go in, a map with the polygons of what changed comes back."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from statefield.app.change_job import ChangeJob
from statefield.app.examples import change_example
from statefield.app.page_parts import ONE_AT_A_TIME, PRIVATE, PROGRESS, Desk, how_to, told, upload_box
from statefield.app.uploads import RASTERS, placed

_DATES = {"later date": "after", "earlier date": "before"}
# both sliders change the drawing in the browser: nothing is computed again
_SHOW = """(date, opacity, polygons) => {
  for (const map of document.querySelectorAll('.sf-frame')) {
    map.dataset.date = date === 'earlier date' ? 'before' : 'after';
    map.dataset.polygons = polygons ? 'on' : 'off';
    map.style.setProperty('--sf-opacity', opacity);
  }
}"""


def add_change_screen(job: ChangeJob | None, desk: Desk) -> None:
    """Put the screen into the page that is being built."""
    if job is None:
        command = "statefield change train --data.root PAIRS --run runs/town"
        what = "a detector of change from labelled pairs; docs/remote_sensing.md draws some in a minute"
        gr.HTML(how_to(command, "runs/town", what, "statefield app --change runs/town"))
        return

    def detect(before: str | None, after: str | None, align: bool, progress: gr.Progress = PROGRESS) -> tuple[Any, ...]:
        def work(folder: Path) -> tuple[Any, ...]:
            first, second = (
                placed(desk.uploads.admit(one, RASTERS, f"a raster or picture of the {which} date"), folder / which)
                for one, which in ((before, "earlier"), (after, "later"))
            )
            show = lambda done, total: progress((done, total), desc="tiles")  # noqa: E731  (a callback of one line)
            found = job.map(first, second, folder, align=align, progress=show)
            rows = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in found.facts)
            files = gr.Files([str(path) for path in found.files], visible=True)
            return told(""), found.map_html, f'<table class="sf-table">{rows}</table>', files

        return desk.run(work, lambda said: (told(said), "", "", gr.Files(visible=False)))

    def example() -> tuple[Any, ...]:
        return desk.run(
            lambda folder: (*map(str, change_example(folder)), told("")), lambda said: (None, None, told(said))
        )

    gr.Markdown(f"Model: {job.about}")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            before = upload_box("Earlier date: GeoTIFF, .png, .jpg", height=120, elem_id="change-before")
            after = upload_box("Later date", height=120, elem_id="change-after")
            align = gr.Checkbox(False, label="Warp the later date to the earlier one's grid", elem_id="change-align")
            with gr.Row():
                take = gr.Button("Take the example", elem_id="change-example")
                run = gr.Button("Map the change", variant="primary", elem_id="change-run")
            date = gr.Radio(list(_DATES), value="later date", label="Shown", elem_id="change-date")
            opacity = gr.Slider(0, 1, 0.35, step=0.05, label="Opacity of the polygons", elem_id="change-opacity")
            polygons = gr.Checkbox(True, label="Polygons", elem_id="change-polygons")
            facts = gr.HTML(elem_id="change-facts")
        with gr.Column(scale=2, min_width=420):
            message = gr.HTML(visible=False, elem_id="change-message")
            drawn = gr.HTML(elem_id="change-map")
            downloads = gr.Files(label="Files", visible=False, interactive=False, elem_id="change-files")
    take.click(example, None, [before, after, message], **PRIVATE)
    done = run.click(detect, [before, after, align], [message, drawn, facts, downloads], **ONE_AT_A_TIME)
    views = [date, opacity, polygons]
    done.then(None, views, None, js=_SHOW)
    date.change(None, views, None, js=_SHOW)
    opacity.change(None, views, None, js=_SHOW)
    polygons.change(None, views, None, js=_SHOW)
