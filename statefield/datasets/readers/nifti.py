"""NIfTI volumes in, NIfTI label maps out, with the geometry kept exactly.

Legend: file order (X, Y, Z[, C]) as stored; array order [C, D, H, W] or [D, H, W] as used here. The array is the file
turned to the nearest canonical axes (x to the right, y to the anterior, z to the superior) with the axes reversed: a
permutation and flips, no interpolation, so the way back (`restore`) is exact.

A file is judged by its header before its voxels are decoded: the bytes it must hold, and the memory they will take.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.sample import UNLABELLED, FileGeometry, Meta
from statefield.errors import ConfigError, DataError, LabelError, ShapeError
from statefield.files import atomic_path

logger = logging.getLogger(__name__)
# nibabel prints what it finds in a header before the error, or the mend, that says it
_UNHEARD = logging.getLogger(f"{__name__}.nibabel")
_UNHEARD.addHandler(logging.NullHandler())
_UNHEARD.propagate = False

SUFFIXES = (".nii.gz", ".nii")
AFFINE_TOLERANCE = 1e-3  # largest difference between two affines' entries that still counts as the same place
TRAILING_BYTES_ALLOWED = 1 << 20  # some writers pad the end of a file
_LARGEST_DEFLATE_RATIO = 1032  # what zlib can pack into a byte
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's spatial units: unknown (taken as mm), m, mm, micron
_CANONICAL = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])

NiftiHeader = nib.Nifti1Header | nib.Nifti2Header


@dataclass(frozen=True, eq=False)
class Volume:
    """A decoded file. array: [C, D, H, W], C = 1 for a 3-D file; affine: float64 [4, 4] of (d, h, w) to mm."""

    array: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float, float]
    file: FileGeometry


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """The image of a `.nii` or `.nii.gz` file as float32 [C, D, H, W], its last file axis (if 4-D) being the channels.

    Raises:
        DataError: truncated, damaged, larger than the memory limit, of a dtype that is no scalar, with an affine that
            cannot be inverted, or with NaN or infinite voxels.
    """
    path = Path(path)
    header, voxels = _decode(path)
    if voxels.dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels of type {voxels.dtype} found; a scalar integer or float type is needed.")
    slope, inter = scaling(path, header)
    if (slope, inter) == (1.0, 0.0):
        values = voxels.astype(np.float32)
    else:
        values = (voxels.astype(np.float64) * slope + inter).astype(np.float32)
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))
        raise DataError(
            f"{path}: {len(bad)} of {values.size} voxels are NaN or infinite, the first at index "
            f"{tuple(int(i) for i in bad[0])}; finite values are needed. Replace them (say, by the background's value)."
        )
    return _canonical(path, header, values)


def read_labels(
    path: str | os.PathLike[str], num_classes: int | None = None, *, unlabelled: int | None = None
) -> Volume:
    """The label map of a NIfTI file as int64 [1, D, H, W]; with `num_classes`, values must be below it.

    `unlabelled` is the file's value for voxels without a label (an ignore label); they become `UNLABELLED`.

    Raises:
        LabelError: values that are no integers, negative ones, or ones outside the classes.
        DataError: as `read_volume`, or a file with more than three axes.
    """
    path = Path(path)
    header, voxels = _decode(path)
    if len(voxels.shape) > 3:
        raise DataError(
            f"{path}: a label map of shape {voxels.shape} found; three axes are needed, one integer per voxel. "
            "One-hot or probability maps must be turned into label values first."
        )
    slope, inter = scaling(path, header)
    values = voxels if (slope, inter) == (1.0, 0.0) else voxels.astype(np.float64) * slope + inter
    return _canonical(path, header, integer_labels(path, values, num_classes, unlabelled=unlabelled))


def integer_labels(
    path: str | os.PathLike[str], values: np.ndarray, num_classes: int | None = None, *, unlabelled: int | None = None
) -> np.ndarray:
    """`values` as int64, after checking that they are label values of `num_classes` classes (any count if None).

    Places that hold `unlabelled` become `UNLABELLED` and are not checked.
    """
    if values.dtype.kind not in "biuf":
        raise LabelError(f"{path}: labels of type {values.dtype} found; integers are needed.")
    with np.errstate(invalid="ignore"):  # a float beyond int64 shows as a difference below
        labels = values.astype(np.int64) if values.dtype.kind != "f" or np.isfinite(values).all() else None
    if labels is None or (values.dtype.kind == "f" and not np.array_equal(labels, values)):
        odd = values[~np.isfinite(values)] if labels is None else values[labels != values]
        raise LabelError(
            f"{path}: {odd.size} label values are no integers, such as {_some(np.unique(odd))}; whole numbers are "
            "needed. Was the label map resampled with interpolation? Resample it with nearest neighbour."
        )
    if values.dtype.kind == "f":
        _tell_of_floats(Path(path).parent, str(values.dtype))
    known = labels if unlabelled is None else labels[labels != unlabelled]
    low, high = (int(known.min()), int(known.max())) if known.size else (0, 0)
    if low < 0 or (num_classes is not None and high >= num_classes):
        found = np.unique(known)
        outside = found[(found < 0) | (found >= (num_classes if num_classes is not None else high + 1))]
        allowed = f"0 to {num_classes - 1}" if num_classes is not None else "0 and above"
        count = int(np.isin(known, outside).sum())
        raise LabelError(
            f"{path}: label values {_some(outside)} found in {count} places; the declared classes are {allowed}. "
            "Correct the labels, or declare the classes that are missing."
        )
    if unlabelled is not None:
        labels[labels == unlabelled] = UNLABELLED
    return labels


@lru_cache(maxsize=1024)  # once a folder
def _tell_of_floats(folder: Path, dtype: str) -> None:
    logger.warning("%s: labels are stored as %s; all are whole numbers and read as such", folder, dtype)


def same_place(first: Volume, second: Volume) -> str | None:
    """Why the two grids are not the same voxels (shape or affine), or None when they are."""
    if first.array.shape[1:] != second.array.shape[1:]:
        return f"shapes (D, H, W) {first.array.shape[1:]} and {second.array.shape[1:]} differ"
    difference = float(np.abs(first.affine - second.affine).max())
    if difference > AFFINE_TOLERANCE:
        return (
            f"affines differ by up to {difference:.4g} (allowed: {AFFINE_TOLERANCE:g}): origins "
            f"{_row(first.affine[:3, 3])} and {_row(second.affine[:3, 3])}, spacings {_row(first.spacing)} and "
            f"{_row(second.spacing)}"
        )
    return None


def restore(array: np.ndarray, meta: Meta) -> np.ndarray:
    """A canonical array in the axis order and directions of the file it came from: the exact inverse of reading.

    Args:
        array: [D, H, W], or [K, D, H, W] whose K becomes the last axis, as NIfTI has it.

    Raises:
        ConfigError: the case did not come from a NIfTI file.
        ShapeError: the spatial shape is not the file's.
    """
    geometry = _geometry(meta)
    array = np.asarray(array)
    if array.ndim not in (3, 4):
        raise ShapeError(
            f"an array of shape {array.shape} given for {meta['case']}; [D, H, W] or [K, D, H, W] is needed."
        )
    xyz = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    xyz = xyz.transpose(2, 1, 0, *range(3, xyz.ndim))
    orientation = np.array(geometry.orientation, dtype=np.float64)
    in_file = apply_orientation(xyz, ornt_transform(_CANONICAL, orientation))
    shape3 = geometry.shape + (1,) * (3 - len(geometry.shape))
    if in_file.shape[:3] != shape3:
        raise ShapeError(
            f"an array of shape {array.shape} given for {meta['case']}: in file order it is {in_file.shape[:3]}, but "
            f"{meta['path']} has {shape3}. Give the array at the image's own size, [D, H, W]."
        )
    return in_file.reshape(*geometry.shape, *in_file.shape[3:])


def write_nifti(path: str | os.PathLike[str], labels: np.ndarray, meta: Meta) -> None:
    """Write label values [D, H, W] as a NIfTI that lies exactly on the case's image, whole or not at all.

    Affine, shape, units, sform and qform with their codes are the image file's; the voxel type is the smallest of
    uint8, int16 and int32 that holds the values.

    Raises:
        ConfigError: the case did not come from a NIfTI file, or `path` ends neither in .nii nor .nii.gz.
        LabelError: values that are no integers >= 0.
        ShapeError: the shape is not the image's.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"{path}: a name that ends in .nii or .nii.gz is needed to write a volume.")
    labels = np.asarray(labels)
    # unsigned labels are what they must be already, and may be mapped from a file
    values = restore(labels if labels.dtype.kind in "bu" else integer_labels(path, labels), meta)
    if values.ndim != len(_geometry(meta).shape):
        raise ShapeError(f"{path}: labels of shape {np.shape(labels)} given; [D, H, W] is needed.")
    dtype = next(
        (np.dtype(t) for t in (np.uint8, np.int16, np.int32) if int(values.max(initial=0)) <= np.iinfo(t).max), None
    )
    if dtype is None:
        raise LabelError(
            f"{path}: label value {values.max()} found; values up to {np.iinfo(np.int32).max} can be written."
        )
    write_voxels(path, values, _geometry(meta), dtype=dtype, description="labels")


def write_voxels(path: Path, values: np.ndarray, geometry: FileGeometry, *, dtype: np.dtype, description: str) -> None:
    """Write `values` in the file's axis order under the image's own header, plane by plane, whole or not at all.

    The header is cleared of what described intensities. Memory holds one plane of the first two axes beside `values`,
    which may be mapped from a file.
    """
    is_nifti2 = len(geometry.header) == nib.Nifti2Header.template_dtype.itemsize
    header = (nib.Nifti2Header if is_nifti2 else nib.Nifti1Header)(geometry.header)
    header.set_data_dtype(dtype)
    header.set_data_shape(values.shape)
    for name in ("cal_max", "cal_min", "vox_offset", "scl_slope", "scl_inter"):
        header[name] = 0
    header["descrip"] = description.encode()
    header["aux_file"] = b""
    header.set_intent("none")
    # an image without voxels of its own sets the fields that depend on them; the header's own best affine is given, so
    # that nibabel keeps sform and qform as they are
    nothing = np.broadcast_to(np.zeros((), dtype), values.shape)
    header = (nib.Nifti2Image if is_nifti2 else nib.Nifti1Image)(nothing, header.get_best_affine(), header).header
    header.set_slope_inter(1, 0)
    with atomic_path(path) as partial, ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(partial.open("wb"))
        if path.name.endswith(".gz"):
            # no time and no name: the same labels give the same bytes
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=stream, mtime=0)
            stream = cast(IO[bytes], stack.enter_context(packed))
        header.write_to(stream)
        stored = header.get_data_dtype()
        for index in np.ndindex(values.shape[:1:-1]):  # the last axis is the slowest in the file
            plane = values[(slice(None), slice(None), *reversed(index))]
            stream.write(np.asarray(plane, dtype=stored).tobytes(order="F"))


def meta_of(volume: Volume, *, case: str, path: str | os.PathLike[str]) -> Meta:
    """The meta of a case whose image is `volume`."""
    return {
        "case": case,
        "path": str(path),
        "spacing": volume.spacing,
        "spacing_known": True,
        "affine": volume.affine,
        "file": volume.file,
    }


def _canonical(path: Path, header: NiftiHeader, values: np.ndarray) -> Volume:
    """`values` [X, Y, Z(, C)] turned to [C, D, H, W], with its affine."""
    turned = canonical_view(path, header, values)
    return replace(turned, array=np.ascontiguousarray(turned.array))


def canonical_view(path: Path, header: NiftiHeader, values: np.ndarray) -> Volume:
    """As `_canonical`, but the array is a view of `values`, which may be mapped from a file."""
    shape3 = values.shape[:3]
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except HeaderDataError as error:
        raise DataError(
            f"{path}: the header gives its voxels no place or size ({error}). Save it with a valid sform or qform."
        ) from error
    orientation = _orientation(affine)
    if orientation is None:
        raise DataError(
            f"{path}: the affine {affine[:3].tolist()} cannot be inverted, so its voxels have no place or size; an "
            "affine with three independent axes is needed. Save the file again with a valid sform or qform."
        )
    turned = apply_orientation(values, orientation)
    affine_xyz = affine @ inv_ornt_aff(orientation, shape3)
    affine_dhw = affine_xyz[:, [2, 1, 0, 3]]
    mm_per_unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    affine_dhw[:3] *= mm_per_unit
    array = turned.transpose(*range(3, turned.ndim), 2, 1, 0)
    # rounded to a nanometre: headers hold float32, in which 0.8 mm is 0.800000012
    d_mm, h_mm, w_mm = (round(float(length), 6) for length in np.linalg.norm(affine_dhw[:3, :3], axis=0))
    num_axes = min(3, max(2, int(header["dim"][0])))
    geometry = FileGeometry(
        header=bytes(header.binaryblock),
        shape=tuple(int(n) for n in shape3[:num_axes]),
        affine=affine,
        orientation=tuple((int(axis), int(flip)) for axis, flip in orientation),
    )
    return Volume(array if array.ndim == 4 else array[None], affine_dhw, (d_mm, h_mm, w_mm), geometry)


def _orientation(affine: np.ndarray) -> np.ndarray | None:
    """nibabel's orientation array of a sound affine, or None: an axis without length, or in the plane of the others."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        return None
    orientation = io_orientation(affine)
    return None if np.isnan(orientation).any() else orientation


def num_channels_of(path: str | os.PathLike[str]) -> int:
    """The length of the channel axis (1 for a 3-D file), from the header alone."""
    path = Path(path)
    with opened(path) as stream:
        shape = read_header(path, stream)[1]
    return shape[3] if len(shape) == 4 else 1


def _decode(path: Path) -> tuple[NiftiHeader, np.ndarray]:
    """The header and the raw voxels [X, Y, Z] or [X, Y, Z, C] of a file, no more than its header announces."""
    with opened(path) as stream:
        return _decode_stream(path, stream)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked. Raises: DataError for another kind of file, and for damage met while reading."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: a NIfTI file in one piece is needed, its name ending in .nii or .nii.gz.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: the file cannot be opened ({error.strerror}): check its permissions.") from error
    try:
        with file:
            if path.name.lower().endswith(".gz"):
                with gzip.open(file) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the compressed data is cut off or damaged ({error}). Copy or download the file again."
        ) from error


def _decode_stream(path: Path, stream: IO[bytes]) -> tuple[NiftiHeader, np.ndarray]:
    header, shape = read_header(path, stream)
    dtype = header.get_data_dtype()
    num_values = math.prod(shape)
    expected = num_values * dtype.itemsize
    require_memory(path, max(num_values * 4, expected), size_in_words(shape, dtype))
    require_file_size(path, shape, dtype)
    stream.read(int(header["vox_offset"]) - len(header.binaryblock))  # header extensions
    raw = stream.read(expected)
    require_all_voxels(path, len(raw), len(stream.read(TRAILING_BYTES_ALLOWED + 1)), shape, dtype)
    return header, np.frombuffer(raw, dtype=dtype).reshape(shape, order="F")


def size_in_words(shape: Sequence[int], dtype: np.dtype) -> str:
    """What a header announces, for messages."""
    return f"{' x '.join(map(str, shape))} voxels of {dtype}"


def require_file_size(path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise `DataError` when the file on disk is too small to hold what its header announces, before room is made."""
    size, expected = path.stat().st_size, math.prod(shape) * dtype.itemsize
    packed = path.name.lower().endswith(".gz")
    if expected > size * (_LARGEST_DEFLATE_RATIO if packed else 1):
        raise DataError(
            f"{path}: its header claims {size_in_words(shape, dtype)}, {expected} bytes, but the file has only {size}"
            f"{' (and unpacks to 1032 times that at most)' if packed else ''}: it is cut off, or its header is "
            "damaged. Copy or download it again."
        )


def require_all_voxels(path: Path, found: int, trailing: int, shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise `DataError` unless the bytes found are what the header announces, with few `trailing` after them."""
    expected, size = math.prod(shape) * dtype.itemsize, size_in_words(shape, dtype)
    if found < expected:
        raise DataError(
            f"{path}: {found} bytes of voxels found, {expected} needed for {size}: the file is cut off. "
            "Copy or download it again."
        )
    if trailing > TRAILING_BYTES_ALLOWED:
        raise DataError(
            f"{path}: more than {TRAILING_BYTES_ALLOWED} bytes follow the {expected} that {size} need: the header's "
            "dimensions do not match the file. Save it again from its source."
        )
    if trailing:
        logger.warning("%s: %d bytes after the voxels are ignored", path, trailing)


def read_header(path: Path, stream: IO[bytes]) -> tuple[NiftiHeader, tuple[int, ...]]:
    """The header, and the shape [X, Y, Z] or [X, Y, Z, C] that it announces; leaves the stream behind the header."""
    raw = stream.read(nib.Nifti1Header.template_dtype.itemsize)
    if len(raw) < nib.Nifti1Header.template_dtype.itemsize:
        raise DataError(f"{path}: {len(raw)} bytes found, a NIfTI header has 348: the file is cut off or empty.")
    header_size = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
    kind: type[NiftiHeader] = nib.Nifti2Header if 540 in header_size else nib.Nifti1Header
    raw += stream.read(kind.template_dtype.itemsize - len(raw))
    try:
        header = kind(raw, check=False)
        _mend_spacing(path, header)
        header.check_fix(logger=_UNHEARD)
        header.get_data_dtype()
    except (HeaderDataError, WrapStructError) as error:
        raise DataError(f"{path}: this is no NIfTI file, or its header is damaged ({error}).") from error
    magic = bytes(header["magic"])[:3]
    if magic not in (b"n+1", b"n+2"):
        raise DataError(f"{path}: a header apart from its voxels found ({magic!r}); one .nii file with both is needed.")
    offset = float(header["vox_offset"])  # NaN and infinity are no integers
    if not len(raw) <= offset <= 1 << 30:
        raise DataError(f"{path}: voxels are said to start at byte {offset:g}, which cannot be: the header is damaged.")
    return header, _shape(path, header)


def _mend_spacing(path: Path, header: NiftiHeader) -> None:
    """Judge `pixdim` where the voxels' size follows from it; nibabel would silently take 0 as 1 mm.

    A negative spacing, which some writers use for a flipped axis, becomes its size (the NIfTI standard has it positive,
    with flips in the affine), and the log says so.
    """
    num_axes = int(header["dim"][0])
    spacing = header["pixdim"][1 : 1 + (min(num_axes, 3) if 1 <= num_axes <= 7 else 3)]
    shown = ", ".join(f"{float(length):g}" for length in spacing)
    if int(header["sform_code"]) <= 0:
        if (spacing == 0).any() or not np.isfinite(spacing).all():
            raise DataError(
                f"{path}: the header gives the spacings {shown} mm (pixdim), so its voxels have no size; lengths above "
                "0 are needed. Save the file again with its true spacings."
            )
        if (spacing < 0).any():
            logger.warning("%s: negative spacings in the header (%s mm); their sizes are used", path, shown)
    header["pixdim"][1:4] = np.where(header["pixdim"][1:4] == 0, 1, np.abs(header["pixdim"][1:4]))


def _shape(path: Path, header: NiftiHeader) -> tuple[int, ...]:
    """[X, Y, Z] or [X, Y, Z, C]: trailing axes of length one dropped, a 2-D image given one slice."""
    num_axes = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : num_axes + 1]] if 1 <= num_axes <= 7 else []
    if len(sizes) < 2 or min(sizes) < 1:
        raise DataError(
            f"{path}: dimensions {[int(n) for n in header['dim']]} found; two to four axes of length >= 1 are needed."
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    # NIfTI gives time axis 4 and vector components axis 5: (X, Y, Z, 1, C) is how some tools store channels
    if len(sizes) == 5 and sizes[3] == 1:
        sizes.pop(3)
    if len(sizes) > 4:
        raise DataError(f"{path}: {len(sizes)} axes {sizes} found; at most four (x, y, z, channel) can be read.")
    return (*sizes, 1) if len(sizes) == 2 else tuple(sizes)


def scaling(path: Path, header: NiftiHeader) -> tuple[float, float]:
    """Slope and intercept from stored values to the file's units."""
    if np.isinf(header["scl_slope"]):  # nibabel takes it for NaN, which says that there is no scaling
        raise DataError(f"{path}: the header's intensity scaling is damaged (a slope of {header['scl_slope']}).")
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError(f"{path}: the header's intensity scaling is damaged ({error}).") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter or 0.0))


def _geometry(meta: Meta) -> FileGeometry:
    geometry = meta["file"]
    if geometry is None:
        raise ConfigError(
            f"{meta['path']}: this case is no NIfTI volume, so there is no geometry to return to; write it as PNG."
        )
    return geometry


def _row(values: Sequence[float] | np.ndarray) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"


def _some(values: np.ndarray) -> str:
    shown = ", ".join(f"{v:g}" if isinstance(v, np.floating) else str(v) for v in values[:8])
    return shown + (f" and {len(values) - 8} more" if len(values) > 8 else "")
