"""Largest components: what they keep, and when they are chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from statefield.errors import CheckpointError, DataError
from statefield.tasks.medical.postprocessing import (
    Postprocessing,
    TrialState,
    choose,
    load_postprocessing,
    try_candidates,
)

CLASSES = ("background", "liver", "lesion")


def _labels(text: str) -> np.ndarray:
    """A label map, a row per word."""
    return np.array([[int(letter) for letter in row] for row in text.split()], dtype=np.uint8)


def _as_text(labels: np.ndarray) -> str:
    return " ".join("".join(str(value) for value in row) for row in labels)


def test_only_the_largest_component_of_a_class_stays():
    labels = Postprocessing(classes=(1,))(_labels("11010 11020 00022"))
    assert _as_text(labels) == "11000 11020 00022"


def test_components_that_touch_at_a_corner_are_one_and_equal_ones_all_stay():
    assert _as_text(Postprocessing(classes=(1,))(_labels("1000 0100 0001"))) == "1000 0100 0000"
    assert _as_text(Postprocessing(classes=(1,))(_labels("1001"))) == "1001"


def test_the_foreground_is_one_piece_whatever_its_classes():
    """Class 2 is larger on the right, but hangs on nothing; the piece of 1 and 2 has five pixels, it has four."""
    labels = Postprocessing(foreground=True)(_labels("11022 11022 20000"))
    assert _as_text(labels) == "11000 11000 20000"


def test_a_memory_mapped_volume_is_changed_in_its_file(tmp_path):
    volume = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.uint8, (4, 5, 6))
    volume[0, 0, :3], volume[3, 4, :2], volume[3, 0, 0] = 1, 1, 2
    result = Postprocessing(classes=(1, 2))(volume)
    assert result is volume
    volume.flush()
    stored = np.load(tmp_path / "labels.npy")
    assert (stored == 1).sum() == 3
    assert stored[3, 0, 0] == 2
    assert stored[3, 4].sum() == 0


def test_a_class_that_is_absent_is_no_trouble():
    assert _as_text(Postprocessing(foreground=True, classes=(1, 2))(_labels("000"))) == "000"
    assert _as_text(Postprocessing(classes=(1, 2))(_labels("010"))) == "010"


def test_dice_of_every_candidate_by_hand():
    """Liver: predicted 4 of 4 and one stray pixel: 2*4/(4+5) = 8/9; without the stray pixel, 1.
    Lesion: two single pixels, both right: 1; with one component (ties stay), 1; not joined to the liver: gone, 0.
    """
    target = _labels("1100000 1100000 0002020")
    predicted = _labels("1100001 1100000 0002020")
    dice = try_candidates(predicted, target, case="a", num_classes=3).cases["a"]
    raw, whole, single, both = dice[:, 1:]
    np.testing.assert_allclose(raw, [8 / 9, 1])
    np.testing.assert_allclose(whole, [1, 0])
    np.testing.assert_allclose(single, [1, 1])
    np.testing.assert_allclose(both, [1, 0])
    assert _as_text(predicted) == "1100001 1100000 0002020"


def test_a_class_is_chosen_alone_where_the_whole_foreground_would_harm_another():
    target, predicted = _labels("1100000 1100000 0002020"), _labels("1100001 1100000 0002020")
    choice = choose(try_candidates(predicted, target, case="a", num_classes=3))
    assert choice.chosen == Postprocessing(foreground=False, classes=(1,))
    assert choice.before == pytest.approx((8 / 9, 1))
    assert choice.after == pytest.approx((1, 1))


def test_the_foreground_is_chosen_where_it_helps_and_harms_no_class():
    """Raw: liver 2*3/(3+4), lesion 2*1/(1+2). The foreground's largest piece is the truth; more cannot be won."""
    target, predicted = _labels("11100000 20000000"), _labels("11100001 20000002")
    choice = choose(try_candidates(predicted, target, case="a", num_classes=3))
    assert choice.chosen == Postprocessing(foreground=True, classes=())
    assert choice.before == pytest.approx((6 / 7, 2 / 3))
    assert choice.after == (1, 1)


def test_nothing_is_chosen_where_nothing_rises():
    """One liver in two pieces, the smaller one real: dropping it lowers Dice. The mean of two cases decides."""
    target = _labels("1110011")
    good = try_candidates(target, target, case="two pieces", num_classes=2)
    assert choose(good).chosen == Postprocessing()
    stray = try_candidates(_labels("1110001"), _labels("1110000"), case="stray", num_classes=2)
    # raw: (1 + 6/7) / 2 = 0.93; largest component: (6/8 + 1) / 2 = 0.875
    assert choose(good + stray).chosen == Postprocessing()
    assert choose(stray).chosen == Postprocessing(foreground=True)


def test_a_case_that_lacks_a_class_does_not_count_for_it():
    target, predicted = _labels("1100"), _labels("1101")
    choice = choose(try_candidates(predicted, target, case="a", num_classes=3))
    assert choice.chosen == Postprocessing(foreground=True)
    assert np.isnan(choice.before[1])


def test_states_of_folds_add_and_no_case_counts_twice():
    one = try_candidates(_labels("1101"), _labels("1100"), case="a", num_classes=2)
    two = try_candidates(_labels("1101"), _labels("1100"), case="b", num_classes=2)
    assert choose(one + two).cases == ("a", "b")
    with pytest.raises(DataError, match="tried twice, such as a"):
        one + one
    with pytest.raises(DataError, match="no prediction"):
        choose(TrialState())


def test_a_choice_is_written_with_its_scores_and_read_back(tmp_path):
    target, predicted = _labels("1100000 1100000 0002020"), _labels("1100001 1100000 0002020")
    choice = choose(try_candidates(predicted, target, case="a", num_classes=3))
    choice.write(tmp_path, CLASSES, source="the validation cases")
    stored = json.loads((tmp_path / "postprocessing.json").read_text())
    assert stored["largest_component_of"] == ["liver"]
    assert stored["mean_dice_before"] == pytest.approx({"liver": 8 / 9, "lesion": 1})
    assert stored["mean_dice_after"] == {"liver": 1, "lesion": 1}
    assert load_postprocessing(tmp_path) == choice.chosen


def test_without_a_choice_nothing_is_changed_and_a_damaged_one_is_refused(tmp_path):
    assert load_postprocessing(tmp_path) == Postprocessing()
    (tmp_path / "postprocessing.json").write_text('{"largest_component_of": ["liver"]')
    with pytest.raises(CheckpointError, match=r"postprocessing\.json cannot be read"):
        load_postprocessing(tmp_path)
    (tmp_path / "postprocessing.json").write_text("[]")
    with pytest.raises(CheckpointError, match="delete it"):
        load_postprocessing(tmp_path)
