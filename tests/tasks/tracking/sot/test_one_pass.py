"""One-pass evaluation against the toolkits' own numbers, and each corner case by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from statefield.errors import DataError, UnknownName
from statefield.tasks.tracking.sot.one_pass import (
    box_overlap,
    curves,
    frame_errors,
    mean_curves,
    overlap_thresholds,
    pooled_errors,
    scores,
)
from statefield.tasks.tracking.sot.protocols import PROTOCOLS, protocol_named

GOLDEN = json.loads((Path(__file__).parents[3] / "goldens/metrics_sot.json").read_text())
TOOLKITS = {
    "pytracking_generic": "otb",
    "pytracking_lasot": "lasot",
    "got10k": "got10k",
    "got10k_toolkit_lasot": "lasot-got10k",
    "eventvot": "eventvot",
}
# our name of a score -> (the golden's, its factor to percent)
OVERALL = {
    "pytracking_generic": {
        "AUC": ("auc", 1),
        "OP50": ("op50", 1),
        "OP75": ("op75", 1),
        "P": ("precision20", 1),
        "P_norm": ("norm_precision20", 1),
    },
    "got10k": {"AO": ("ao", 100), "SR50": ("sr50", 100), "SR75": ("sr75", 100)},
    "got10k_toolkit_lasot": {
        "AUC": ("success_score", 100),
        "P": ("precision_score", 100),
        "P_norm": ("normalized_precision_score", 100),
        "OP50": ("success_rate", 100),
    },
    "eventvot": {"SR": ("sr_auc", 100), "PR": ("pr20", 100), "NPR": ("npr20", 100)},
}
OVERALL["pytracking_lasot"] = OVERALL["pytracking_generic"]


def _evaluated(toolkit):
    protocol = PROTOCOLS[TOOLKITS[toolkit]]
    errors = [
        frame_errors(
            protocol,
            np.array(one["pred"], dtype=float),
            np.array(one["gt"], dtype=float),
            np.array(one["visible"], dtype=bool),
            tuple(one["resolution"]),
        )
        for one in GOLDEN["trajectories"]
    ]
    return protocol, errors, [curves(protocol, one) for one in errors]


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_each_frame_and_each_threshold_is_as_the_toolkit_has_it(toolkit):
    _, errors, of_sequences = _evaluated(toolkit)
    ours = {
        "overlap": lambda n: errors[n].overlap,
        "ious": lambda n: errors[n].overlap,
        "center": lambda n: errors[n].centre_px,
        "center_norm": lambda n: errors[n].centre_normalised,
        "success": lambda n: of_sequences[n].success,
        "precision": lambda n: of_sequences[n].precision,
        "norm_precision": lambda n: of_sequences[n].normalised,
    }
    compared = 0
    for number, golden in enumerate(GOLDEN["per_sequence"][toolkit]):
        for name in ours.keys() & golden.keys():
            wanted = [np.inf if value in (None, "inf", "Infinity") else value for value in golden[name]]
            np.testing.assert_allclose(
                ours[name](number), wanted, rtol=0, atol=1e-14, err_msg=f"{golden['seq']} {name}"
            )
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_scores_equal_the_toolkits_to_all_digits_given(toolkit):
    protocol, errors, of_sequences = _evaluated(toolkit)
    ours = scores(protocol, mean_curves(protocol, of_sequences), pooled_errors(errors))
    for name, (theirs, factor) in OVERALL[toolkit].items():
        golden = GOLDEN["overall"][toolkit][theirs]
        golden = golden["value"] if isinstance(golden, dict) else golden
        assert ours[name] == pytest.approx(golden * factor, rel=1e-15), name


def test_a_threshold_is_strict_for_overlap_and_not_for_distance():
    truth = np.array([[10.0, 10, 10, 10]] * 2)
    # 5 px aside: the boxes share half of each, 50 of 150 pixels; the centres are 5 px, half a width, apart
    predicted = _moved(truth, 5.0)
    protocol = replace(PROTOCOLS["otb"], first_frame="predicted", float32=False, num_overlaps=4, overlap="continuous")
    curve = curves(protocol, frame_errors(protocol, predicted, truth))
    assert overlap_thresholds(protocol).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    at_a_third = curves(replace(protocol, strict=False), frame_errors(protocol, predicted, truth)).success[1]
    assert (curve.success[1], at_a_third) == (0.0, 1.0)
    assert (curve.precision[4], curve.precision[5]) == (0.0, 1.0)
    assert (curve.normalised[49], curve.normalised[50]) == (0.0, 1.0)


def test_the_first_frame_is_replaced_scored_or_dropped():
    truth = np.array([[10.0, 10, 10, 10]] * 4)
    predicted = _moved(truth, 100.0)
    by_name = {name: frame_errors(PROTOCOLS[name], predicted, truth) for name in ("otb", "visible", "got10k")}
    assert by_name["otb"].overlap.tolist() == [1, 0, 0, 0]
    assert by_name["visible"].overlap.tolist() == [0, 0, 0, 0]
    assert by_name["got10k"].overlap.tolist() == [0, 0, 0]


def test_absent_targets_are_ignored_failed_or_left_out():
    truth = np.array([[10.0, 10, 10, 10]] * 4)
    present = np.array([True, True, False, True])
    found = {
        name: frame_errors(PROTOCOLS[name], truth.copy(), truth, present)
        for name in ("otb", "lasot", "eventvot", "got10k", "visible")
    }
    assert {name: (one.overlap > 0.5).sum() for name, one in found.items()} == {
        "otb": 4,
        "lasot": 3,
        "eventvot": 3,
        "got10k": 2,
        "visible": 3,
    }
    assert {name: one.num_frames for name, one in found.items()} == {
        "otb": 4,
        "lasot": 4,
        "eventvot": 4,  # divided by all frames, though one is left out
        "got10k": 2,
        "visible": 3,
    }


def test_frames_without_a_true_box_fail_in_overlap_and_hit_in_precision_only_where_the_toolkit_says_so():
    truth = np.array([[10.0, 10, 10, 10], [0, 0, 0, 0]])
    hits = {
        name: curves(PROTOCOLS[name], frame_errors(PROTOCOLS[name], truth.copy(), truth)).precision[20]
        for name in ("otb", "uav123", "visevent")
    }
    assert hits == {"otb": 0.5, "uav123": 1.0, "visevent": 1.0}
    for name in hits:
        assert frame_errors(PROTOCOLS[name], truth.copy(), truth).overlap.tolist() == [1.0, -1.0]


def test_boxes_without_a_size_repeat_the_one_before():
    truth = np.array([[10.0, 10, 10, 10]] * 5)
    predicted = truth.copy()
    predicted[1] = [12, 10, 10, 10]
    predicted[2:4, 2] = 0
    found = frame_errors(PROTOCOLS["otb"], predicted, truth)
    assert found.num_repeated == 2
    assert found.overlap.tolist() == [1.0, *[80 / 120] * 3, 1.0]
    predicted[2, 0] = np.nan
    with pytest.raises(DataError, match=r"result\.txt, line 3: NaN"):
        frame_errors(PROTOCOLS["otb"], predicted, truth, where="result.txt")
    assert frame_errors(PROTOCOLS["visevent"], predicted, truth).overlap.tolist() == found.overlap.tolist()


def test_negative_sizes_are_refused_where_the_toolkit_refuses_them():
    truth = np.array([[10.0, 10, 10, 10]] * 3)
    predicted = truth.copy()
    predicted[2, 3] = -4
    with pytest.raises(DataError, match="line 3: a negative width or height"):
        frame_errors(PROTOCOLS["lasot"], predicted, truth)
    assert frame_errors(PROTOCOLS["coesot"], predicted, truth).num_repeated == 1


def test_short_predictions_are_filled_cut_or_refused():
    truth = np.array([[10.0, 10, 10, 10]] * 4)
    assert frame_errors(PROTOCOLS["otb"], truth[:2].copy(), truth).overlap.tolist() == [1, 1, 0, 0]
    assert frame_errors(PROTOCOLS["lasot-got10k"], truth[:2].copy(), truth).overlap.tolist() == [1, 1]
    assert frame_errors(PROTOCOLS["otb"], truth[:2].copy(), truth).num_missing == 2
    longer = frame_errors(PROTOCOLS["lasot"], np.concatenate([truth, truth]), truth)
    assert (longer.num_frames, longer.num_beyond) == (4, 4)
    with pytest.raises(DataError, match=r"2 boxes for 4 frames; LaSOT needs one for each frame"):
        frame_errors(PROTOCOLS["lasot"], truth[:2].copy(), truth)


def test_trackingnet_rounds_counts_equality_and_takes_areas():
    truth = np.array([[10.0, 10, 10, 10]] * 2)
    protocol = PROTOCOLS["trackingnet"]
    found = frame_errors(protocol, _moved(truth, 0.4), truth)
    assert found.overlap.tolist() == [1.0, 1.0]
    curve = curves(protocol, found)
    assert curve.success.tolist() == [1.0] * 21  # at 1.0 too, since equality counts
    assert scores(protocol, curve)["Success"] == pytest.approx(100.0)
    # a distance of 10 px hits the 17 thresholds from 10 to 50: 16.5 of 20 trapezoids
    away = np.array([[10.0, 10, 10, 10], [20.0, 10, 10, 10]])
    both = curves(protocol, frame_errors(protocol, away, truth))
    assert scores(protocol, both)["P"] == pytest.approx(100 * (1 + 16.5 / 20) / 2)


def test_a_sequence_of_zeros_is_dropped_from_the_mean_by_the_matlab_toolkits_alone():
    truth = np.array([[10.0, 10, 10, 10]] * 4)
    lost = _moved(truth, 500.0)
    means = {}
    for name in ("otb", "visevent"):
        # without the replaced first frame, which is a success in every sequence
        protocol = replace(PROTOCOLS[name], first_frame="predicted", float32=False)
        pair = [curves(protocol, frame_errors(protocol, boxes, truth)) for boxes in (truth.copy(), lost)]
        means[name] = mean_curves(protocol, pair).success[10]
    assert means == {"otb": 0.5, "visevent": 1.0}


def test_inclusive_and_continuous_overlap_are_the_same_up_to_rounding():
    generator = np.random.default_rng(7)
    first, second = (np.abs(generator.normal(50, 20, (200, 4))) for _ in range(2))
    by_pixel = box_overlap(PROTOCOLS["otb"], first, second)
    continuous = box_overlap(PROTOCOLS["lasot-got10k"], first, second)
    np.testing.assert_allclose(by_pixel, continuous, rtol=0, atol=1e-14)
    one_by_one = [_overlap_by_definition(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(by_pixel, one_by_one, rtol=0, atol=1e-14)


def _moved(boxes, x_px):
    return np.column_stack([boxes[:, 0] + x_px, boxes[:, 1:]])


def _overlap_by_definition(a, b):
    width = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def test_a_sequence_without_a_counted_frame_has_no_score():
    truth = np.array([[10.0, 10, 10, 10]] * 3)
    found = frame_errors(PROTOCOLS["visible"], truth.copy(), truth, np.zeros(3, dtype=bool))
    assert found.num_frames == 0
    empty = curves(PROTOCOLS["visible"], found)
    assert np.isnan(empty.success).all()
    full = curves(PROTOCOLS["visible"], frame_errors(PROTOCOLS["visible"], truth.copy(), truth))
    assert mean_curves(PROTOCOLS["visible"], [empty, full]).success.tolist() == full.success.tolist()


def test_the_document_tells_of_every_protocol():
    text = (Path(__file__).parents[4] / "docs/tracking_sot.md").read_text()
    assert [name for name in PROTOCOLS if f"`{name}`" not in text] == []


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="lasot"):
        protocol_named("lasoot")
