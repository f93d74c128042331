"""`statefield app`: the browser app, on this machine."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from statefield.app.settings import DEFAULT_UPLOAD_BYTES, LOOPBACK, AppSettings
from statefield.cli.devices import device_of
from statefield.errors import ConfigError

_EPILOG = """
Three screens: a medical slice or volume with its mask; two dates of a place with a map of what changed; a tracker's
result as a video with its scores. Each has an example to try, and its files to download.

Models are those named here, and no browser can name another. Without --medical, runs/demo is taken where it is a run
(`make demo` makes it), and without --change runs/town; a screen without a model says how to make one.

The app answers to this machine alone unless --host says otherwise; whoever can reach that address can use it, since
there is no password. Uploads and results are in a private temporary folder that is removed at the end.

examples:
  statefield app
  statefield app --medical runs/demo --change runs/oscd
  statefield app --change MambaBCD_Tiny.pth --change-model mamba_bcd --port 8000
  statefield app --medical runs/a --medical runs/b --max-upload 2GB
"""
_FOUND_BY_ITSELF = {"medical": Path("runs/demo"), "change": Path("runs/town")}


def app(argv: list[str]) -> int:
    """Serve until Ctrl-C; returns 0."""
    options = _parser().parse_args(argv)
    settings = _settings(options)

    from statefield.app.serve import require_gradio, serving

    require_gradio()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was uploaded is removed then, too
    with serving(settings) as address:
        print(f"statefield app: {address}  (Ctrl-C ends it)", flush=True)
        if settings.host != LOOPBACK:
            print(f"Others who can reach {settings.host} can use it: there is no password.", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("\nstatefield app: ended; uploads and results are removed.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield app",
        description="Try models in a browser, on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--medical",
        type=Path,
        action="append",
        metavar="RUN",
        help="a run folder of `statefield medical train`; several times for an ensemble",
    )
    add("--change", type=Path, metavar="RUN", help="a run folder of `statefield change train`, or a file of weights")
    add("--change-model", metavar="NAME", help="with weights that do not say it: mamba_bcd, mamba_scd or mamba_bda")
    add("--host", default=LOOPBACK, help=f"the address to listen at (default: {LOOPBACK}, this machine alone)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--max-upload", metavar="SIZE", help="largest file that is let in (default: 200MB)")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def _settings(options: argparse.Namespace) -> AppSettings:
    if options.port is not None and not 0 < options.port < 65536:
        raise ConfigError(f"--port {options.port}: a number from 1 to 65535 is needed.")
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads {options.threads}: at least 1 is needed.")

    from statefield.datasets.readers.mapped import parse_size

    found = {name: path for name, path in _FOUND_BY_ITSELF.items() if (path / "weights.safetensors").is_file()}
    medical = options.medical or [path for name, path in found.items() if name == "medical"]
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    return AppSettings(
        medical=tuple(medical),
        change=options.change or found.get("change"),
        change_model=options.change_model,
        host=options.host,
        port=options.port,
        max_upload_bytes=DEFAULT_UPLOAD_BYTES if options.max_upload is None else parse_size(options.max_upload),
        device=str(device_of(options.device)),
    )
