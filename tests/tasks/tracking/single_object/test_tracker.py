"""The tracker frame by frame: the window, what becomes a template, and what happens when the target is lost."""

import numpy as np
import pytest
import torch

from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.nets import CenterMaps, MambaEVT
from statefield.tasks.tracking.single_object.recipe import TrackerConfig
from statefield.tasks.tracking.single_object.tracker import SingleObjectTracker, hann_window

TINY = {"template_size": 16, "search_size": 32, "patch_size": 8, "dim": 8, "num_layers": 1, "d_state": 2}
TINY["head_channels"] = 8
BOX = (20.0, 16.0, 12.0, 12.0)


class Scripted(MambaEVT):
    """A net whose maps are told: the target in a cell of the region, of a size, with a score."""

    def __init__(self):
        super().__init__(
            template_size=16, search_size=32, patch_size=8, dim=8, num_layers=1, d_state=2, head_channels=8
        )
        self.cell, self.told_score, self.seen = (2, 2), 0.9, []

    def forward(self, static, dynamic, search):
        self.seen.append((static, dynamic, search))
        score = torch.full((1, 1, 4, 4), 1e-3)
        score[0, 0, *self.cell] = self.told_score
        return CenterMaps(score, torch.full((1, 2, 4, 4), 0.25), torch.zeros(1, 2, 4, 4))


def frame(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def started(**config):
    torch.manual_seed(0)
    net = Scripted()
    tracker = SingleObjectTracker(net, config=TrackerConfig(**config))
    tracker.start(frame(), BOX)
    return tracker, net


def test_the_window_is_hanns_without_its_zeros():
    """0.5 (1 - cos(2 pi k / 17)) for k = 1 to 16, as pytracking's centred one."""
    line = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, 17) / 17))
    assert hann_window(16).shape == (1, 1, 16, 16)
    np.testing.assert_allclose(hann_window(16)[0, 0].numpy(), line[:, None] * line, atol=1e-6)


def test_a_cell_becomes_a_box_of_the_frame():
    """The region is 48 wide from (2, -2); cell (2, 2) of 4 is its middle, (26, 22), and a quarter of it 12 pixels."""
    tracker, _ = started()
    found = tracker.step(frame())
    assert found.box == pytest.approx([20, 16, 12, 12])
    assert found.score == pytest.approx(0.9)
    assert not found.is_lost


def test_the_window_prefers_what_is_near():
    tracker, net = started()
    plain = Scripted.forward

    def two(static, dynamic, search):
        maps = plain(net, static, dynamic, search)
        maps.score[0, 0, 0, 0] = 0.95
        return maps

    net.forward = two
    assert tracker.step(frame()).score == pytest.approx(0.9)
    tracker, net = started(window=0.0)
    net.forward = two
    assert tracker.step(frame()).score == pytest.approx(0.95)


def test_every_result_becomes_a_template_before_the_next_search():
    tracker, _ = started()
    for _ in range(3):
        tracker.step(frame())
    assert tracker.memory.short.frames == [0, 0, 0, 1, 2, 3]


def test_between_updates_the_memory_stays():
    tracker, _ = started(interval=2)
    for _ in range(4):
        tracker.step(frame())
    assert tracker.memory.short.frames == [0, 0, 0, 0, 2, 4]


def test_a_result_with_too_low_a_score_is_not_learned():
    tracker, net = started(learn_above=0.5)
    net.told_score = 0.4
    tracker.step(frame())
    net.told_score = 0.9
    tracker.step(frame())
    tracker.step(frame())
    assert tracker.memory.short.frames == [
        0,
        0,
        0,
        0,
        1,
        3,
    ]  # frame 1 brought the first template, frame 3 the second result


def test_a_lost_target_keeps_its_box_and_is_looked_for_in_a_wider_region():
    tracker, net = started(lost_below=0.5, lost_widening=2.0)
    net.told_score, net.cell = 0.2, (0, 0)
    found = tracker.step(frame())
    assert found.is_lost and found.box == pytest.approx(BOX)
    net.told_score, net.cell = 0.9, (2, 2)
    found = tracker.step(frame())
    assert not found.is_lost
    assert found.box == pytest.approx([14, 10, 24, 24])  # a quarter of a region of 96


def test_a_target_that_leaves_stays_at_the_edge():
    tracker, net = started()
    net.cell = (0, 0)
    for _ in range(6):
        found = tracker.step(frame())
    assert (found.box[:2] >= 0).all() and (found.box[:2] + found.box[2:] >= 10).all()


def test_starting_again_forgets():
    tracker, _ = started()
    tracker.step(frame(1))
    tracker.start(frame(), BOX)
    assert tracker.memory.short.frames == [0] * 6


def test_events_and_pictures_are_followed_alike_by_a_real_net():
    torch.manual_seed(1)
    net = MambaEVT(**TINY)
    tracker = SingleObjectTracker(net)
    tracker.start(frame(), BOX)
    boxes = [tracker.step(frame(seed)).box for seed in (1, 2)]
    tracker.start(frame(), BOX)
    again = [tracker.step(frame(seed)).box for seed in (1, 2)]
    assert np.array_equal(boxes, again)


@pytest.mark.parametrize("box", [(70, 10, 5, 5), (10, 10, 0, 5), (-9, 0, 9, 9)])
def test_a_first_box_that_shows_nothing_is_refused(box):
    tracker = SingleObjectTracker(Scripted())
    with pytest.raises(DataError, match="box"):
        tracker.start(frame(), box)


def test_a_tracker_that_was_not_started_says_so():
    with pytest.raises(DataError, match="start"):
        SingleObjectTracker(Scripted()).step(frame())


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"tracker\.window"):
        TrackerConfig(window=2.0)
