"""A trained support vector machine as plain arrays: what scikit-learn learnt, without scikit-learn's pickles.

Symbols   K classes · S support vectors · D channels · P = K (K - 1) / 2 pairs of classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from statefield.errors import CheckpointError

_BATCH = 2048  # spectra whose kernels with all support vectors are held at a time


@dataclass(frozen=True, eq=False)
class SupportVectors:
    """Radial basis functions, one machine for each pair of classes, and a vote.

        f_ij(x) = sum_s weights[s, ij] exp(-gamma |x - vectors[s]|^2) + offsets[ij]

    A pair votes for class i where f_ij is above 0, and else for j.

    Args:
        vectors: float64 [S, D]. weights: float64 [S, P], pairs in the order 01, 02, ..., 12, ... offsets: float64 [P].
        labels: int64 [K], the class that each number stands for. gamma: above 0.
    """

    vectors: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    gamma: float

    @classmethod
    def of(cls, machine: SVC) -> SupportVectors:
        """From a machine of scikit-learn whose gamma was given as a number; its coefficients lie packed by class.

        Source: the documentation of `sklearn.svm.SVC` on `dual_coef_`.
        """
        count = len(machine.classes_)
        ends = np.cumsum(machine.n_support_)
        own = [slice(end - size, end) for end, size in zip(ends, machine.n_support_, strict=True)]
        # of two classes scikit-learn gives both with their signs turned, so that above 0 is the second class
        sign = -1.0 if count == 2 else 1.0
        weights = np.zeros((len(machine.support_vectors_), count * (count - 1) // 2))
        pair = 0
        for first in range(count):
            for second in range(first + 1, count):
                weights[own[first], pair] = sign * machine.dual_coef_[second - 1, own[first]]
                weights[own[second], pair] = sign * machine.dual_coef_[first, own[second]]
                pair += 1
        return cls(
            np.asarray(machine.support_vectors_, np.float64),
            weights,
            sign * np.asarray(machine.intercept_, np.float64),
            np.asarray(machine.classes_, np.int64),
            float(machine.gamma),
        )

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], features: int, num_classes: int) -> SupportVectors:
        """From `tensors`; `CheckpointError` when they do not fit together, or D and K are others."""
        wanted = {"vectors", "weights", "offsets", "labels", "gamma"}
        if set(tensors) != wanted:
            raise CheckpointError(
                f"support vectors with the entries {', '.join(sorted(tensors))} found; {', '.join(sorted(wanted))} are "
                "needed."
            )
        arrays = {name: value.numpy() for name, value in tensors.items()}
        count, labels = len(arrays["vectors"]), arrays["labels"]
        pairs = labels.size * (labels.size - 1) // 2
        shapes = {"vectors": (count, features), "weights": (count, pairs), "offsets": (pairs,), "gamma": (1,)}
        wrong = [
            f"{name} {arrays[name].shape}, not {shape}" for name, shape in shapes.items() if arrays[name].shape != shape
        ]
        if wrong or labels.ndim != 1 or labels.size < 2 or not 0 <= labels.min() <= labels.max() < num_classes:
            raise CheckpointError(
                f"support vectors that do not fit together or this classifier: {'; '.join(wrong) or 'other classes'}."
            )
        gamma = float(arrays.pop("gamma")[0])
        return cls(**arrays, gamma=gamma)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a file."""
        arrays = {"vectors": self.vectors, "weights": self.weights, "offsets": self.offsets, "labels": self.labels}
        found = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        return found | {"gamma": torch.tensor([self.gamma], dtype=torch.float64)}

    def predict(self, spectra: np.ndarray) -> np.ndarray:
        """float [N, D] -> int64 [N]; of classes with the same number of votes the first."""
        found = [self._votes(spectra[first : first + _BATCH]) for first in range(0, len(spectra), _BATCH)]
        return self.labels[np.concatenate(found)] if found else np.empty(0, np.int64)

    def _votes(self, spectra: np.ndarray) -> np.ndarray:
        x = np.asarray(spectra, np.float64)
        apart = (x**2).sum(1)[:, None] + (self.vectors**2).sum(1) - 2 * x @ self.vectors.T
        above = np.exp(-self.gamma * np.maximum(apart, 0)) @ self.weights + self.offsets > 0  # [N, P]
        firsts, seconds = np.triu_indices(len(self.labels), 1)
        votes = np.zeros((len(x), len(self.labels)), np.int64)
        for pair, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
            votes[:, first] += above[:, pair]
            votes[:, second] += ~above[:, pair]
        return votes.argmax(1)
