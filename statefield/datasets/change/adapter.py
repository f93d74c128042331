"""What every layout of image pairs offers, and the table of them. It is a table of its own, so that a folder of single
images is never offered to a layout of pairs, nor the other way round.

adapter, info = open_change_dataset("data/LEVIR-CD")
sample = adapter.load(adapter.records(Path("data/LEVIR-CD"), "train")[0])
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from statefield.datasets.adapter import Layout, choose_layout
from statefield.datasets.sample import ChangeInfo, ChangeSample, Record
from statefield.datasets.splits import Split
from statefield.registry import Registry


@runtime_checkable
class ChangeAdapter(Layout, Protocol):
    """As `DatasetAdapter`, of pairs: `images` of a record are the first date's files, `after` the second's."""

    def describe(self, root: Path | None) -> ChangeInfo:
        """Classes and channels; may read the header of an image."""

    def records(self, root: Path | None, split: Split) -> list[Record]:
        """The pairs of one split, sorted by name; looks at names (and at headers, of rasters that are read in tiles).

        Raises `DatasetLayoutError` when a file is missing, and its `EmptySplit` when the split has no case.
        """

    def load(self, record: Record) -> ChangeSample:
        """Read one pair's files, nothing else."""


CHANGE_ADAPTERS: Registry[ChangeAdapter] = Registry("change dataset layout")


def open_change_dataset(
    root: str | os.PathLike[str] | None, layout: str = "auto", options: Mapping[str, Any] | None = None
) -> tuple[ChangeAdapter, ChangeInfo]:
    """The adapter for the pairs at `root`, and what the dataset says of itself; as `open_dataset`, errors included."""
    folder = None if root is None else Path(root)
    adapter = choose_layout(folder, layout, options, CHANGE_ADAPTERS)
    return adapter, adapter.describe(folder)
