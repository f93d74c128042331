"""`statefield sot track SEQUENCES --run RUN --output DIR`: follow one object through pictures, videos or events."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.datasets.tracking.object_videos import ObjectVideo
    from statefield.tasks.tracking.single_object.follow import Followed
    from statefield.tasks.tracking.single_object.recipe import TrackerConfig

_EPILOG = """
SEQUENCES are folders of benchmarks as published, folders of one sequence's pictures, videos, or recordings of events
(.raw, .aedat4, .csv, .npz, .h5). The first box is the ground truth's, or --init. Written are SEQUENCE.txt (a line a
frame: x, y, width, height in pixels), SEQUENCE_scores.txt, SEQUENCE_time.txt (seconds) and tracking.json;
`statefield sot evaluate` scores them.

examples:
  statefield sot track LaSOT/ --run runs/mamba_evt --output results/mamba_evt
  statefield sot track EventVOT/test --weights mamba_evt.safetensors --output results/mamba_evt --device cuda
  statefield sot track bag.avi --run runs/bag --output results/bag --init 217 100 130 140 --draw webp
  statefield sot track bag.avi --gt VOT2018.json --run runs/bag --output results/bag
  statefield sot track recording.raw --run runs/events --output out/ --init 310 200 40 60 --window-us 20000
"""
# options of the tracker, each the name of a field of TrackerConfig
_SETTINGS: dict[str, tuple[type, str]] = {
    "interval": (int, "frames between updates of the memory (default 1, as in the authors' code; the paper says 5)"),
    "learn_above": (float, "a result with no higher score does not become a template (default 0: all do)"),
    "lost_below": (float, "with a lower score the target counts as lost, and is looked for farther away (default 0)"),
    "window": (float, "share of the penalty on motion, 0 to 1 (default 1)"),
}


def track(argv: list[str]) -> int:
    """The verb: writes what was found in every sequence; returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    if (arguments.run is None) == (arguments.weights is None):
        raise ConfigError("--run RUN (of `statefield sot train`) or --weights FILE: give one of them.")
    from statefield.cli.run_output import console_of_errors, set_threads
    from statefield.tasks.tracking.single_object.follow import follow
    from statefield.tasks.tracking.single_object.results import write_followed

    set_threads(arguments.threads)
    if arguments.draw is not None:
        from statefield.tasks.tracking.frame_drawing import require_writer

        require_writer(arguments.draw)
    videos = _videos(arguments)
    videos, done = _to_do(arguments, videos)
    tracker, name = _tracker(arguments)
    found: list[Followed] = []
    with _bar(console_of_errors()) as on_frame:
        for video in videos:
            frames = video.open()
            one = follow(tracker, video.case, frames, _first_box(video, arguments.init), on_frame=on_frame)
            if arguments.draw is not None:
                from statefield.tasks.tracking.single_object.drawing import draw_followed

                lost_below = tracker.config.lost_below
                draw_followed(arguments.output / "drawn", one, frames, video, arguments.draw, lost_below)
            write_followed(one, arguments.output)
            found.append(one)
    _write_summary(arguments, name, tracker.config, found, done, ["statefield", "sot", "track", *argv])
    _print(arguments, found, done)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield sot track",
        description="Follow one object, frame by frame, with MambaEVT: its first look, what it looked like since, and\n"
        "a region around where it was.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sequences", nargs="+", type=Path, metavar="SEQUENCES", help="where the frames are, see below")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run folder of `statefield sot train`")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of `statefield convert --model mamba_evt`, or the authors'",
    )
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="folder for SEQUENCE.txt")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--resume", action="store_true", help="leave sequences that have results, do the others")
    parser.add_argument(
        "--init", nargs=4, type=float, metavar=("X", "Y", "W", "H"), help="the first box, pixels, of a single sequence"
    )
    parser.add_argument("--gt", type=Path, metavar="PATH", help="ground truth, where it does not lie with the frames")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="only these sequences")
    parser.add_argument(
        "--frames",
        choices=("any", "pictures", "event_pictures", "events"),
        default="any",
        help="which, where a benchmark ships several (default: the first that is there)",
    )
    parser.add_argument(
        "--events",
        choices=("picture", "counts", "voxels", "surface"),
        help="how recordings of events become frames (default: the run's, or picture)",
    )
    parser.add_argument(
        "--window-us",
        type=int,
        metavar="US",
        help="microseconds of events in a frame (default: the run's, else one frame for each box, or 40000)",
    )
    parser.add_argument("--step-us", type=int, metavar="US", help="from frame to frame (default: --window-us)")
    for name, (kind, does) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=name.split("_")[-1].upper(), help=does)
    parser.add_argument(
        "--draw",
        choices=("frames", "webp", "mp4"),
        help="also draw what was found, to DIR/drawn (mp4 needs the program ffmpeg)",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def _videos(arguments: argparse.Namespace) -> list[ObjectVideo]:
    from statefield.datasets.events.frames import EventFrameConfig
    from statefield.datasets.tracking.object_videos import find_object_videos

    events = EventFrameConfig()
    if arguments.run is not None:
        from statefield.tasks.common.run_folder import RunFolder
        from statefield.tasks.tracking.single_object.recipe import read_recipe

        folder = RunFolder(arguments.run)
        folder.require()
        events = read_recipe(folder.config).data.events
    given = {"kind": arguments.events, "window_us": arguments.window_us, "step_us": arguments.step_us}
    events = dataclasses.replace(events, **{name: value for name, value in given.items() if value is not None})
    found: list[ObjectVideo] = []
    for place in arguments.sequences:
        found += find_object_videos(
            place, truth=arguments.gt, names=arguments.names, kind=arguments.frames, events=events
        )
    names = [one.case for one in found]
    twice = next((one for one in found if names.count(one.case) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice.place}: two sequences are called {twice.case!r}, and so would their results be.")
    if arguments.init is not None and len(found) > 1:
        raise ConfigError(
            f"--init is the first box of one sequence, and there are {len(found)}: name one of them with --names, or "
            "leave --init out, for the boxes of the ground truth."
        )
    for one in found:  # what can be said without decoding is said before the first frame
        _first_box(one, arguments.init)
        if one.place.is_dir():
            one.open()
    return found


def _first_box(video: ObjectVideo, init: Sequence[float] | None) -> Any:
    import numpy as np

    if init is not None:
        box = np.array(init)
        if not (np.isfinite(box).all() and (box[2:] > 0).all()):
            told = " ".join(f"{value:g}" for value in init)
            raise ConfigError(f"--init {told}: four finite numbers, a width and a height above 0, are needed.")
        return box
    if not len(video.boxes):
        raise ConfigError(
            f"{video.place}: nothing says where the object is at first. Give --init X Y W H, the top left corner, "
            "width and height of its box in the first frame, in pixels, or --gt with a ground truth."
        )
    if not video.visible[0]:
        raise ConfigError(
            f"{video.truth}: {video.case!r} has no box in its first frame. Give --init X Y W H, or cut the frames "
            "before the object comes."
        )
    return video.boxes[0]


def _to_do(arguments: argparse.Namespace, videos: list[ObjectVideo]) -> tuple[list[ObjectVideo], list[str]]:
    there = [one.case for one in videos if (arguments.output / f"{one.case}.txt").exists()]
    if there and not (arguments.overwrite or arguments.resume):
        raise ConfigError(
            f"{arguments.output} holds results of {there[0]} already. Go on with the others with --resume, replace "
            "them with --overwrite, or name another folder."
        )
    done = there if arguments.resume and not arguments.overwrite else []
    return [one for one in videos if one.case not in done], done


def _tracker(arguments: argparse.Namespace) -> tuple[Any, str]:
    from statefield.cli.devices import device_of
    from statefield.tasks.tracking.single_object.training import load_tracker

    trained = load_tracker(arguments.run or arguments.weights)
    given = {name: value for name in _SETTINGS if (value := getattr(arguments, name)) is not None}
    if "interval" in given and given["interval"] < 1:
        raise ConfigError(f"--interval {given['interval']}: 1 or more is needed.")
    trained = dataclasses.replace(trained, config=dataclasses.replace(trained.config, **given))
    return trained.tracker(device_of(arguments.device)), trained.name


def _bar(console: Any) -> Any:
    from statefield.cli.run_output import case_bar

    return case_bar(console, "frames")


def _write_summary(
    arguments: argparse.Namespace,
    name: str,
    config: TrackerConfig,
    found: list[Followed],
    done: list[str],
    command: list[str],
) -> None:
    from statefield.files import write_json

    write_json(
        arguments.output / "tracking.json",
        {
            "command": shlex.join(command),
            "net": name,
            "weights": str(arguments.run or arguments.weights),
            "tracker": dataclasses.asdict(config),
            "sequences": [
                {
                    "name": one.case,
                    "frames": len(one.boxes),
                    "frames_lost": one.num_lost,
                    "mean_score": float(one.scores[1:].mean()) if len(one.scores) > 1 else None,
                    "frames_per_second": one.frames_per_second,
                }
                for one in found
            ],
            "done_before": done,
        },
    )


def _print(arguments: argparse.Namespace, found: list[Followed], done: list[str]) -> None:
    width = max((len(one.case) for one in found), default=8)
    print(f"{'sequence':<{max(width, 8)}}  frames   lost  mean score  frames/s")
    for one in found:
        mean = one.scores[1:].mean() if len(one.scores) > 1 else float("nan")
        print(
            f"{one.case:<{max(width, 8)}}  {len(one.boxes):6d}  {one.num_lost:5d}  {mean:10.3f}  "
            f"{one.frames_per_second:8.1f}"
        )
    if done:
        print(f"{len(done)} sequences had results before and were left")
    print(f"\nresults: {arguments.output}/SEQUENCE.txt")
    if arguments.draw is not None:
        print(f"drawn: {arguments.output}/drawn")
    if arguments.init is None:
        print(
            f"to go on:\n  statefield sot evaluate --gt {arguments.gt or arguments.sequences[0]} "
            f"--results {arguments.output}"
        )
