"""The scores of an evaluation as tables and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statefield.tasks.tracking.mot_evaluation.evaluate import MotEvaluation, Summary
from statefield.tasks.tracking.mot_evaluation.hota import ALPHAS
from statefield.tasks.tracking.mot_evaluation.track_map import RANGES, THRESHOLDS
from statefield.tasks.tracking.score_tables import ScoreTable, Value

# counts are shown as they are; every other field is a ratio, shown as per cent
COUNTS = frozenset(
    [
        "CLR_TP",
        "CLR_FN",
        "CLR_FP",
        "IDSW",
        "MT",
        "PT",
        "ML",
        "Frag",
        "CLR_Frames",
        "IDTP",
        "IDFN",
        "IDFP",
        "HOTA_TP",
        "HOTA_FN",
        "HOTA_FP",
        "VACE_IDs",
        "VACE_GT_IDs",
        "num_non_empty_timesteps",
        "Dets",
        "GT_Dets",
        "IDs",
        "GT_IDs",
        "Frames",
    ]
)
SUMS = frozenset({"MOTP_sum", "STDA", "FDA", "FP_per_frame"})  # neither: shown as they are, with decimals
_LOWER = frozenset(["IDSW", "Frag", "ML", "CLR_FN", "CLR_FP", "IDFN", "IDFP", "FN", "FP", "MLR", "FP_per_frame"])
_UNRANKED = frozenset(
    ["Dets", "GT_Dets", "IDs", "GT_IDs", "Frames", "num_non_empty_timesteps", "VACE_GT_IDs", "PT", "PTR"]
)

# heading -> (metric, field); what papers print first
_MAIN = {
    "HOTA": ("HOTA", "HOTA"),
    "DetA": ("HOTA", "DetA"),
    "AssA": ("HOTA", "AssA"),
    "LocA": ("HOTA", "LocA"),
    "MOTA": ("CLEAR", "MOTA"),
    "IDF1": ("Identity", "IDF1"),
    "IDSW": ("CLEAR", "IDSW"),
    "Frag": ("CLEAR", "Frag"),
}
_PER_SEQUENCE = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW")
_RATIOS = ("MOTP", "MODA", "sMOTA", "MOTAL", "CLR_Re", "CLR_Pr", "CLR_F1")
# (heading, metric, fields, what they are); shown on request, but for those of `_ALWAYS`
_DETAILS = (
    (
        "HOTA",
        "HOTA",
        ("DetRe", "DetPr", "AssRe", "AssPr", "OWTA", "HOTA(0)", "LocA(0)"),
        "Mean over 19 thresholds, but at the threshold 0.05 where marked (0); per cent.",
    ),
    ("CLEAR", "CLEAR", _RATIOS, "At IoU 0.5; per cent."),
    ("CLEAR, tracks", "CLEAR", ("MTR", "PTR", "MLR", "FP_per_frame"), "At IoU 0.5; per cent, but FP_per_frame."),
    ("CLEAR, counts", "CLEAR", ("CLR_TP", "CLR_FN", "CLR_FP", "MT", "PT", "ML"), "At IoU 0.5: boxes, and tracks."),
    ("Identity", "Identity", ("IDR", "IDP", "IDTP", "IDFN", "IDFP"), "At IoU 0.5; IDR and IDP in per cent."),
    ("VACE", "VACE", ("SFDA", "ATA"), "At IoU 0.5; per cent."),
    ("counts", "Count", ("Dets", "GT_Dets", "IDs", "GT_IDs", "Frames"), "What is scored, after the benchmark's rules."),
)
_ALWAYS = ("VACE",)


def shown_value(field: str, value: Any) -> Value:
    """A field as tables show it: per cent, or a count; arrays as their mean over thresholds."""
    if field in COUNTS and np.ndim(value) == 0:
        return int(value)
    number = float(np.mean(value))
    if number == -1 and field.startswith(("AP_", "AR_")):
        return None  # no ground-truth track is in the range
    return number if field in SUMS or field in COUNTS else 100 * number


def main_row(summary: Summary) -> dict[str, Value]:
    """The scores that papers print, of the metrics that were computed."""
    return {
        heading: shown_value(field, summary[metric][field])
        for heading, (metric, field) in _MAIN.items()
        if metric in summary
    }


def score_tables(evaluation: MotEvaluation, *, sequences: bool = True, details: bool = True) -> list[ScoreTable]:
    """All tables: for each class the trackers, then each sequence, then what else was computed.

    Args:
        sequences: with a row for each sequence of each tracker.
        details: with every further field.
    """
    tables = []
    for name in evaluation.classes:
        combined = {tracker.name: tracker.combined(name) for tracker in evaluation.trackers}
        count = len(evaluation.ground_truth.sequences)
        of = f"{evaluation.ground_truth.benchmark}, {name}"
        lead = (
            f"{count} {'sequence' if count == 1 else 'sequences'}, combined from the sums of their counts. Ratios in "
            "per cent; IDSW and Frag are counts, lower is better."
        )
        tables.append(_table(of, lead, "tracker", {key: main_row(row) for key, row in combined.items()}))
        if sequences:
            tables.append(_sequence_table(evaluation, name, of))
        for heading, metric, fields, what in _DETAILS:
            if metric in evaluation.metrics and (details or metric in _ALWAYS):
                rows = {key: _fields(row[metric], fields) for key, row in combined.items()}
                tables.append(_table(f"{of}: {heading}", what, "tracker", rows))
        if "TrackMAP" in evaluation.metrics:
            tables += _map_tables(of, combined)
    return tables


def curve_plots(evaluation: MotEvaluation) -> list[Any]:
    """HOTA, DetA, AssA and LocA over the thresholds, a line for each tracker; AP over the track IoU."""
    from statefield.tasks.tracking.score_plots import CurvePlot  # matplotlib: not for those who want numbers alone

    plots = []
    several = len(evaluation.classes) > 1
    for name in evaluation.classes:
        combined = {tracker.name: tracker.combined(name) for tracker in evaluation.trackers}
        suffix, title = (f"_{name}", f" ({name})") if several else ("", "")
        for metric, fields, x, label in (
            ("HOTA", ("HOTA", "DetA", "AssA", "LocA"), ALPHAS, "localisation threshold α (IoU)"),
            ("TrackMAP", ("AP_all",), THRESHOLDS, "threshold of the track IoU"),
        ):
            if metric not in evaluation.metrics:
                continue
            for field in fields:
                lines = {key: 100 * np.asarray(row[metric][field]) for key, row in combined.items()}
                scores = {key: float(np.mean(line)) for key, line in lines.items()}
                plots.append(
                    CurvePlot(
                        name=f"{field}{suffix}",
                        title=f"{'Track AP' if field == 'AP_all' else field}{title}",
                        x_label=label,
                        y_label="per cent",
                        x=x,
                        lines=lines,
                        scores=scores,
                        y_range=(0.0, 100.0),
                    )
                )
    return plots


def as_json(evaluation: MotEvaluation) -> dict[str, Any]:
    """Everything, with all digits, arrays over thresholds as lists; scores as fractions, as TrackEval has them."""
    truth = evaluation.ground_truth
    return {
        "ground_truth": str(truth.root),
        "benchmark": truth.benchmark,
        "recognised_by": truth.recognised_by,
        "metrics": list(evaluation.metrics),
        "HOTA_alphas": ALPHAS.tolist(),
        "TrackMAP_thresholds": THRESHOLDS.tolist(),
        "trackers": {
            tracker.name: {
                name: {
                    "combined": _plain(tracker.combined(name)),
                    "sequences": {each.name: _plain(tracker.of_sequence(name, each.name)) for each in truth.sequences},
                }
                for name in evaluation.classes
            }
            for tracker in evaluation.trackers
        },
        "notes": evaluation.notes,
    }


def _plain(summary: Summary) -> dict[str, dict[str, Any]]:
    return {
        metric: {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()}
        for metric, fields in summary.items()
    }


def _sequence_table(evaluation: MotEvaluation, name: str, of: str) -> ScoreTable:
    rows: dict[str, dict[str, Value]] = {}
    for tracker in evaluation.trackers:
        for each in evaluation.ground_truth.sequences:
            key = each.name if len(evaluation.trackers) == 1 else f"{tracker.name}, {each.name}"
            row = main_row(tracker.of_sequence(name, each.name))
            rows[key] = {heading: row[heading] for heading in _PER_SEQUENCE if heading in row} or row
    heading = "sequence" if len(evaluation.trackers) == 1 else "tracker, sequence"
    table = _table(f"{of}: each sequence", "Ratios in per cent; IDSW is a count.", heading, rows)
    return ScoreTable(table.title, table.lead, table.heading, rows, unranked=frozenset(table.columns))


def _map_tables(of: str, combined: Mapping[str, Summary]) -> list[ScoreTable]:
    main: dict[str, dict[str, Value]] = {}
    ranges: dict[str, dict[str, Value]] = {}
    for key, summary in combined.items():
        fields = summary["TrackMAP"]
        precision, recall = fields["AP_all"], fields["AR_all"]
        shown = {"mAP": precision, "AP50": precision[0], "AP75": precision[5], "mAR": recall}
        main[key] = {heading: shown_value("AP_all", value) for heading, value in shown.items()}
        ranges[key] = {
            name.replace("area_", "area ").replace("time_", "time "): shown_value("AP_all", fields[f"AP_{name}"])
            for name in RANGES[1:]
        }
    lead = "Average precision of whole tracks, mean over track IoU 0.5 to 0.95, and average recall; per cent."
    by_range = "mAP of tracks of small, medium and large boxes, and of short, medium and long tracks (TAO's ranges)."
    return [
        _table(f"{of}: track mAP", lead, "tracker", main),
        _table(f"{of}: track mAP by size", by_range, "tracker", ranges),
    ]


def _fields(values: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Value]:
    return {field: shown_value(field, values[field]) for field in fields}


def _table(title: str, lead: str, heading: str, rows: Mapping[str, Mapping[str, Value]]) -> ScoreTable:
    return ScoreTable(title, lead, heading, rows, lower_is_better=_LOWER, unranked=_UNRANKED)
