"""Volumes from files that state neither spacing nor place (HDF5, npz, stacks of pictures)."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np

from statefield.datasets.sample import FileGeometry, Meta


def meta_of(path: str | os.PathLike[str], *, case: str, shape: tuple[int, ...]) -> Meta:
    """The meta of an array [D, H, W] whose spacing and orientation are unknown.

    Its axes are taken as they are stored, 1.0 stands for a voxel, and predictions are written as NIfTI of unit voxels
    with the same axes: file (x, y, z) is array (w, h, d).
    """
    in_file = (shape[2], shape[1], shape[0])
    header = nib.Nifti1Header()
    header.set_data_shape(in_file)
    header.set_zooms((1.0, 1.0, 1.0))
    header.set_sform(np.eye(4), code=1)  # without a code, NIfTI would mirror the first axis
    header.set_qform(np.eye(4), code=1)
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    geometry = FileGeometry(bytes(header.binaryblock), in_file, affine, ((0, 1), (1, 1), (2, 1)))
    return {
        "case": case,
        "path": str(path),
        "spacing": (1.0, 1.0, 1.0),
        "spacing_known": False,
        "affine": affine[:, [2, 1, 0, 3]],
        "file": geometry,
    }
