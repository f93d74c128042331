"""Testing: every case through a net, scored and written; then the comparison, metrics.json and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from statefield.datasets.adapter import DatasetAdapter
from statefield.datasets.sample import DatasetInfo, Record, Sample
from statefield.errors import DataError
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import CaseView, ComparisonRow, MetricRow, Table, Value, write_report
from statefield.tasks.common.resampling import resample_image
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState
from statefield.tasks.common.volumes import Grid, Spacing, normalise
from statefield.tasks.medical.baseline import fit_thresholds
from statefield.tasks.medical.logit_rows import bands_needed
from statefield.tasks.medical.predict import Memory, segment_volume, write_prediction
from statefield.tasks.medical.recipe import MetricsConfig, SegmentationRecipe

CaseProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Scored:
    """The test of one contender. summary: `SegmentationMetrics.summarise` of `state`; seconds: prediction alone."""

    metrics: SegmentationMetrics
    summary: Mapping[str, Any]
    views: Sequence[CaseView]
    seconds: float
    state: SegmentationState


@dataclass(frozen=True, eq=False)
class Contender:
    """A scored net, and what it cost."""

    name: str
    role: Literal["model", "control"]
    scored: Scored
    num_parameters: int
    train_seconds: float | None
    best_epoch: int | None


def evaluate(
    net: nn.Module,
    adapter: DatasetAdapter,
    records: Sequence[Record],
    *,
    classes: tuple[str, ...],
    normalisation: NormalisationConfig,
    slice_context: int,
    roi: tuple[int, ...] | None,
    inference: InferenceConfig,
    scoring: MetricsConfig,
    predictions: Path | None,
    progress: CaseProgress | None = None,
    spacing: Spacing | None = None,
    postprocess: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    observe: Callable[[str, NDArray[Any], NDArray[Any]], None] | None = None,
) -> Scored:
    """Predict, score and write every case, one in memory at a time (but for what the report shows of each).

    Args:
        predictions: the folder of the label maps; None: they are not written.
        spacing: that of training, mm. Labels are scored and written on the grid of the file whatever it is.
        postprocess: changes a label map [D, H, W] before it is scored and written.
        observe: called with the case, its label map as the net gave it, and its target, of the target's shape.
    """
    metrics: SegmentationMetrics | None = None
    state = SegmentationState()
    views: list[CaseView] = []
    seconds = 0.0
    for record in records:
        sample = adapter.load(record)
        target = _target(sample)
        metrics = metrics or _metrics_for(sample, classes, scoring)
        _require_unit(sample, metrics)
        raw = sample["image"] if target.ndim == 3 else sample["image"][:, None]
        image = normalise(raw, normalisation)
        started = time.perf_counter()
        grid = Grid.of(raw.shape[1:], sample["meta"], spacing)
        labels = segment_volume(
            net,
            resample_image(image, grid.wanted_shape, coarse_axis=grid.coarse),
            slice_context=slice_context,
            roi=roi,
            inference=inference,
            progress=None if progress is None else partial(progress, record.case),
            grid=grid,
            num_bands=bands_needed(grid, roi, len(classes), Memory().of_logits),
        ).labels
        seconds += time.perf_counter() - started
        if observe is not None:
            observe(record.case, labels.reshape(target.shape), target)
        if postprocess is not None:
            labels = postprocess(labels)
        if predictions is not None:
            ending = ".png" if sample["meta"]["file"] is None else ".nii.gz"
            write_prediction(predictions / f"{record.case}{ending}", labels, sample["meta"])
        labels = labels.reshape(target.shape)
        state += metrics.observe(labels, target, case=record.case, spacing=sample["meta"]["spacing"])
        views.append(_view(record.case, sample, image, labels, metrics, state))
    if metrics is None:
        raise DataError("no case to test on.")
    return Scored(metrics, metrics.summarise(state), views, seconds, state)


def finish(
    folder: RunFolder,
    recipe: SegmentationRecipe,
    info: DatasetInfo,
    main: Contender,
    controls: Sequence[Contender],
    *,
    baseline: Sequence[Record],
    adapter: DatasetAdapter,
    records: Sequence[Record],
    history: Sequence[Mapping[str, float | None]],
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    extra: Mapping[str, Any] | None = None,
) -> TestResult:
    """Write metrics.json and report.html, with every contender side by side.

    Args:
        baseline: training records to fit intensity thresholds on, which are then scored as the net is; empty: none.
        records: the test records.
        notes, tables: further sentences and tables for the report.
        extra: further entries of metrics.json.
    """
    rows = [_comparison_row(contender, info.classes) for contender in (main, *controls)]
    thresholds: dict[str, Any] | None = None
    if baseline:
        thresholds, row = _score_thresholds(main.scored.metrics, adapter, baseline, records)
        rows.append(row)
    summary = main.scored.summary
    write_metrics(
        folder,
        recipe,
        model=_numbers(main),
        controls=[_numbers(control) for control in controls],
        comparison=rows,
        extra={"threshold_baseline": thresholds, **(extra or {})},
    )
    report = write_report(
        folder.root,
        title=f"{' '.join(recipe.model.about.values())} on {recipe.data.root or adapter.name}",
        summary=_cards(main, info),
        cases=main.scored.views,
        history=history,
        classes=info.classes,
        metrics=metric_rows(summary, info.classes),
        comparison=rows if len(rows) > 1 else None,
        tables=tables,
        notes=[*notes, *_notes(recipe, main, controls, thresholds)],
    )
    return TestResult(folder, summary, rows, report)


def _target(sample: Sample) -> np.ndarray:
    if "mask" not in sample:
        raise DataError(f"{sample['meta']['path']}: no label file; a test needs one for each case.")
    return sample["mask"]


def _metrics_for(sample: Sample, classes: tuple[str, ...], scoring: MetricsConfig) -> SegmentationMetrics:
    return metrics_of(scoring, classes, unit="mm" if sample["meta"]["spacing_known"] else "px")


def metrics_of(scoring: MetricsConfig, classes: tuple[str, ...], *, unit: Literal["mm", "px"]) -> SegmentationMetrics:
    """The metrics that a recipe asks for. Raises `ConfigError` for settings that cannot work with these classes."""
    return SegmentationMetrics(
        classes,
        tolerance_mm=scoring.nsd_tolerance_mm,
        unit=unit,
        lesions=scoring.lesions if isinstance(scoring.lesions, bool) else tuple(scoring.lesions),
        lesion_iou=scoring.lesion_iou,
    )


def _require_unit(sample: Sample, metrics: SegmentationMetrics) -> None:
    if ("mm" if sample["meta"]["spacing_known"] else "px") != metrics.unit:
        raise DataError(
            f"{sample['meta']['path']}: some test cases state their spacing in mm and some do not, so distances "
            "between surfaces have no common unit. Give every file its spacing."
        )


def _view(
    case: str,
    sample: Sample,
    image: np.ndarray,
    labels: np.ndarray,
    metrics: SegmentationMetrics,
    state: SegmentationState,
) -> CaseView:
    """What the report keeps of a case, small: half-precision pixels and one byte a label."""
    table = metrics.case_table(state, case)
    foreground = [metrics.classes[k] for k in metrics.foreground]
    scores = {f"mean {name}": _mean([values[k] for k in foreground]) for name, values in table.items()}
    scores |= {f"Dice {k}": table["Dice"][k] for k in foreground if len(foreground) > 1}
    # a picture keeps its colours; a volume is shown as normalised, which half precision can hold
    shown = sample["image"] if labels.ndim == 2 else image
    small = np.uint8 if len(metrics.classes) < 256 else np.uint16  # UNLABELLED wraps to the largest, which is no class
    return CaseView(
        case,
        shown[:3].astype(np.float16 if labels.ndim == 3 else np.float32),
        _target(sample).astype(small),
        labels.astype(small),
        scores,
        sample["meta"]["spacing"],
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")


def _score_thresholds(
    metrics: SegmentationMetrics, adapter: DatasetAdapter, train: Sequence[Record], test: Sequence[Record]
) -> tuple[dict[str, Any], ComparisonRow]:
    cuts = fit_thresholds(adapter.load(record) for record in train)
    state = SegmentationState()
    for record in test:
        sample = adapter.load(record)
        state += metrics.observe(
            cuts.apply(sample["image"]), _target(sample), case=record.case, spacing=sample["meta"]["spacing"]
        )
    summary = metrics.summarise(state)
    values = {"parameters": 2, "training": None, **_scores(summary, metrics.classes)}
    row = ComparisonRow("two intensity thresholds", "baseline", values)
    return {"low": cuts.low, "high": cuts.high, "test": summary}, row


def _comparison_row(contender: Contender, classes: Sequence[str]) -> ComparisonRow:
    seconds = contender.train_seconds
    values: dict[str, Value] = {
        "parameters": contender.num_parameters,
        "training": None if seconds is None else f"{seconds:.0f} s",
        **_scores(contender.scored.summary, classes),
    }
    return ComparisonRow(contender.name, contender.role, values)


def _scores(summary: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Value]:
    """The columns of the comparison: pooled Dice of each foreground class, their mean, and means of surface scores."""
    dice = summary["metrics"]["Dice"]
    columns: dict[str, Value] = {f"Dice {name}": dice["classes"][name]["pooled"] for name in classes[1:]}
    columns["mean Dice"] = dice["foreground_pooled"]
    for name, entry in summary["metrics"].items():
        if name.startswith(("HD95", "NSD")):
            columns[f"mean {name}"] = entry["foreground_mean"]
    return columns


def _numbers(contender: Contender) -> dict[str, Any]:
    return {
        "encoder": contender.name,
        "parameters": contender.num_parameters,
        "train_seconds": contender.train_seconds,
        "predict_seconds": contender.scored.seconds,
        "best_epoch": contender.best_epoch,
        "test": contender.scored.summary,
    }


def _cards(main: Contender, info: DatasetInfo) -> dict[str, Value]:
    dice = main.scored.summary["metrics"]["Dice"]
    cards: dict[str, Value] = {"mean test Dice (pooled)": dice["foreground_pooled"]}
    if len(info.classes) <= 6:
        cards |= {f"Dice {name}": dice["classes"][name]["pooled"] for name in info.classes[1:]}
    cards |= {"test cases": main.scored.summary["num_cases"], "parameters": main.num_parameters}
    if main.train_seconds is not None:
        cards["training"] = f"{main.train_seconds / 60:.1f} min"
    return cards


def metric_rows(summary: Mapping[str, Any], classes: Sequence[str]) -> list[MetricRow]:
    """The report's table of metrics: each pooled, where it can be, and as a mean over cases."""
    rows = []
    for name, entry in summary["metrics"].items():
        better = entry["better"]
        unit = name.rsplit("_", 1)[-1] if name.startswith(("HD95", "ASSD")) else ""
        foreground = {k: entry["classes"][k] for k in classes[1:]}
        if "foreground_pooled" in entry:
            pooled = {k: values["pooled"] for k, values in foreground.items()}
            rows.append(MetricRow(name, "pooled over all voxels", pooled, entry["foreground_pooled"], unit, better))
        means = {k: values["case_mean"] for k, values in foreground.items()}
        rows.append(MetricRow(name, "mean over cases", means, entry["foreground_mean"], unit, better))
    return rows


def _notes(
    recipe: SegmentationRecipe,
    main: Contender,
    controls: Sequence[Contender],
    thresholds: Mapping[str, Any] | None,
) -> list[str]:
    notes = []
    if main.best_epoch is not None:
        notes.append(f"Weights are those of epoch {main.best_epoch}, the best by mean Dice on the validation cases.")
    if controls:
        nets = (recipe.model.net, recipe.control.net if recipe.control else None)
        if recipe.control is not None and recipe.control.without_scan:
            notes.append(
                "The control is the model itself with every scan replaced by the identity, and without the parameters "
                "that only the scans read; data, schedule and seed are the same."
            )
        else:
            notes.append(
                "The control has the same decoder, data, schedule and seed; only its encoder differs."
                if nets == (None, None)
                else "The control has the same data, schedule and seed; it is another net."
            )
    if thresholds is not None:
        notes.append(
            f"The thresholds ({thresholds['low']:g} and {thresholds['high']:g} in the image's units) are fitted on the "
            "training cases to maximise the mean Dice."
        )
    return notes
