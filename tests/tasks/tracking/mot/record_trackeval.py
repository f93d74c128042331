"""Record what TrackEval 1.3.0 computes: trackeval_1_3_0.npz, which test_against_trackeval.py holds us to.

Run by a Python that has trackeval (it pins other versions than we do, so in an environment of its own), once:

    python -m venv oracle && oracle/bin/pip install trackeval==1.3.0
    oracle/bin/python tests/tasks/tracking/mot/record_trackeval.py ../shared/data/mot

Inputs are made by tests/fakes/mot.py from seeds and, for "MOT15", "MOT17", "MOT20" and "TUD", read from the data
folder.

The file has `values` float64 [rows, fields], `rows` (set, class, sequence or COMBINED) and `fields` (metric, field,
threshold); infinity stands where TrackEval itself raises. Track mAP, which TrackEval gives for TAO's format alone,
comes from its TrackMAP class on the boxes that its own preprocessing leaves, tracks in TAO's order.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from fakes.mot import (
    BENCHMARKS,
    KITTI_CASES,
    disturbed,
    kitti_case,
    random_cases,
    write_cases,
    write_ground_truth,
    write_kitti_cases,
)
from trackeval.datasets import Kitti2DBox, MotChallenge2DBox
from trackeval.metrics import CLEAR, HOTA, VACE, Count, Identity
from trackeval.metrics.track_map import TrackMAP

TARGET = Path(__file__).with_name("trackeval_1_3_0.npz")
REAL_SEED = 5


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    rows, values, fields = [], [], None
    for name, results in _sets(data):
        for (class_name, sequence), summary in results.items():
            cells = list(_cells(summary))
            names = [key for key, _ in cells]
            fields = names if fields is None else fields
            assert names == fields
            rows.append((name, class_name, sequence))
            values.append([value for _, value in cells])
    np.savez_compressed(TARGET, values=np.array(values), rows=np.array(rows), fields=np.array(fields))
    print(f"{len(rows)} rows of {len(fields)} fields: {TARGET} ({TARGET.stat().st_size} bytes)")


def _sets(data: Path | None):
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in BENCHMARKS:
            root = Path(folder, benchmark)
            cases = [case for case in random_cases() if case.benchmark == benchmark]
            write_cases(root, cases)
            yield f"random {benchmark}", _evaluate(_mot(root, benchmark, {case.name: case.length for case in cases}))
        cases = [kitti_case(number) for number in range(KITTI_CASES)]
        write_kitti_cases(Path(folder, "KITTI"), cases)
        yield "random KITTI", _evaluate(_kitti(Path(folder, "KITTI")))
        if data is None:
            return
        for benchmark in BENCHMARKS:
            root = Path(folder, f"real {benchmark}")
            lengths = {}
            for sequence in sorted((data / "motchallenge_gt" / f"{benchmark}-train").iterdir()):
                truth = sequence / "gt" / "gt.txt"
                info = dict(row.split("=") for row in (sequence / "seqinfo.ini").read_text().split() if "=" in row)
                lengths[sequence.name] = int(info["seqLength"])
                write_ground_truth(root / "gt", sequence.name, truth.read_text(), lengths[sequence.name])
                _results(root, sequence.name, disturbed(truth, REAL_SEED))
            yield benchmark, _evaluate(_mot(root, benchmark, lengths))
        root, lengths = Path(folder, "TUD"), {"TUD-Campus": 71, "TUD-Stadtmitte": 179}
        for name, length in lengths.items():
            truth = (data / "motmetrics_tud" / name / "gt.txt").read_text()
            write_ground_truth(root / "gt", name, truth, length)
            _results(root, name, (data / "motmetrics_tud" / name / "test.txt").read_text())
        yield "TUD", _evaluate(_mot(root, "MOT15", lengths))


def _results(root: Path, name: str, text: str) -> None:
    folder = root / "results" / "tracker" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text)


def _mot(root: Path, benchmark: str, lengths: dict[str, int]) -> MotChallenge2DBox:
    return MotChallenge2DBox(
        {
            "GT_FOLDER": str(root / "gt"),
            "TRACKERS_FOLDER": str(root / "results"),
            "BENCHMARK": benchmark,
            "SEQ_INFO": lengths,
            "SKIP_SPLIT_FOL": True,
            "PRINT_CONFIG": False,
        }
    )


def _kitti(root: Path) -> Kitti2DBox:
    return Kitti2DBox(
        {
            "GT_FOLDER": str(root / "gt"),
            "TRACKERS_FOLDER": str(root / "results"),
            "SPLIT_TO_EVAL": "training",
            "PRINT_CONFIG": False,
        }
    )


def _evaluate(dataset) -> dict[tuple[str, str], dict[str, dict]]:
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = {metric.get_name(): metric for metric in (HOTA(), CLEAR(), Identity(), VACE(), TrackMAP(), Count())}
    results: dict[tuple[str, str], dict[str, dict]] = {}
    for class_name in dataset.class_list:
        by_metric: dict[str, dict[str, dict]] = {name: {} for name in metrics}
        raised: list[str] = []
        for sequence in sorted(dataset.seq_list):
            raw = dataset.get_raw_seq_data("tracker", sequence)
            ready = dataset.get_preprocessed_seq_data(raw, class_name)
            ready |= _tracks(ready, "x0y0x1y1" if isinstance(dataset, Kitti2DBox) else "xywh")
            for name, metric in metrics.items():
                try:
                    by_metric[name][sequence] = metric.eval_sequence(ready)
                except ZeroDivisionError:  # VACE of a sequence without any box
                    assert name == "VACE" and not ready["num_gt_dets"] and not ready["num_tracker_dets"]
                    by_metric[name][sequence] = dict.fromkeys(metric.fields, 0)
                    raised.append(sequence)
            results[class_name, sequence] = {
                name: metric.combine_sequences({sequence: by_metric[name][sequence]})
                if name == "TrackMAP"
                else by_metric[name][sequence]
                for name, metric in metrics.items()
            }
            if sequence in raised:
                results[class_name, sequence]["VACE"] = dict.fromkeys(metrics["VACE"].fields, np.inf)
        results[class_name, "COMBINED"] = {
            name: metric.combine_sequences(by_metric[name]) for name, metric in metrics.items()
        }
    return results


def _tracks(ready: dict, box_format: str) -> dict:
    """What TrackMAP wants: tracks as {frame: box}, those of the tracker by falling mean confidence."""
    data: dict = {"iou_type": "bbox", "boxformat": box_format}
    for side, prefix in (("gt", "gt"), ("tracker", "dt")):
        tracks: list[dict[int, np.ndarray]] = [{} for _ in range(ready[f"num_{side}_ids"])]
        scores: list[list[float]] = [[] for _ in tracks]
        for frame, (ids, boxes) in enumerate(zip(ready[f"{side}_ids"], ready[f"{side}_dets"], strict=True)):
            for position, track in enumerate(ids):
                tracks[track][frame] = boxes[position]
                if side == "tracker":
                    scores[track].append(float(ready["tracker_confidences"][frame][position]))
        mean = [float(np.mean(each)) if each else 0.0 for each in scores]
        order = np.argsort([-score for score in mean], kind="mergesort") if side == "tracker" else range(len(tracks))
        data[f"{prefix}_tracks"] = [tracks[index] for index in order]
        data[f"{prefix}_track_ids"] = [index + 1 for index in order]  # 0 would count as free after its match
        data[f"{prefix}_track_lengths"] = [len(tracks[index]) for index in order]
        data[f"{prefix}_track_areas"] = [
            float(np.mean([_area(box, box_format) for box in tracks[index].values()])) for index in order
        ]
        if side == "tracker":
            data["dt_track_scores"] = np.array([mean[index] for index in order])
    return data


def _area(box: np.ndarray, box_format: str) -> float:
    return float(box[2] * box[3]) if box_format == "xywh" else float((box[2] - box[0]) * (box[3] - box[1]))


def _cells(summary: dict[str, dict]):
    for metric, fields in summary.items():
        for field in sorted(
            key for key in fields if isinstance(key, str) and key not in ("precision", "recall", "Frames")
        ):
            for position, value in enumerate(np.atleast_1d(np.asarray(fields[field], dtype=float))):
                yield f"{metric} {field} {position}", float(value)


if __name__ == "__main__":
    main()
