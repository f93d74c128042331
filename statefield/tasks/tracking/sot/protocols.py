"""What each benchmark's own toolkit does where the words "success" and "precision" leave it open.

The same boxes score up to ten points apart under different toolkits: they differ in whether a threshold is strict, what
happens to the first frame, to frames without a target, to broken predictions, and in how a curve becomes a number. Each
difference is a field of `Protocol`, and each protocol says where its choices were read. All thresholds of overlap run
from 0 to 1, of centre errors from 0 to 50 pixels, of normalised errors from 0 to 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from statefield.errors import UnknownName


@dataclass(frozen=True)
class Protocol:
    """One benchmark's one-pass evaluation, as settings.

    Args:
        name: how the command line calls it.
        title: the benchmark, as published.
        source: the code or paper that the settings were read from.
        first_frame: the prediction of the frame that initialises the tracker is replaced by the truth ("truth"), scored
            as it stands ("predicted"), or left out ("dropped").
        absent: frames whose target is marked absent are scored like any other ("ignored"), count as failures
            ("failed"), are left out of the sums but stay in the number of frames that these are divided by
            ("out_of_sums"), or are left out altogether ("left_out").
        broken: a prediction without a positive size repeats the one before it if its width or height is zero and is an
            error if it is negative or NaN ("repeat_zero"), repeats in all these cases ("repeat_all"), or is scored as
            it stands, NaN being an error ("as_is").
        length: a prediction shorter than the truth is an error ("equal", longer ones are cut), is filled with zero
            boxes ("fill"), or cuts the truth ("cut").
        valid: which true boxes have a size: all four numbers > 0 ("four"), width and height > 0 ("size"), or no NaN
            ("not_nan"). The overlap of a frame without one is -1, a failure at each threshold.
        centre_without_box: the centre error of such a frame; -1 counts as a hit at every threshold, as in the
            MATLAB toolkits.
        normalised_without_box: the normalised centre error of such a frame.
        overlap: "inclusive" takes x + w - 1 as the last pixel and adds the 1 again, "continuous" does not: the same but
            for the last bit. "bounded" also cuts both boxes to the image.
        smallest_divisor: normalised errors are divided by the true width and height, or by this if they are less.
        rounded: boxes are rounded to whole pixels first.
        strict: a frame is a success above the threshold, not at it.
        num_overlaps, num_errors: how many thresholds.
        success_from, precision_from, normalised_from: a curve becomes a number by its mean, by the area under it
            (trapezoids), or by its value at the usual threshold (overlap 0.5, 20 pixels, 0.2).
        pooled: all frames of all sequences together, instead of the mean over sequences.
        drops_zero_curves: sequences whose curve is zero throughout are left out of the mean of that curve.
        float32: curves are kept in single precision.
        names: what the benchmark calls (success, precision, normalised precision).
        note: what a reader of the numbers must know.
    """

    name: str
    title: str
    source: str
    first_frame: Literal["truth", "predicted", "dropped"] = "truth"
    absent: Literal["ignored", "failed", "out_of_sums", "left_out"] = "ignored"
    broken: Literal["repeat_zero", "repeat_all", "as_is"] = "repeat_zero"
    length: Literal["equal", "fill", "cut"] = "fill"
    valid: Literal["four", "size", "not_nan"] = "four"
    centre_without_box: float = float("inf")
    normalised_without_box: float = -1.0
    overlap: Literal["inclusive", "continuous", "bounded"] = "inclusive"
    smallest_divisor: float = 0.0
    rounded: bool = False
    strict: bool = True
    num_overlaps: int = 21
    num_errors: int = 51
    success_from: Literal["mean", "area"] = "mean"
    precision_from: Literal["value", "area"] = "value"
    normalised_from: Literal["value", "mean", "area"] = "value"
    pooled: bool = False
    drops_zero_curves: bool = False
    float32: bool = False
    names: tuple[str, str, str] = ("AUC", "P", "P_norm")
    note: str = ""


_PYTRACKING = "visionml/pytracking 7eb9e74, analysis/extract_results.py"
_EVENT_AHU = "utils/calc_seq_err_robust.m, eval_tracker.m and plot_draw_save.m of Event-AHU/"
_ZERO_CURVES = (
    "As in the MATLAB toolkit, frames without a target are left out of the sums but not of the number of frames, so "
    "that 100 % is out of reach where there are any, and a sequence whose curve is zero throughout is not in the mean."
)
_MATLAB = {
    "absent": "out_of_sums",
    "broken": "repeat_all",
    "length": "equal",
    "centre_without_box": -1.0,
    "drops_zero_curves": True,
    "names": ("SR", "PR", "NPR"),
    "note": _ZERO_CURVES,
}

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("otb", "OTB", _PYTRACKING, float32=True),
        Protocol("fe240hz", "FE240hz / FE108", f"{_PYTRACKING} (data set 'FE108' of its forks)", float32=True),
        Protocol(
            "uav123",
            "UAV123",
            _PYTRACKING,
            centre_without_box=-1.0,
            float32=True,
            note="A frame without a true box (NaN) fails in overlap and is a hit in precision, as in pytracking.",
        ),
        Protocol(
            "lasot",
            "LaSOT",
            _PYTRACKING,
            absent="failed",
            length="equal",
            normalised_without_box=-1.0,
            float32=True,
            note="Frames marked as fully occluded or out of view count as failures, as in pytracking. P_norm is the "
            "value at 0.2; the GOT-10k toolkit's P_norm (--protocol lasot-got10k) is the mean of the curve.",
        ),
        Protocol(
            "lasot-got10k",
            "LaSOT, by the GOT-10k toolkit",
            "got-10k/toolkit 956e728, experiments/lasot.py",
            broken="as_is",
            length="cut",
            valid="not_nan",
            overlap="continuous",
            smallest_divisor=1.0,
            normalised_from="mean",
            note="Frames marked absent are scored like any other; P_norm is the mean of the curve.",
        ),
        Protocol(
            "got10k",
            "GOT-10k",
            "got-10k/toolkit 956e728, experiments/got10k.py",
            first_frame="dropped",
            absent="left_out",
            broken="as_is",
            length="equal",
            valid="not_nan",
            overlap="bounded",
            smallest_divisor=1.0,
            num_overlaps=101,
            pooled=True,
            names=("AO", "P", "P_norm"),
            note="Frames of all sequences and repetitions are pooled; frames whose cover is 0 are left out.",
        ),
        Protocol(
            "trackingnet",
            "TrackingNet",
            "SilvioGiancola/TrackingNet-devkit, metrics.py",
            absent="ignored",
            broken="as_is",
            rounded=True,
            strict=False,
            num_errors=21,
            success_from="area",
            precision_from="area",
            normalised_from="area",
            names=("Success", "P", "P_norm"),
            note="Boxes are rounded, a success is an overlap of at least the threshold, and all three numbers are "
            "areas under curves of 21 thresholds, precision included, as in the devkit.",
        ),
        Protocol("eventvot", "EventVOT", f"{_EVENT_AHU}EventVOT_Benchmark 29c7373", **_MATLAB),  # type: ignore[arg-type]
        Protocol("coesot", "COESOT", f"{_EVENT_AHU}COESOT", **_MATLAB),  # type: ignore[arg-type]
        Protocol(
            "visevent",
            "VisEvent",
            "wangxiao5791509/VisEvent_SOT_Benchmark, utils/calc_seq_err_robust.m",
            **_MATLAB,  # type: ignore[arg-type]
        ),
        Protocol(
            "visible",
            "Frames with a target alone",
            "no toolkit's; all frames with a true box of positive size, divided by their number",
            first_frame="predicted",
            absent="left_out",
            broken="repeat_all",
            length="equal",
            valid="size",
            names=("SR", "PR", "NPR"),
            note="Frames without a target are left out on both sides, and the first frame is scored as predicted.",
        ),
        Protocol(
            "mmtracking",
            "OPE of mmtracking",
            "open-mmlab/mmtracking, core/evaluation/eval_sot_ope.py",
            first_frame="predicted",
            absent="out_of_sums",
            broken="as_is",
            length="equal",
            valid="size",
            centre_without_box=-1.0,
            overlap="continuous",
            names=("success", "precision", "norm_precision"),
        ),
    )
}

VOT_PROTOCOLS = ("vot2016", "vot2017", "vot2018", "vot2019", "vot2020", "vot2021", "vot2022")


def protocol_named(name: str) -> Protocol:
    """The one-pass protocol called `name`.

    Raises:
        UnknownName: there is none; the nearest names are offered.
    """
    if name not in PROTOCOLS:
        raise UnknownName.among("protocol", name, [*PROTOCOLS, *VOT_PROTOCOLS])
    return PROTOCOLS[name]
