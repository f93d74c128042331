"""Windows, what is learnt of spectra, and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.confusion import ConfusionState, observe
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.hyperspectral.metrics import over_seeds, summarise
from statefield.tasks.remote_sensing.hyperspectral.preparation import Preparation
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows


def cube() -> np.ndarray:
    mixing = np.random.default_rng(1).normal(size=(20, 6))
    return (mixing @ np.random.default_rng(2).normal(size=(6, 90)) + 5).reshape(20, 9, 10).astype(np.float32)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_a_window_has_its_pixel_in_the_middle_and_zeros_beyond(side: int) -> None:
    scene = cube()
    found = Windows(scene, side)(np.array([[5, 6], [0, 0]]))
    middle = side // 2
    assert found.shape == (2, 20, side, side) and found.dtype == torch.float32
    assert (found[0, :, middle, middle].numpy() == scene[:, 5, 6]).all()
    behind = (side - 1) // 2
    inside = scene[:, 5 - middle : 5 + behind + 1, 6 - middle : 6 + behind + 1]
    assert (found[0].numpy() == inside).all()
    assert (found[1, :, :middle] == 0).all() and (found[1, :, middle, middle].numpy() == scene[:, 0, 0]).all()


@pytest.mark.parametrize("reduction", ["none", "pca", "bands"])
def test_test_pixels_do_not_influence_what_is_learnt(reduction: str) -> None:
    scene, train = cube(), np.argwhere(np.indices((9, 10)).sum(0) % 2 == 0)
    altered = scene.copy()
    mask = np.ones((9, 10), bool)
    mask[train[:, 0], train[:, 1]] = False
    altered[:, mask] = 1e4 * np.random.default_rng(3).normal(size=(20, mask.sum()))
    fitted = [
        Preparation(reduction, 5).fit(each[:, train[:, 0], train[:, 1]].T)
        for each in (scene, altered)  # type: ignore[arg-type]
    ]
    assert (fitted[0].matrix == fitted[1].matrix).all() and (fitted[0].offset == fitted[1].offset).all()
    prepared = fitted[0](scene)[:, train[:, 0], train[:, 1]]
    assert prepared.shape[0] == (20 if reduction == "none" else 5)
    np.testing.assert_allclose(prepared.mean(1), 0, atol=1e-4)
    ddof = 1 if reduction == "pca" else 0
    np.testing.assert_allclose(prepared.std(1, ddof=ddof), 1, atol=1e-3)


def test_components_are_uncorrelated_and_chosen_bands_span_what_can_be_spanned() -> None:
    spectra = cube().reshape(20, -1).T
    components = Preparation("pca", 5).fit(spectra)(cube()).reshape(5, -1)
    np.testing.assert_allclose(np.cov(components), np.eye(5), atol=1e-4)
    chosen = Preparation("bands", 6).fit(spectra).bands
    assert len(set(chosen)) == 6
    assert np.linalg.matrix_rank(spectra[:, list(chosen)] - spectra[:, list(chosen)].mean(0), tol=1e-3) == 6


def test_a_constant_band_is_no_division_by_zero() -> None:
    scene = cube()
    scene[3] = 7
    assert (Preparation("none").fit(scene.reshape(20, -1).T)(scene)[3] == 0).all()


def test_more_channels_than_bands_and_other_cubes_are_refused() -> None:
    spectra = cube().reshape(20, -1).T
    with pytest.raises(ConfigError, match="21 channels"):
        Preparation("pca", 21).fit(spectra)
    with pytest.raises(ShapeError, match="20 bands"):
        Preparation("pca", 3).fit(spectra)(cube()[:5])


def test_scores_of_a_case_worked_by_hand() -> None:
    # target 0: 6 pixels, 3 found; 1: 4 pixels, 4 found; 2: none. OA = 7 / 10, AA = (0.5 + 1) / 2 = 0.75
    # by chance: 0.6 * 0.3 + 0.4 * 0.5 + 0 * 0.2 = 0.38; kappa = (0.7 - 0.38) / 0.62
    state = observe([0, 0, 0, 1, 2, 2, 1, 1, 1, 1], [0] * 6 + [1] * 4, num_classes=3)
    scores = summarise(state, ("a", "b", "c"))
    assert scores.values["OA"] == pytest.approx(0.7)
    assert scores.values["AA (mean over classes)"] == pytest.approx(0.75)
    assert scores.values["kappa"] == pytest.approx(0.32 / 0.62)
    assert scores.values["accuracy/a"] == 0.5 and np.isnan(scores.values["accuracy/c"])
    assert "no test pixel of c" in scores.notes[0]


def test_no_pixel_is_said_to_be_no_measure() -> None:
    scores = summarise(ConfusionState.empty(2), ("a", "b"))
    assert scores.values["OA"] == scores.values["kappa"] == 0 and len(scores.notes) == 4


def test_the_spread_over_three_seeds_worked_by_hand() -> None:
    spread = over_seeds([Scores({"OA": value}) for value in (0.8, 0.9, 1.0)])["OA"]
    # std = sqrt((0.01 + 0 + 0.01) / 2) = 0.1; t of 2 degrees = 4.302653; half width = 4.302653 * 0.1 / sqrt(3)
    assert (spread.mean, spread.std, spread.runs) == (pytest.approx(0.9), pytest.approx(0.1), 3)
    assert spread.ci95 == pytest.approx(0.248414, abs=1e-6)
    single = over_seeds([Scores({"OA": 0.5})])["OA"]
    assert single.mean == 0.5 and np.isnan(single.std) and np.isnan(single.ci95)
