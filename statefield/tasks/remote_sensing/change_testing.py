"""Testing of change detection: every pair through a net, scored and written; then the comparison and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine

from statefield.datasets.readers.image import write_mask
from statefield.datasets.sample import Meta, Record
from statefield.errors import DataError
from statefield.files import atomic_path
from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import CaseView, ComparisonRow, Table, Value, representative, write_report
from statefield.tasks.common.run_folder import RunFolder, best_epoch, read_history
from statefield.tasks.remote_sensing.change_figures import legend_of, pictures_of
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.change_pairs import Pair, as_pair
from statefield.tasks.remote_sensing.change_recipe import ChangeRecipe
from statefield.tasks.remote_sensing.change_run import ChangeDataset, ChangeRun
from statefield.tasks.remote_sensing.change_task import predict_pair

_MAPS_KEPT = 8
CaseProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Contender:
    """A scored net, and what it cost.

    cases: the scores of each pair; 0 / 0 is NaN there. seconds: of prediction. kept: the maps of a few pairs, which the
    report need not predict again.
    """

    run: ChangeRun
    role: Literal["model", "control"]
    scores: Scores
    cases: Mapping[str, Mapping[str, float]]
    seconds: float
    train_seconds: float | None
    best_epoch: int | None
    kept: Mapping[str, Mapping[str, NDArray[np.uint8]]]


def contender(
    run: ChangeRun,
    dataset: ChangeDataset,
    records: Sequence[Record],
    *,
    role: Literal["model", "control"],
    predictions: Path | None = None,
    progress: CaseProgress | None = None,
) -> Contender:
    """Predict, score and write every pair, one in memory at a time.

    Args: predictions: the folder of the maps; None: the run's own.
    """
    kind, state, cases, seconds = run.kind, None, {}, 0.0
    kept: dict[str, dict[str, NDArray[np.uint8]]] = {}
    for record in records:
        pair = as_pair(dataset.adapter.load(record), kind, run.bands)
        started = time.perf_counter()
        decided = decide(run, pair, record.case, progress)
        seconds += time.perf_counter() - started
        one = kind.observe(decided, pair.masks, record.case)
        state = one if state is None else state + one
        cases[record.case] = _without_undefined(kind.summarise(one))
        maps = kind.maps(decided)
        write_maps(predictions or run.folder.predictions, record.case, maps, pair.meta)
        if len(kept) < _MAPS_KEPT:
            kept[record.case] = maps
    if state is None:
        raise DataError("no pair to test on.")
    history = read_history(run.folder.history) if run.folder.history.exists() else []
    return Contender(
        run,
        role,
        kind.summarise(state),
        cases,
        seconds,
        history[-1]["seconds"] if history else None,
        best_epoch(history, kind.score),
        kept,
    )


def decide(run: ChangeRun, pair: Pair, case: str, progress: CaseProgress | None = None) -> dict[str, NDArray[np.uint8]]:
    """The class maps of a pair by layer."""
    before, after = run.scaler.scaled(pair)
    decided, _ = predict_pair(
        run.net,
        before,
        after,
        run.kind,
        roi=run.roi,
        inference=run.recipe.inference,
        progress=None if progress is None else partial(progress, case),
    )
    return decided


def write_maps(folder: Path, case: str, maps: Mapping[str, NDArray[np.uint8]], meta: Meta) -> None:
    """Write the maps of a pair: CASE.png of one map, else CASE_LAYER.png; .tif where the pair has a place.

    A map of change alone is 0 and 255 as a picture, as the field has it, and 0 and 1 as a GeoTIFF; others hold class
    numbers.
    """
    for layer, labels in maps.items():
        stem = case if len(maps) == 1 else f"{case}_{layer}"
        if "transform" not in meta:
            write_mask(folder / f"{stem}.png", labels * 255 if len(maps) == 1 else labels)
            continue
        profile: dict[str, Any] = {"dtype": "uint8", "count": 1, "height": labels.shape[0], "width": labels.shape[1]}
        profile |= {"transform": Affine(*meta["transform"]), "compress": "deflate"}
        profile |= {"crs": CRS.from_wkt(meta["crs"])} if "crs" in meta else {}
        with (
            atomic_path(folder / f"{stem}.tif") as partial_path,
            rasterio.open(partial_path, "w", driver="GTiff", **profile) as file,
        ):
            file.write(labels, 1)


def finish(
    folder: RunFolder,
    recipe: ChangeRecipe,
    dataset: ChangeDataset,
    records: Sequence[Record],
    main: Contender,
    controls: Sequence[Contender],
    *,
    history: Sequence[Mapping[str, float | None]],
    split: str = "test",
) -> TestResult:
    """Write metrics.json and report.html, with every contender side by side. Arguments: as for `contender`."""
    kind = main.run.kind
    rows = [_row(one) for one in (main, *controls)]
    numbers = [_numbers(one) for one in (main, *controls)]
    write_metrics(
        folder,
        recipe,
        model=numbers[0],
        controls=numbers[1:],
        comparison=rows,
        extra={"task": kind.name, "split": split},
    )
    table: list[dict[str, Value]] = [
        {"score": name, **{one.run.recipe.model.name: one.scores.values[name] for one in (main, *controls)}}
        for name in main.scores.values
    ]
    lead = "Of all test pixels together, unless the name says otherwise; each name says of which class."
    columns = ("parameters", "training", *kind.shown)
    shown = [ComparisonRow(row.name, row.role, {key: row.values[key] for key in columns}) for row in rows]
    report = write_report(
        folder.root,
        title=f"{recipe.model.name} on {recipe.data.root or dataset.adapter.name}",
        summary=_cards(main),
        cases=_views(main.run, dataset, records, main),
        history=history,
        classes=kind.layers[-1].classes,
        comparison=shown if controls else None,
        tables=[Table("All scores", lead, table)],
        notes=_notes(main, controls, split),
        reproduce=[f"statefield change train --config {folder.config}"],
        legend=legend_of(kind),
    )
    return TestResult(folder, main.scores.values, rows, report)


def _row(one: Contender) -> ComparisonRow:
    values: dict[str, Value] = {
        "parameters": one.run.num_parameters,
        "training": None if one.train_seconds is None else f"{one.train_seconds:.0f} s",
        **one.scores.values,
    }
    return ComparisonRow(one.run.recipe.model.name, one.role, values)


def _numbers(one: Contender) -> dict[str, Any]:
    model = one.run.recipe.model
    return {
        **model.about,
        "parameters": one.run.num_parameters,
        "train_seconds": one.train_seconds,
        "predict_seconds": one.seconds,
        "best_epoch": one.best_epoch,
        "threshold": one.run.threshold,
        "test": {
            "num_pairs": len(one.cases),
            "scores": dict(one.scores.values),
            "notes": list(one.scores.notes),
            "cases": {case: dict(values) for case, values in one.cases.items()},
        },
    }


def _cards(main: Contender) -> dict[str, Value]:
    cards: dict[str, Value] = {name: main.scores.values[name] for name in main.run.kind.shown}
    cards |= {"test pairs": len(main.cases), "parameters": main.run.num_parameters}
    if main.train_seconds is not None:
        cards["training"] = f"{main.train_seconds / 60:.1f} min"
    return cards


def _views(run: ChangeRun, dataset: ChangeDataset, records: Sequence[Record], main: Contender) -> list[CaseView]:
    """What the report has of each pair: scores, and of the best, the median and the worst the pictures, made anew: a
    test set may be larger than memory."""
    ranked = [main.cases[record.case][run.kind.score] for record in records]
    drawn = set(representative(ranked).values())
    nothing = np.zeros((1, 1, 1), np.uint8)  # in place of the images of a pair that is not drawn
    views = []
    for index, record in enumerate(records):
        values = main.cases[record.case]
        shown = {name: values[name] for name in (run.kind.score, *run.kind.shown)}
        pictures = None
        if index in drawn:
            pair = as_pair(dataset.adapter.load(record), run.kind, run.bands)
            before, after = (np.asarray(image, np.float32) for image in (pair.before, pair.after))
            maps = main.kept.get(record.case) or run.kind.maps(decide(run, pair, record.case))
            pictures = pictures_of(before, after, run.channels, pair.masks, maps, run.kind)
        views.append(CaseView(record.case, nothing, nothing[0], nothing[0], shown, pictures=pictures))
    return views


def _without_undefined(scores: Scores) -> dict[str, float]:
    """Scores of a single pair, NaN where they are 0 / 0: such a pair is no example of a bad prediction."""
    undefined = tuple(note.split(" is 0 / 0")[0] for note in scores.notes if " is 0 / 0" in note)
    return {
        name: float("nan") if undefined and name.startswith(undefined) else value
        for name, value in scores.values.items()
    }


def _notes(main: Contender, controls: Sequence[Contender], split: str) -> list[str]:
    run = main.run
    notes = [f"Scores are of the split {split}: {', '.join(sorted(main.cases))}."] if len(main.cases) <= 12 else []
    if main.best_epoch is not None:
        notes.append(
            f"Weights are those of epoch {main.best_epoch}, the best on the validation pairs by {run.kind.score}."
        )
    if run.recipe.inference.threshold == "val":
        thresholds = ", ".join(f"{one.run.threshold:g} of {one.run.recipe.model.name}" for one in (main, *controls))
        notes.append(
            f"Thresholds of probability were chosen on the validation pairs, for each net by itself: {thresholds}."
        )
    if controls:
        same = main.run.recipe.model.net == controls[0].run.recipe.model.net
        what = "the same decoder, data, schedule and seed; only its encoder, or its scans, differ"
        notes.append(f"The control has {what if same else 'the same data, schedule and seed; it is another net'}.")
    return [*notes, *main.scores.notes]
