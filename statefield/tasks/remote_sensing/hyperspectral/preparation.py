"""Fewer, comparable channels from many bands. Everything is learnt from training pixels' spectra, and from no other.

Fitting a principal component analysis on the whole scene, as the papers' code does, lets test pixels decide what the
net sees. Here `fit` gets the training spectra alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import qr
from sklearn.decomposition import PCA

from statefield.errors import ConfigError, ShapeError

Reduction = Literal["none", "pca", "bands"]


@dataclass(frozen=True)
class Preparation:
    """What is done to spectra.

    reduction: "none": every band, of mean 0 and deviation 1. "pca": the first principal components of the bands, each
        scaled to deviation 1 (whitened). "bands": the bands, of mean 0 and deviation 1, that together depend least on
        each other: the order in which a QR decomposition of the training spectra with column pivoting takes them.
    channels: how many are kept, of "pca" and "bands".
    """

    reduction: Reduction = "pca"
    channels: int = 15

    def fit(self, spectra: np.ndarray) -> PreparedSpectra:
        """Learn from training spectra, float [N, C]; `ConfigError` when bands or spectra are too few."""
        if self.reduction not in ("none", "pca", "bands"):
            raise ConfigError(f"reduction {self.reduction!r} given; one of none, pca, bands is needed.")
        if self.reduction != "none" and not 1 <= self.channels <= min(spectra.shape):
            raise ConfigError(
                f"{self.channels} channels asked for, from {spectra.shape[0]} training spectra of {spectra.shape[1]} "
                "bands: as many of both are needed."
            )
        values = np.asarray(spectra, np.float64)
        mean, deviation = values.mean(0), values.std(0)
        deviation[deviation == 0] = 1.0
        if self.reduction == "pca":
            found = PCA(self.channels, svd_solver="full").fit(values)
            scale = np.sqrt(np.maximum(found.explained_variance_, np.finfo(np.float64).eps))
            return PreparedSpectra(found.mean_, (found.components_ / scale[:, None]).T)
        kept = np.arange(values.shape[1])
        if self.reduction == "bands":
            kept = np.sort(qr((values - mean) / deviation, mode="r", pivoting=True)[-1][: self.channels])
        return PreparedSpectra(mean, np.diag(1 / deviation)[:, kept], bands=tuple(int(band) for band in kept))


@dataclass(frozen=True, eq=False)
class PreparedSpectra:
    """(spectrum - offset [C]) matrix [C, D]. bands: those that were kept, () of principal components."""

    offset: np.ndarray
    matrix: np.ndarray
    bands: tuple[int, ...] = ()

    def __call__(self, cube: np.ndarray) -> np.ndarray:
        """[C, H, W] -> float32 [D, H, W]; `ShapeError` for another number of bands."""
        if cube.ndim != 3 or len(cube) != len(self.offset):
            raise ShapeError(f"a cube of shape {cube.shape} given; {len(self.offset)} bands [C, H, W] are needed.")
        spectra = cube.reshape(len(cube), -1).T.astype(np.float64) - self.offset
        return np.ascontiguousarray((spectra @ self.matrix).T.reshape(-1, *cube.shape[1:]), dtype=np.float32)
