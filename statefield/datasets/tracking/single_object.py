"""Ground truth of single-object benchmarks, each in its publisher's folder layout.

`find_sequences(root)` recognises the layout by names alone and reads boxes and flags; images are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.digits import whole_number
from statefield.datasets.tracking.number_rows import read_flags, read_rows, text_lines
from statefield.errors import DataError, DatasetLayoutError

BOX = "a box: x, y, width, height"
# the flags of att/SEQ.txt in the order of the toolkits' att_name
_ATTRIBUTES = {
    name: tuple(listed.split(","))
    for name, listed in (
        ("visevent", "CM,ROT,DEF,FOC,LI,OV,POC,VC,SV,BC,MB,ARC,FM,NMO,IV,OE,BOM"),  # COESOT has the same
        ("eventvot", "CM,DEF,MOC,HOC,FOC,LI,OV,FM,BC,NM,BOM,SIO,SV,ST"),
        ("lasot", "IV,POC,DEF,MB,CM,ROT,BC,VC,SV,FOC,FM,OV,LR,ARC"),
        ("uav123", "SV,ARC,LR,FM,FOC,POC,OV,BC,IV,VC,CM,SOB"),
    )
}


@dataclass(frozen=True)
class ObjectSequence:
    """One sequence with one target.

    Args:
        name: as the benchmark calls it.
        boxes: [T, 4] float64, x, y, width, height in pixels as in the file; NaN or zeros where there is no box.
        present: [T], False where the data set marks the target as absent; None where it does not tell.
        attributes: short names of the challenges that the data set lists for the sequence.
        image_size: (width, height) in pixels where the data set's text files tell.
        path: the file of the boxes.
    """

    name: str
    boxes: NDArray[np.float64]
    path: Path
    present: NDArray[np.bool_] | None = None
    attributes: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """One benchmark's folder layout: the protocols that score it, the tree, and how it is recognised and read."""

    name: str
    protocols: tuple[str, ...]
    tree: str
    files: Callable[[Path], list[tuple[str, Path]]]
    read: Callable[[Path, str, Path], ObjectSequence]


def find_sequences(
    root: Path, names: tuple[str, ...] | None = None, layout: str | None = None
) -> tuple[Layout, list[ObjectSequence]]:
    """The sequences under `root`, in the order of their names.

    Args:
        names: read only these.
        layout: the name of a layout, to be taken without looking for others.

    Raises:
        DatasetLayoutError: no layout fits, or a name is not there.
        DataError: a file that cannot be read, or flags that do not belong to their boxes.
    """
    if not root.is_dir():
        what = "a file; unpack archives first" if root.is_file() else "no such folder"
        raise DatasetLayoutError(f"{root}: {what}. Give the folder of a benchmark's ground truth.")
    for candidate in LAYOUTS:
        if layout is not None and candidate.name != layout:
            continue
        found = dict(candidate.files(root))
        if not found:
            continue
        if names is not None:
            missing = [name for name in names if name not in found]
            if missing:
                raise DatasetLayoutError(
                    f"{root}: {len(missing)} of the {len(names)} sequences asked for are not there, the first is "
                    f"{missing[0]!r}. Found {len(found)}, such as {', '.join(sorted(found)[:3])}."
                )
        chosen = sorted(names if names is not None else found)
        return candidate, [candidate.read(root, name, found[name]) for name in chosen]
    trees = "\n".join(f"  {one.name}: {one.tree}" for one in LAYOUTS if layout in (None, one.name))
    raise DatasetLayoutError(f"{root}: no ground truth was recognised. The layouts, under the folder given:\n{trees}")


def _folders(root: Path) -> Iterator[Path]:
    for parent in (root, root / "test", root / "val", root / "train"):
        if parent.is_dir():
            yield parent


def _sequence_folders(root: Path, *needed: str, depth: int = 1) -> list[tuple[str, Path]]:
    """Folders that hold all the files `needed`; the first is that of the boxes."""
    for parent in _folders(root):
        pattern = "/".join(["*"] * depth)
        found = [
            (folder.name, folder / needed[0])
            for folder in parent.glob(pattern)
            if all((folder / name).is_file() for name in needed)
        ]
        if found:
            return found
    return []


def _flags(path: Path, count: int, boxes: Path, what: str) -> NDArray[np.bool_]:
    values = read_flags(path, what)
    if len(values) != count:
        raise DataError(f"{path}: {len(values)} flags for the {count} boxes of {boxes}; one for each frame is needed.")
    return values != 0


def _attributes(candidates: list[Path], *benchmarks: str) -> tuple[str, ...]:
    """The attributes flagged in the first file that exists, by the list of the benchmark that has as many of them."""
    for path in candidates:
        if not path.is_file():
            continue
        values = read_flags(path, "0 or 1 for each attribute")
        numbered = tuple(f"attribute {n}" for n in range(1, len(values) + 1))
        lists = [_ATTRIBUTES[name] for name in benchmarks if len(_ATTRIBUTES[name]) == len(values)]
        known = lists[0] if lists else numbered
        return tuple(name for name, value in zip(known, values, strict=True) if value > 0)
    return ()


def _lasot_files(root: Path) -> list[tuple[str, Path]]:
    needed = ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt")
    return _sequence_folders(root, *needed) or _sequence_folders(root, *needed, depth=2)


def _read_lasot(root: Path, name: str, path: Path) -> ObjectSequence:
    boxes = read_rows(path, 4, BOX)
    occluded = _flags(path.with_name("full_occlusion.txt"), len(boxes), path, "0 or 1 for each frame")
    outside = _flags(path.with_name("out_of_view.txt"), len(boxes), path, "0 or 1 for each frame")
    places = [parent / "attributes" / f"{name}.txt" for parent in (root, path.parent.parent, root.parent)]
    return ObjectSequence(name, boxes, path, ~(occluded | outside), _attributes(places, "lasot"))


def _got10k_files(root: Path) -> list[tuple[str, Path]]:
    return _sequence_folders(root, "groundtruth.txt", "meta_info.ini")


def _read_got10k(_root: Path, name: str, path: Path) -> ObjectSequence:
    boxes = read_rows(path, 4, BOX)
    cover = path.with_name("cover.label")
    present = _flags(cover, len(boxes), path, "a cover of 0 to 8 for each frame") if cover.is_file() else None
    return ObjectSequence(name, boxes, path, present, image_size=_resolution(path.with_name("meta_info.ini")))


def _resolution(path: Path) -> tuple[int, int] | None:
    for line in text_lines(path):
        match = re.match(r"\s*resolution\s*[:=]\s*\(?\s*(\d+)\s*,\s*(\d+)", line)
        if match:
            width, height = whole_number(match[1]), whole_number(match[2])
            if width is None or height is None:
                raise DataError(f"{path}: {line[:60]!r} is no width and height in pixels.")
            return width, height
    return None


def _eventvot_files(root: Path) -> list[tuple[str, Path]]:
    return _sequence_folders(root, "groundtruth.txt", "absent.txt") or _sequence_folders(
        root, "groundtruth.txt", "absent_label.txt"
    )


def _read_eventvot(root: Path, name: str, path: Path) -> ObjectSequence:
    boxes = read_rows(path, 4, BOX)
    flags = next(file for file in (path.with_name("absent.txt"), path.with_name("absent_label.txt")) if file.is_file())
    present = _flags(flags, len(boxes), path, "1 where the target is present")  # 1 is present, whatever the name says
    places = [place / "att" / f"{name}.txt" for place in (root, root.parent)]
    return ObjectSequence(name, boxes, path, present, _attributes(places, "eventvot", "visevent"))


def _visevent_files(root: Path) -> list[tuple[str, Path]]:
    for base in (root, root / "annos"):
        if (base / "gt_rect").is_dir() and (base / "absent").is_dir():
            return [(path.stem, path) for path in (base / "gt_rect").glob("*.txt")]
    return []


def _read_visevent(_root: Path, name: str, path: Path) -> ObjectSequence:
    boxes = read_rows(path, 4, BOX)
    base = path.parent.parent
    absent = _flags(base / "absent" / path.name, len(boxes), path, "1 where the target is absent")
    places = [base / "att" / path.name, base / "att" / f"{name}_attribute.txt"]
    return ObjectSequence(name, boxes, path, ~absent, _attributes(places, "visevent"))


def _fe240hz_files(root: Path) -> list[tuple[str, Path]]:
    found = _sequence_folders(root, "groundtruth_rect.txt")
    marked = re.search(r"fe(108|240)", str(root.resolve()), flags=re.IGNORECASE) is not None
    return found if marked or any(list(path.parent.glob("*.aedat4")) for _, path in found) else []


def _otb_files(root: Path) -> list[tuple[str, Path]]:
    found = _sequence_folders(root, "groundtruth_rect.txt")
    for parent in _folders(root):  # sequences with two targets: Jogging, Skating2
        for path in parent.glob("*/groundtruth_rect.[0-9].txt"):
            found.append((f"{path.parent.name}-{path.name.split('.')[1]}", path))
        if found:
            break
    return found


def _read_otb(_root: Path, name: str, path: Path) -> ObjectSequence:
    listed = path.with_name("attrs.txt")
    words = re.split(r"[,\s]+", " ".join(text_lines(listed))) if listed.is_file() else []
    return ObjectSequence(name, read_rows(path, 4, BOX), path, attributes=tuple(word for word in words if word))


def _trackingnet_files(root: Path) -> list[tuple[str, Path]]:
    for base in (root, *sorted(root.glob("TEST")), *sorted(root.glob("TRAIN_*"))):
        found = [(path.stem, path) for path in (base / "anno").glob("*.txt")]
        if found:
            return found
    return []


def _uav123_files(root: Path) -> list[tuple[str, Path]]:
    for base in (root / "anno", root / "data_seq" / "anno", root):
        for version in ("UAV123", "UAV20L"):
            found = [(path.stem, path) for path in (base / version).glob("*.txt")]
            if found:
                return found
    return []


def _read_uav123(_root: Path, name: str, path: Path) -> ObjectSequence:
    listed = path.parent / "att" / path.name
    return ObjectSequence(name, read_rows(path, 4, BOX), path, attributes=_attributes([listed], "uav123"))


def _plain_files(root: Path) -> list[tuple[str, Path]]:
    folders = [(name, path) for name, path in _sequence_folders(root, "groundtruth.txt") if not _has_regions(path)]
    return folders or [(path.stem, path) for path in root.glob("*.txt") if path.stem != "list"]


def _has_regions(path: Path) -> bool:
    """True for the regions of VOT: masks, or rows of six numbers and more."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    return first.startswith("m") or len(re.split(r"[,;\t ]+", first.strip())) > 4


def _read_plain(_root: Path, name: str, path: Path) -> ObjectSequence:
    return ObjectSequence(name, read_rows(path, 4, BOX), path)


LAYOUTS: tuple[Layout, ...] = (
    Layout("visevent", ("visevent", "visible"), "gt_rect/SEQ.txt, absent/SEQ.txt", _visevent_files, _read_visevent),
    Layout(
        "lasot",
        ("lasot",),
        "[CLASS/]SEQ/{groundtruth.txt, full_occlusion.txt, out_of_view.txt}",
        _lasot_files,
        _read_lasot,
    ),
    Layout("got10k", ("got10k",), "SEQ/{groundtruth.txt, meta_info.ini, cover.label}", _got10k_files, _read_got10k),
    Layout("eventvot", ("eventvot", "visible"), "SEQ/{groundtruth.txt, absent.txt}", _eventvot_files, _read_eventvot),
    Layout("uav123", ("uav123",), "anno/UAV123/SEQ.txt", _uav123_files, _read_uav123),
    Layout("trackingnet", ("trackingnet",), "[TEST/]anno/SEQ.txt", _trackingnet_files, _read_plain),
    Layout(
        "fe240hz",
        ("fe240hz",),
        "SEQ/groundtruth_rect.txt, in a folder named FE108 or FE240hz or with *.aedat4 beside it",
        _fe240hz_files,
        _read_otb,
    ),
    Layout("otb", ("otb",), "SEQ/groundtruth_rect.txt", _otb_files, _read_otb),
    Layout("plain", ("otb",), "SEQ/groundtruth.txt, or SEQ.txt", _plain_files, _read_plain),
)
