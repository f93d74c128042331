"""Overlap of boxes, and which pairs an assignment takes."""

import numpy as np
import pytest

from statefield.tasks.tracking.trackers.boxes import assign, overlap


def test_overlap_by_hand():
    """10 x 10 and 10 x 10 shifted by 5: 50 of 150; and a box without area."""
    one = np.array([[0.0, 0, 10, 10], [0, 0, 0, 10]])
    other = np.array([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]])
    assert overlap(one, other) == pytest.approx(np.array([[1 / 3, 0, 1], [0, 0, 0]]))
    assert overlap(one[:0], other).shape == (0, 3)


def test_two_ways_to_hold_pairs_to_a_limit():
    """All assigned first, 0.5 + 0.3 beats 0.7, and 0.3 is dropped; among those of 0.4 and more, 0.7 is the best."""
    gain = np.array([[0.7, 0.5], [0.3, 0.0]])
    rows, columns = assign(gain, 0.4, within=False)
    assert (rows.tolist(), columns.tolist()) == ([0], [1])
    rows, columns = assign(gain, 0.4)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_pairs_without_a_choice_are_taken_as_they_are():
    """0.35 alone is enough; all assigned first would take 0.29 + 0.29 and drop both."""
    gain = np.array([[0.35, 0.29], [0.29, 0.0]])
    rows, columns = assign(gain, 0.3, within=False)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])


def test_nothing_to_assign():
    for gain in (np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2))):
        rows, columns = assign(gain, 0.3)
        assert len(rows) == len(columns) == 0


def test_the_gain_chooses_and_another_measure_admits():
    gain, similar = np.array([[0.9, 0.8], [0.8, 0.1]]), np.array([[0.2, 0.5], [0.5, 0.5]])
    rows, columns = assign(gain, 0.3, within=False, held_to=similar)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]
