"""Arrays of events against their formulae, and PEDRo's samples."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets.events import Events, event_frame, event_picture, last_times, time_surface, voxel_grid
from statefield.datasets.events.pedro import load_pedro, pedro_names
from statefield.errors import ConfigError, DataError, DatasetLayoutError

PEDRO = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data")) / "events"
PEDRO /= "pedro_person_detection"


def _events(rows, width=0, height=0):
    t, x, y, p = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Events(t.astype(np.uint64), x.astype(np.uint16), y.astype(np.uint16), p > 0, width, height)


def _random(count, seed=1, start=10**15):
    generator = np.random.default_rng(seed)
    t = np.sort(generator.integers(0, 1000, count)) + start
    return _events(np.stack([t, *generator.integers(0, (6, 5, 2), (count, 3)).T], axis=1), 6, 5)


def test_frames_count_by_polarity():
    frame = event_frame(_events([[0, 1, 0, 1], [1, 1, 0, 1], [2, 1, 0, 0], [3, 2, 1, 0]], 3, 2))
    assert frame.dtype == np.float32
    assert frame.tolist() == [[[0, 1, 0], [0, 0, 1]], [[0, 2, 0], [0, 0, 0]]]
    assert event_frame(_random(500)).sum() == 500


@pytest.mark.parametrize("num_bins", [1, 2, 5])
def test_voxel_grid_equals_its_formula(num_bins):
    events = _random(60)
    grid = voxel_grid(events, num_bins)
    first, last = int(events.t[0]), int(events.t[-1])
    wanted = np.zeros((num_bins, 5, 6))
    for t, x, y, on in zip(events.t.tolist(), events.x, events.y, events.on, strict=True):
        at = (num_bins - 1) * (t - first) / (last - first)
        for b in range(num_bins):
            wanted[b, y, x] += (1 if on else -1) * max(0.0, 1 - abs(b - at))
    np.testing.assert_allclose(grid, wanted, rtol=0, atol=1e-5)
    assert grid.dtype == np.float32


def test_voxel_grid_over_a_given_span_and_normalised():
    events = _events([[0, 0, 0, 1], [100, 1, 0, 1], [300, 1, 0, 0]], 2, 1)
    grid = voxel_grid(events, 3, span_us=(0, 200))
    assert grid.tolist() == [[[1, 0]], [[0, 1]], [[0, 0]]]  # the third is outside
    values = voxel_grid(_random(200), 4, normalised=True)
    filled = values[values != 0]
    assert abs(filled.mean()) < 1e-6
    assert filled.std() == pytest.approx(1, abs=1e-5)
    assert voxel_grid(_events([], 3, 2), 4).tolist() == np.zeros((4, 2, 3)).tolist()
    assert voxel_grid(_events([[7, 0, 0, 1]] * 2, 1, 1), 2).tolist() == [[[2]], [[0]]]  # all at one time


def test_surfaces_hold_the_last_event():
    events = _events([[30, 0, 0, 1], [10, 0, 0, 1], [20, 1, 0, 0]], 2, 1)  # not in order
    times = last_times(events)
    assert times[1, 0, 0] == 30
    assert times[0, 0, 1] == 20
    assert np.isnan(times).sum() == 2
    surface = time_surface(events, tau_us=10)
    assert surface[1, 0, 0] == 1
    assert surface[0, 0, 1] == pytest.approx(math.exp(-1))
    assert surface[0, 0, 0] == 0
    earlier = time_surface(events, tau_us=10, at_us=20)
    assert earlier[1, 0, 0] == pytest.approx(math.exp(-1))
    assert time_surface(_events([], 2, 1), tau_us=1).tolist() == [[[0, 0]], [[0, 0]]]


def test_pictures_show_the_stronger_polarity():
    picture = event_picture(_events([[0, 0, 0, 1], [1, 1, 0, 0], [2, 2, 0, 0], [3, 2, 0, 1]], 4, 1))
    assert picture.tolist() == [[[255, 0, 0], [0, 0, 255], [255, 0, 0], [255, 255, 255]]]


def test_settings_that_cannot_work():
    events = _random(5)
    with pytest.raises(ConfigError, match="num_bins=0"):
        voxel_grid(events, 0)
    with pytest.raises(ConfigError, match="tau_us=0"):
        time_surface(events, 0)
    with pytest.raises(ConfigError, match="before the beginning"):
        voxel_grid(events, 2, span_us=(5, 4))
    with pytest.raises(DataError, match="outside 2 x 2 pixels"):
        event_frame(events, (2, 2))


@pytest.mark.shared_data
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_both_label_files_of_pedro_describe_the_same_boxes(split):
    if not PEDRO.is_dir():
        pytest.skip(f"no PEDRo samples at {PEDRO} (STATEFIELD_DATA)")
    for name in pedro_names(PEDRO, split):
        voc, yolo = (load_pedro(PEDRO, split, name, boxes) for boxes in ("xml", "yolo"))
        assert len(voc.boxes) >= 1
        np.testing.assert_allclose(voc.boxes, yolo.boxes, rtol=0, atol=0.01)
        assert voc.labels.tolist() == yolo.labels.tolist()
        assert voc.events.size == (346, 260)
        assert (
            int(voc.events.t[-1]) - int(voc.events.t[0]) <= 40_001
        )  # 40 ms, the first and the last microsecond included
        assert voxel_grid(voc.events, 5).shape == (5, 260, 346)


def test_broken_pedro_samples_are_named(tmp_path):
    with pytest.raises(DatasetLayoutError, match=r"no \.npy file"):
        pedro_names(tmp_path, "train")
    for folder in ("numpy", "xml", "yolo"):
        (tmp_path / folder / "train").mkdir(parents=True)
    np.save(tmp_path / "numpy/train/a.npy", np.array([[5, 346, 0, 1]]))
    with pytest.raises(DataError, match="outside the sensor"):
        load_pedro(tmp_path, "train", "a")
    np.save(tmp_path / "numpy/train/a.npy", np.array([[5, 345, 0, 1]]))
    (tmp_path / "xml/train/a.xml").write_text("<annotation><object><name>car</name></object></annotation>")
    with pytest.raises(DataError, match="object 1 is no person"):
        load_pedro(tmp_path, "train", "a")
    (tmp_path / "yolo/train/a.txt").write_text("")
    assert load_pedro(tmp_path, "train", "a", "yolo").boxes.shape == (0, 4)
    (tmp_path / "yolo/train/a.txt").write_text("0 0.5 0.5 2 0.1\n")
    with pytest.raises(DataError, match="no fraction"):
        load_pedro(tmp_path, "train", "a", "yolo")
