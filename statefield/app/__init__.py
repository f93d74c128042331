"""The browser app: a slice or volume, two dates of a place, a tracker's result; each goes in and comes back as pictures
and files. It holds no method of its own: it calls what the command line calls.

    settings.py   what the command line decides      medical_job.py    an image -> its labels, and slices to look at
    uploads.py    what may come in from a browser    change_job.py     two dates -> a map of change, drawn
    results.py    the private folder of a server     tracking_job.py   tracks -> a video, and their scores
    examples.py   inputs to try it with              *_screen.py       the screen of each, and page.py all three
    serve.py      the server                         page_parts.py     what the screens share

Needs the extra `app` (Gradio), which the page, its parts, the screens and the server import, and nothing else.
"""

from statefield.app.settings import AppSettings

__all__ = ["AppSettings"]
