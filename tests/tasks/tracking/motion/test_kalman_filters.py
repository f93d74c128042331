"""The filters of four pairs of numbers are the filters in matrices that SORT and ByteTrack describe."""

import numpy as np
import pytest

from statefield.errors import ConfigError
from statefield.tasks.tracking.motion import MOTION_MODELS, ByteKalman, ConstantVelocity, SortKalman
from statefield.tasks.tracking.motion.model import corners
from statefield.tasks.tracking.trackers.oc_sort import ReupdatedKalman

NOBODY = np.zeros(1, bool)


def walk(count=12, seed=0):
    """Boxes of a track that moves, turns and grows."""
    rng = np.random.default_rng(seed)
    places = np.cumsum(rng.normal(3, 2, (count, 2)), axis=0) + 100
    size = np.column_stack((40 + np.arange(count), 90 + 2.0 * np.arange(count))) + rng.normal(0, 1, (count, 2))
    return corners(np.concatenate((places, size), axis=1))


def sort_in_matrices(boxes):
    """SORT's filter of seven numbers (u, v, s, r, u', v', s')."""

    def measured(box):
        w, h = box[2:] - box[:2]
        return np.array([box[0] + w / 2, box[1] + h / 2, w * h, w / h])

    F, H = np.eye(7), np.eye(7)[:4]
    F[[0, 1, 2], [4, 5, 6]] = 1
    R, Q, P = np.diag([1.0, 1, 10, 10]), np.eye(7), np.eye(7) * 10
    P[4:, 4:] *= 1000
    Q[-1, -1] *= 0.01
    Q[4:, 4:] *= 0.01
    x = np.concatenate((measured(boxes[0]), np.zeros(3)))
    for box in boxes[1:]:
        x, P = F @ x, F @ P @ F.T + Q
        w = np.sqrt(x[2] * x[3])
        yield corners(np.array([x[0], x[1], w, x[2] / w]))
        K = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
        x, P = x + K @ (measured(box) - H @ x), (np.eye(7) - K @ H) @ P


def byte_in_matrices(boxes):
    """ByteTrack's filter of eight numbers (x, y, a, h and their velocities)."""

    def measured(box):
        w, h = box[2:] - box[:2]
        return np.array([box[0] + w / 2, box[1] + h / 2, w / h, h])

    def noise(h, place, speed, ratio, ratio_speed):
        return np.diag(
            np.square([place * h, place * h, ratio, place * h, speed * h, speed * h, ratio_speed, speed * h])
        )

    F, H = np.eye(8), np.eye(8)[:4]
    F[np.arange(4), np.arange(4, 8)] = 1
    z = measured(boxes[0])
    x, P = np.concatenate((z, np.zeros(4))), noise(z[3], 2 / 20, 10 / 160, 1e-2, 1e-5)
    for box in boxes[1:]:
        Q = noise(x[3], 1 / 20, 1 / 160, 1e-2, 1e-5)
        x, P = F @ x, F @ P @ F.T + Q
        yield corners(np.array([x[0], x[1], x[2] * x[3], x[3]]))
        R = np.diag(np.square([x[3] / 20, x[3] / 20, 1e-1, x[3] / 20]))
        K = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
        x, P = x + K @ (measured(box) - H @ x), P - K @ (H @ P @ H.T + R) @ K.T


@pytest.mark.parametrize(("kind", "matrices"), [(SortKalman, sort_in_matrices), (ByteKalman, byte_in_matrices)])
def test_predictions_are_those_of_the_filter_in_matrices(kind, matrices):
    boxes, other = walk(), walk(seed=1)
    model = kind()
    model.start(np.stack((boxes[0], other[0])))
    for now, other_now, expected, other_expected in zip(
        boxes[1:], other[1:], matrices(boxes), matrices(other), strict=True
    ):
        predicted = model.predict(np.zeros(2, bool))
        assert np.allclose(predicted, [expected, other_expected], atol=1e-8)
        model.update(np.array([1, 0]), np.stack((other_now, now)))


@pytest.mark.parametrize("name", sorted(set(MOTION_MODELS) - {"mtp"}))
def test_rows_follow_what_is_kept(name):
    model, boxes = MOTION_MODELS[name](), np.stack([walk(seed=seed) for seed in range(3)])
    model.start(boxes[:, 0])
    for time in (1, 2, 3):
        model.predict(np.zeros(3, bool))
        model.update(np.arange(3), boxes[:, time])
    expected = model.boxes()[[2, 0]]
    model.keep(np.array([2, 0]))
    assert len(model) == 2
    assert np.array_equal(model.boxes(), expected)
    alone = MOTION_MODELS[name]()
    alone.start(boxes[2:, 0])
    for time in (1, 2, 3):
        alone.predict(NOBODY)
        alone.update(np.array([0]), boxes[2:, time])
    assert np.allclose(model.predict(np.zeros(2, bool))[0], alone.predict(NOBODY)[0])


def test_a_gap_does_not_change_a_constant_velocity():
    """Seen at 0 and at 10, then at 40 after two frames away: 10 a frame, so 50 next."""
    model = ConstantVelocity()
    box = np.array([[0.0, 0, 4, 8]])
    model.start(box)
    for place in (10.0, None, None, 40.0):
        model.predict(NOBODY)
        if place is not None:
            model.update(np.array([0]), box + np.array([place, 0, place, 0]))
    assert np.allclose(model.predict(NOBODY), box + np.array([50, 0, 50, 0]))


def test_an_area_does_not_shrink_below_nothing():
    model = SortKalman()
    model.start(np.array([[0.0, 0, 40, 40]]))
    for side in (30.0, 15.0, 5.0):
        model.predict(NOBODY)
        model.update(np.array([0]), np.array([[0, 0, side, side]]))
    for _ in range(5):
        boxes = model.predict(NOBODY)
        assert np.isfinite(boxes).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_a_track_unseen_keeps_its_height_in_bytetracks_form():
    model = ByteKalman()
    model.start(np.array([[0.0, 0, 40, 80]]))
    for side in (84.0, 88.0, 92.0):
        model.predict(NOBODY)
        model.update(np.array([0]), np.array([[0, 0, 40, side]]))
    model.predict(NOBODY)
    before = model.state[0, 0, 3]
    model.predict(np.ones(1, bool))
    assert model.state[0, 0, 3] == before


def test_a_re_updated_filter_ends_as_if_it_had_seen_the_straight_line():
    seen = corners(np.stack([[100 + 5 * t, 50 + 2 * t, 40, 90] for t in range(12)]).astype(float))
    through, gap = ReupdatedKalman(), ReupdatedKalman()
    for model in (through, gap):
        model.start(seen[:1])
    for time in range(1, 12):
        for model in (through, gap):
            model.predict(NOBODY)
        through.update(np.array([0]), seen[time : time + 1])
        if time not in (5, 6, 7):
            gap.update(np.array([0]), seen[time : time + 1])
        if time >= 8:
            assert np.allclose(through.state, gap.state)


def test_mtp_is_not_made_without_weights():
    with pytest.raises(ConfigError, match="statefield mot train"):
        MOTION_MODELS["mtp"]()
