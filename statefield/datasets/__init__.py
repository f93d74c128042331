"""Files on disk become typed samples. Adapters read and label, nothing more: resampling, tiling, normalising and
augmenting are visible steps elsewhere.

The names below are imported by the first use of one, and with them every layout (importing a layout files it in
ADAPTERS): readers that need none, such as those of tracks, then do not wait for the libraries of volumes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statefield.datasets.adapter import (
        ADAPTERS,
        DatasetAdapter,
        case_name,
        load_files,
        mismatches,
        open_dataset,
        recognise,
    )
    from statefield.datasets.sample import DatasetInfo, FileGeometry, Meta, Record, Sample
    from statefield.datasets.splits import SPLITS, Split, split_cases

_HOMES = {
    "ADAPTERS": "adapter",
    "DatasetAdapter": "adapter",
    "case_name": "adapter",
    "load_files": "adapter",
    "mismatches": "adapter",
    "open_dataset": "adapter",
    "recognise": "adapter",
    "DatasetInfo": "sample",
    "FileGeometry": "sample",
    "Meta": "sample",
    "Record": "sample",
    "Sample": "sample",
    "SPLITS": "splits",
    "Split": "splits",
    "split_cases": "splits",
}
# the general layouts come first where layouts are listed
_LAYOUTS = ("mni152", "msd", "nnunet", "pairs", "abdomen", "acdc", "acdc_h5", "chest", "drive", "isbi2012", "skin")

__all__ = [
    "ADAPTERS",
    "SPLITS",
    "DatasetAdapter",
    "DatasetInfo",
    "FileGeometry",
    "Meta",
    "Record",
    "Sample",
    "Split",
    "case_name",
    "load_files",
    "mismatches",
    "open_dataset",
    "recognise",
    "split_cases",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'statefield.datasets' has no attribute {name!r}")
    for layout in _LAYOUTS:
        import_module(f"statefield.datasets.{layout}")
    return getattr(import_module(f"statefield.datasets.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
