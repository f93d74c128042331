"""Photographs and slices (PNG, TIFF, JPEG, BMP, GIF) and their masks, through Pillow.

Values are as stored: 0..255 for 8 bit, 0..65535 for 16 bit; nothing is normalised.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.nifti import integer_labels
from statefield.datasets.sample import UNLABELLED, Meta
from statefield.errors import ConfigError, DataError, LabelError
from statefield.files import atomic_path

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".gif")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # JPEG blurs label values
_GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
_CHANNEL_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture as float32 [C, H, W]: C = 1 for grey, 3 for colour (a palette is looked up, an opaque alpha dropped).

    Raises:
        DataError: damaged, larger than the memory limit, of several frames, really transparent, or not grey or RGB.
    """
    path = Path(path)
    with _opened(path) as image:
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        if image.mode in ("LA", "PA", "RGBA"):
            image = _without_alpha(path, image)
        if image.mode in _GREY_MODES:
            values = np.asarray(image, dtype=np.float32)[None]
        elif image.mode == "RGB":
            values = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
        else:
            raise DataError(f"{path}: colour mode {image.mode} found; grey or RGB is needed. Convert the file.")
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: {int((~np.isfinite(values)).sum())} pixels are NaN or infinite; finite values are needed."
        )
    return np.ascontiguousarray(values)


def read_mask(
    path: str | os.PathLike[str], num_classes: int | None = None, *, unlabelled: int | None = None
) -> np.ndarray:
    """A label picture as int64 [H, W].

    Palette pictures give their indices. With two classes, a mask that holds 0 and 255 alone is read as 0 and 1, the
    usual way of showing a binary mask. Colour pictures whose three channels agree are read as grey. `unlabelled` is the
    file's value for pixels without a label (an ignore label); they become `UNLABELLED`.

    Raises:
        LabelError: real colours, interpolated values, or values outside the classes.
        DataError: damaged, larger than the memory limit, or of several frames.
    """
    path = Path(path)
    with _opened(path) as image:
        if image.mode in ("LA", "RGBA"):
            image = _without_alpha(path, image)
        if image.mode == "P" or image.mode in _GREY_MODES:
            values = np.asarray(image)
        elif image.mode == "RGB":
            values = _grey_of_rgb(path, np.asarray(image))
        else:
            raise LabelError(
                f"{path}: colour mode {image.mode} found; a grey or palette picture of label values is needed."
            )
    return as_labels(path, values, num_classes, unlabelled=unlabelled)


def as_labels(
    path: str | os.PathLike[str], values: np.ndarray, num_classes: int | None = None, *, unlabelled: int | None = None
) -> np.ndarray:
    """`values` that were read from `path` as int64 labels, checked as `read_mask` says; of two classes 0/255 is 0/1."""
    known = values if unlabelled is None else values[values != unlabelled]
    if num_classes == 2 and values.dtype.kind in "iu" and _is_0_255(known):
        folded = (values == 255).astype(np.int64)
        if unlabelled is not None:
            folded[values == unlabelled] = UNLABELLED
        return folded
    return integer_labels(path, values, num_classes, unlabelled=unlabelled)


def num_pages_of(path: str | os.PathLike[str]) -> int:
    """How many pages (frames) a TIFF or GIF holds, from its headers alone; 1 for other pictures."""
    path = Path(path)
    with _failures_named(path), _header_of(path) as image:
        return int(getattr(image, "n_frames", 1))


def read_pages(path: str | os.PathLike[str], first: int = 0, last: int | None = None) -> np.ndarray:
    """Pages `first` to `last` (both included; None: to the end) of a grey TIFF as [N, H, W], in the file's own dtype.

    Raises:
        DataError: damaged, larger than the memory limit, pages that are missing, coloured, or of several sizes.
    """
    path = Path(path)
    with _failures_named(path), _header_of(path) as image:
        num_pages = int(getattr(image, "n_frames", 1))
        last = num_pages - 1 if last is None else last
        if not 0 <= first <= last < num_pages:
            raise DataError(f"{path}: pages {first} to {last} wanted, {num_pages} found; is the file cut off?")
        width, height = image.size
        count = last - first + 1
        require_memory(path, count * width * height * 4, f"{count} pages of {height} x {width} pixels")
        pages = []
        for number in range(first, last + 1):
            image.seek(number)
            if image.mode not in _GREY_MODES or image.size != (width, height):
                raise DataError(
                    f"{path}: page {number} has colour mode {image.mode} and {image.size[1]} x {image.size[0]} pixels; "
                    f"grey pages of {height} x {width} pixels, as the first, are needed."
                )
            pages.append(np.array(image))
    return np.stack(pages)


def mask_values(path: str | os.PathLike[str]) -> np.ndarray:
    """The distinct values that a mask file holds, sorted, 0/255 not yet turned into 0/1."""
    return np.unique(read_mask(path))


def channel_names(num_channels: int) -> tuple[str, ...]:
    """What the channels of a picture are called: grey, or red, green and blue."""
    return _CHANNEL_NAMES.get(num_channels) or tuple(f"channel_{i}" for i in range(num_channels))


def num_channels_of(path: str | os.PathLike[str]) -> int:
    """1 or 3: the channels that `read_image` gives, from the file's header alone."""
    with _opened(Path(path)) as image:
        return 1 if image.mode in (*_GREY_MODES, "LA") else 3


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels, from the file's header alone, once what decoding takes was found to fit in memory."""
    path = Path(path)
    with _failures_named(path), _header_of(path) as image:
        width, height = image.size
        require_memory(path, width * height * 4 * max(1, len(image.getbands())), f"{height} x {width} pixels")
        return width, height


def meta_of(path: str | os.PathLike[str], *, case: str) -> Meta:
    """The meta of a picture: no spacing is known, so 1.0 stands for a pixel."""
    return {
        "case": case,
        "path": str(path),
        "spacing": (1.0, 1.0),
        "spacing_known": False,
        "affine": None,
        "file": None,
    }


def write_mask(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write label values [H, W] as a grey PNG (8 bit, or 16 above 255), whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: a name that ends in .png is needed to write a mask.")
    values = integer_labels(path, np.asarray(labels), 1 << 16)
    if values.ndim != 2:
        raise ConfigError(f"{path}: labels of shape {values.shape} given; [H, W] is needed for a picture.")
    with atomic_path(path) as partial:
        Image.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)).save(partial)


def _is_0_255(values: np.ndarray) -> bool:
    return int(values.max(initial=0)) == 255 and bool(np.isin(values, (0, 255)).all())


def _without_alpha(path: Path, image: Image.Image) -> Image.Image:
    alpha = np.asarray(image.getchannel("A"))
    if int(alpha.min(initial=255)) < 255:
        raise DataError(
            f"{path}: {int((alpha < 255).sum())} pixels are transparent, so their value is undecided; an "
            "opaque picture is needed. Flatten the file onto a background."
        )
    return image.convert({"LA": "L", "PA": "RGB", "RGBA": "RGB"}[image.mode])


def _grey_of_rgb(path: Path, rgb: np.ndarray) -> np.ndarray:
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all():
        return rgb[..., 0]
    colours, counts = np.unique(rgb.reshape(-1, 3), axis=0, return_counts=True)
    most = np.argsort(counts)[::-1][:6]
    shown = ", ".join(f"({','.join(str(int(v)) for v in colours[i])})" for i in most)
    raise LabelError(
        f"{path}: a mask in {len(colours)} colours found ({shown}{', ...' if len(colours) > 6 else ''}); label values "
        "0, 1, 2, ... are needed, and which colour is which class cannot be guessed. Save the mask as a grey or "
        "palette picture of class numbers."
    )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The decoded picture."""
    with _failures_named(path):
        image = _decoded(path)
    with image:
        yield image


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """Every way in which Pillow fails on a damaged file becomes one `DataError`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        yield
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the header claims too many pixels ({error}). Cut the picture into tiles.") from error
    except Exception as error:
        # on damaged files Pillow's parsers raise a dozen types, KeyError and TypeError among them
        raise DataError(
            f"{path}: this is no picture that can be read, or it is damaged or cut off "
            f"({type(error).__name__}: {error}). "
            "Copy or download it again, or convert it to PNG."
        ) from error


def _header_of(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # of tags that it cannot read; what it cannot read of the picture is an error
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def _decoded(path: Path) -> Image.Image:
    """The picture with its pixels in memory, after its header was judged: frames, and the memory it will take."""
    image = _header_of(path)
    try:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1:
            raise DataError(f"{path}: {num_frames} frames found, one is needed. Save each as a file, or all as NIfTI.")
        width, height = image.size
        require_memory(path, width * height * 4 * max(1, len(image.getbands())), f"{height} x {width} pixels")
        image.load()
    except BaseException:
        image.close()
        raise
    return image
