"""`dataset.json`, the description that Medical Segmentation Decathlon and nnU-Net folders carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from statefield.datasets.readers.digits import whole_number
from statefield.errors import DatasetLayoutError

DESCRIPTION = "dataset.json"
_LARGEST_BYTES = 64 << 20


def read_description(root: Path) -> dict[str, Any]:
    """The content of `root/dataset.json`; `DatasetLayoutError` when it is missing, damaged or no JSON object."""
    path = root / DESCRIPTION
    if not path.is_file():
        raise DatasetLayoutError(f"{path}: not found; this layout is described by that file.")
    if path.stat().st_size > _LARGEST_BYTES:
        raise DatasetLayoutError(f"{path}: {path.stat().st_size} bytes are no description of a dataset.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also no UTF-8, and integers of more than 4,300 digits
        raise DatasetLayoutError(f"{path}: this is no valid JSON ({error}). Correct it at the place named.") from error
    if not isinstance(content, dict):
        raise DatasetLayoutError(f"{path}: a JSON {type(content).__name__} found where an object {{...}} is needed.")
    return content


def names_by_number(path: Path, key: str, table: object) -> tuple[str, ...]:
    """The names of `{"0": "MRI", "1": "CT"}` in the order of their numbers, which must be 0, 1, 2, ...

    Also reads the reverse, `{"MRI": 0}`, as nnU-Net writes its labels.
    """
    if not isinstance(table, Mapping) or not table:
        raise DatasetLayoutError(f'{path}: "{key}" is {table!r}; a table of numbers and names is needed.')
    numbered: dict[int, str] = {}
    for left, right in table.items():
        number, name = _number_and_name(path, key, left, right)
        if number in numbered:
            raise DatasetLayoutError(f'{path}: "{key}" gives {number} to both {numbered[number]!r} and {name!r}.')
        numbered[number] = name
    if sorted(numbered) != list(range(len(numbered))):
        raise DatasetLayoutError(
            f'{path}: "{key}" numbers {sorted(numbered)}; 0 to {len(numbered) - 1} without gaps are needed. Renumber '
            "them (and, for labels, the values in the label files)."
        )
    names = tuple(numbered[number] for number in range(len(numbered)))
    if len(set(names)) == len(names):
        return names
    if key == "labels":
        raise DatasetLayoutError(f'{path}: "{key}" names {", ".join(names)}; distinct names are needed.')
    return tuple(f"{name}_{number}" for number, name in enumerate(names))  # two channels may be of one kind


def inside(root: Path, path: Path, entry: object) -> Path:
    """The file that `entry` of the description at `path` names, which must lie in `root`."""
    if not isinstance(entry, str) or not entry:
        raise DatasetLayoutError(f"{path}: {entry!r} found where the name of a file is needed.")
    named = root / entry
    if not named.resolve().is_relative_to(root.resolve()):
        raise DatasetLayoutError(f"{path}: {entry!r} points out of the dataset's folder; files inside it are needed.")
    return named


def _number_and_name(path: Path, key: str, left: object, right: object) -> tuple[int, str]:
    if isinstance(right, (list, tuple)):
        raise DatasetLayoutError(
            f'{path}: "{key}" declares {left!r} as a region of several values, {list(right)}. Region-based '
            "training is not available: give every label one value of its own, with background 0."
        )
    if isinstance(left, str) and (number := whole_number(left)) is not None and isinstance(right, str):
        return number, right
    if isinstance(left, str) and isinstance(right, int) and not isinstance(right, bool) and right >= 0:
        return right, left
    if isinstance(left, str) and isinstance(right, str) and (number := whole_number(right)) is not None:
        return number, left
    raise DatasetLayoutError(f'{path}: "{key}" has the entry {left!r}: {right!r}; a number and a name are needed.')
