"""Where ground truths and results of many objects stand on disk, and which benchmark they are of.

Ground truths found below a folder, the first that fits:

    ROOT/SEQUENCE/gt/gt.txt          MOTChallenge, DanceTrack, SportsMOT; seqinfo.ini beside gt/ where there is one
    ROOT/SPLIT/SEQUENCE/gt/gt.txt    the same, SPLIT such as MOT17-train or val; seqmaps/SPLIT.txt or *seqmap*.txt say
                                     which sequences belong to it
    ROOT/gt/gt.txt                   a single sequence of these, named as ROOT is
    ROOT/label_02/SEQUENCE.txt       KITTI, with evaluate_tracking.seqmap.SPLIT
    ROOT/SEQUENCE/gt.txt             plain, a folder a sequence
    ROOT/SEQUENCE.txt                plain, a file a sequence

Results of a tracker: SEQUENCE.txt in its folder or in data/ below it; or SEQUENCE/results.txt or SEQUENCE/test.txt.
"""

from __future__ import annotations

import configparser
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from statefield.datasets.readers.digits import whole_number
from statefield.datasets.tracking.number_rows import text_lines
from statefield.errors import ConfigError, DataError, DatasetLayoutError

Benchmark = Literal["MOT15", "MOT16", "MOT17", "MOT20", "DanceTrack", "SportsMOT", "KITTI", "plain"]
BENCHMARKS: tuple[Benchmark, ...] = ("MOT15", "MOT16", "MOT17", "MOT20", "DanceTrack", "SportsMOT", "KITTI", "plain")

_MOT15_NAMES = (
    *("ADL-Rundle-1", "ADL-Rundle-3", "ADL-Rundle-6", "ADL-Rundle-8", "AVG-TownCentre", "ETH-Bahnhof", "ETH-Crossing"),
    *(
        "ETH-Jelmoli",
        "ETH-Linthescher",
        "ETH-Pedcross2",
        "ETH-Sunnyday",
        "KITTI-13",
        "KITTI-16",
        "KITTI-17",
        "KITTI-19",
    ),
    *("PETS09-S2L1", "PETS09-S2L2", "TUD-Campus", "TUD-Crossing", "TUD-Stadtmitte", "Venice-1", "Venice-2"),
)
_NAMES: tuple[tuple[Benchmark, re.Pattern[str]], ...] = (
    ("MOT15", re.compile("|".join(map(re.escape, _MOT15_NAMES)))),
    ("MOT16", re.compile(r"MOT16-\d+")),
    ("MOT17", re.compile(r"MOT17-\d+(-(DPM|FRCNN|SDP))?")),
    ("MOT20", re.compile(r"MOT20-\d+")),
    ("DanceTrack", re.compile(r"dancetrack\d+")),
    ("SportsMOT", re.compile(r"v_[\w-]{11}_c\d+")),
)
_KITTI_LABELS = "label_02"


@dataclass(frozen=True)
class SequenceFiles:
    """One sequence: its ground truth, and what is known of it.

    Args:
        name: as the benchmark names it, and the results are named.
        ground_truth: its file.
        num_frames: as seqinfo.ini or a seqmap says; None where nothing does.
        frame_rate: frames a second, None where nothing says.
        images: the folder of its frames, where there is one.
    """

    name: str
    ground_truth: Path
    num_frames: int | None = None
    frame_rate: float | None = None
    images: Path | None = None


@dataclass(frozen=True)
class GroundTruthFolder:
    """The sequences of a benchmark's split.

    Args:
        root: the folder that was named.
        benchmark: whose rules score it.
        recognised_by: why this benchmark, in words.
        sequences: sorted by name.
        has_classes: whether column 8 of the ground truth is a class.
    """

    root: Path
    benchmark: Benchmark
    recognised_by: str
    sequences: tuple[SequenceFiles, ...]
    has_classes: bool


def open_ground_truth(
    root: Path, *, benchmark: str = "auto", split: str | None = None, sequences: Sequence[str] | None = None
) -> GroundTruthFolder:
    """Find the sequences below `root` and the benchmark they are of.

    Args:
        root: a folder, laid out as the module tells.
        benchmark: a name of `BENCHMARKS`, or "auto": by the names of the sequences and, for others, by the columns of
            their ground truth.
        split: which split, where `root` has several (MOT17-train, train, val, ...) or a KITTI seqmap for each.
        sequences: only these.

    Raises: DatasetLayoutError where nothing fits; ConfigError for an unknown benchmark, split or sequence.
    """
    if not root.is_dir():
        raise DatasetLayoutError(f"{root} is no folder. Name the folder of the ground truth.")
    if benchmark != "auto" and benchmark not in BENCHMARKS:
        raise ConfigError(f"benchmark {benchmark!r}: one of {', '.join(BENCHMARKS)} or auto is needed.")
    if benchmark in ("auto", "KITTI"):
        kitti = _kitti_sequences(root, split)
        if kitti is not None:
            chosen = _chosen(kitti, sequences)
            return GroundTruthFolder(root, "KITTI", f"its folder {_KITTI_LABELS}", chosen, has_classes=True)
        if benchmark == "KITTI":
            raise DatasetLayoutError(
                f"{root} has no folder {_KITTI_LABELS}: KITTI's ground truth is {_KITTI_LABELS}/0000.txt, ... with "
                "evaluate_tracking.seqmap.training beside it. Name the folder that holds them."
            )
    found = _chosen(_mot_sequences(root, split), sequences)
    named, why = (benchmark, "--benchmark") if benchmark != "auto" else _benchmark_of(found)
    known: Benchmark = next(name for name in BENCHMARKS if name == named)
    has_classes = known not in ("MOT15", "plain") or (known == "plain" and _has_class_column(found))
    return GroundTruthFolder(root, known, why, found, has_classes)


def results_files(folder: Path, ground_truth: GroundTruthFolder) -> dict[str, Path | None]:
    """The file of each sequence in a tracker's folder; None where it has none.

    Raises: DatasetLayoutError where the folder has a file for no sequence at all.
    """
    if not folder.is_dir():
        raise DatasetLayoutError(f"{folder} is no folder. Name a folder with a text file for each sequence.")
    names = [each.name for each in ground_truth.sequences]
    below = [folder, folder / "data", *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    below += [path / "data" for path in below[2:]]
    found: dict[str, Path | None] = {}
    for name in names:
        candidates = [place / f"{name}.txt" for place in below]
        candidates += [folder / name / rest for rest in ("results.txt", "test.txt")]
        found[name] = next((path for path in candidates if path.is_file()), None)
    if not any(found.values()):
        others = sorted(path.name for path in folder.glob("*.txt"))
        holds = f"it holds {_some(others)}" if others else "it holds no .txt"
        raise DatasetLayoutError(
            f"{folder} has no results of any sequence of {ground_truth.root} ({_some(names)}): {holds}. A file "
            "SEQUENCE.txt for each sequence is needed, in the folder or in data/ below it."
        )
    return found


def tracker_folders(folders: Iterable[Path], ground_truth: GroundTruthFolder) -> dict[str, dict[str, Path | None]]:
    """Trackers by name: each folder is a tracker's, or holds a folder for each of several trackers.

    Raises: DatasetLayoutError where a folder has no results; ConfigError where two trackers have one name.
    """
    trackers: dict[str, dict[str, Path | None]] = {}
    for folder in folders:
        for name, files in _trackers_in(folder, ground_truth).items():
            if name in trackers:
                raise ConfigError(f"two trackers are named {name!r} ({folder}). Rename one of the folders.")
            trackers[name] = files
    return trackers


def _trackers_in(folder: Path, ground_truth: GroundTruthFolder) -> dict[str, dict[str, Path | None]]:
    name = folder.resolve().name
    if name == "data":
        name = folder.resolve().parent.name
    names = {each.name for each in ground_truth.sequences}
    own = any((place / f"{each}.txt").is_file() for place in (folder, folder / "data") for each in names)
    if own or not folder.is_dir():
        return {name: results_files(folder, ground_truth)}
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in names]
    splits = [path for path in inside if path.name == ground_truth.root.name or path.name.startswith("MOT")]
    for place in (folder, *splits):  # TrackEval's: TRACKERS/MOT17-train/TRACKER/data
        several = {}
        for path in sorted(place.iterdir()):
            if path.is_dir() and any((p / f"{each}.txt").is_file() for p in (path, path / "data") for each in names):
                several[path.name] = results_files(path, ground_truth)
        if several:
            return several
    return {name: results_files(folder, ground_truth)}


def read_sequence_info(path: Path) -> dict[str, str]:
    """The [Sequence] section of a seqinfo.ini, keys in lower case.

    Raises: DataError for a file that is none.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8-sig")
        section = dict(parser["Sequence"])
        if "seqlength" in section and int(section["seqlength"]) < 0:
            raise ValueError("seqLength is negative")
        if "framerate" in section:
            float(section["framerate"])
    except (configparser.Error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no seqinfo.ini ({' '.join(str(error).split())}): [Sequence] with seqLength=600 is needed."
        ) from error
    if "seqlength" not in section:
        raise DataError(f"{path} has no seqLength: a section [Sequence] with seqLength=600 is needed.")
    return section


def _mot_sequences(root: Path, split: str | None) -> list[SequenceFiles]:
    if split is not None:
        folders = [path for path in _subfolders(root) if path.name == split or path.name.endswith(f"-{split}")]
        seqmap = next((path for path in _seqmaps(root) if split in path.stem), None)
        if len(folders) == 1:
            return _with_seqmap(_sequences_in(folders[0]), seqmap)
        direct = _sequences_in(root)
        if direct and seqmap is not None:
            return _with_seqmap(direct, seqmap)
        raise ConfigError(
            f"--split {split}: {root} has no such folder or seqmap; there are "
            f"{_some([path.name for path in _subfolders(root)]) or 'no folders'}."
        )
    direct = _sequences_in(root)
    if direct:
        maps = [path for path in _seqmaps(root) if path.parent == root]
        return _with_seqmap(direct, maps[0] if len(maps) == 1 else None)
    inside = {path: found for path in _subfolders(root) if (found := _sequences_in(path))}
    if len(inside) > 1:
        raise ConfigError(
            f"{root} has several splits: {', '.join(path.name for path in inside)}. Choose one with --split, or name "
            "its folder."
        )
    for path, found in inside.items():
        return _with_seqmap(found, next((each for each in _seqmaps(root) if each.stem == path.name), None))
    raise DatasetLayoutError(
        f"{root} holds no ground truth: neither SEQUENCE/gt/gt.txt (MOTChallenge, DanceTrack, SportsMOT), nor "
        f"{_KITTI_LABELS}/SEQUENCE.txt (KITTI), nor SEQUENCE/gt.txt or SEQUENCE.txt (plain folders)."
    )


def _sequences_in(folder: Path) -> list[SequenceFiles]:
    if (folder / "gt" / "gt.txt").is_file():
        return [_sequence(folder.resolve().name, folder / "gt" / "gt.txt", folder)]
    found = []
    for path in _subfolders(folder):
        truth = next((path / rest for rest in ("gt/gt.txt", "gt.txt") if (path / rest).is_file()), None)
        if truth is not None:
            found.append(_sequence(path.name, truth, path))
    if found:
        return found
    files = [path for path in sorted(folder.glob("*.txt")) if "seqmap" not in path.name.lower()]
    return [_sequence(path.stem, path, folder / path.stem) for path in files if _is_table(path)]


def _sequence(name: str, truth: Path, folder: Path) -> SequenceFiles:
    info = folder / "seqinfo.ini"
    if not info.is_file():
        return SequenceFiles(name, truth, images=_images(folder, "img1"))
    section = read_sequence_info(info)
    rate = section.get("framerate")
    return SequenceFiles(
        name,
        truth,
        num_frames=int(section["seqlength"]),
        frame_rate=float(rate) if rate else None,
        images=_images(folder, section.get("imdir", "img1")),
    )


def _images(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_dir() else None


def _with_seqmap(found: list[SequenceFiles], seqmap: Path | None) -> list[SequenceFiles]:
    """The sequences that a seqmap names; all where there is none."""
    if seqmap is None:
        return found
    rows = [row.split(",")[0].strip() for row in text_lines(seqmap)]
    known = {each.name: each for each in found}
    wanted = [row for row in dict.fromkeys(rows) if row and row != "name"]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DatasetLayoutError(
            f"{seqmap} names {_some(missing)}, for which there is no ground truth beside it. Fetch it, or name the "
            "sequences to score with --sequences."
        )
    return [known[name] for name in wanted]


def _seqmaps(root: Path) -> list[Path]:
    places = [root / "seqmaps", root, root.parent / "seqmaps", root.parent, root / "splits_txt"]
    found = [path for place in places for path in (sorted(place.glob("*.txt")) if place.is_dir() else [])]
    return [path for path in found if "seqmap" in path.as_posix().lower() or path.parent.name == "splits_txt"]


def _kitti_sequences(root: Path, split: str | None) -> list[SequenceFiles] | None:
    base = next((path for path in (root, root / "training", root.parent) if (path / _KITTI_LABELS).is_dir()), None)
    if base is None or (base == root.parent and root.name != _KITTI_LABELS):
        return None
    prefix = "evaluate_tracking.seqmap."
    maps = {path.name.removeprefix(prefix): path for path in base.glob(f"{prefix}*")}
    if split is not None and split not in maps:
        raise ConfigError(f"--split {split}: {base} has seqmaps of {_some(sorted(maps)) or 'no split'}.")
    chosen = maps.get(split or "training")
    labels = {path.stem: path for path in sorted((base / _KITTI_LABELS).glob("*.txt"))}
    if chosen is None:
        return [SequenceFiles(name, path, images=_images(base / "image_02", name)) for name, path in labels.items()]
    found = []
    for line, row in enumerate(text_lines(chosen), start=1):
        cells = row.split()
        if len(cells) < 4:
            continue
        if cells[0] not in labels or (count := whole_number(cells[3])) is None:
            raise DatasetLayoutError(
                f"{chosen}, line {line}: {row.strip()[:60]!r} names no sequence of {base / _KITTI_LABELS} with its "
                "number of frames (0000 empty 000000 000154)."
            )
        images = _images(base / "image_02", cells[0])
        found.append(SequenceFiles(cells[0], labels[cells[0]], num_frames=count, frame_rate=10.0, images=images))
    if not found:
        raise DatasetLayoutError(
            f"{chosen} names no sequence; lines such as '0000 empty 000000 000154' are needed: its name, and how many "
            "frames it has."
        )
    return found


def _benchmark_of(found: Sequence[SequenceFiles]) -> tuple[Benchmark, str]:
    names = {each.name: next((b for b, pattern in _NAMES if pattern.fullmatch(each.name)), None) for each in found}
    known = {benchmark for benchmark in names.values() if benchmark is not None}
    if len(known) > 1:
        of = {benchmark: next(name for name in names if names[name] == benchmark) for benchmark in sorted(known)}
        raise ConfigError(
            f"sequences of several benchmarks: {', '.join(f'{n} ({b})' for b, n in of.items())}. Choose some with "
            "--sequences, or say whose rules score them all with --benchmark."
        )
    if known and None not in names.values():
        return known.pop(), f"the names of its sequences ({_some(list(names))})"
    if _has_class_column(found):
        return "plain", "names of no benchmark; column 8 of the ground truth is a class, so scored as MOT17 is"
    return "plain", "names of no benchmark; the ground truth has no classes, so scored as MOT15 is"


def _has_class_column(found: Sequence[SequenceFiles]) -> bool:
    """Whether the first rows have MOT16's nine columns or fewer, with a class from 1 to 13 in the eighth."""
    for each in found:
        with each.ground_truth.open(encoding="utf-8-sig", errors="replace") as file:
            for line in itertools.islice(file, 50):
                row = line.replace(",", " ").replace(";", " ").split()
                if not row:
                    continue
                if not 8 <= len(row) <= 9 or not re.fullmatch(r"([1-9]|1[0-3])(\.0*)?", row[7]):
                    return False
    return True


def _is_table(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline().replace(",", " ").replace(";", " ").split()
    return len(first) >= 6 or not first


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _chosen(found: list[SequenceFiles], names: Sequence[str] | None) -> tuple[SequenceFiles, ...]:
    if names is not None:
        known = {each.name: each for each in found}
        for name in names:
            if name not in known:
                raise ConfigError(f"--sequences {name}: there is no such sequence, but {_some(sorted(known))}.")
        found = [known[name] for name in dict.fromkeys(names)]
    return tuple(sorted((replace(each) for each in found), key=lambda each: each.name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
