"""One-pass evaluation: frame errors, curves over thresholds, and the scores that a protocol makes of them.

Shapes: T frames; boxes are [T, 4] float64, x, y, width, height in pixels. Truth and prediction count pixels from the
same number, 0 or 1; nothing here depends on which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.errors import DataError
from statefield.tasks.tracking.sot.protocols import Protocol

Array = NDArray[np.float64]
_EPS = np.finfo(np.float64).eps


@dataclass(frozen=True)
class FrameErrors:
    """What a tracker did in each counted frame of a sequence.

    Args:
        overlap: intersection over union in [0, 1], or -1 where there is no true box.
        centre_px: distance between the centres, in pixels; infinite or -1 where there is no true box (see `Protocol`).
        centre_normalised: the same after division by the true width and height.
        num_frames: what sums over frames are divided by, which some toolkits do not take from the counted frames.
        num_repeated: predictions without a size that were replaced by the one before them.
        num_missing: frames without a prediction, which is zero boxes or cuts the truth, as the protocol has it.
        num_beyond: predictions after the last frame, which were cut.
    """

    overlap: Array
    centre_px: Array
    centre_normalised: Array
    num_frames: int
    num_repeated: int = 0
    num_missing: int = 0
    num_beyond: int = 0


@dataclass(frozen=True)
class Curves:
    """Rates over thresholds, each in [0, 1]: success [num_overlaps], precision and normalised [num_errors]."""

    success: NDArray[np.floating]
    precision: NDArray[np.floating]
    normalised: NDArray[np.floating]


def overlap_thresholds(protocol: Protocol) -> Array:
    """From 0 to 1. pytracking and MATLAB count up in steps, GOT-10k and TrackingNet divide the unit interval.

    Their values differ in the last bit, which decides for overlaps such as 0.15 exactly.
    """
    if protocol.overlap == "inclusive" and not protocol.rounded:
        return np.arange(protocol.num_overlaps, dtype=np.float64) * 0.05
    return np.linspace(0, 1, protocol.num_overlaps)


def error_thresholds(protocol: Protocol) -> Array:
    """From 0 to 50 pixels; normalised thresholds are a hundredth of these."""
    return np.linspace(0, 50, protocol.num_errors)


def frame_errors(
    protocol: Protocol,
    predicted: Array,
    truth: Array,
    present: NDArray[np.bool_] | None = None,
    image_size: tuple[int, int] | None = None,
    where: str = "the prediction",
) -> FrameErrors:
    """Overlap and centre errors of one prediction of one sequence.

    Args:
        protocol: decides the corner cases.
        predicted: [T', 4]; T' may differ from T as far as the protocol allows.
        truth: [T, 4]; rows without a target may be zero or NaN.
        present: [T], True where the target can be seen; None where the data set does not tell.
        image_size: (width, height), for protocols that cut boxes to the image.
        where: names the prediction in errors.

    Raises:
        DataError: lengths or values that the protocol's toolkit refuses.
    """
    num_missing, num_beyond = (max(0, n) for n in (len(truth) - len(predicted), len(predicted) - len(truth)))
    predicted, num_repeated = _repaired(protocol, predicted, truth, where)
    predicted, truth = _of_one_length(protocol, predicted, truth, where)
    shown = None if present is None else present[: len(truth)]
    predicted = predicted.copy()
    if protocol.rounded:
        predicted, truth = np.round(predicted), np.round(truth)
    if protocol.first_frame == "truth":
        predicted[0] = truth[0]
    num_frames = len(truth)
    valid = _valid(protocol, truth)
    failed = np.zeros(num_frames, dtype=bool)
    counted = np.ones(num_frames, dtype=bool)
    if protocol.first_frame == "dropped":
        counted[0] = False
    if shown is not None and protocol.absent != "ignored":
        if protocol.absent == "failed":
            failed = ~shown
        else:
            counted &= shown
    if protocol.absent == "left_out" and protocol.valid == "size":
        counted &= valid
    if protocol.valid == "not_nan":
        counted &= valid
    valid = valid & ~failed

    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = box_overlap(protocol, predicted, truth, image_size)
        centre, normalised = _centre_errors(protocol, predicted, truth)
    if protocol.valid != "not_nan":
        overlap = np.where(valid, overlap, -1.0)
        centre = np.where(valid, centre, protocol.centre_without_box)
        normalised = np.where(valid, normalised, protocol.normalised_without_box)
    centre[failed] = np.inf
    normalised[failed] = np.inf
    in_sums = num_frames if protocol.absent == "out_of_sums" else int(counted.sum())
    # 0 / 0, two boxes without area, is neither a success nor a hit
    overlap, centre, normalised = (
        np.where(np.isnan(values), worst, values)[counted]
        for values, worst in ((overlap, -1.0), (centre, np.inf), (normalised, np.inf))
    )
    return FrameErrors(overlap, centre, normalised, in_sums, num_repeated, num_missing, num_beyond)


def box_overlap(protocol: Protocol, predicted: Array, truth: Array, image_size: tuple[int, int] | None = None) -> Array:
    """Intersection over union of [T, 4] boxes, in [0, 1]; NaN for two boxes without area."""
    if protocol.overlap == "bounded" and image_size is not None:
        predicted, truth = _bounded(predicted, image_size), _bounded(truth, image_size)
    last_pixel = 1.0 if protocol.overlap == "inclusive" else 0.0
    low = np.maximum(predicted[:, :2], truth[:, :2])
    high = np.minimum(predicted[:, :2] + predicted[:, 2:] - last_pixel, truth[:, :2] + truth[:, 2:] - last_pixel)
    intersection = np.prod(np.maximum(high - low + last_pixel, 0.0), axis=1)
    union = np.prod(predicted[:, 2:], axis=1) + np.prod(truth[:, 2:], axis=1) - intersection
    if protocol.overlap == "inclusive":
        return intersection / union
    return np.clip(intersection / (union + _EPS), 0.0, 1.0)


def _centre_errors(protocol: Protocol, predicted: Array, truth: Array) -> tuple[Array, Array]:
    first = predicted[:, :2] + 0.5 * (predicted[:, 2:] - 1.0)
    second = truth[:, :2] + 0.5 * (truth[:, 2:] - 1.0)
    size = truth[:, 2:]
    centre = np.sqrt(np.square(first - second).sum(axis=1))
    if protocol.smallest_divisor:
        scaled = (first - second) / np.maximum(protocol.smallest_divisor, size)
    else:
        scaled = first / size - second / size  # in this order in the toolkits: the last bit can decide at a threshold
    return centre, np.sqrt(np.square(scaled).sum(axis=1))


def _bounded(boxes: Array, image_size: tuple[int, int]) -> Array:
    edges = np.array(image_size, dtype=np.float64)
    low = np.clip(boxes[:, :2], 0, edges)
    return np.concatenate([low, np.clip(boxes[:, 2:], 0, edges - low)], axis=1)


def _valid(protocol: Protocol, truth: Array) -> NDArray[np.bool_]:
    if protocol.valid == "not_nan":
        return ~_in_any_column(np.isnan(truth))
    with np.errstate(invalid="ignore"):
        return ~_in_any_column(~((truth if protocol.valid == "four" else truth[:, 2:]) > 0))


def _in_any_column(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(values.any(axis=1))


def _repaired(protocol: Protocol, predicted: Array, truth: Array, where: str) -> tuple[Array, int]:
    """The prediction with boxes without a size replaced as the toolkit does, and how many were."""
    not_a_number = _in_any_column(np.isnan(predicted))
    with np.errstate(invalid="ignore"):
        negative = _in_any_column(predicted[:, 2:] < 0)
        without_size = not_a_number | _in_any_column(predicted[:, 2:] <= 0)
    refused = not_a_number | negative
    if protocol.broken == "repeat_all":
        refused[1:] = False
        if protocol.first_frame == "truth":
            refused[:] = False
    if refused.any():
        line = int(np.argmax(refused)) + 1
        kind = "NaN" if not_a_number[line - 1] else "a negative width or height"
        raise DataError(
            f"{where}, line {line}: {kind} in a predicted box, which the toolkit of {protocol.title} refuses. Write "
            "the box that the tracker reported last, or leave the sequence out with --on-bad skip."
        )
    if protocol.broken == "as_is":
        return predicted, 0
    replaced = without_size.copy()
    replaced[:1] = False
    shared = min(len(predicted), len(truth))
    replaced[:shared] &= ~_in_any_column(np.isnan(truth[:shared]))
    # the last row before each that is not replaced; repetition follows repetition, as in a loop over frames
    source = np.maximum.accumulate(np.where(replaced, 0, np.arange(len(predicted))))
    return predicted[source], int(replaced.sum())


def _of_one_length(protocol: Protocol, predicted: Array, truth: Array, where: str) -> tuple[Array, Array]:
    missing = len(truth) - len(predicted)
    if missing <= 0:
        return predicted[: len(truth)], truth
    if protocol.length == "fill":
        return np.concatenate([predicted, np.zeros((missing, 4))]), truth
    if protocol.length == "cut":
        return predicted, truth[: len(predicted)]
    raise DataError(
        f"{where}: {len(predicted)} boxes for {len(truth)} frames; {protocol.title} needs one for each frame, the "
        "first included. Run the tracker to the end, or leave the sequence out with --on-bad skip."
    )


def curves(protocol: Protocol, errors: FrameErrors) -> Curves:
    """Success, precision and normalised precision of one sequence over the protocol's thresholds."""
    error_px = error_thresholds(protocol)
    if errors.num_frames == 0:
        nothing = np.full(protocol.num_errors, np.nan)
        return Curves(np.full(protocol.num_overlaps, np.nan), nothing, nothing)
    side: Literal["left", "right"] = "right" if protocol.strict else "left"
    ordered = np.sort(errors.overlap)
    successes = len(ordered) - np.searchsorted(ordered, overlap_thresholds(protocol), side=side)
    hits = [
        np.searchsorted(np.sort(values), thresholds, side="right")
        for values, thresholds in (
            (errors.centre_px, error_px),
            (errors.centre_normalised, error_px / 100.0),
        )
    ]
    counts = [np.asarray(successes, dtype=np.float64), *(np.asarray(hit, dtype=np.float64) for hit in hits)]
    if protocol.float32:  # single precision divides single-precision counts, as torch does
        rates = [count.astype(np.float32) / np.float32(errors.num_frames) for count in counts]
        return Curves(*rates)
    return Curves(*(count / errors.num_frames for count in counts))


def pooled_errors(parts: Sequence[FrameErrors]) -> FrameErrors:
    """All frames of several sequences as one."""
    return FrameErrors(
        np.concatenate([part.overlap for part in parts]),
        np.concatenate([part.centre_px for part in parts]),
        np.concatenate([part.centre_normalised for part in parts]),
        sum(part.num_frames for part in parts),
        sum(part.num_repeated for part in parts),
        sum(part.num_missing for part in parts),
        sum(part.num_beyond for part in parts),
    )


def mean_curves(protocol: Protocol, of_sequences: Sequence[Curves]) -> Curves:
    """The mean over sequences; those without a counted frame are left out, those of zeros as the toolkit does."""
    means = []
    for name in ("success", "precision", "normalised"):
        stacked = np.stack([getattr(one, name) for one in of_sequences]).astype(np.float64)
        kept = stacked[~np.isnan(stacked).any(axis=1)]
        if protocol.drops_zero_curves:
            kept = kept[kept.sum(axis=1) > _EPS]
        means.append(kept.mean(axis=0) if len(kept) else np.full(stacked.shape[1], np.nan))
    return Curves(*means)


def scores(protocol: Protocol, curve: Curves, errors: FrameErrors | None = None) -> Mapping[str, float]:
    """The numbers that a benchmark prints, each in percent, under its own names.

    Args:
        curve: of one sequence, or the mean over sequences.
        errors: the pooled frames, for protocols that pool them; there the average overlap is a mean over frames.
    """
    success_name, precision_name, normalised_name = protocol.names
    if protocol.pooled:
        if errors is None or len(errors.overlap) == 0:
            return {success_name: np.nan, "SR50": np.nan, "SR75": np.nan}
        return {
            success_name: 100.0 * float(errors.overlap.mean()),
            "SR50": 100.0 * float((errors.overlap > 0.5).mean()),
            "SR75": 100.0 * float((errors.overlap > 0.75).mean()),
        }
    values = {
        success_name: _reduced(curve.success, protocol.success_from),
        precision_name: _reduced(curve.precision, protocol.precision_from, at=_index_of_20_px(protocol)),
        normalised_name: _reduced(curve.normalised, protocol.normalised_from, at=_index_of_20_px(protocol)),
        "OP50": float(curve.success[protocol.num_overlaps // 2]),
        "OP75": float(curve.success[3 * (protocol.num_overlaps // 4)]),
    }
    return {name: 100.0 * value for name, value in values.items()}


def _index_of_20_px(protocol: Protocol) -> int:
    return int(np.searchsorted(error_thresholds(protocol), 20.0))


def _reduced(curve: NDArray[np.floating], how: str, at: int = 0) -> float:
    if how == "value":
        return float(curve[at])
    if how == "mean":
        return float(curve.mean())
    return float(np.trapezoid(curve, dx=1.0 / (len(curve) - 1)))
