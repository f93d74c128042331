"""The third screen: a tracker's result goes in, a video with its tracks and the table of its scores come back."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from statefield.app.examples import tracking_example
from statefield.app.page_parts import ONE_AT_A_TIME, PRIVATE, Desk, score_tables, told, upload_box
from statefield.app.tracking_job import SCORED_BY, show_tracks
from statefield.app.uploads import PICTURES, TRACKS, VIDEOS

_LEGEND = (
    "With a ground truth: a colour for each track that is right, white dashes for a person who was missed, red with a "
    "stroke for a box without anybody, a thick frame where the identity switched. Without one: a colour for each track."
)


def add_tracking_screen(desk: Desk) -> None:
    """Put the screen into the page that is being built."""

    def show(
        results: str | None, truth: str | None, frames: list[str] | None, benchmark: str, rate: float, skip: bool
    ) -> tuple[Any, ...]:
        def work(folder: Path) -> tuple[Any, ...]:
            tracks = desk.uploads.admit(results, TRACKS, "a tracker's result (frame, id, left, top, width, height)")
            gt = None if truth is None else desk.uploads.admit(truth, TRACKS, "a ground truth, gt.txt")
            pictures = [desk.uploads.admit(one, (*PICTURES, *VIDEOS), "a picture or a video") for one in frames or []]
            found = show_tracks(
                tracks, gt, pictures, folder, benchmark=benchmark, frame_rate=rate or None, skip_bad=skip
            )
            notes = "".join(f'<p class="sf-lead">{html.escape(desk.named(note))}</p>' for note in found.notes)
            files = gr.Files([str(path) for path in found.files], visible=True)
            video = gr.Video(None if found.video is None else str(found.video), visible=True)
            return told(""), video, score_tables(found.tables) + notes, files

        return desk.run(work, lambda said: (told(said), gr.Video(None), "", gr.Files(visible=False)))

    def example() -> tuple[Any, ...]:
        def work(folder: Path) -> tuple[Any, ...]:
            results, truth, frames = tracking_example(folder)
            return str(results), str(truth), [str(path) for path in frames], told("")

        return desk.run(work, lambda said: (None, None, None, told(said)))

    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            results = upload_box("Result of a tracker: MOTChallenge's .txt", height=110, elem_id="tracks-file")
            truth = upload_box("Ground truth (optional): gt.txt", height=110, elem_id="tracks-truth")
            frames = upload_box(
                "Frames (optional): pictures, a video",
                file_count="multiple",
                height=130,
                elem_id="tracks-frames",
            )
            benchmark = gr.Dropdown(list(SCORED_BY), value="auto", label="Rules of", elem_id="tracks-benchmark")
            rate = gr.Slider(0, 60, 0, step=1, label="Frames a second (0: the video's own, or 25)")
            skip = gr.Checkbox(False, label="Leave out rows that cannot be meant, and count them")
            with gr.Row():
                take = gr.Button("Take the example", elem_id="tracks-example")
                run = gr.Button("Show the tracks", variant="primary", elem_id="tracks-run")
        with gr.Column(scale=2, min_width=420):
            message = gr.HTML(visible=False, elem_id="tracks-message")
            video = gr.Video(
                label="Tracks", interactive=False, height=420, buttons=["download"], elem_id="tracks-video"
            )
            gr.HTML(f'<p class="sf-lead">{_LEGEND}</p>')
            tables = gr.HTML(elem_id="tracks-scores")
            downloads = gr.Files(label="Files", visible=False, interactive=False, elem_id="tracks-files")
    take.click(example, None, [results, truth, frames, message], **PRIVATE)
    run.click(
        show, [results, truth, frames, benchmark, rate, skip], [message, video, tables, downloads], **ONE_AT_A_TIME
    )
