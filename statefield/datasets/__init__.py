"""Files on disk become typed samples. Adapters read and label, nothing more: resampling, tiling, normalising and
augmenting are visible steps elsewhere.
"""

from statefield.datasets import (  # noqa: F401  importing a layout files it in ADAPTERS
    abdomen,
    acdc,
    acdc_h5,
    chest,
    drive,
    isbi2012,
    mni152,
    msd,
    nnunet,
    pairs,
    skin,
)
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
