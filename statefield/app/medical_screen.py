"""The first screen: a slice or volume goes in, its classes come back over it, with sliders of slices and opacity."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from statefield.app.examples import medical_example
from statefield.app.medical_job import MedicalJob, MedicalResult
from statefield.app.page_parts import ONE_AT_A_TIME, PRIVATE, PROGRESS, Desk, how_to, told, upload_box
from statefield.app.uploads import PICTURES, VOLUMES, placed
from statefield.tasks.common.figures import Pixels


def add_medical_screen(job: MedicalJob | None, desk: Desk) -> None:
    """Put the screen into the page that is being built."""
    if job is None:
        what = "a first segmentation of a brain, in some minutes"
        gr.HTML(how_to("make demo", "runs/demo", what, "statefield app --medical runs/demo"))
        return

    def segment(files: list[str] | None, opacity: float, progress: gr.Progress = PROGRESS) -> tuple[Any, ...]:
        def work(folder: Path) -> tuple[Any, ...]:
            wanted = (*VOLUMES, *PICTURES)
            paths = [desk.uploads.admit(one, wanted, "a volume or a picture") for one in files or [""]]
            given = [placed(path, folder / "given") for path in paths]
            found = job.segment(given, folder, lambda done, total: progress((done, total), desc="slices or windows"))
            deep = found.num_slices > 1
            slider = gr.Slider(maximum=max(found.num_slices, 2), value=found.fullest + 1, visible=deep)
            files_of_result = gr.Files([str(path) for path in found.files], visible=True)
            return found, told(""), found.slice(found.fullest, opacity), slider, _shares(found), files_of_result

        return desk.run(
            work, lambda said: (None, told(said), None, gr.Slider(visible=False), "", gr.Files(visible=False))
        )

    def example() -> tuple[Any, ...]:
        return desk.run(lambda folder: ([str(medical_example(folder))], told("")), lambda said: (None, told(said)))

    gr.Markdown(f"Model: {job.about}")
    state = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            files = upload_box(
                "Slice or volume: NIfTI, PNG, ...",
                file_count="multiple",
                height=150,
                elem_id="medical-file",
            )
            with gr.Row():
                take = gr.Button("Take the example", elem_id="medical-example")
                run = gr.Button("Segment", variant="primary", elem_id="medical-run")
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity of the mask", elem_id="medical-opacity")
            index = gr.Slider(1, 2, 1, step=1, label="Slice", visible=False, elem_id="medical-slice")
            shares = gr.HTML(elem_id="medical-shares")
        with gr.Column(scale=2, min_width=420):
            message = gr.HTML(visible=False, elem_id="medical-message")
            picture = gr.Image(
                label="Mask",
                type="numpy",
                format="png",
                interactive=False,
                height=620,
                buttons=["download", "fullscreen"],  # not "share", which would send it elsewhere
                elem_id="medical-picture",
            )
            downloads = gr.Files(label="Files", visible=False, interactive=False, elem_id="medical-files")
    take.click(example, None, [files, message], **PRIVATE)
    run.click(segment, [files, opacity], [state, message, picture, index, shares, downloads], **ONE_AT_A_TIME)
    for slider in (opacity, index):
        slider.change(
            _slice, [state, index, opacity], picture, trigger_mode="always_last", show_progress="hidden", **PRIVATE
        )


def _slice(found: MedicalResult | None, number: float, opacity: float) -> Pixels | None:
    """The picture that the sliders ask for; none once the result has made room for later ones."""
    if found is None or not found.pictures.exists():
        return None
    return found.slice(round(number) - 1, opacity)


def _shares(found: MedicalResult) -> str:
    volumes = any(share.millilitres is not None for share in found.shares)
    rows = "".join(
        f'<tr><td><i style="background:{share.colour}"></i>{html.escape(share.name)}</td>'
        + (f"<td>{share.millilitres:,.1f}</td>" if share.millilitres is not None else "")
        + f"<td>{share.count:,}</td><td>{100 * share.share:.2f}</td></tr>"
        for share in found.shares
    )
    unit = "voxels" if found.is_volume else "pixels"
    head = f"<tr><th>class</th>{'<th>ml</th>' if volumes else ''}<th>{unit}</th><th>%</th></tr>"
    return f'<div class="sf-scroll"><table class="sf-table">{head}{rows}</table></div>'
