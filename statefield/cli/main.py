"""`statefield <field> <verb>`: finds the verb's module, runs it, turns our errors into one paragraph.

Each verb is a function `(argv: list[str]) -> int` in its own module, imported only when it is called, so that
`statefield --help` answers at once and one field's imports never slow another's.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from statefield.errors import DataError, StatefieldError, UnknownName


@dataclass(frozen=True)
class Verb:
    """Where a command lives (`module:function`) and what it does, in one line."""

    home: str
    does: str

    def load(self) -> Callable[[list[str]], int]:
        module, function = self.home.split(":")
        return getattr(import_module(module), function)


VERBS: dict[tuple[str, ...], Verb] = {
    ("medical", "train"): Verb("statefield.cli.medical:train", "train a segmentation, then test it and write a report"),
    ("medical", "plan"): Verb("statefield.cli.medical_plan:plan", "write a recipe that follows from a dataset"),
    ("medical", "test"): Verb("statefield.cli.medical:test", "score a trained model on a split"),
    ("medical", "predict"): Verb(
        "statefield.cli.medical_predict:predict", "segment images or volumes with a trained model"
    ),
    ("medical", "evaluate"): Verb("statefield.cli.medical_evaluate:evaluate", "score label files against label files"),
    ("change", "train"): Verb("statefield.cli.change:train", "train change detection, then test it and write a report"),
    ("change", "test"): Verb("statefield.cli.change:test", "score a trained net of two dates on a split"),
    ("change", "evaluate"): Verb(
        "statefield.cli.change_evaluate:evaluate", "score maps of change against maps of change"
    ),
    ("hyperspectral", "train"): Verb(
        "statefield.cli.hyperspectral:train", "learn the classes of a scene's pixels, test on others, map the scene"
    ),
    ("hyperspectral", "predict"): Verb(
        "statefield.cli.hyperspectral_predict:predict", "map a scene with a trained classifier"
    ),
    ("mot", "evaluate"): Verb(
        "statefield.cli.mot_evaluate:evaluate", "score trackers of many objects: HOTA, MOTA, IDF1, as TrackEval does"
    ),
    ("mot", "track"): Verb("statefield.cli.mot_track:track", "link detections to tracks: SORT, ByteTrack, ..."),
    ("mot", "train"): Verb("statefield.cli.mot_train:train", "learn the motion of tracks (MambaTrack), against Kalman"),
    ("sot", "evaluate"): Verb(
        "statefield.cli.sot_evaluate:evaluate", "score trackers of one object as the benchmarks' own toolkits do"
    ),
    ("sot", "track"): Verb("statefield.cli.sot_track:track", "follow one object through pictures, videos or events"),
    ("sot", "train"): Verb("statefield.cli.sot_train:train", "learn to follow one object (MambaEVT), then test it"),
    ("video", "evaluate"): Verb(
        "statefield.cli.video_evaluate:evaluate", "score detections in images and videos, by class, size and speed"
    ),
    ("video", "detect"): Verb("statefield.cli.video_detect:detect", "find objects in videos, frame by frame"),
    ("video", "train"): Verb(
        "statefield.cli.video_train:train", "learn to detect objects in videos (MAMBA), beside a control"
    ),
    ("change", "predict"): Verb("statefield.cli.change_predict:predict", "map what changed between two rasters"),
    ("change", "predict-archive"): Verb(
        "statefield.cli.change_archive:predict_archive", "map what changed in a list of pairs, on one machine or many"
    ),
    ("segment", "predict"): Verb("statefield.cli.segment_predict:predict", "map the classes of one raster of any size"),
    ("scene", "train"): Verb(
        "statefield.cli.scene:train", "train a classifier of scenes, then test it and write a report"
    ),
    ("scene", "test"): Verb("statefield.cli.scene:test", "score a trained classifier of scenes on a split"),
    ("scene", "predict"): Verb("statefield.cli.scene:predict", "give images the classes of their scenes"),
    ("app",): Verb("statefield.cli.app:app", "try models in a browser: masks, maps of change, tracks"),
    ("models",): Verb("statefield.cli.models:models", "list the backbones"),
    ("routes",): Verb("statefield.cli.routes:routes", "list the scan orders, or draw one"),
    ("datasets",): Verb("statefield.cli.datasets:datasets", "list the dataset layouts that can be read"),
    ("convert",): Verb("statefield.cli.convert:convert", "turn an official checkpoint into safetensors"),
    ("export",): Verb("statefield.cli.export:export", "write a trained model as ONNX, or for torch alone"),
    ("doctor",): Verb("statefield.cli.doctor:doctor", "show what is installed and which kernels run"),
    ("bench", "kernels"): Verb("statefield.cli.bench:kernels", "measure the operators against their limits"),
    ("bench", "backbones"): Verb(
        "statefield.cli.bench_backbones:backbones", "measure the backbones beside their controls"
    ),
    ("bench", "inference"): Verb(
        "statefield.cli.bench_inference:inference", "predict a large volume of many classes in little memory"
    ),
    ("bench", "raster"): Verb("statefield.cli.bench_raster:raster", "map rasters of up to 50,000 pixels a side"),
}

_EXAMPLES = (
    "statefield medical train --config recipes/medical/demo.yaml",
    "statefield medical plan data/Task09_Spleen",
    "statefield medical predict --run runs/demo scan.nii.gz --output scan_labels.nii.gz",
    "statefield medical evaluate predictions/ labels/ --classes 3",
    "statefield change train --config recipes/remote_sensing/oscd.yaml",
    "statefield change evaluate predictions/ labels/ --json scores.json",
    "statefield change predict before.tif after.tif --run runs/oscd -o change.tif --polygons change.gpkg",
    "statefield change predict-archive pairs.csv --run runs/oscd -o maps/ --workers 8",
    "statefield segment predict image.tif --run runs/fields -o labels.tif",
    "statefield hyperspectral train --output runs/indian_pines",
    "statefield mot evaluate --gt MOT17/train --results results/bytetrack results/sort",
    "statefield mot track MOT17/train --output results/bytetrack",
    "statefield sot evaluate --gt LaSOT/ --results results/ostrack results/mixformer --report report.html",
    "statefield sot track video.avi --run runs/mamba_evt --init 217 100 130 140 --output results/mamba_evt",
    "statefield video train --config recipes/tracking/mamba_vod_shapes.yaml --data.train annotations.json",
    "statefield video detect street.mp4 --run runs/vid --output detections.json",
    "statefield video evaluate --gt imagenet_vid_val.json --results detections.json",
    "statefield scene train --config recipes/remote_sensing/ucmerced.yaml",
    "statefield scene predict --run runs/ucmerced tiles/ --output classes.csv",
    "statefield app --medical runs/demo",
    "statefield models spatial",
    "statefield convert spatial_mamba_t.pth spatial_mamba_tiny.safetensors --model spatial_mamba_tiny",
    "statefield export runs/demo -o demo.onnx",
    "statefield bench kernels --json kernels.json",
)


def overview(field: str | None = None) -> str:
    """The text of `statefield --help`, or of `statefield FIELD --help`: that field's commands alone."""
    shown = {" ".join(words): verb.does for words, verb in VERBS.items() if field in (None, words[0])}
    width = max(map(len, shown))
    rows = "\n".join(f"  {words:<{width}}  {does}" for words, does in shown.items())
    examples = [line for line in _EXAMPLES if field is None or line.split()[1] == field]
    return (
        f"usage: statefield [--debug] {'COMMAND' if field is None else field + ' VERB'} [OPTIONS]"
        "     (each command has a --help of its own)\n\n"
        f"Dense prediction with vision state-space models.\n\ncommands:\n{rows}\n\nexamples:\n"
        + "\n".join(f"  {line}" for line in examples)
    )


def main(argv: list[str]) -> int:
    """Run one command; returns the exit status: 0 well, 2 an input that cannot work (said in one paragraph)."""
    debug = "--debug" in argv
    words = [word for word in argv if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from statefield import __version__

        print(__version__)
        return 0
    try:
        field = words[0] if any(len(known) == 2 and known[0] == words[0] for known in VERBS) else None
        if field is not None and (len(words) == 1 or words[1] in ("-h", "--help")):
            print(overview(field))
            return 0
        verb, rest = _find(words)
        return verb.load()(rest)
    except StatefieldError as error:
        if debug:
            raise
        print(_paragraph(error), file=sys.stderr)
        return 2
    except PermissionError as error:
        if debug:
            raise
        named = DataError(f"{error.filename}: permission denied. Ask for the right to it, or name another place.")
        print(_paragraph(named), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstatefield: stopped.", file=sys.stderr)
        return 130


def _find(words: list[str]) -> tuple[Verb, list[str]]:
    for count in (2, 1):
        verb = VERBS.get(tuple(words[:count]))
        if verb is not None:
            return verb, words[count:]
    verbs_of_field = [" ".join(known) for known in VERBS if len(known) == 2 and known[0] == words[0]]
    if verbs_of_field:
        raise UnknownName.among("command", " ".join(words[:2]), verbs_of_field)
    raise UnknownName.among("command", words[0], {known[0] for known in VERBS})


def _paragraph(error: StatefieldError) -> str:
    text = f"statefield: {type(error).__name__}: {error}"
    fill = textwrap.TextWrapper(width=110, break_long_words=False, break_on_hyphens=False).fill  # paths stay whole
    return "\n".join(fill(line) for line in text.splitlines())


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))
