"""Kalman filters of constant velocity over all tracks at once: SORT's form (OC-SORT has the same) and ByteTrack's.

In each form every noise is diagonal and a velocity acts on its own coordinate, so the filter of eight numbers falls
apart into four of two numbers, a place and its velocity:

    predict   x += v;  P_xx += 2 P_xv + P_vv + Q_x;  P_xv += P_vv;  P_vv += Q_v
    update    K = P_x. / (P_xx + R);  x += K_x (z - x);  v += K_v (z - x);  P -= K P_x.

which is exact, and a few array operations a frame. The tests hold it to the filter in matrices.

Symbols   N tracks · x, v [N, 4] · P_xx, P_xv, P_vv [N, 4] covariance · Q, R variances of motion and measurement
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from statefield.tasks.tracking.motion.model import MOTION_MODELS, Boxes, Rows, centred, corners

__all__ = ["ByteKalman", "ConstantVelocity", "SortKalman", "Still"]

Array = NDArray[np.float64]
_TINY = 1e-9


class _Kalman(ABC):
    """The four filters of N tracks; a form says what is measured and how noisy it is."""

    def __init__(self) -> None:
        # x, v, P_xx, P_xv, P_vv
        self.state = np.zeros((5, 0, 4))

    def __len__(self) -> int:
        return self.state.shape[1]

    @abstractmethod
    def measured(self, boxes: Boxes) -> Array:
        """What the form measures of boxes, [N, 4]."""

    @abstractmethod
    def as_boxes(self, x: Array) -> Boxes:
        """Boxes of what was measured."""

    @abstractmethod
    def initial_variances(self, z: Array) -> tuple[Array, Array]:
        """P_xx and P_vv of new tracks."""

    @abstractmethod
    def motion_variances(self, x: Array) -> tuple[Array, Array]:
        """Q_x and Q_v, from where tracks were."""

    @abstractmethod
    def measurement_variances(self, x: Array) -> Array:
        """R, from where tracks are expected."""

    def start(self, boxes: Boxes) -> None:
        z = self.measured(boxes)
        new = np.zeros((5, len(z), 4))
        new[0] = z
        new[2], new[4] = self.initial_variances(z)
        self.state = np.concatenate((self.state, new), axis=1)

    def restrain(self, coasting: NDArray[np.bool_]) -> None:  # noqa: B027  (a form may have nothing to correct)
        """Correct velocities before a prediction, where a form does."""

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        self.restrain(coasting)
        x, v, pxx, pxv, pvv = self.state
        qx, qv = self.motion_variances(x)
        x += v
        pxx += 2 * pxv + pvv + qx
        pxv += pvv
        pvv += qv
        return self.as_boxes(x)

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        self.correct(rows, self.measured(boxes))

    def correct(self, rows: NDArray[np.intp], z: Array) -> None:
        """`update` with what the form measures."""
        x, v, pxx, pxv, pvv = self.state[:, rows]
        gain = 1 / (pxx + self.measurement_variances(x))
        kx, kv, wrong = pxx * gain, pxv * gain, z - x
        self.state[:, rows] = (x + kx * wrong, v + kv * wrong, pxx * (1 - kx), pxv * (1 - kx), pvv - kv * pxv)

    def boxes(self) -> Boxes:
        return self.as_boxes(self.state[0])

    def keep(self, rows: Rows) -> None:
        self.state = self.state[:, rows]


@MOTION_MODELS.register("kalman_sort")
class SortKalman(_Kalman):
    """SORT's form: centre, area and aspect ratio (width over height); the ratio has no velocity.

    Source: SORT (arXiv 1602.00763), equation 1, with the noises of its code; OC-SORT (arXiv 2203.14360) has the same.
    """

    _R = np.array([1.0, 1.0, 10.0, 10.0])
    _Q = np.ones(4), np.array([1e-2, 1e-2, 1e-4, 0.0])
    _P = np.full(4, 10.0), np.array([1e4, 1e4, 1e4, 0.0])

    def measured(self, boxes: Boxes) -> Array:
        found = centred(boxes)
        width, height = found[..., 2].copy(), np.maximum(found[..., 3], _TINY)
        found[..., 2], found[..., 3] = width * height, width / height
        return found

    def as_boxes(self, x: Array) -> Boxes:
        found = x.copy()
        width = np.sqrt(np.maximum(x[..., 2] * x[..., 3], 0))
        found[..., 2] = width
        found[..., 3] = x[..., 2] / np.maximum(width, _TINY)
        return corners(found)

    def initial_variances(self, z: Array) -> tuple[Array, Array]:
        return self._P

    def motion_variances(self, x: Array) -> tuple[Array, Array]:
        return self._Q

    def measurement_variances(self, x: Array) -> Array:
        return self._R

    def restrain(self, coasting: NDArray[np.bool_]) -> None:
        """An area does not shrink to nothing."""
        x, v = self.state[:2]
        v[x[:, 2] + v[:, 2] <= 0, 2] = 0


@MOTION_MODELS.register("kalman_byte")
class ByteKalman(_Kalman):
    """ByteTrack's form (DeepSORT's): centre, aspect ratio and height; noises are shares of the height.

    Source: ByteTrack (arXiv 2110.06864), section 4; shares 1/20 of places and 1/160 of velocities.
    """

    PLACE, SPEED = 1 / 20, 1 / 160

    def measured(self, boxes: Boxes) -> Array:
        found = centred(boxes)
        found[..., 2] /= np.maximum(found[..., 3], _TINY)
        return found

    def as_boxes(self, x: Array) -> Boxes:
        found = x.copy()
        found[..., 2] *= x[..., 3]
        return corners(found)

    def _variances(self, height: Array, share: float, ratio: float) -> Array:
        found = np.repeat((share * height)[:, None] ** 2, 4, axis=1)
        found[:, 2] = ratio**2
        return found

    def initial_variances(self, z: Array) -> tuple[Array, Array]:
        return self._variances(z[:, 3], 2 * self.PLACE, 1e-2), self._variances(z[:, 3], 10 * self.SPEED, 1e-5)

    def motion_variances(self, x: Array) -> tuple[Array, Array]:
        return self._variances(x[:, 3], self.PLACE, 1e-2), self._variances(x[:, 3], self.SPEED, 1e-5)

    def measurement_variances(self, x: Array) -> Array:
        return self._variances(x[:, 3], self.PLACE, 1e-1)

    def restrain(self, coasting: NDArray[np.bool_]) -> None:
        """What is not seen keeps its height."""
        self.state[1, coasting, 3] = 0


@MOTION_MODELS.register("constant_velocity")
class ConstantVelocity:
    """The last step once more: where a track was seen last plus the mean step between its last two sightings."""

    def __init__(self) -> None:
        self.place = np.zeros((0, 4))  # centres and sides, expected or seen
        self.seen = np.zeros((0, 4))
        self.step = np.zeros((0, 4))
        self.since = np.zeros(0)  # frames since a track was seen

    def __len__(self) -> int:
        return len(self.place)

    def start(self, boxes: Boxes) -> None:
        found = centred(boxes)
        self.place = np.concatenate((self.place, found))
        self.seen = np.concatenate((self.seen, found))
        self.step = np.concatenate((self.step, np.zeros_like(found)))
        self.since = np.concatenate((self.since, np.zeros(len(found))))

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        self.place = self.place + self.step
        self.place[:, 2:] = np.maximum(self.place[:, 2:], _TINY)
        self.since += 1
        return corners(self.place)

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        found = centred(boxes)
        self.step[rows] = (found - self.seen[rows]) / np.maximum(self.since[rows], 1)[:, None]
        self.place[rows] = self.seen[rows] = found
        self.since[rows] = 0

    def boxes(self) -> Boxes:
        return corners(self.place)

    def keep(self, rows: Rows) -> None:
        self.place, self.seen, self.step, self.since = (
            one[rows] for one in (self.place, self.seen, self.step, self.since)
        )


@MOTION_MODELS.register("still")
class Still:
    """No motion: a track is expected where it was seen last, and matched by overlap alone."""

    def __init__(self) -> None:
        self.place = np.zeros((0, 4))

    def __len__(self) -> int:
        return len(self.place)

    def start(self, boxes: Boxes) -> None:
        self.place = np.concatenate((self.place, boxes))

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        return self.place.copy()

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        self.place[rows] = boxes

    def boxes(self) -> Boxes:
        return self.place

    def keep(self, rows: Rows) -> None:
        self.place = self.place[rows]
