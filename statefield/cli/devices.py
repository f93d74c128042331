"""The options `--device` and `--threads`, for every command that runs a net."""

from __future__ import annotations

from typing import TYPE_CHECKING

from statefield.errors import ConfigError

if TYPE_CHECKING:
    import torch


def device_of(name: str) -> torch.device:
    """The device of a name, "auto" being a GPU where there is one; `ConfigError` for one that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r} is no device: auto, cpu, cuda or cuda:N is needed.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: {torch.cuda.device_count()} GPUs are usable here. `statefield doctor` says why; "
            "--device cpu works everywhere."
        )
    return device
