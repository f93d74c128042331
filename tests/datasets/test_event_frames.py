"""Events drawn as frames: which window each has, and what its three channels say."""

import numpy as np
import pytest

from statefield.datasets.events import Events
from statefield.datasets.events.frames import EventFrameConfig, EventFrames, drawn
from statefield.errors import ConfigError, DataError


def events(times, x=None, on=None):
    count = len(times)
    return Events(
        np.array(times, np.uint64),
        np.array(x if x is not None else [0] * count, np.uint16),
        np.zeros(count, np.uint16),
        np.array(on if on is not None else [True] * count, bool),
        4,
        2,
    )


def frames(times, config, count=None, **what):
    return EventFrames(None, config, count, events(times, **what))


def test_a_frame_has_the_events_of_its_window_alone():
    found = frames([100, 109, 110, 125], EventFrameConfig(kind="counts", window_us=10, full=2))
    assert len(found) == 3
    assert [int(frame[0, 0, 2]) for frame in found] == [255, 128, 128]
    assert found[0].shape == (2, 4, 3) and found[0].dtype == np.uint8


def test_windows_may_overlap():
    found = frames([0, 5, 10, 15], EventFrameConfig(kind="counts", window_us=10, step_us=5, full=4))
    assert [int(frame[0, 0, 1]) for frame in found] == [128, 128, 128, 64]


def test_boxes_divide_a_recording_evenly():
    found = frames([0, 24, 25, 99], EventFrameConfig(kind="counts", full=2), count=4)
    assert [int(frame[0, 0, 1]) for frame in found] == [255, 128, 0, 128]


def test_times_that_go_back_are_put_in_order():
    found = frames([20, 0, 10], EventFrameConfig(kind="counts", window_us=10, full=1), x=[3, 1, 2])
    assert [int(frame[0, :, 2].argmax()) for frame in found] == [1, 2, 3]


def test_off_and_on_have_channels_of_their_own():
    picture = drawn(
        events([0, 0, 1], x=[0, 1, 1], on=[False, True, True]), EventFrameConfig(kind="counts", full=2), (0, 10), (4, 2)
    )
    assert picture[0, 0].tolist() == [128, 128, 0]
    assert picture[0, 1].tolist() == [0, 255, 255]


def test_voxels_stand_about_grey():
    picture = drawn(
        events([0, 10], x=[0, 1], on=[True, False]), EventFrameConfig(kind="voxels", full=1), (0, 11), (4, 2)
    )
    assert picture[0, 0].tolist() == [255, 128, 128]
    assert picture[0, 1].tolist() == [128, 128, 0]


def test_a_surface_fades_with_time():
    picture = drawn(events([0, 10], x=[0, 1]), EventFrameConfig(kind="surface", tau_us=10.0), (0, 10), (4, 2))
    assert picture[0, 0, 2] == round(255 * np.exp(-1)) and picture[0, 1, 2] == 255
    assert picture[0, 0, 0] == 0


def test_a_picture_is_white_where_nothing_happens():
    picture = drawn(events([0], on=[False]), EventFrameConfig(), (0, 10), (4, 2))
    assert picture[0, 0].tolist() == [0, 0, 255] and picture[1, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "settings", [{"window_us": 0}, {"full": -1.0}, {"step_us": 5}, {"pan_px": -1.0}, {"tau_us": float("nan")}]
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match="events"):
        EventFrameConfig(**settings)


def test_an_empty_recording_is_refused():
    with pytest.raises(DataError, match="no event"):
        frames([], EventFrameConfig())
