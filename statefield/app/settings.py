"""What the command line decides, and no browser can change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
DEFAULT_UPLOAD_BYTES = 200_000_000


@dataclass(frozen=True)
class AppSettings:
    """Where models are, and what is let in.

    Args:
        medical: run folders of `statefield medical train`; several are an ensemble; none: the screen says how to make
            one.
        change: a run folder of `statefield change train`, or a file of weights.
        change_model: the net of a file of weights that does not say it: mamba_bcd, mamba_scd or mamba_bda.
        host: the address to listen at. port: None: the first free one from 7860 on.
        max_upload_bytes: of one file.
        device: where nets run, as torch names it.
    """

    medical: tuple[Path, ...] = ()
    change: Path | None = None
    change_model: str | None = None
    host: str = LOOPBACK
    port: int | None = None
    max_upload_bytes: int = DEFAULT_UPLOAD_BYTES
    device: str = "cpu"
