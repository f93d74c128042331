"""Maps of change against maps of change, file by file, without a model.

    evaluation = evaluate_maps("predictions", "labels")
    evaluation.summary()["scores"]["F1/change (pooled)"]

How change is coded is recognised for the predictions together and for the labels together: 0 and 1; 0 and 255; or 1
unchanged and 2 changed, as OSCD's cm.tif has it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.adapter import case_name
from statefield.datasets.change.pairs import names_of, pictures
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import raster
from statefield.errors import ConfigError, DatasetLayoutError, LabelError, ShapeError
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing.change_metrics import Scores, summarise

CODES: dict[str, tuple[int, int]] = {"0/1": (0, 1), "0/255": (0, 255), "1/2": (1, 2)}  # unchanged, changed
_JPEG = (".jpg", ".jpeg")

_Values = dict[tuple[int, int], int]  # (label's value, prediction's value) -> pixels


@dataclass(frozen=True, eq=False)
class ChangeEvaluation:
    """cases: the counts of each. codes: how change is coded in the predictions and in the labels."""

    predictions: str
    labels: str
    codes: tuple[str, str]
    cases: Mapping[str, ConfusionState]

    @property
    def scores(self) -> Scores:
        """Of all pixels of all cases together."""
        return summarise(reduce(add, self.cases.values()))

    def summary(self) -> dict[str, Any]:
        """Everything, for JSON."""
        pooled = reduce(add, self.cases.values())
        return {
            "predictions": self.predictions,
            "labels": self.labels,
            "coded": {"predictions": self.codes[0], "labels": self.codes[1]},
            "num_cases": len(self.cases),
            "scores": dict(self.scores.values),
            "notes": list(self.scores.notes),
            "pixels": _pixels(pooled),
            "cases": {case: dict(summarise(state).values) | _pixels(state) for case, state in self.cases.items()},
        }

    def csv(self) -> str:
        """A row for each case, and one for all together."""
        text = io.StringIO()
        writer: Any = None
        for case, state in (*self.cases.items(), ("all together", reduce(add, self.cases.values()))):
            row = {"case": case, **summarise(state).values, **_pixels(state)}
            if writer is None:
                writer = csv.DictWriter(text, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
        return text.getvalue()


def evaluate_maps(
    predictions: Path,
    labels: Path,
    *,
    names: Path | None = None,
    ignore: int | None = None,
    on_start: Callable[[int], None] = lambda count: None,
    on_case: Callable[[str], None] = lambda case: None,
) -> ChangeEvaluation:
    """Score maps of change against labels of the same name.

    Args:
        predictions, labels: two folders, matched by file name without suffix, or two files.
        names: a list of the cases to score, a name a line; None: all, and then neither folder may lack one.
        ignore: the labels' value of pixels that are scored nowhere.
        on_start, on_case: called with the number of cases, and with each case that is done.

    Raises:
        DatasetLayoutError: a folder or file is not there, or a prediction lacks its label or the other way round.
        DataError: a file that cannot be read. LabelError: values that are no map of change, named with their file.
        ShapeError: a prediction of another size than its label.
    """
    matched = _matched(Path(predictions), Path(labels), names)
    on_start(len(matched))
    counted: dict[str, _Values] = {}
    for case, (prediction, label) in matched.items():
        counted[case] = _count(prediction, label, ignore)
        on_case(case)
    codes = (
        _code(1, counted, {case: pair[0] for case, pair in matched.items()}, Path(predictions)),
        _code(0, counted, {case: pair[1] for case, pair in matched.items()}, Path(labels)),
    )
    cases = {case: _confusion(values, *codes) for case, values in counted.items()}
    return ChangeEvaluation(str(predictions), str(labels), codes, cases)


def _matched(predictions: Path, labels: Path, names: Path | None) -> dict[str, tuple[Path, Path]]:
    for path in (predictions, labels):
        if not path.exists():
            raise DatasetLayoutError(f"{path}: there is no such folder or file. Give a folder of maps, or one map.")
    if predictions.is_dir() != labels.is_dir():
        raise ConfigError(f"{predictions} and {labels}: give two folders, or two files.")
    if not predictions.is_dir():
        if names is not None:
            raise ConfigError(f"a list of names ({names}) was given with two files; it is for folders.")
        return {case_name(predictions): (predictions, labels)}
    found, wanted = pictures(predictions), pictures(labels)
    if names is not None:
        if not names.is_file():
            raise DatasetLayoutError(f"{names}: there is no such list of names.")
        listed = names_of(names)
        found = {case: path for case, path in found.items() if case in listed}
        wanted = {case: path for case, path in wanted.items() if case in listed}
        neither = [case for case in listed if case not in found and case not in wanted]
        if neither or not listed:
            raise DatasetLayoutError(
                f"{names}: it names {', '.join(neither[:3]) or 'nothing'}, of which neither folder has a file."
            )
    for here, there, folder, what in (
        (found, wanted, labels, "label"),
        (wanted, found, predictions, "prediction"),
    ):
        missing = sorted(set(here) - set(there))
        if missing:
            raise DatasetLayoutError(
                f"{folder}: no {what} of {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''} ({len(missing)} "
                f"of {len(here)}). Add the files, or name the cases to score in a list (--list FILE)."
            )
    if not found:
        raise DatasetLayoutError(f"{predictions}: no map found; files ending in .png or .tif are needed.")
    return {case: (found[case], wanted[case]) for case in found}


def _count(prediction: Path, label: Path, ignore: int | None) -> _Values:
    """Pixels by both values; few, as both are maps of two values."""
    given, wanted = _read(prediction), _read(label)
    if given.shape != wanted.shape:
        raise ShapeError(
            f"{prediction} is {given.shape[0]} x {given.shape[1]} pixels but {label} is {wanted.shape[0]} x "
            f"{wanted.shape[1]}: a map is scored on the label's own pixels. Bring it to the label's size (nearest "
            "neighbour)."
        )
    if ignore is not None:
        counts = wanted != ignore
        given, wanted = given[counts], wanted[counts]
    for path, values in ((prediction, given), (label, wanted)):
        present = np.unique(values)
        if len(present) > 2:
            raise LabelError(
                f"{path}: {len(present)} values found ({', '.join(map(str, present[:6]))}, ...); a map of change has "
                "two: 0 and 1, 0 and 255, or 1 and 2. Cut probabilities at a threshold first; --ignore-label names a "
                "value of the labels that is scored nowhere."
            )
    pairs, numbers = np.unique(np.stack([wanted.ravel(), given.ravel()]), axis=1, return_counts=True)
    return {(int(one), int(other)): int(count) for one, other, count in zip(*pairs, numbers, strict=True)}


def _read(path: Path) -> NDArray[np.int64]:
    if path.suffix.lower() in _JPEG:
        raise LabelError(f"{path}: a JPEG map, whose compression changes its values; PNG or TIFF is needed.")
    if path.suffix.lower() in raster.SUFFIXES:
        values, _ = raster.read_single_band(path)
        if values.dtype.kind not in "biu" and not (values == np.round(values)).all():
            raise LabelError(f"{path}: values between whole numbers found; a map of change has two whole numbers.")
        return values.astype(np.int64)
    return image_reader.read_mask(path)


def _code(place: int, counted: Mapping[str, _Values], paths: Mapping[str, Path], where: Path) -> str:
    """How change is coded by the values that all files of one side hold together."""
    files: dict[int, Path] = {}
    for case, values in counted.items():
        for pair in values:
            files.setdefault(pair[place], paths[case])
    fitting = [code for code, pair in CODES.items() if set(files) <= set(pair)]
    if set(files) == {1}:
        raise LabelError(
            f"{where}: every value is 1, which is 'changed' of 0/1 and 'unchanged' of 1/2. Give files that hold both, "
            "or convert them to 0 and 255."
        )
    if not fitting:
        shown = ", ".join(f"{value} (in {files[value]})" for value in sorted(files)[:4])
        raise LabelError(
            f"{where}: the values {shown} are no map of change; 0 and 1, 0 and 255, or 1 (unchanged) and 2 (changed) "
            "are needed, the same in every file."
        )
    return fitting[0]


def _confusion(values: _Values, prediction_code: str, label_code: str) -> ConfusionState:
    counts = np.zeros((2, 2), np.int64)
    for (label, prediction), number in values.items():
        counts[CODES[label_code].index(label), CODES[prediction_code].index(prediction)] += number
    return ConfusionState(counts)


def _pixels(state: ConfusionState) -> dict[str, int]:
    (tn, fp), (fn, tp) = state.counts.tolist()
    return {"TP": tp, "FP": fp, "FN": fn, "TN": tn}
