"""Lists of the scenes of each split: CLASS/FILE a line, or FILE alone, in train.txt, val.txt and test.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from statefield.datasets.splits import Split
from statefield.errors import DatasetLayoutError

LISTED: tuple[Split, ...] = ("train", "val", "test")
_LARGEST_BYTES = 64 << 20


def find_lists(places: Sequence[Path], name: str) -> dict[Split, Path]:
    """The lists of the first of `places` that has any: SPLIT.txt, SPLIT_list.txt or NAME-SPLIT.txt.

    Raises `DatasetLayoutError` for two lists of one split, or lists of which none is for train.
    """
    for place in dict.fromkeys(places):
        found: dict[Split, Path] = {}
        for split in LISTED:
            there = [
                path
                for file in (f"{split}.txt", f"{split}_list.txt", f"{name}-{split}.txt")
                if (path := place / file).is_file()
            ]
            if len(there) > 1:
                raise DatasetLayoutError(f"{there[0]} and {there[1]}: two lists for {split}; keep one.")
            if there:
                found[split] = there[0]
        if found and "train" not in found:
            raise DatasetLayoutError(f"{place}: there are lists of scenes, but none for train (train.txt).")
        if found:
            return found
    return {}


def read_lists(lists: Mapping[Split, Path], files: Mapping[str, Sequence[Path]]) -> dict[Split, set[Path]]:
    """The files that each list names.

    Args: files: class name -> its images.

    Raises `DatasetLayoutError`, naming list and line, for an entry without a file or in two lists, and an empty list.
    """
    by_entry: dict[str, list[Path]] = {}
    for name, paths in files.items():
        for path in paths:
            for entry in (f"{name}/{path.name}", path.name):
                by_entry.setdefault(entry, []).append(path)
    owner: dict[Path, str] = {}
    chosen: dict[Split, set[Path]] = {}
    for split, place in lists.items():
        if place.stat().st_size > _LARGEST_BYTES:
            raise DatasetLayoutError(f"{place}: {place.stat().st_size} bytes are no list of scenes.")
        chosen[split] = set()
        for number, line in enumerate(place.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            at = f"{place}, line {number}"
            entry = "/".join(PurePosixPath(line.strip().replace("\\", "/")).parts[-2:])
            there = by_entry.get(entry, [])
            if len(there) != 1:
                what = f"{len(there)} images have" if there else "no image has"
                raise DatasetLayoutError(
                    f"{at}: {what} the name {entry!r}; a line CLASS/FILE is needed of which there is one image. Add "
                    "the image, or take the line away."
                )
            if there[0] in owner:
                raise DatasetLayoutError(f"{at}: {entry!r} is in {owner[there[0]]} already; a scene is in one split.")
            owner[there[0]] = at
            chosen[split].add(there[0])
        if not chosen[split]:
            raise DatasetLayoutError(f"{place}: the list names no scene; give it a line CLASS/FILE for each.")
    return chosen
