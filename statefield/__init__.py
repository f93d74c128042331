"""statefield: dense prediction with vision state-space models, on CPU or GPU.

Importing the package is cheap: torch and timm are imported by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statefield.backbones import create_model, list_models
    from statefield.backbones.checkpoints import load_checkpoint

try:
    __version__ = version("statefield")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+uninstalled"

_HOMES = {
    "create_model": "statefield.backbones",
    "list_models": "statefield.backbones",
    "load_checkpoint": "statefield.backbones.checkpoints",
}
__all__ = ["__version__", "create_model", "list_models", "load_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'statefield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
