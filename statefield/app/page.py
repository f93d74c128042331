"""The page: three screens under one heading."""

from __future__ import annotations

import gradio as gr

from statefield.app.change_job import ChangeJob
from statefield.app.change_screen import add_change_screen
from statefield.app.medical_job import MedicalJob
from statefield.app.medical_screen import add_medical_screen
from statefield.app.page_parts import Desk
from statefield.app.tracking_screen import add_tracking_screen

_HOUR = 3600  # seconds
_HEADING = "# statefield\nDense prediction with vision state-space models. What is given stays on this machine."


def build_page(medical: MedicalJob | None, change: ChangeJob | None, desk: Desk) -> gr.Blocks:
    """The page, not yet served; a screen without a job says how to make a model."""
    with gr.Blocks(title="statefield", analytics_enabled=False, delete_cache=(_HOUR, 6 * _HOUR)) as page:
        gr.Markdown(_HEADING)
        with gr.Tab("Medical image"):
            add_medical_screen(medical, desk)
        with gr.Tab("Change between two dates"):
            add_change_screen(change, desk)
        with gr.Tab("Tracks"):
            add_tracking_screen(desk)
    return page
