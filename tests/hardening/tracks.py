"""Text of trackers: MOTChallenge's and KITTI's ground truth, results and detections, and one-object boxes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hardening.case import Case, Write, both, write_bytes, write_text

_TRUTH = "".join(f"{frame},1,{10 + frame},10,20,40,1,1,1\n" for frame in range(1, 5))
_RESULT = "".join(f"{frame},7,{10 + frame},10,20,40,1,-1,-1,-1\n" for frame in range(1, 5))
_INFO = "[Sequence]\nname=camera\nimDir=img1\nframeRate=30\nseqLength=4\nimWidth=640\nimHeight=480\nimExt=.jpg\n"
_KITTI = "0 1 Pedestrian 0 0 -1.0 10 10 30 50 -1 -1 -1 -1 -1 -1 -1\n"
_BOXES = "10,10,20,20\n" * 4

_EVALUATE = "mot evaluate --gt AT/gt --results AT/tracker --output AT/out"
_TRACK = "mot track AT/data --output AT/out"
_SINGLE = "sot evaluate --gt AT/gt --results AT/results --json AT/o.json --csv AT/o.csv --report AT/o.html --plots AT/p"


def _files(base: Mapping[str, str], changed: Mapping[str, str | bytes | None]) -> Write:
    """Writes the files of `base` with those of `changed` in their place; None leaves one out."""
    content = {**base, **changed}
    return both(
        *(
            write_bytes(name, text if isinstance(text, bytes) else text.encode())
            for name, text in content.items()
            if text is not None
        )
    )


def many_objects() -> list[Case]:
    """Ground truth, results and detections of many objects."""
    base = {"gt/camera/gt/gt.txt": _TRUTH, "gt/camera/seqinfo.ini": _INFO, "tracker/camera.txt": _RESULT}
    truth, info, result = base
    rows: dict[str, tuple[str, str | bytes | None, str]] = {
        "truth_of_words": (truth, "frame id left top\n", "line 1"),
        "truth_of_five_columns": (truth, "1,1,2,3,4\n", "5 columns"),
        "truth_binary": (truth, bytes(range(256)) * 4, "text"),
        "truth_ends_in_a_row": (truth, _TRUTH + "5,1,", "line 5"),
        "truth_nan": (truth, _TRUTH.replace("11,10", "nan,10"), "line 1"),
        "truth_infinite": (truth, _TRUTH.replace("12,10", "1e999,10"), "line 2"),
        "truth_hexadecimal": (truth, _TRUTH.replace("12,10", "0x12,10"), "line 2"),
        "truth_frame_0": (truth, _TRUTH.replace("1,1,11", "0,1,11"), "frame 0"),
        "truth_frame_beyond": (truth, _TRUTH.replace("4,1,14", "400,1,14"), "frame 400"),
        "truth_half_a_frame": (truth, _TRUTH.replace("2,1,12", "2.5,1,12"), "line 2"),
        "truth_same_id_twice": (truth, _TRUTH + "4,1,90,10,20,40,1,1,1\n", "id 1|twice"),
        "result_of_words": (result, "an error occurred\n", "line 1"),
        "result_of_utf16": (result, _RESULT.encode("utf-16"), "text"),
        "result_negative_width": (result, _RESULT.replace("20,40", "-20,40"), "line 1"),
        "result_frame_of_20_digits": (result, _RESULT.replace("4,7,14", "99999999999999999999,7,14"), "line 4"),
        "result_id_of_20_digits": (result, _RESULT.replace("4,7,14", "4,99999999999999999999,14"), "line 4"),
        "result_empty_column": (result, _RESULT.replace("3,7,13", "3,,13"), "line 3"),
        "info_without_length": (info, _INFO.replace("seqLength=4\n", ""), "seqLength"),
        "info_length_of_words": (info, _INFO.replace("seqLength=4", "seqLength=four"), "seqLength"),
        "info_length_superscript": (info, _INFO.replace("seqLength=4", "seqLength=\u00b2"), "seqLength"),
        "info_length_huge": (info, _INFO.replace("seqLength=4", "seqLength=" + "9" * 5000), "seqLength"),
        "info_negative_length": (info, _INFO.replace("seqLength=4", "seqLength=-4"), "seqLength"),
        "info_no_ini": (info, "seqLength=4\n", "seqinfo"),
        "info_binary": (info, bytes(range(256)), "seqinfo"),
        "info_twice": (info, _INFO + _INFO, "seqinfo"),
        "info_interpolates": (info, _INFO.replace("seqLength=4", "seqLength=%(x)s"), "seqLength|seqinfo"),
    }
    cases = [
        Case(name, _files(base, {file: text}), _EVALUATE, (Path(file).name, says))
        for name, (file, text, says) in rows.items()
    ]
    kitti = {"gt/label_02/0000.txt": _KITTI, "gt/evaluate_tracking.seqmap.training": "0000 empty 000000 000002\n"}
    kitti["tracker/0000.txt"] = _KITTI.replace("\n", " 0.9\n")
    label, seqmap, found = kitti
    rows = {
        "kitti_few_columns": (found, "0 1 Pedestrian 0 0\n", "line 1"),
        "kitti_words_for_numbers": (label, _KITTI.replace("10 10", "left top"), "line 1"),
        "kitti_unknown_class": (found, _KITTI.replace("Pedestrian", "Submarine"), "Submarine|line 1"),
        "kitti_nan": (found, kitti[found].replace("30 50", "nan 50"), "line 1"),
        "kitti_seqmap_of_words": (seqmap, "a b c\n", "seqmap"),
        "kitti_seqmap_superscript": (seqmap, "0000 empty 000000 \u00b2\n", "line 1"),
        "kitti_seqmap_5000_digits": (seqmap, f"0000 empty 000000 {'9' * 5000}\n", "line 1"),
        "kitti_seqmap_leaves": (seqmap, "../../../etc/passwd empty 000000 000002\n", "passwd"),
    }
    cases += [
        Case(name, _files(kitti, {file: text}), _EVALUATE, (Path(file).name, says))
        for name, (file, text, says) in rows.items()
    ]
    cases += [
        Case(
            "class_99",
            _files(base, {truth: _TRUTH.replace("1,1,1\n", "1,99,1\n")}),
            f"{_EVALUATE} --benchmark MOT17",
            ("gt.txt", "class 99"),
        ),
        Case(
            "result_missing",
            _files(base, {result: None, "tracker/other.txt": _RESULT}),
            _EVALUATE,
            ("tracker", "camera"),
        ),
        Case("truth_folder_empty", lambda at: [(at / n).mkdir() for n in ("gt", "tracker")], _EVALUATE, ("/gt",)),
        Case(
            "seqmap_leaves", _files(base, {"gt/seqmap.txt": "name\n../../../etc\n"}), _EVALUATE, ("seqmap.txt", "etc")
        ),
        Case("seqmap_binary", _files(base, {"gt/seqmap.txt": b"name\n\xff\xfe"}), _EVALUATE, ("seqmap.txt", "no text")),
        Case("draw_without_images", _files(base, {}), f"{_EVALUATE} --draw frames --images AT/none", ("none|images",)),
    ]
    return cases


def detections() -> list[Case]:
    """Detections in text, which `mot track` links."""
    row = "1,-1,10,10,20,40,0.9,-1,-1,-1\n"
    base = {"data/street/det/det.txt": row, "data/street/seqinfo.ini": _INFO}
    texts: dict[str, tuple[str | bytes, str]] = {
        "of_words": ("no detections\n", "line 1"),
        "six_columns": ("1,-1,10,10,20,40\n", "6 columns"),
        "nan_score": (row.replace("0.9", "nan"), "line 1"),
        "infinite": (row.replace("10,10", "inf,10"), "line 1"),
        "frame_negative": (row.replace("1,-1,10", "-3,-1,10"), "line 1"),
        "frame_beyond": (row.replace("1,-1,10", "5,-1,10", 1), "frame 5"),
        "no_area": (row.replace("20,40", "20,0"), "no area"),
        "binary": (b"\0" * 100, "no text"),
        "rows_of_two_lengths": (row + "2,-1,10,10,20,40,0.9\n", "line 2"),
    }
    cases = [
        Case(f"detections_{name}", _files(base, {"data/street/det/det.txt": text}), _TRACK, ("det.txt", says))
        for name, (text, says) in texts.items()
    ]
    sound = _files(base, {})
    huge = _files(base, {"data/street/det/det.txt": row.replace("1,-1,10", "900000000000,-1,10")})
    cases += [
        Case("detections_frame_of_12_digits", huge, _TRACK, ("det.txt", "frame 9")),
        Case("unknown_tracker", sound, f"{_TRACK} --tracker deepsort", ("deepsort", "sort")),
        Case("unknown_motion", sound, f"{_TRACK} --motion wiener", ("wiener",)),
        Case("negative_setting", sound, f"{_TRACK} --max-age -1", ("max-age",)),
        Case("no_detections", lambda at: (at / "data").mkdir(), _TRACK, ("data", "no detections")),
        Case("no_folder", lambda at: None, _TRACK, ("data", "no such file or folder")),
        Case("output_is_a_file", both(sound, write_text("out", "")), _TRACK, ("out",)),
    ]
    return cases


def single_objects() -> list[Case]:
    """Ground truth and results of one object."""
    base = {"gt/Car/groundtruth_rect.txt": _BOXES, "results/near/Car.txt": _BOXES}
    truth, result = base
    rows: dict[str, tuple[str, str | bytes, str]] = {
        "boxes_of_words": (truth, "left top\n", "line 1"),
        "boxes_of_three": (truth, "1,2,3\n", "line 1"),
        "boxes_binary": (truth, bytes(range(256)), "text|line"),
        "boxes_empty": (truth, "", "groundtruth"),
        "boxes_infinite": (truth, _BOXES + "inf,1,1,1\n", "line 5"),
        "result_of_words": (result, "an error occurred\n", "line 1"),
        "result_empty": (result, "", "Car.txt"),
        "result_infinite": (result, _BOXES.replace("10,10", "1e400,10", 1), "line 1"),
        "result_nan": (result, _BOXES.replace("10,10", "nan,10", 1), "line 1"),
        "result_of_ten_columns": (result, "1,2,3,4,5,6,7,8,9,10\n" * 4, "line 1"),
    }
    cases = [
        Case(f"single_{name}", _files(base, {file: text}), _SINGLE, (Path(file).name, says))
        for name, (file, text, says) in rows.items()
    ]
    lasot = {f"gt/bear-1/{name}.txt": "0,0,0,0" for name in ("full_occlusion", "out_of_view")}
    lasot |= {"gt/bear-1/groundtruth.txt": _BOXES, "results/near/bear-1.txt": _BOXES}
    vot = {"gt/ants/groundtruth.txt": "1,1,9,1,9,9,1,9\n" * 3, "gt/list.txt": "ants\n"}
    vot["results/near/baseline/ants/ants_001.txt"] = "1\n1,1,8,8\n1,1,8,8\n"
    in_vot = f"{_SINGLE} --protocol vot2018"
    region = "gt/ants/groundtruth.txt"
    got = {"gt/GOT_1/groundtruth.txt": _BOXES, "results/near/GOT_1.txt": _BOXES, "gt/GOT_1/cover.label": "8\n" * 4}
    got["gt/GOT_1/meta_info.ini"] = "[METAINFO]\nresolution: (640, 480)\n"
    digits = f"resolution: ({'9' * 5000}, 480)\n"
    cases += [
        Case("lasot_flags", _files(lasot, {"gt/bear-1/out_of_view.txt": "0,0"}), _SINGLE, ("out_of_view", "2 flags")),
        Case("lasot_words", _files(lasot, {"gt/bear-1/out_of_view.txt": "no"}), _SINGLE, ("out_of_view",)),
        Case("got_cover", _files(got, {"gt/GOT_1/cover.label": "8\n"}), _SINGLE, ("cover.label", "1 flags")),
        Case("got_size", _files(got, {"gt/GOT_1/meta_info.ini": digits}), _SINGLE, ("meta_info.ini",)),
        Case("vot_five_numbers", _files(vot, {region: "1,1,9,1,9\n" * 3}), in_vot, ("groundtruth.txt", "line 1")),
        Case("vot_words", _files(vot, {region: "a,b,c,d,e,f,g,h\n"}), in_vot, ("groundtruth.txt", "line 1")),
        Case("vot_mask_too_large", _files(vot, {region: "m0,0,99999999,99999999,5\n"}), in_vot, ("groundtruth.txt",)),
        Case("vot_mask_cut_off", _files(vot, {region: "m0,0,9\n"}), in_vot, ("groundtruth.txt", "line 1")),
        Case("vot_list_leaves", _files(vot, {"gt/list.txt": "../../../../etc\n"}), in_vot, ("list.txt",)),
        Case("vot_list_absolute", _files(vot, {"gt/list.txt": "/etc\n"}), in_vot, ("list.txt",)),
        Case(
            "vot_binary_results",
            _files(
                vot,
                {
                    "results/near/baseline/ants/ants_001.txt": None,
                    "results/near/baseline/ants/ants_001.bin": b"\xff" * 40,
                },
            ),
            in_vot,
            ("ants_001.bin",),
        ),
        Case(
            "vot_first_picture_claims_too_much",
            both(_files(vot, {}), lambda at: _bomb(at / "gt/ants/color/00000001.png")),
            in_vot,
            ("00000001.png",),
        ),
    ]
    if os.geteuid():
        cases.append(
            Case("closed", both(_files(base, {}), lambda at: (at / truth).chmod(0)), _SINGLE, ("permission denied",))
        )
    return cases


def _bomb(path: Path) -> None:
    from fakes.bad_input import write_bomb_png

    path.parent.mkdir(parents=True)
    write_bomb_png(path)
