"""A trained classifier in two files: numbers as safetensors, and what they are as JSON. Nothing is unpickled.

classifier.safetensors   spectra.offset, spectra.matrix, and what was learnt under model.*
classifier.json          the contender's name, the classes and bands it was trained for, where it comes from
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from statefield.errors import CheckpointError, UnknownName
from statefield.files import atomic_path, write_json
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS, Classifier, PixelModel, Predict
from statefield.tasks.remote_sensing.hyperspectral.preparation import PreparedSpectra

_FORMAT = 1
_NEEDED = ("format", "contender", "classes", "bands")


@dataclass(frozen=True, eq=False)
class StoredClassifier:
    """A classifier from its files. contender: its name. classes: names by number. bands: how many a scene must have.

    about: what else was written beside it: the scene, split and seed that it comes from.
    """

    contender: str
    classes: tuple[str, ...]
    bands: int
    spectra: PreparedSpectra
    model: PixelModel
    about: Mapping[str, Any]

    def on(self, cube: np.ndarray) -> Predict:
        """Classes of the pixels of a cube, float [C, H, W]; `ShapeError` of other bands than it was trained on."""
        return self.model.on(self.spectra(cube))


def save_classifier(
    folder: Path, contender: str, classifier: Classifier, classes: tuple[str, ...], about: Mapping[str, Any]
) -> None:
    """Write both files into `folder`, the JSON last: where it is, the classifier is whole."""
    tensors = {f"model.{name}": value.contiguous() for name, value in classifier.model.tensors().items()}
    tensors["spectra.offset"] = torch.from_numpy(np.ascontiguousarray(classifier.spectra.offset, np.float64))
    tensors["spectra.matrix"] = torch.from_numpy(np.ascontiguousarray(classifier.spectra.matrix, np.float64))
    with atomic_path(folder / "classifier.safetensors") as partial:
        save_file(tensors, str(partial))
    header = {
        "format": _FORMAT,
        "contender": contender,
        "classes": list(classes),
        "bands": len(classifier.spectra.offset),
        **about,
    }
    write_json(folder / "classifier.json", header)


def load_classifier(folder: Path) -> StoredClassifier:
    """Read both files of `folder`.

    Raises:
        CheckpointError: a file that is missing, damaged, of a later format, or does not fit the other.
    """
    header_at, numbers_at = folder / "classifier.json", folder / "classifier.safetensors"
    for path in (header_at, numbers_at):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; `statefield hyperspectral train` writes one for each classifier."
            )
    try:
        header = json.loads(header_at.read_text(encoding="utf-8"))
        tensors = load_file(str(numbers_at))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its classifier cannot be read ({error}): copy it again.") from error
    if not isinstance(header, dict) or any(name not in header for name in _NEEDED) or header["format"] != _FORMAT:
        raise CheckpointError(
            f"{header_at}: this is no description of a classifier that this version knows; format {_FORMAT} with "
            f"{', '.join(_NEEDED[1:])} is needed."
        )
    learnt = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    spectra = {name: tensors.get(f"spectra.{name}") for name in ("offset", "matrix")}
    offset, matrix = spectra["offset"], spectra["matrix"]
    bands, classes = header["bands"], tuple(map(str, header["classes"]))
    if offset is None or matrix is None or offset.shape != (bands,) or matrix.ndim != 2 or len(matrix) != bands:
        raise CheckpointError(
            f"{numbers_at}: no preparation of {bands} bands in it, as {header_at.name} says there is."
        )
    try:
        model = CONTENDERS[header["contender"]].restored(learnt, matrix.shape[1], len(classes))
    except (CheckpointError, UnknownName) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return StoredClassifier(
        header["contender"], classes, bands, PreparedSpectra(offset.numpy(), matrix.numpy()), model, header
    )
