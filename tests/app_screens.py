"""The three screens of the app driven in a headless Chromium: by the tests, and for the pictures in the documents.

    python tests/app_screens.py --medical runs/demo --change runs/town --output docs/images

Chromium is that of STATEFIELD_CHROMIUM, or one on the PATH (Debian: apt install chromium), or Playwright's own
(playwright install chromium).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE_MS = 120_000  # for a net on a busy machine
VIEW = {"width": 1240, "height": 1000}


def chromium() -> str | None:
    """The program, or None where there is none."""
    named = os.environ.get("STATEFIELD_CHROMIUM")
    if named:
        return named
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is not None:
        return found
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


def why_no_browser() -> str | None:
    """Why the screens cannot be driven here, or None."""
    try:
        import gradio  # noqa: F401
        import playwright  # noqa: F401
    except ImportError as error:
        return f"the package {error.name} is not installed"
    if chromium() is None:
        return "no Chromium: apt install chromium, playwright install chromium, or name one in STATEFIELD_CHROMIUM"
    return None


@contextmanager
def served(words: list[str], folder: Path, end: signal.Signals) -> Iterator[str]:
    """`statefield app` with `words` in a process of its own, so that what Gradio leaves open ends with it; its address.

    At the end it gets the signal `end`, has to end well, and has to leave nothing in `folder`, its temporary one.
    """
    code = (
        "import signal, sys; from statefield.cli.main import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in the background of a shell
        "sys.exit(main(['app', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, "--device", "cpu", "--threads", "1", *words]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line, line
            yield line.split("app: ")[1].split()[0]
        finally:
            process.send_signal(end)
            code_at_end = process.wait(timeout=60)
    assert code_at_end == 0
    assert not list(folder.glob("statefield-app-*"))


@contextmanager
def open_page(address: str) -> Iterator[Any]:
    """A page of a fresh browser at `address`. `page.asked` lists the addresses that it asked for; `page.said` what its
    scripts complained of.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # the sandbox needs rights that containers do not give; the page is our own
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport=VIEW, accept_downloads=True, color_scheme="light")
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda line: page.said.append(line.text) if line.type == "error" else None)
        page.goto(address)
        page.get_by_role("tab", name="Tracks").wait_for()
        yield page
        browser.close()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def upload(page: Any, box: str, *files: Path | str) -> None:
    """Give files to an upload box, and wait until they are there."""
    page.locator(f"#{box} input[type=file]").set_input_files([str(path) for path in files])
    page.locator(f"#{box}").get_by_text(Path(files[0]).name[:6]).first.wait_for()


def press(page: Any, button: str) -> None:
    page.locator(f"#{button}").click()


def downloaded(page: Any, box: str, name: str, folder: Path) -> Path:
    """The file of a result whose name contains `name`."""
    with page.expect_download() as waiting:
        page.locator(f"#{box} a[download*='{name}']").first.click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def medical(page: Any, *files: Path) -> None:
    """Segment files, or the example where none are given."""
    tab(page, "Medical image")
    if files:
        upload(page, "medical-file", *files)
    else:
        press(page, "medical-example")
        page.locator("#medical-file").get_by_text("icbm152").first.wait_for()
    press(page, "medical-run")
    page.locator("#medical-picture img").or_(page.locator("#medical-message .sf-error")).first.wait_for()


def change(page: Any, *files: Path) -> None:
    """Map the change between two dates, or of the example."""
    tab(page, "Change between")
    if files:
        upload(page, "change-before", files[0])
        upload(page, "change-after", files[1])
    else:
        press(page, "change-example")
        page.locator("#change-after").get_by_text("town_after").first.wait_for()
    press(page, "change-run")
    page.locator("#change-map svg.sf-map").or_(page.locator("#change-message .sf-error")).first.wait_for()


def tracks(page: Any, *files: Path) -> None:
    """Show a tracker's result, its ground truth and frames, or the example."""
    tab(page, "Tracks")
    if files:
        upload(page, "tracks-file", files[0])
        if len(files) > 1:
            upload(page, "tracks-truth", files[1])
        if len(files) > 2:
            upload(page, "tracks-frames", *files[2:])
    else:
        press(page, "tracks-example")
        page.locator("#tracks-frames").get_by_text("000060").first.wait_for()
    press(page, "tracks-run")
    page.locator("#tracks-scores table").or_(page.locator("#tracks-message .sf-error")).first.wait_for()


def video_in(page: Any) -> dict[str, float]:
    """Width, height (pixels) and seconds of the video, once the browser has decoded its beginning."""
    page.wait_for_function("document.querySelector('#tracks-video video')?.readyState >= 2", timeout=_PATIENCE_MS)
    return page.evaluate(
        "() => { const v = document.querySelector('#tracks-video video');"
        " return {width: v.videoWidth, height: v.videoHeight, seconds: v.duration}; }"
    )


def show_moment(page: Any, second: float) -> None:
    """Put the video at a moment, for a picture of it."""
    page.evaluate(
        "(s) => new Promise((done) => { const v = document.querySelector('#tracks-video video');"
        " v.onseeked = () => done(); v.currentTime = s; })",
        second,
    )


def picture(page: Any, path: Path) -> Path:
    """A screenshot of the whole page, in few colours so that it stays small."""
    page.wait_for_timeout(700)  # for the page's own transitions
    page.screenshot(path=path, full_page=True, animations="disabled")
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    return path


def main() -> None:
    """Make the pictures of docs/app.md."""
    from statefield.app.serve import serving
    from statefield.app.settings import AppSettings

    parser = argparse.ArgumentParser(description="Screenshots of the app's three screens.")
    parser.add_argument("--medical", type=Path, required=True)
    parser.add_argument("--change", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with serving(AppSettings(medical=(options.medical,), change=options.change)) as address, open_page(address) as page:
        tracks(page)
        video_in(page)
        show_moment(page, 1.09)  # one is missed, and one is nobody
        print(picture(page, options.output / "app_tracks.png"))
        change(page)
        print(picture(page, options.output / "app_change.png"))
        medical(page)
        print(picture(page, options.output / "app_medical.png"))


if __name__ == "__main__":
    main()
