"""Scores in the files that TrackEval writes, for scripts that read those: CLASS_summary.txt and CLASS_detailed.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from statefield.files import write_text
from statefield.tasks.tracking.mot_evaluation.evaluate import MotEvaluation, Summary
from statefield.tasks.tracking.mot_evaluation.hota import ALPHAS
from statefield.tasks.tracking.mot_evaluation.score_views import COUNTS
from statefield.tasks.tracking.mot_evaluation.track_map import THRESHOLDS

# the fields of TrackEval's summaries, in its order; further metrics follow
_SUMMARY = [
    "HOTA",
    "DetA",
    "AssA",
    "DetRe",
    "DetPr",
    "AssRe",
    "AssPr",
    "LocA",
    "OWTA",
    "HOTA(0)",
    "LocA(0)",
    "HOTALocA(0)",
    "MOTA",
    "MOTP",
    "MODA",
    "CLR_Re",
    "CLR_Pr",
    "MTR",
    "PTR",
    "MLR",
    "CLR_TP",
    "CLR_FN",
    "CLR_FP",
    "IDSW",
    "MT",
    "PT",
    "ML",
    "Frag",
    "sMOTA",
    "IDF1",
    "IDR",
    "IDP",
    "IDTP",
    "IDFN",
    "IDFP",
    "Dets",
    "GT_Dets",
    "IDs",
    "GT_IDs",
    "SFDA",
    "ATA",
]


def write_trackeval_files(folder: Path, evaluation: MotEvaluation) -> list[Path]:
    """Write TRACKER/CLASS_summary.txt and TRACKER/CLASS_detailed.csv below `folder`; returns their paths."""
    written = []
    for tracker in evaluation.trackers:
        for name in evaluation.classes:
            combined = tracker.combined(name)
            summary = folder / tracker.name / f"{name}_summary.txt"
            write_text(summary, _summary(combined))
            rows = {each.name: tracker.of_sequence(name, each.name) for each in evaluation.ground_truth.sequences}
            detailed = folder / tracker.name / f"{name}_detailed.csv"
            write_text(detailed, _detailed(rows | {"COMBINED": combined}))
            written += [summary, detailed]
    return written


def _summary(combined: Summary) -> str:
    values = {field: value for fields in combined.values() for field, value in fields.items()}
    shown = [field for field in _SUMMARY if field in values]
    shown += [field for field in values if field.startswith(("AP_", "AR_"))]
    cells = [
        f"{int(values[field])}" if field in COUNTS else f"{100 * float(np.mean(values[field])):1.5g}" for field in shown
    ]
    return " ".join(shown) + "\n" + " ".join(cells) + "\n"


def _detailed(rows: dict[str, Summary]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (row, summary) in enumerate(rows.items()):
        cells = {key: value for metric, fields in summary.items() for key, value in _cells(metric, fields)}
        if number == 0:
            writer.writerow(["seq", *cells])
        writer.writerow([row, *cells.values()])
    return text.getvalue()


def _cells(metric: str, fields: dict[str, Any]) -> list[tuple[str, Any]]:
    """Scalars, then arrays as FIELD___5 ... FIELD___95 and FIELD___AUC, their mean."""
    cells: list[tuple[str, Any]] = [(key, value) for key, value in fields.items() if np.ndim(value) == 0]
    steps = [int(100 * threshold) for threshold in (ALPHAS if metric == "HOTA" else THRESHOLDS)]
    for key, value in fields.items():
        if np.ndim(value):
            cells += [(f"{key}___{step}", float(entry)) for step, entry in zip(steps, value, strict=True)]
            cells.append((f"{key}___AUC", float(np.mean(value))))
    return cells
