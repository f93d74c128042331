"""NIfTI volumes whose voxels stay on disk: mapped into memory and read some slices at a time.

Values, checks and geometry are those of `nifti.read_volume`. A compressed file is unpacked once into a temporary file;
how much that may be is what its header announces, which is checked against the disk first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers import nifti
from statefield.datasets.readers.mapped import MappedArray, Workspace
from statefield.datasets.sample import Meta
from statefield.errors import DataError, ShapeError

_CHUNK = 16 << 20


@dataclass(frozen=True, eq=False)
class MappedVolume:
    """A case on disk. shape: (C, D, H, W). `volumes`: one per file, their arrays views of the raw voxels."""

    paths: tuple[Path, ...]
    volumes: tuple[nifti.Volume, ...]
    scalings: tuple[tuple[float, float], ...]
    meta: Meta

    @property
    def shape(self) -> tuple[int, int, int, int]:
        depth, height, width = self.volumes[0].array.shape[1:]
        return sum(len(volume.array) for volume in self.volumes), depth, height, width

    def read(self, channel: int, start: int, stop: int) -> NDArray[np.float32]:
        """Slices start..stop of a channel, float32 [stop - start, H, W], in the file's units.

        Raises: DataError: NaN or infinite voxels among them.
        """
        number = 0
        while channel >= len(self.volumes[number].array):
            channel -= len(self.volumes[number].array)
            number += 1
        raw, (slope, inter) = self.volumes[number].array[channel, start:stop], self.scalings[number]
        if (slope, inter) == (1.0, 0.0):
            values = np.ascontiguousarray(raw, dtype=np.float32)
        else:
            values = (np.ascontiguousarray(raw, dtype=np.float64) * slope + inter).astype(np.float32)
        if not np.isfinite(values).all():
            raise DataError(
                f"{self.paths[number]}: {int((~np.isfinite(values)).sum())} voxels of the slices {start} to {stop - 1} "
                "are NaN or infinite; finite values are needed. Replace them (say, by the background's value)."
            )
        return values


def map_case(paths: Sequence[Path], workspace: Workspace, *, case: str) -> MappedVolume:
    """A case of one NIfTI file per channel, or of one that holds all channels, without reading it.

    Args:
        workspace: where a compressed file is unpacked; it owns the mapping and ends it.

    Raises:
        DataError: truncated, damaged, of a dtype that is no scalar, or larger than the disk has room for.
        ShapeError: files on different grids.
    """
    volumes, scalings = [], []
    for path in paths:
        header, voxels = _mapped(path, workspace)
        if voxels.dtype.kind not in "biuf":
            raise DataError(f"{path}: voxels of type {voxels.dtype} found; a scalar integer or float type is needed.")
        volumes.append(nifti.canonical_view(path, header, voxels))
        scalings.append(nifti.scaling(path, header))
        reason = nifti.same_place(volumes[0], volumes[-1])
        if reason is not None:
            raise ShapeError(
                f"{paths[0]} and {path}: channels must be on the same voxels, but {reason}. Resample one to the "
                "other's grid, or pair the right files."
            )
    meta = nifti.meta_of(volumes[0], case=case, path=paths[0])
    return MappedVolume(tuple(paths), tuple(volumes), tuple(scalings), meta)


def stored_size(path: Path) -> tuple[int, np.dtype]:
    """How many values a file's header announces, and their type; nothing else is read."""
    with nifti.opened(path) as stream:
        header, shape = nifti.read_header(path, stream)
    return math.prod(shape), header.get_data_dtype()


def _mapped(path: Path, workspace: Workspace) -> tuple[nifti.NiftiHeader, np.ndarray]:
    with nifti.opened(path) as stream:
        header, shape = nifti.read_header(path, stream)
        dtype, offset = header.get_data_dtype(), int(header["vox_offset"])
        expected = math.prod(shape) * dtype.itemsize
        nifti.require_file_size(path, shape, dtype)
        if path.name.lower().endswith(".gz"):
            unpacked = workspace.reserve(expected, f"{path}, unpacked to {nifti.size_in_words(shape, dtype)},")
            stream.read(offset - len(header.binaryblock))
            found = 0
            with unpacked.open("r+b") as target:
                while found < expected and (part := stream.read(min(_CHUNK, expected - found))):
                    found += target.write(part)
            trailing = len(stream.read(nifti.TRAILING_BYTES_ALLOWED + 1))
            source, offset = unpacked, 0
        else:
            source, after = path, path.stat().st_size - offset
            found, trailing = min(after, expected), max(after - expected, 0)
    nifti.require_all_voxels(path, found, trailing, shape, dtype)
    mapped = MappedArray(source, shape, dtype, offset=offset, order="F")
    return header, workspace.keep(mapped).array
