"""Files on disk become typed samples. Adapters read and label, nothing more: resampling, tiling, normalising and
augmenting are visible steps elsewhere.
"""

# importing a layout files it in ADAPTERS; the general ones come first where layouts are listed
from statefield.datasets import mni152, msd, nnunet, pairs  # noqa: F401

# isort: split
from statefield.datasets import abdomen, acdc, acdc_h5, chest, drive, isbi2012, skin  # noqa: F401
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
