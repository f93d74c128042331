"""Files of detections against a file of annotations: what `statefield video evaluate` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from statefield.datasets.tracking.coco_json import Annotations, Kind, OnBad, read_annotations, read_detections
from statefield.errors import ConfigError
from statefield.tasks.tracking.score_plots import CurvePlot
from statefield.tasks.tracking.score_tables import ScoreTable
from statefield.tasks.tracking.video.coco_scores import CocoScores, coco_scores
from statefield.tasks.tracking.video.vid_scores import SpeedScores, coco_speed_scores, vid_speed_scores

_COCO_LEAD = "fractions, by pycocotools; -1 where nothing is to be scored"
_SPEED_LEADS = {
    "FGFA": "AP50 of ImageNet-VID as FGFA and MEGA report it; fractions, mean over the classes with such objects",
    "COCO": "AP50 by pycocotools, objects of other speeds ignored; fractions, mean over the classes with such objects",
}
_KIND_TITLES: dict[Kind, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


@dataclass(frozen=True)
class VideoEvaluation:
    """The scores of all files.

    `coco`: kind of region -> detector -> scores. `speeds`: "FGFA" or "COCO" -> detector -> scores.
    """

    truth: Annotations
    coco: dict[Kind, dict[str, CocoScores]]
    speeds: dict[str, dict[str, SpeedScores]]
    notes: list[str] = field(default_factory=list)

    def tables(self) -> list[ScoreTable]:
        """Scores over all classes first, then by class."""
        result = []
        for rules, by_name in self.speeds.items():
            rows = {name: dict(scores.mean) for name, scores in by_name.items()}
            result.append(ScoreTable(f"AP50 by speed, {rules}", _SPEED_LEADS[rules], "detector", rows, 4))
        for kind, found in self.coco.items():
            rows = {name: dict(scores.overall) for name, scores in found.items()}
            result.append(ScoreTable(f"COCO, {_KIND_TITLES[kind]}", _COCO_LEAD, "detector", rows, 4))
        for kind, found in self.coco.items():
            classes = next(iter(found.values())).per_class
            rows = {
                one: {
                    f"{name} {score}": found[name].per_class[one][score] for name in found for score in ("AP", "AP50")
                }
                for one in classes
            }
            title = f"COCO, {_KIND_TITLES[kind]}, by class"
            unranked = frozenset(next(iter(rows.values()), {}))  # the best class is no matter
            result.append(ScoreTable(title, _COCO_LEAD, "class", rows, 4, unranked=unranked))
        for rules, by_name in self.speeds.items():
            first = next(iter(by_name.values()))
            rows = {
                one: {
                    f"{name} {speed}": scores.per_class[one][speed]
                    for name, scores in by_name.items()
                    for speed in first.mean
                }
                for one in first.per_class
            }
            columns = frozenset(next(iter(rows.values()), {}))
            result.append(
                ScoreTable(f"AP50 by class and speed, {rules}", _SPEED_LEADS[rules], "class", rows, 4, unranked=columns)
            )
        return result

    def plots(self) -> list[CurvePlot]:
        """Precision over recall at IoU 0.5, the mean over classes."""
        result = []
        for kind, found in self.coco.items():
            lines = {
                name: np.mean(list(scores.precision.values()), axis=0)
                for name, scores in found.items()
                if scores.precision
            }
            if lines:
                result.append(
                    CurvePlot(
                        name=f"precision_recall_{kind}",
                        title=f"{_KIND_TITLES[kind].capitalize()}, IoU 0.5, mean over classes",
                        x_label="recall",
                        y_label="precision",
                        x=np.linspace(0, 1, 101),
                        lines=lines,
                        scores={name: found[name].overall["AP50"] for name in lines},
                    )
                )
        return result

    def as_json(self) -> dict[str, Any]:
        """Everything, with all digits."""
        return {
            "gt": str(self.truth.path),
            "num_images": len(self.truth.images),
            "num_videos": len(self.truth.videos),
            "num_annotations": len(self.truth.annotations),
            "coco": {
                kind: {name: {"overall": scores.overall, "classes": scores.per_class} for name, scores in found.items()}
                for kind, found in self.coco.items()
            },
            "speed": {
                rules: {
                    name: {"mean": scores.mean, "classes": scores.per_class, "num_objects": scores.num_objects}
                    for name, scores in by_name.items()
                }
                for rules, by_name in self.speeds.items()
            },
            "notes": self.notes,
        }


def evaluate_detections(
    truth_path: Path,
    result_paths: Sequence[Path],
    *,
    kinds: Sequence[Kind] | None = None,
    by_speed: bool | None = None,
    on_bad: OnBad = "error",
    on_file: Callable[[str], None] = lambda _: None,
) -> VideoEvaluation:
    """Score files of detections.

    Args:
        kinds: which regions to score; None is those that the entries of the results have.
        by_speed: split the scores of boxes by speed; None does so where the ground truth has tracks.
        on_bad: what becomes of entries that cannot be scored: an error, or left out and counted in the notes.
        on_file: called with the name of each file that is begun.

    Raises:
        DataError: files that cannot be read or scored.
        ConfigError: a split by speed without tracks, or two files of one name.
    """
    truth = read_annotations(truth_path, on_bad)
    if by_speed and not truth.has_tracks:
        raise ConfigError(
            f"{truth_path}: no tracks to measure speed by; needed are videos, the images' video_id and frame_id, and "
            "the annotations' instance_id, as in CocoVID files."
        )
    names = _names(result_paths)
    coco: dict[Kind, dict[str, CocoScores]] = {}
    speeds: dict[str, dict[str, SpeedScores]] = {}
    notes = [f"{truth_path}: {count} annotations left out, {reason}." for reason, count in truth.skipped.items()]
    for name, path in names.items():
        on_file(name)
        detections = read_detections(path, truth, on_bad)
        notes += [f"{path}: {count} entries left out, {reason}." for reason, count in detections.skipped.items()]
        if not detections.entries:
            notes.append(f"{path}: no detection, so every score is 0.")
        for kind in kinds or detections.kinds or ("bbox",):
            coco.setdefault(kind, {})[name] = coco_scores(truth, detections, kind)
        has_boxes = not detections.entries or "bbox" in detections.kinds
        if has_boxes and (truth.has_tracks if by_speed is None else by_speed):
            speeds.setdefault("FGFA", {})[name] = vid_speed_scores(truth, detections)
            speeds.setdefault("COCO", {})[name] = coco_speed_scores(truth, detections)
    for found in speeds.values():
        counts = next(iter(found.values())).num_objects
        notes.append(", ".join(f"{counts[speed]} objects {speed}" for speed in counts) + ".")
        break
    return VideoEvaluation(truth, coco, speeds, notes)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Detectors by the names of their files, or of their folders where the files have one name."""
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"--results {' '.join(map(str, paths))}: two files have one name; tables call detectors by it."
        )
    return dict(zip(names, paths, strict=True))
