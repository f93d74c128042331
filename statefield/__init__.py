"""statefield: dense prediction with vision state-space models, on CPU or GPU.

Importing the package is cheap: torch and timm are imported by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statefield.backbones import create_model, list_models
    from statefield.backbones.checkpoints import load_checkpoint

    __version__: str

_HOMES = {
    "create_model": "statefield.backbones",
    "list_models": "statefield.backbones",
    "load_checkpoint": "statefield.backbones.checkpoints",
}
__all__ = ["__version__", "create_model", "list_models", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":  # looked up when asked for: the look-up takes longer than some commands
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("statefield")
        except PackageNotFoundError:  # a source tree on the path, never installed
            return "0+uninstalled"
    raise AttributeError(f"module 'statefield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
