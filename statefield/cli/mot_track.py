"""`statefield mot track DETECTIONS --output DIR`: tracks of many objects from what a detector found."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.datasets.tracking.bad_rows import BadRows
    from statefield.tasks.tracking.trackers.run import TrackedSequence, TrackerSettings

_EPILOG = """
Detections: SEQUENCE/det/det.txt or SEQUENCE.txt (MOTChallenge), or a COCO file; a list of COCO results, as YOLOX and
pycocotools write it, with the file of its images (--images). Written are SEQUENCE.txt in MOTChallenge's form and
tracking.json, which says how; `statefield mot evaluate` scores them.

examples:
  statefield mot track MOT15/train --output results/sort --tracker sort
  statefield mot track MOT17/train --output results/bytetrack --low 0.2 --max-age 60
  statefield mot track yolox.json --images val_half.json --output results/ocsort --tracker ocsort
  statefield mot track MOT17/train --output results/mambatrack --tracker mambatrack --weights runs/mtp_mot17
  statefield mot track MOT17/train --output results/byte_mtp --tracker bytetrack --motion mtp --weights runs/mtp_mot17
"""
_SETTINGS: dict[str, tuple[type, str]] = {
    "high": (float, "score above which a detection is matched first (bytetrack, ocsort, mambatrack)"),
    "low": (float, "score above which the others are matched with what is left (bytetrack, ocsort, mambatrack)"),
    "new": (float, "score from which a detection begins a track (bytetrack, mambatrack)"),
    "least_overlap": (float, "IoU of a track and its detection (sort, ocsort)"),
    "max_age": (int, "frames that a track survives unseen"),
    "min_hits": (int, "frames in a row before a track is told (sort, ocsort)"),
}


def track(argv: list[str]) -> int:
    """The verb: writes the tracks of every sequence; returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    from statefield.datasets.tracking.bad_rows import BadRows
    from statefield.datasets.tracking.detections import read_detections
    from statefield.tasks.tracking.trackers.run import TrackerSettings, write_tracks
    from statefield.tasks.tracking.trackers.run import track as track_sequences

    settings = TrackerSettings(
        arguments.tracker,
        motion=arguments.motion,
        weights=arguments.weights,
        values=_values(arguments),
        min_score=arguments.min_score,
        image_size=None if arguments.image_size is None else (arguments.image_size[0], arguments.image_size[1]),
        device=_device(arguments.device) if arguments.weights is not None else "cpu",
    )
    files: list[BadRows] = []

    def bad(path: Path) -> BadRows:
        files.append(BadRows(path, arguments.on_bad))
        return files[-1]

    sequences = read_detections(
        arguments.detections,
        images=arguments.images,
        categories=arguments.category,
        sequences=arguments.sequences,
        bad=bad,
    )
    _require_free(arguments.output, [each.name for each in sequences], overwrite=arguments.overwrite)
    with _progress(sum(each.num_frames for each in sequences)) as on_frame:
        tracked = track_sequences(sequences, settings, on_frame=on_frame)
    notes = [note for file in files for note in file.told()]
    write_tracks(tracked, arguments.output)
    _write_summary(arguments.output, settings, tracked, notes, ["statefield", "mot", "track", *argv])
    _print(tracked, arguments.output, notes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield mot track",
        description="Link the detections of each frame to tracks, online, frame by frame: SORT, ByteTrack, OC-SORT or "
        "MambaTrack, over a Kalman filter or the learned motion predictor (MTP).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detections", type=Path, help="a folder of sequences, a MOT text file, or a COCO file")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="folder for SEQUENCE.txt")
    parser.add_argument("--overwrite", action="store_true", help="replace tracks that are there")
    parser.add_argument(
        "--tracker", default="bytetrack", metavar="NAME", help="bytetrack (default), sort, ocsort or mambatrack"
    )
    parser.add_argument(
        "--motion",
        metavar="NAME",
        help="kalman_sort, kalman_byte, kalman_ocsort, constant_velocity, still or mtp (default: the tracker's own)",
    )
    parser.add_argument("--weights", type=Path, metavar="RUN", help="run folder of `statefield mot train`, for mtp")
    parser.add_argument("--min-score", type=float, metavar="S", help="detections below it are not looked at")
    for name, (kind, does) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=name.split("_")[-1].upper(), help=does)
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--images", type=Path, metavar="FILE", help="the COCO file of the images, for a list of results"
    )
    parser.add_argument("--category", nargs="+", metavar="NAME", help="only these, by name or number, of a COCO file")
    parser.add_argument(
        "--image-size", nargs=2, type=int, metavar=("W", "H"), help="pixels, where the detections do not say them"
    )
    parser.add_argument(
        "--on-bad", choices=("error", "skip"), default="error", help="stop at a bad row (default), or leave it out"
    )
    parser.add_argument("--device", default="auto", help="where mtp computes: auto (default), cpu, cuda or cuda:N")
    return parser


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given of a tracker's settings."""
    given = {name: getattr(arguments, name) for name in _SETTINGS}
    for name, value in given.items():
        if value is not None and value < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: 0 or more is needed.")
    return {name: value for name, value in given.items() if value is not None}


def _device(name: str) -> str:
    from statefield.cli.devices import device_of

    return str(device_of(name))


def _require_free(folder: Path, names: list[str], *, overwrite: bool) -> None:
    there = [name for name in names if (folder / f"{name}.txt").exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{folder} holds tracks of {there[0]} already. Replace them with --overwrite, or name another folder."
        )


def _write_summary(
    folder: Path, settings: TrackerSettings, tracked: list[TrackedSequence], notes: list[str], command: list[str]
) -> None:
    from statefield.files import write_json

    write_json(
        folder / "tracking.json",
        {
            "command": shlex.join(command),
            "tracker": settings.tracker,
            "motion": settings.motion_name,
            "weights": None if settings.weights is None else str(settings.weights),
            "settings": dict(settings.values or {}),
            "sequences": [
                {"name": each.name, "frames": each.num_frames, "tracks": each.num_tracks, "boxes": len(each.rows)}
                for each in tracked
            ],
            "notes": notes,
        },
    )


def _print(tracked: list[TrackedSequence], folder: Path, notes: list[str]) -> None:
    width = max((len(each.name) for each in tracked), default=8)
    print(f"{'sequence':<{width}}  frames   tracks    boxes  frames/s")
    for each in tracked:
        rate = each.num_frames / each.seconds if each.seconds else float("inf")
        print(f"{each.name:<{width}}  {each.num_frames:6d}  {each.num_tracks:7d}  {len(each.rows):7d}  {rate:8.0f}")
    for note in notes:
        print(note)
    print(f"\ntracks: {folder}/SEQUENCE.txt\nto go on:\n  statefield mot evaluate --gt DIR --results {folder}")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar over the frames of all sequences; nothing is drawn without a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        before: dict[str, int] = {}

        def on_frame(name: str, done: int, _frames: int) -> None:
            bar.update(task, description=name, advance=done - before.get(name, 0))
            before[name] = done

        yield on_frame
