"""The server of the page: loopback unless told otherwise, nothing shared, nothing fetched, no word to anybody else."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from statefield.app.results import ResultFolders
from statefield.app.settings import AppSettings
from statefield.app.uploads import Uploads
from statefield.errors import ConfigError


def require_gradio() -> None:
    """`ConfigError` where the extra is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the browser app needs Gradio, which is not installed: pip install 'statefield[app]'.")


@contextmanager
def serving(settings: AppSettings) -> Iterator[str]:
    """Load the models, serve the page, and yield its address; the server and its files are gone after the block.

    Raises: ConfigError without Gradio, or for a port that is taken; and what the loaders of the models raise.
    """
    require_gradio()
    folders = ResultFolders()
    # read by Gradio when it is imported and at every upload; no other folder of uploads exists
    os.environ.update(GRADIO_TEMP_DIR=str(folders.uploads), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    try:
        from statefield.app.change_job import ChangeJob
        from statefield.app.medical_job import MedicalJob

        medical = MedicalJob(settings.medical, settings.device) if settings.medical else None
        change = ChangeJob(settings.change, settings.device, settings.change_model) if settings.change else None
        import gradio as gr  # once the models are known to be good

        from statefield.app.page import build_page
        from statefield.app.page_parts import CSS, Desk

        desk = Desk(Uploads(folders.uploads, settings.max_upload_bytes), folders)
        page = build_page(medical, change, desk)
        plain = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # Gradio's own come from another server
        try:
            _, address, _ = page.queue(max_size=32).launch(
                server_name=settings.host,
                server_port=settings.port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=settings.max_upload_bytes,
                footer_links=[],
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                css=CSS,
                theme=gr.themes.Default(primary_hue="teal", font=plain[0], font_mono=plain[1]),
                app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
            )
        except OSError as error:
            raise ConfigError(
                f"--host {settings.host} --port {settings.port or 'free'}: the app cannot listen there ({error}). Name "
                "another port, or an address of this machine."
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)
    finally:
        folders.remove()
