"""What may come in from a browser: files that it has just uploaded, of the kinds asked for, and no larger than allowed.

A request names its files by paths. None is opened because a request names it: the path has to lie, with every link
followed, in the folder into which the server itself has put uploads. Then the size, the name's suffix and the first
bytes are checked, before any reader decodes anything.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from statefield.errors import DataError

VOLUMES = (".nii.gz", ".nii")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
TRACKS = (".txt", ".csv")

_HEAD = 512  # bytes of a file that tell its kind
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": (b"BM",),
    ".gif": (b"GIF87a", b"GIF89a"),
    ".mkv": (b"\x1a\x45\xdf\xa3",),
    ".webm": (b"\x1a\x45\xdf\xa3",),
}
_TABLE = re.compile(rb"[\d\s,;.eE+-]*\Z")


@dataclass(frozen=True)
class Uploads:
    """The door.

    Args:
        folder: into which the server puts uploads, and nothing else is put.
        max_bytes: of one file.
    """

    folder: Path
    max_bytes: int

    def admit(self, given: str | None, suffixes: Sequence[str], what: str) -> Path:
        """The file of a request, once it is known to be an upload of a kind that is wanted.

        Args:
            given: the path that the request names; None: there is no file. what: is wanted, in words.

        Raises: DataError naming the file by its name alone; a path outside the uploads is not told apart from one that
            does not exist.
        """
        if not given:
            raise DataError(f"No file was given: {what} is needed. Choose one, or take the example.")
        name = Path(given).name
        try:
            path = Path(os.path.realpath(given, strict=True))
        except (OSError, ValueError):
            path = None
        if path is None or not path.is_file() or not path.is_relative_to(self.folder.resolve()):
            raise DataError(f"{name}: not a file that was uploaded here. Upload it again.")
        size = path.stat().st_size
        if size > self.max_bytes:
            raise DataError(
                f"{name}: {size / 1e6:.0f} MB, and this app takes files of up to {self.max_bytes / 1e6:.0f} MB. Start "
                "it with a larger --max-upload, or use the command line, which has no such limit."
            )
        suffix = next((one for one in suffixes if name.lower().endswith(one)), None)
        if suffix is None:
            raise DataError(f"{name}: {what} is needed, a name that ends in {', '.join(suffixes)}.")
        if not _is_of_kind(path, suffix):
            raise DataError(
                f"{name}: its first bytes are not those of a {suffix} file, or it is empty. Save it again in its own "
                "format, with the suffix of that format."
            )
        return path


def placed(path: Path, folder: Path, name: str | None = None) -> Path:
    """The upload in `folder`, under its own name (letters, digits, `._-` kept) or another; linked, or copied."""
    safe = re.sub(r"[^\w.-]+", "_", name or path.name).lstrip(".") or "upload"
    target = folder / safe
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
    return target


def _is_of_kind(path: Path, suffix: str) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if suffix in _BEGINNINGS:
        return head.startswith(_BEGINNINGS[suffix])
    if suffix == ".nii.gz":
        try:
            return head.startswith(b"\x1f\x8b") and _is_nifti(zlib.decompressobj(31).decompress(head, _HEAD))
        except zlib.error:
            return False
    if suffix == ".nii":
        return _is_nifti(head)
    if suffix in (".mp4", ".m4v", ".mov"):
        return head[4:8] == b"ftyp"
    if suffix == ".avi":
        return head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return bool(head) and _TABLE.match(head.removeprefix(b"\xef\xbb\xbf")) is not None  # of tracks: numbers alone


def _is_nifti(head: bytes) -> bool:
    """NIfTI-1 has its name behind its header, NIfTI-2 after its length. A compressed head may hold less than that."""
    length = int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")
    if 348 in length:
        return len(head) < 348 or head[344:347] == b"n+1"
    return 540 in length and head[4:7] == b"n+2"
