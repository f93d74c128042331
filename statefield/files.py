"""Files appear whole or not at all: write beside the target, flush to disk, rename over it."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from statefield.errors import ConfigError, DataError

_LONGEST_NAME = 200  # file systems hold 255 bytes, and endings follow


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the target's folder that replaces `target` when the block ends well.

    The temporary name keeps the target's suffixes (writers choose a format by them). When the block raises, the
    temporary file is removed and `target` is as it was. After a crash of the machine, `target` is the old file or the
    new one, never a part: the content is flushed before the rename, and the folder after it.

    Raises `ConfigError` where a folder has the target's name, or a file that of its folder.
    """
    path = Path(target)
    if path.is_dir():
        raise ConfigError(f"{path}: a folder is there; the name of a file to write is needed.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: a file lies where its folder has to be; choose another place.") from error
    suffix = "".join(path.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".partial{suffix}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_partials(place: str | os.PathLike[str]) -> None:
    """Remove what `atomic_path` left behind in processes that were killed: of the file `place`, or of a whole folder.

    Only where nobody else may be writing.
    """
    path = Path(place)
    random = "?" * 8  # of `mkstemp`
    ours = f".*.{random}.partial*" if path.is_dir() else f".{glob.escape(path.name)}.{random}.partial*"
    left = path.rglob(ours) if path.is_dir() else path.parent.glob(ours)
    for partial in list(left):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def require_file_name(name: str, where: str) -> None:
    """Raise `DataError` unless `name`, which `where` gives to something, can be a file's name and leads nowhere else.

    What is found in an input under such a name is written under it: "../../name" would be another folder's file.
    """
    try:
        is_sound = name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half of a character, which JSON can hold
        is_sound = False
    if not is_sound:
        raise DataError(
            f"{where}: the name {name[:60]!r} cannot be a file's. Needed are 1 to {_LONGEST_NAME} bytes, no slash "
            "among them."
        )


def read_text(source: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, whatever mark it begins with. Raises `DataError` for what is no such file."""
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, IsADirectoryError, FileNotFoundError) as error:
        raise DataError(
            f"{path}: this is no text file in UTF-8 ({error}). Copy it again, or save it as UTF-8."
        ) from error


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `target`, whole or not at all."""
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is written as null, as JSON has no NaN."""
    write_text(target, json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in `folder`."""
    if os.name != "posix":  # Windows cannot open a folder for flushing; the rename is atomic there all the same
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
