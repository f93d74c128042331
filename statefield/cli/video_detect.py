"""`statefield video detect VIDEO_OR_FRAMES --run RUN --output detections.json`: objects in videos, frame by frame."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.cli.devices import device_of
from statefield.cli.run_output import console_of_errors, set_threads
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.tracking.video_detection.detect import DetectedVideo

_EPILOG = """
Input: a video file, a folder of frames, a folder of sequences (SEQUENCE or SEQUENCE/img1), or a CocoVID or COCO file,
whose images are looked at and whose numbers the results have. Every video begins with an empty memory, and a frame's
result depends on the frames before it alone (unless the recipe sets model.memory.first_references). Nothing is written
before the last frame is done. For other input than JSON, OUTPUT_images.json numbers the frames.

examples:
  statefield video detect street.mp4 --run runs/vid --output detections.json
  statefield video detect frames/ --run runs/vid --output detections.json --score 0.3 --draw webp
  statefield video detect MOT17/train --run runs/people --output people.json
  statefield mot track people.json --images people_images.json --output results/bytetrack     link what was found
  statefield video detect vid_val.json --images Data/VID --run runs/vid --output mamba.json
  statefield video evaluate --gt vid_val.json --results mamba.json                            score what was found
"""


def detect(argv: list[str]) -> int:
    """The verb: writes the detections of every video; returns 0, or raises one of our errors."""
    options = _parser().parse_args(argv)
    for name in ("score", "draw_score"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: a share from 0 to 1 is needed.")
    set_threads(options.threads)

    from statefield.tasks.tracking.video_detection.detect import Drawing, detect_videos, find_inputs, require_free
    from statefield.tasks.tracking.video_detection.training import load_detector

    output: Path = options.output
    drawing = None
    if options.draw is not None:
        drawing = Drawing(output.with_name(f"{output.stem}_drawn"), options.draw, options.draw_score)
    require_free(output, drawing, overwrite=options.overwrite)
    device = device_of(options.device)
    trained = load_detector(options.run)
    inputs = find_inputs(options.input, options.images, trained)
    trained.net.to(device)
    lengths = [one.frames.length for one in inputs]
    with _progress(sum(length for length in lengths if length) if all(lengths) else None) as on_frame:
        detected, images = detect_videos(
            trained, inputs, output, least_score=options.score, drawing=drawing, on_frame=on_frame
        )
    _print(detected)
    print(f"\nwritten: {output} (COCO's results)")
    if images is not None:
        print(f"written: {images} (which frame is which number)")
    if drawing is not None:
        print(f"written: {drawing.folder} (frames with boxes)")
    truth = "GROUND_TRUTH.json" if images is not None else options.input[0]
    print(f"to go on:\n  statefield video evaluate --gt {truth} --results {output}")
    if images is not None:
        print(f"  statefield mot track {output} --images {images} --output tracks/")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield video detect",
        description="Detect objects in videos with a detector of `statefield video train`, online, frame by frame,\n"
        "with its memory of the frames before.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, nargs="+", help="video files, folders of frames, or one CocoVID file")
    parser.add_argument("--run", type=Path, required=True, help="the run folder of `statefield video train`")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE", help="the detections (.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of a CocoVID file's frames")
    parser.add_argument(
        "--score", type=float, metavar="S", help="leave out detections below it (default: as low as scores need)"
    )
    parser.add_argument(
        "--draw", choices=("frames", "webp", "mp4"), help="also draw the boxes, into OUTPUT_drawn/ (mp4 needs ffmpeg)"
    )
    parser.add_argument(
        "--draw-score", type=float, default=0.5, metavar="S", help="draw no detections below it (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def _print(detected: list[DetectedVideo]) -> None:
    width = max(5, *(len(one.name) for one in detected))
    print(f"{'video':<{width}}  frames  detections  frames/s")
    for one in detected:
        rate = one.num_frames / one.seconds if one.seconds else float("inf")
        print(f"{one.name:<{width}}  {one.num_frames:6d}  {len(one.entries):10d}  {rate:8.2f}")


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A bar over the frames of all videos; nothing is drawn without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console_of_errors()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)

        def on_frame(name: str, _done: int, _frames: int | None) -> None:
            bar.update(task, description=name, advance=1)

        yield on_frame
