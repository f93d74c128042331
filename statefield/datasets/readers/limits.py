"""How much memory one decoded file may take: a header of a few bytes can claim any size."""

from __future__ import annotations

import os
from pathlib import Path

from statefield.errors import ConfigError, DataError

LIMIT_VARIABLE = "STATEFIELD_MEMORY_LIMIT_GB"
DEFAULT_LIMIT_GB = 8.0


def memory_limit_bytes() -> int:
    """The limit for one decoded file: `STATEFIELD_MEMORY_LIMIT_GB`, or 8 GB."""
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GB))
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = 0.0
    if not 0 < limit_gb < 1e6:
        raise ConfigError(f"{LIMIT_VARIABLE}={text!r} is no size: give a number of gigabytes above 0, such as 16.")
    return int(limit_gb * 1e9)


def require_memory(path: str | os.PathLike[str], needed_bytes: int, what: str) -> None:
    """Raise `DataError` when decoding `path` would pass the limit; `what` says which size its header claims."""
    limit = memory_limit_bytes()
    if needed_bytes > limit:
        raise DataError(
            f"{Path(path)}: its header claims {what}, which takes {needed_bytes / 1e9:.3g} GB decoded; the limit is "
            f"{limit / 1e9:.3g} GB. If the file really is that large, set {LIMIT_VARIABLE}; if not, it is damaged."
        )
