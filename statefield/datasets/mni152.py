"""The embedded dataset: the ICBM152 T1 template with grey and white matter, as the pip package nilearn ships it.

One head, 197 x 233 x 189 voxels of 1 mm (MNI ICBM152 2009a symmetric, converted to 8 bit), so the cases are slabs of
axial slices. A voxel's label is the largest of three maps, the first on a tie: other (1 - grey - white), grey matter,
white matter.

Slabs, in slices of the template counted from inferior (slice k is at z = k - 72 mm); slices 10 to 149 are those in
which at least 1000 voxels are brain. Four slices are left out between a training slab and any other:

    train  10-21        40-53        72-85         106-118          137-149    66 slices, 61 %
    test          26-35        58-67                        123-132            30 slices, 28 %
    val                                     90-101                             12 slices, 11 %

Source: Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033; files of nilearn (BSD-3-Clause; the template itself
under the permissive licence of the McConnell Brain Imaging Centre).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np

from statefield.datasets.adapter import ADAPTERS, require_split
from statefield.datasets.readers.nifti import Volume, meta_of, read_volume
from statefield.datasets.sample import About, DatasetInfo, FileGeometry, Record, Sample
from statefield.datasets.splits import Split
from statefield.errors import ConfigError, DataError, DatasetLayoutError

CLASSES = ("other", "grey_matter", "white_matter")
CHANNELS = ("T1",)
SLABS: dict[Split, tuple[tuple[int, int], ...]] = {  # first and last slice, both included
    "train": ((10, 21), (40, 53), (72, 85), (106, 118), (137, 149)),
    "val": ((90, 101),),
    "test": ((26, 35), (58, 67), (123, 132)),
    "unlabelled": (),
}
_FILES = {
    "T1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "grey_matter": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "white_matter": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}


@dataclass(frozen=True)
class Mni152:
    """Axial slabs of the ICBM152 T1 template; `load` gives [1, D, H, W] with D = 10 to 14, H = 233, W = 197."""

    name = "mni152"
    embedded = True
    about = About(
        title="ICBM152 T1 template",
        task="grey and white matter, MR, one head",
        split="fixed slabs of axial slices, four slices apart",
        labels="the largest of three tissue maps",
        terms="permissive licence of the McConnell Brain Imaging Centre; the notice must stay",
        source="Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033; pip package nilearn",
    )
    layout = (
        "(nothing to arrange: the files come with `pip install nilearn`)\n"
        "nilearn/datasets/data/\n"
        "|-- mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz   the T1 image\n"
        "|-- mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz   grey matter, 0..255\n"
        "`-- mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz   white matter, 0..255"
    )

    def mismatch(self, root: Path) -> str | None:
        return "it is embedded: name it by layout='mni152' and give no folder"

    def describe(self, root: Path | None = None) -> DatasetInfo:
        template_files()
        return DatasetInfo(CLASSES, CHANNELS, spatial_dims=3)

    def records(self, root: Path | None, split: Split) -> list[Record]:
        require_split(split)
        if root is not None:
            raise ConfigError(f"{root}: the layout 'mni152' is embedded and reads no folder; leave the folder out.")
        files, info = template_files(), self.describe()
        if not SLABS[split]:
            raise DatasetLayoutError(f"mni152: the split {split!r} has no case: every slab is labelled.")
        return [
            Record(
                case=f"mni152_z{first:03d}-{last:03d}",
                images=(files["T1"],),
                mask=files["grey_matter"],
                info=info,
                extra={"white_matter": files["white_matter"], "first_slice": first, "last_slice": last},
            )
            for first, last in SLABS[split]
        ]

    def load(self, record: Record) -> Sample:
        if record.mask is None:
            raise ConfigError(f"{record.case}: a record of the mni152 layout names its grey-matter file as the mask.")
        volume, labels = _template(record.images[0], record.mask, record.extra["white_matter"])
        slab = _slab(volume, record.extra["first_slice"], record.extra["last_slice"])
        mask = labels[record.extra["first_slice"] : record.extra["last_slice"] + 1].astype(np.int64)
        return {
            "image": slab.array.astype(np.float32),
            "mask": mask,
            "meta": meta_of(slab, case=record.case, path=record.images[0]),
        }


ADAPTERS.register("mni152")(Mni152())


def template_files() -> dict[str, Path]:
    """The T1, grey- and white-matter files of the installed nilearn, found without importing it.

    Raises `DatasetLayoutError` when nilearn is not installed or does not hold the files.
    """
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetLayoutError(
            "the dataset mni152 reads files that the package nilearn ships, and nilearn is not installed: run "
            "`pip install nilearn`."
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    files = {kind: folder / name for kind, name in _FILES.items()}
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise DatasetLayoutError(
            f"{folder}: {', '.join(missing)} not found, which nilearn ships: run `pip install 'nilearn>=0.11'`."
        )
    return files


@lru_cache(maxsize=1)
def _template(t1: Path, grey: Path, white: Path) -> tuple[Volume, np.ndarray]:
    """The whole T1 with uint8 voxels, and its labels as uint8 [D, H, W]: 17 MB, decoded once for all slabs."""
    volume = read_volume(t1)
    if volume.file.orientation != ((0, 1), (1, 1), (2, 1)):  # the slabs' own affines are counted along the third axis
        raise DataError(f"{t1}: not in the orientation RAS in which nilearn ships it: install nilearn again.")
    # in 255ths, as integers: ties (the first map wins) must not be decided by rounding
    share = [read_volume(path).array[0].astype(np.int16) for path in (grey, white)]
    if any(part.shape != volume.array.shape[1:] for part in share):
        raise DataError(f"{grey}, {white}: not on the voxels of {t1}: install nilearn again.")
    labels = np.stack([255 - share[0] - share[1], *share]).argmax(axis=0).astype(np.uint8)
    return Volume(volume.array.astype(np.uint8), volume.affine, volume.spacing, volume.file), labels


def _slab(volume: Volume, first: int, last: int) -> Volume:
    """Slices first..last as a volume of their own, whose affine and header put it at its place in MNI space."""
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, 0]
    file_affine = volume.file.affine.copy()  # the template's file is RAS, so its third axis is D
    file_affine[:3, 3] += first * file_affine[:3, 2]
    shape = (*volume.file.shape[:2], last - first + 1)
    header = nib.Nifti1Header(volume.file.header)
    header.set_data_shape(shape)
    header.set_sform(file_affine, code=int(header["sform_code"]))
    geometry = FileGeometry(bytes(header.binaryblock), shape, file_affine, volume.file.orientation)
    return Volume(volume.array[:, first : last + 1], affine, volume.spacing, geometry)
