"""The report of an evaluation: scores, and the best, median and worst case as truth, prediction and errors."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statefield.files import write_text
from statefield.tasks.common.report import CaseView, representative, write_report
from statefield.tasks.medical.evaluate import Evaluation
from statefield.tasks.medical.label_files import read_pair
from statefield.tasks.medical.testing import metric_rows


def write_evaluation_report(path: Path, evaluation: Evaluation, *, title: str, commands: Sequence[str]) -> None:
    """Write one HTML file that holds its pictures, whole or not at all.

    Only the cases that are drawn are read again. Label files have no image beside them, so the pictures show labels on
    black. Their scores are the means over the foreground classes.
    """
    summary = evaluation.summary()
    scores = [_scores(evaluation, table) for table in summary["cases"].values()]
    drawn = set(representative([next(iter(row.values())) for row in scores]).values())
    pairs = {pair.case: pair for pair in evaluation.pairs}
    cases = []
    for index, (case, row) in enumerate(zip(summary["cases"], scores, strict=True)):
        if index not in drawn:  # listed in the table of cases, and not drawn: no pixel is needed
            nothing = np.zeros((1, 1), np.uint8)
            cases.append(CaseView(case, nothing[None], nothing, nothing, row))
            continue
        maps = read_pair(pairs[case], len(evaluation.metrics.classes), ignore_label=evaluation.ignore_label)
        black = np.zeros((1, *maps.target.shape), np.uint8)
        cases.append(CaseView(case, black, maps.target, maps.prediction, row, maps.spacing_mm))
    with tempfile.TemporaryDirectory() as folder:  # the report's pictures are also written as files, which nobody needs
        page = write_report(
            Path(folder),
            title=title,
            summary=_cards(evaluation, summary),
            cases=cases,
            history=[],
            classes=evaluation.metrics.classes,
            metrics=metric_rows(summary, evaluation.metrics.classes),
            notes=_notes(evaluation),
            reproduce=commands,
        )
        write_text(path, page.read_text(encoding="utf-8"))


def _scores(evaluation: Evaluation, table: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the foreground classes of each metric of one case; NaN where no class has a score."""
    foreground = [evaluation.metrics.classes[k] for k in evaluation.metrics.foreground]
    means = {}
    for metric, by_class in table.items():
        known = [by_class[name] for name in foreground if by_class[name] == by_class[name]]
        means[f"mean {metric}"] = float(np.mean(known)) if known else float("nan")
    return means


def _cards(evaluation: Evaluation, summary: Mapping[str, Any]) -> dict[str, float | int | str | None]:
    dice = summary["metrics"]["Dice"]
    cards: dict[str, float | int | str | None] = {"mean Dice (over cases)": dice["foreground_mean"]}
    if len(evaluation.metrics.foreground) <= 4:
        names = [evaluation.metrics.classes[k] for k in evaluation.metrics.foreground]
        cards |= {f"Dice {name}": dice["classes"][name]["case_mean"] for name in names}
    return cards | {"accuracy (pooled)": summary["accuracy"]["pooled"], "cases": summary["num_cases"]}


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [f"Classes: {evaluation.classes_from}."]
    if evaluation.ignore_label is not None:
        notes.append(f"Label {evaluation.ignore_label} of the targets is scored nowhere.")
    if any(pair.mask is not None for pair in evaluation.pairs):
        notes.append("Scored inside the fields of view alone.")
    if evaluation.unmatched:
        notes.append(f"{len(evaluation.unmatched)} predictions without a target are left out.")
    return notes
