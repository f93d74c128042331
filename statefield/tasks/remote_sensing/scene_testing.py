"""Testing of scene classifiers: probabilities of every scene, scores, figures, metrics.json and the report."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from statefield.datasets.sample import Record
from statefield.datasets.scenes import SceneSet, label_of
from statefield.files import write_text
from statefield.tasks.common import confusion
from statefield.tasks.common.figures import displayed
from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import ComparisonRow, ReportFigure, Table, Value, write_report
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.remote_sensing import scene_metrics
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.scene_figures import ShownScene, confusion_figure, sheet_figure
from statefield.tasks.remote_sensing.scene_images import Progress, SceneBatches, SceneInfo, centre
from statefield.tasks.remote_sensing.scene_recipe import SceneRecipe

_SHEET = 12  # scenes on the sheet of mistakes
_SHEET_SIDE = 128  # their side, pixels


@dataclass(frozen=True, eq=False)
class Tested:
    """What a net says of the scenes of a test.

    cases: their names. labels: int64 [N]. probabilities: float32 [N, K], rows add up to 1. seconds: prediction alone.
    """

    cases: Sequence[str]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    seconds: float

    @property
    def given(self) -> NDArray[np.int64]:
        """The class that each scene gets, [N]."""
        return self.probabilities.argmax(axis=1)

    @property
    def state(self) -> confusion.ConfusionState:
        return confusion.observe(self.given, self.labels, num_classes=self.probabilities.shape[1])


@dataclass(frozen=True, eq=False)
class SceneContender:
    """A tested net, and what it cost."""

    name: str
    role: Literal["model", "control"]
    tested: Tested
    num_parameters: int
    train_seconds: float | None
    best_epoch: int | None


@torch.inference_mode()
def classify(net: nn.Module, batches: SceneBatches, progress: Progress | None = None) -> Tested:
    """Every scene through `net`, which has to be in eval mode, on the net's device."""
    device = next(net.parameters()).device
    cases: list[str] = []
    labels, probabilities = [], []
    seconds, total = 0.0, sum(map(len, batches.parts))
    for batch in batches:
        started = time.perf_counter()
        logits = net(batch["image"].to(device)).float()
        probabilities.append(logits.softmax(dim=1).cpu().numpy())
        seconds += time.perf_counter() - started
        labels.append(batch["label"].numpy())
        cases += batch["cases"]
        if progress is not None:
            progress("testing", len(cases), total)
    return Tested(cases, np.concatenate(labels), np.concatenate(probabilities), seconds)


def finish(
    folder: RunFolder,
    recipe: SceneRecipe,
    info: SceneInfo,
    main: SceneContender,
    controls: Sequence[SceneContender],
    *,
    adapter: SceneSet,
    records: Sequence[Record],
    train: Sequence[Record],
    history: Sequence[Mapping[str, float | None]],
) -> TestResult:
    """Write predictions/scenes.csv, metrics.json and report.html, with every contender side by side.

    Args: records: of the test. train: the training scenes, for what a constant answer would score; may be empty.
    """
    scores = {id(one): scene_metrics.summarise(one.tested.state, info.classes) for one in (main, *controls)}
    rows = [_comparison_row(one, scores[id(one)]) for one in (main, *controls)]
    write_text(folder.predictions / "scenes.csv", scenes_csv(main.tested, records, info.classes))
    write_metrics(
        folder,
        recipe,
        model=_numbers(main, scores[id(main)]),
        controls=[_numbers(one, scores[id(one)]) for one in controls],
        comparison=rows,
        extra={"classes": list(info.classes), "confusion": main.tested.state.counts.tolist()},
    )
    values = scores[id(main)].values
    report = write_report(
        folder.root,
        title=f"{main.name} on {recipe.data.root}",
        summary=_cards(main, values),
        cases=[],
        history=history,
        classes=(),
        comparison=rows if len(rows) > 1 else None,
        tables=[_class_table(main, values, info.classes)],
        figures=_figures(main.tested, records, adapter, info),
        notes=_notes(recipe, main, controls, scores[id(main)], train, records),
        reproduce=(f"statefield scene train --config {folder.root / 'config.yaml'}",),
    )
    return TestResult(folder, {**values, "num_cases": len(main.tested.cases)}, rows, report)


def scenes_csv(tested: Tested, records: Sequence[Record], classes: Sequence[str]) -> str:
    """A row for each scene: case, file, its class, the class given, and the probability of every class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "file", "class", "given", "probability", *(f"p({name})" for name in classes)])
    files = {record.case: record.images[0] for record in records}
    for case, label, given, row in zip(tested.cases, tested.labels, tested.given, tested.probabilities, strict=True):
        shares = [f"{value:.6f}" for value in row]
        writer.writerow([case, files[case], classes[label], classes[given], shares[given], *shares])
    return text.getvalue()


def _comparison_row(contender: SceneContender, scores: Scores) -> ComparisonRow:
    seconds = contender.train_seconds
    values: dict[str, Value] = {
        "parameters": contender.num_parameters,
        "training": None if seconds is None else f"{seconds:.0f} s",
        **{name: scores.values[name] for name in scene_metrics.HEADLINES},
    }
    return ComparisonRow(contender.name, contender.role, values)


def _numbers(contender: SceneContender, scores: Scores) -> dict[str, Any]:
    return {
        "name": contender.name,
        "parameters": contender.num_parameters,
        "train_seconds": contender.train_seconds,
        "predict_seconds": contender.tested.seconds,
        "best_epoch": contender.best_epoch,
        "test": dict(scores.values),
        "notes": list(scores.notes),
        "num_scenes": len(contender.tested.cases),
    }


def _cards(main: SceneContender, values: Mapping[str, float]) -> dict[str, Value]:
    cards: dict[str, Value] = {"OA": values["OA"], "F1 (macro)": values["F1/macro"], "kappa": values["kappa"]}
    cards |= {"test scenes": len(main.tested.cases), "parameters": main.num_parameters}
    if main.train_seconds is not None:
        cards["training"] = f"{main.train_seconds / 60:.1f} min"
    return cards


def _class_table(main: SceneContender, values: Mapping[str, float], classes: Sequence[str]) -> Table:
    counts = main.tested.state.num_target
    return Table(
        "Scores per class",
        "Over the test scenes; the class names are those of the dataset. A class without a test scene has no score.",
        [
            {
                "class": name,
                "test scenes": int(counts[index]),
                **{metric: values[f"{metric}/{name}"] for metric in ("Precision", "Recall", "F1")},
            }
            for index, name in enumerate(classes)
        ],
    )


def _figures(tested: Tested, records: Sequence[Record], adapter: SceneSet, info: SceneInfo) -> list[ReportFigure]:
    wrong = np.flatnonzero(tested.given != tested.labels)
    sureness = tested.probabilities.max(axis=1)
    chosen = wrong[np.argsort(-sureness[wrong], kind="stable")] if len(wrong) else np.argsort(sureness, kind="stable")
    by_case = {record.case: record for record in records}
    scenes = []
    for index in chosen[:_SHEET]:
        image = adapter.load(by_case[tested.cases[index]])["image"]
        picture = displayed(centre(image, edge=_SHEET_SIDE, side=_SHEET_SIDE))
        names = info.classes[tested.labels[index]], info.classes[tested.given[index]]
        scenes.append(ShownScene(picture, *names, float(sureness[index])))
    title = "The surest mistakes" if len(wrong) else "The least sure scenes"
    lead = (
        f"{len(wrong)} of {len(tested.cases)} scenes got another class than theirs; those with the highest probability."
        if len(wrong)
        else "Every scene got its class; those with the lowest probability."
    )
    return [
        ReportFigure(
            "confusion",
            "Confusion matrix",
            "Rows: the class of a scene; columns: the class it was given. Shades are shares of a row.",
            confusion_figure(tested.state, info.classes),
        ),
        ReportFigure("scenes", title, lead, sheet_figure(scenes)),
    ]


def _notes(
    recipe: SceneRecipe,
    main: SceneContender,
    controls: Sequence[SceneContender],
    scores: Scores,
    train: Sequence[Record],
    records: Sequence[Record],
) -> list[str]:
    notes = list(scores.notes)
    if train:
        label, _ = Counter(label_of(record) for record in train).most_common(1)[0]
        share = np.mean([label_of(record) == label for record in records])
        notes.append(f"Always giving the most frequent class of the training scenes would have an OA of {share:.3f}.")
    if main.best_epoch is not None:
        notes.append(f"Weights are those of epoch {main.best_epoch}, the best by macro F1 on the validation scenes.")
    if controls and recipe.control is not None and recipe.control.without_scan:
        notes.append(
            "The control is the model itself with every scan replaced by the identity, and without the parameters that "
            "only the scans read; data, schedule and seed are the same."
        )
    elif controls:
        notes.append("The control has the same data, schedule and seed; it is another net.")
    return notes
