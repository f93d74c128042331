"""Trained classifiers in files: what is read back names every pixel as before, and files that are wrong are told."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.svm import SVC

from statefield.datasets.hyperspectral import Scene
from statefield.datasets.sample import DatasetInfo
from statefield.errors import CheckpointError, ShapeError
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS, Classifier
from statefield.tasks.remote_sensing.hyperspectral.splits import block_split
from statefield.tasks.remote_sensing.hyperspectral.storage import load_classifier, save_classifier
from statefield.tasks.remote_sensing.hyperspectral.support_vectors import SupportVectors

CLASSES = ("a", "b", "c")


@cache
def fields() -> Scene:
    """Three classes with a spectrum each, and noise: fields of 8 x 8 pixels, 48 x 48 in all, 16 bands."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permuted(np.tile([0, 1, 2], 12)).reshape(6, 6), np.ones((8, 8))).astype(np.int64)
    cube = np.moveaxis(rng.normal(size=(3, 16))[labels] * 2, -1, 0) + rng.normal(size=(16, 48, 48))
    meta = {"case": "fields", "path": "fields", "spacing": (1.0, 1.0), "spacing_known": False}
    info = DatasetInfo(CLASSES, tuple(map(str, range(16))), 2)
    return Scene(cube.astype(np.float32), labels, info, {**meta, "affine": None, "file": None})


@cache
def trained(name: str) -> Classifier:
    return CONTENDERS[name].fit(fields(), block_split(fields().labels, window=7), seed=0, epochs=2)


def every_pixel() -> np.ndarray:
    rows, columns = np.mgrid[:48, :48]
    return np.stack([rows.ravel(), columns.ravel()], 1)


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("gamma", [0.02, 0.5])
def test_support_vectors_vote_as_scikit_learn_does(classes: int, gamma: float) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 150) * 3 + 1  # numbers with gaps between them, as a split may leave them
    places = rng.normal(size=(classes, 5)) * 2
    x = rng.normal(size=(150, 5)) + places[labels // 3]
    machine = SVC(C=10, gamma=gamma, decision_function_shape="ovo").fit(x, labels)
    ours, tried = SupportVectors.of(machine), np.concatenate([rng.normal(size=(3000, 5)) * 2, x])
    assert (ours.predict(tried) == machine.predict(tried)).all()
    assert len(np.unique(ours.predict(tried))) == classes
    assert ours.predict(tried[:0]).shape == (0,)
    apart = ((tried[:, None] - machine.support_vectors_) ** 2).sum(-1)
    decisions = np.exp(-gamma * apart) @ ours.weights + ours.offsets
    sign = -1 if classes == 2 else 1  # of two classes scikit-learn's is above 0 for the second
    np.testing.assert_allclose(
        sign * decisions, machine.decision_function(tried).reshape(len(tried), -1), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_a_classifier_read_back_names_every_pixel_as_before(name: str, tmp_path: Path) -> None:
    scene, classifier = fields(), trained(name)
    save_classifier(tmp_path, name, classifier, CLASSES, {"scene": "fields", "seed": 0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.json", "classifier.safetensors"]
    stored = load_classifier(tmp_path)
    assert (stored.contender, stored.classes, stored.bands, stored.about["scene"]) == (name, CLASSES, 16, "fields")
    assert (stored.on(scene.cube)(every_pixel()) == classifier.predict(every_pixel())).all()
    other = scene.cube[:, ::-1] * 1.01 + 0.1
    assert (stored.on(other)(every_pixel()) == classifier.on(other)(every_pixel())).all()
    with pytest.raises(ShapeError, match="16 bands"):
        stored.on(scene.cube[:15])


@pytest.mark.parametrize("name", ["svm", "morpmamba"])
def test_files_that_do_not_belong_together_are_refused(name: str, tmp_path: Path) -> None:
    save_classifier(tmp_path, name, trained(name), CLASSES, {})
    header_at, numbers_at = tmp_path / "classifier.json", tmp_path / "classifier.safetensors"
    header, numbers = json.loads(header_at.read_text()), numbers_at.read_bytes()
    for change, message in (
        ({"contender": "cnn3d" if name == "svm" else "svm"}, str(tmp_path)),
        ({"contender": "smv"}, "did you mean 'svm'"),
        ({"bands": 17}, "no preparation of 17 bands"),
        ({"classes": ["a"]}, str(tmp_path)),
        ({"format": 2}, "format 1"),
    ):
        header_at.write_text(json.dumps(header | change))
        with pytest.raises(CheckpointError, match=message.replace("/", ".")):
            load_classifier(tmp_path)
    header_at.write_text(json.dumps(header))
    numbers_at.write_bytes(numbers[: len(numbers) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(tmp_path)
    numbers_at.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_classifier(tmp_path)


def test_support_vectors_of_other_sizes_are_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path, "svm", trained("svm"), CLASSES, {})
    tensors = load_file(tmp_path / "classifier.safetensors")
    for name, value in (
        ("model.vectors", tensors["model.vectors"][:, :-1].contiguous()),
        ("model.weights", tensors["model.weights"][:-1].contiguous()),
        ("model.offsets", torch.zeros(1, dtype=torch.float64)),
        ("model.labels", torch.tensor([0, 1, 3])),
        ("model.another", torch.zeros(1)),
    ):
        save_file(tensors | {name: value}, tmp_path / "classifier.safetensors")
        with pytest.raises(CheckpointError, match="support vectors"):
            load_classifier(tmp_path)
