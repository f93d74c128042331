"""Pairs of images of one place, and what has changed between them."""

# importing a layout files it in CHANGE_ADAPTERS; the general one comes first where layouts are listed
import statefield.datasets.change.pairs

# isort: split
import statefield.datasets.change.oscd
import statefield.datasets.change.second
import statefield.datasets.change.sztaki
import statefield.datasets.change.tile_sets
import statefield.datasets.change.whu
import statefield.datasets.change.xbd  # noqa: F401
from statefield.datasets.change.adapter import CHANGE_ADAPTERS, ChangeAdapter, open_change_dataset
from statefield.datasets.sample import ChangeInfo, ChangeSample

__all__ = ["CHANGE_ADAPTERS", "ChangeAdapter", "ChangeInfo", "ChangeSample", "open_change_dataset"]
