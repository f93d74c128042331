"""What each tracker does with tracks that begin, leave, return, cross, or are seen at a low score only."""

import numpy as np
import pytest

from statefield.errors import ConfigError, ShapeError, UnknownName
from statefield.tasks.tracking.motion import SortKalman, Still
from statefield.tasks.tracking.trackers import TRACKERS, ByteTrack, MambaTrack, OCSort, Sort

NOTHING = np.zeros((0, 4)), np.zeros(0)
EVERY = [Sort, ByteTrack, OCSort, lambda: MambaTrack(SortKalman())]


def at(*places, y=0.0, size=(20, 40)):
    """Boxes with their left sides at these places."""
    left = np.array(places, dtype=float)
    return np.stack((left, np.full_like(left, y), left + size[0], np.full_like(left, y + size[1])), axis=1)


def run(tracker, frames):
    """Ids of each frame, by place in the frame's answer."""
    return [tracker.step(boxes, np.full(len(boxes), score)).ids.tolist() for boxes, score in frames]


@pytest.mark.parametrize("make", EVERY)
def test_two_that_walk_apart_keep_their_ids(make):
    tracker = make()
    told = [tracker.step(at(100 - 3 * t, 200 + 3 * t), np.full(2, 0.9)) for t in range(20)]
    assert all(len(tracks.ids) == 2 for tracks in (told[0], *told[3:]))
    for tracks in told[3:]:
        assert dict(zip(tracks.ids.tolist(), tracks.boxes[:, 0] < 150, strict=True)) == {1: True, 2: False}
    assert np.allclose(np.sort(told[-1].boxes[:, 0]), [43, 257], atol=2)


@pytest.mark.parametrize("make", EVERY)
def test_frames_without_detections_are_frames(make):
    tracker = make()
    assert run(tracker, [NOTHING, (at(10), 0.9)])[0] == []
    assert tracker.frame == 2
    for _ in range(40):
        assert len(tracker.step(*NOTHING).ids) == 0
    assert len(tracker) == 0


@pytest.mark.parametrize("make", EVERY)
def test_a_box_is_never_told_twice(make):
    rng, tracker = np.random.default_rng(0), make()
    for _ in range(60):
        count = int(rng.integers(0, 12))
        boxes = at(*rng.uniform(0, 150, count), y=float(rng.uniform(0, 20)))
        tracks = tracker.step(boxes, rng.uniform(0, 1, count))
        assert len(set(tracks.ids.tolist())) == len(tracks.ids) <= count
        assert np.isfinite(tracks.boxes).all()


def test_sort_tells_a_track_when_it_was_seen_often_enough():
    tracker = Sort(min_hits=3)
    run(tracker, [NOTHING] * 5)
    assert run(tracker, [(at(10), 0.9)] * 4) == [[], [], [], [1]]


def test_sort_forgets_at_once_and_oc_sort_remembers():
    away = [(at(10 + 2 * t), 0.9) for t in range(6)] + [NOTHING] * 5 + [(at(32 + 2 * t), 0.9) for t in range(5)]
    assert run(Sort(), away)[-1] == [2]
    assert run(OCSort(), away)[-1] == [1]
    assert run(ByteTrack(), away)[-1] == [1]
    assert run(MambaTrack(SortKalman()), away)[-1] == [1]


def test_oc_sort_recovers_where_a_track_was_last_seen():
    """It stops while it is hidden: its prediction has gone on, where it was last seen it is still."""
    moving = [(at(10 + 8 * t), 0.9) for t in range(6)]
    hidden = [NOTHING] * 6
    assert run(OCSort(min_hits=0), [*moving, *hidden, (at(52), 0.9)])[-1] == [1]
    assert run(Sort(max_age=30, min_hits=0), [*moving, *hidden, (at(52), 0.9)])[-1] == [2]


def test_oc_sort_prefers_who_was_heading_there():
    """Both tracks overlap the one detection equally; it lies ahead of the one that came from the left."""
    tracker = OCSort(min_hits=0, inertia=0.2)
    for t in range(5):
        tracker.step(at(10 + 4 * t, 70 + 0 * t), np.full(2, 0.9))
    along = tracker._along(at(60))
    assert along[0, 0] == pytest.approx(0.1)  # straight ahead: inertia / 2
    assert along[1, 0] == 0  # no direction: it never moved
    assert tracker._along(at(-50))[0, 0] == pytest.approx(-0.1)


def test_bytetrack_follows_through_low_scores_and_begins_nothing_with_them():
    high = [(at(10 + t), 0.9) for t in range(4)]
    low = [(at(14 + t), 0.3) for t in range(4)]
    assert run(ByteTrack(), high + low)[-1] == [1]
    assert run(OCSort(), high + low)[-1] == []
    assert run(OCSort(low=0.1), high + low)[-1] == [1]
    assert run(MambaTrack(Still()), high + low)[-1] == []
    assert run(MambaTrack(Still(), low=0.1), high + low)[-1] == [1]
    assert run(ByteTrack(), low + low) == [[]] * 8


def test_bytetrack_confirms_a_track_by_a_second_sighting():
    tracker = ByteTrack()
    tracker.step(*NOTHING)
    assert run(tracker, [(at(10), 0.9), (at(11), 0.9)]) == [[], [1]]
    seen_once = ByteTrack()
    seen_once.step(*NOTHING)
    run(seen_once, [(at(10), 0.9), NOTHING])
    assert len(seen_once) == 0


def test_bytetrack_keeps_the_older_of_two_that_are_one():
    tracker = ByteTrack()
    run(tracker, [(at(10), 0.9)] * 5 + [NOTHING])
    tracker.begin(at(10), np.array([0.9]), confirmed=True)
    tracker._drop_duplicates()
    assert tracker.columns["id"].tolist() == [1]


def test_settings_are_the_trackers_own():
    assert sorted(TRACKERS) == ["bytetrack", "mambatrack", "ocsort", "sort"]
    with pytest.raises(UnknownName, match="bytetrack"):
        TRACKERS["bytetrak"]
    with pytest.raises(ConfigError, match="weights"):
        MambaTrack()
    used = SortKalman()
    used.start(at(10))
    with pytest.raises(ConfigError, match="another sequence"):
        Sort(used)
    with pytest.raises(ConfigError, match="span 0"):
        OCSort(span=0)
    with pytest.raises(ShapeError, match=r"\[M, 4\]"):
        Sort().step(np.zeros((3, 4)), np.zeros(2))
