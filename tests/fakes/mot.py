"""Made-up multi-object tracks: random cases of every awkward kind, and real ground truth disturbed as a tracker would.

NumPy alone is imported, since the recording of expectations (tests/tasks/tracking/record_trackeval.py) runs where the
package is not installed. Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS = ("crowd", "lattice", "identical", "empty frames", "no tracks", "no ground truth", "dense", "switches")
NUM_CASES = 200
BENCHMARKS = ("MOT17", "MOT20", "MOT15")


@dataclass(frozen=True)
class MotCase:
    """One sequence as text."""

    name: str
    benchmark: str
    length: int
    ground_truth: str
    results: str


def random_cases() -> list[MotCase]:
    """200 cases; case k has benchmark k mod 3 and kind k mod 8."""
    return [random_case(number) for number in range(NUM_CASES)]


def random_case(number: int) -> MotCase:
    rng = np.random.default_rng([7, number])
    kind = KINDS[number % len(KINDS)]
    length = int(rng.integers(1, 30)) if kind != "dense" else int(rng.integers(1, 6))
    num_objects = int(rng.integers(1, 12)) if kind != "dense" else int(rng.integers(20, 150))
    arena = 120 if kind != "dense" else 400
    truth: list[list[float]] = []
    found: list[list[float]] = []
    start = rng.uniform(0, arena, (num_objects, 2))
    speed = rng.normal(0, 4, (num_objects, 2))
    size = rng.uniform(12, 45, (num_objects, 2))
    if kind == "lattice":
        start, speed, size = np.round(start / 10) * 10, np.round(speed / 5) * 5, np.full_like(size, 20.0)
    if kind == "identical":  # eighths: their sums are exact, and no intersection is above its union
        start, speed, size = (np.round(8 * values) / 8 for values in (start, speed, size))
    classes = rng.choice([1, 1, 1, 1, 2, 3, 6, 7, 8, 12, 13], num_objects)
    empty = rng.random(length) < (0.5 if kind == "empty frames" else 0.05)
    for index in range(num_objects):
        track = index + 1
        for frame in range(1, length + 1):
            place = start[index] + speed[index] * frame
            if rng.random() < 0.1 or (empty[frame - 1] and rng.random() < 0.8):
                continue
            mark = float(rng.random() > 0.1)
            truth.append([frame, 3 * index + 1, *place, *size[index], mark, classes[index], round(rng.random(), 3)])
            if rng.random() < (0.2 if kind == "switches" else 0.04):
                track = int(rng.integers(1, 3 * num_objects + 2))
            if rng.random() < 0.15:
                continue
            noise = rng.normal(0, 3, 4)
            if kind == "lattice":
                noise = np.round(noise / 5) * 5 * (rng.random() < 0.5)
            box = np.concatenate([place, np.maximum(size[index], 1)]) + noise * (kind != "identical")
            box[2:] = np.maximum(box[2:], 0)
            found.append([frame, track, *box, rng.random()])
            if kind == "identical":
                found += [[frame, 1000 + 10 * index + copy, *box, 0.5] for copy in range(int(rng.integers(0, 3)))]
            elif rng.random() < 0.1:
                clutter = np.concatenate([place + rng.normal(0, 12, 2), size[index]])
                found.append([frame, 5000 + int(rng.integers(0, 40)), *clutter, rng.random()])
    truth = [] if kind == "no ground truth" else truth
    found = [] if kind == "no tracks" else found
    found = list({(row[0], row[1]): row for row in found}.values())  # an id once in a frame
    benchmark = BENCHMARKS[number % len(BENCHMARKS)]
    if number % 2:
        rng.shuffle(found)  # files need not be sorted
    digits = 0 if kind == "lattice" else 3
    return MotCase(
        f"case-{number:03d}",
        benchmark,
        length,
        "".join(_row(row, digits) for row in truth),
        "".join(_row([*row, -1, -1, -1], digits) for row in found),
    )


def _row(row: list[float], digits: int) -> str:
    cells = [f"{value:.0f}" for value in row[:2]] + [f"{value:.{digits}f}" for value in row[2:6]]
    return ",".join(cells + [f"{value:.3g}" for value in row[6:]]) + "\n"


def write_cases(root: Path, cases: list[MotCase]) -> None:
    """ROOT/gt/NAME/gt/gt.txt with seqinfo.ini, ROOT/results/tracker/data/NAME.txt."""
    for case in cases:
        write_ground_truth(root / "gt", case.name, case.ground_truth, case.length)
        results = root / "results" / "tracker" / "data" / f"{case.name}.txt"
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(case.results, encoding="utf-8")


def write_ground_truth(root: Path, name: str, text: str, length: int | None) -> Path:
    folder = root / name
    (folder / "gt").mkdir(parents=True, exist_ok=True)
    (folder / "gt" / "gt.txt").write_text(text, encoding="utf-8")
    if length is not None:
        (folder / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nseqLength={length}\nframeRate=25\n")
    return folder


def disturbed(ground_truth: Path, seed: int) -> str:
    """Results that a tracker could have for a real ground truth: moved, missing, switched and invented boxes.

    All pedestrians take part and a third of everything else, so that distractors matter.
    """
    rows = np.array([line.split(",")[:8] for line in ground_truth.read_text().splitlines() if line], dtype=float)
    rng = np.random.default_rng(seed)
    takes_part = (rows[:, 7] == 1) | (rows[:, 7] < 0) | (rng.random(len(rows)) < 0.3)
    rows = rows[takes_part & (rng.random(len(rows)) > 0.12)]
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    rows = rows[order]
    box = rows[:, 2:6] + rng.normal(0, 0.06, (len(rows), 4)) * rows[:, [4, 5, 4, 5]]
    box[:, 2:] = np.maximum(box[:, 2:], 1)
    part = np.floor(rows[:, 0] / rng.integers(40, 200))  # ids change every so many frames for some tracks
    ids = rows[:, 1] + 10_000 * np.where(rows[:, 1] % 4 == 0, part, 0)
    swapped = np.flatnonzero(rng.random(len(rows) - 1) < 0.02)
    swapped = swapped[(rows[swapped, 0] == rows[swapped + 1, 0]) & (np.diff(swapped, prepend=-2) > 1)]
    ids[swapped], ids[swapped + 1] = ids[swapped + 1], ids[swapped].copy()
    lines = [
        f"{frame:.0f},{track:.0f},{x:.2f},{y:.2f},{w:.2f},{h:.2f},{score:.3f},-1,-1,-1"
        for frame, track, (x, y, w, h), score in zip(
            rows[:, 0].tolist(), ids.tolist(), box.tolist(), rng.random(len(rows)).tolist(), strict=True
        )
    ]
    invented = np.sort(rng.choice(len(rows), len(rows) // 20, replace=False))
    frame = rows[invented, 0]
    place = np.arange(len(invented)) - np.searchsorted(frame, frame)  # within its frame
    for row, track in zip(invented.tolist(), (900_000 + 100 * np.floor(frame / 30) + place).tolist(), strict=True):
        x, y, w, h = box[row] + np.array([1.5, 0.3, 0.1, 0.1]) * box[row, [2, 3, 2, 3]] * rng.normal()
        lines.append(f"{rows[row, 0]:.0f},{track:.0f},{x:.2f},{y:.2f},{max(w, 1):.2f},{max(h, 1):.2f},0.3,-1,-1,-1")
    return "\n".join(lines) + "\n"


KITTI_CASES = 24


def kitti_case(number: int) -> MotCase:
    """A sequence of KITTI with every type, DontCare regions, truncated and occluded objects, and ids below 0."""
    rng = np.random.default_rng([11, number])
    length = int(rng.integers(1, 20))
    types = ["Car", "Car", "Car", "Van", "Truck", "Pedestrian", "Pedestrian", "Person", "Cyclist", "Tram", "Misc"]
    truth, found = [], []
    for index in range(int(rng.integers(1, 14))):
        name = types[int(rng.integers(len(types)))]
        place, speed, size = rng.uniform(0, 200, 2), rng.normal(0, 4, 2), rng.uniform(15, 70, 2)
        for frame in range(length):
            if rng.random() < 0.1:
                continue
            low = place + speed * frame
            truncated, occluded = int(rng.random() < 0.1), int(rng.choice([0, 0, 0, 1, 2, 3]))
            truth.append(_kitti_row(frame, index, name, truncated, occluded, low, low + size))
            if rng.random() < 0.85:
                move = rng.normal(0, 3, 4)
                seen = name if rng.random() < 0.9 else "Car"
                row = _kitti_row(frame, 100 + index, seen, -1, -1, low + move[:2], low + size + np.abs(move[2:]))
                found.append(f"{row} {rng.random():.4f}")
    for frame in range(length):
        for which in range(int(rng.integers(0, 3))):
            low = rng.uniform(0, 180, 2)
            truth.append(_kitti_row(frame, -1, "DontCare", -1, -1, low, low + rng.uniform(30, 90, 2)))
            low = low + rng.normal(0, 10, 2)
            row = _kitti_row(
                frame,
                500 + frame * 10 + which,
                "Pedestrian" if which else "Car",
                -1,
                -1,
                low,
                low + rng.uniform(10, 50, 2),
            )
            found.append(f"{row} 0.5")
    truth.sort(key=lambda row: int(row.split()[0]))
    return MotCase(f"{number:04d}", "KITTI", length, "\n".join(truth) + "\n", "\n".join(found) + "\n")


def _kitti_row(
    frame: int, track: int, name: str, truncated: int, occluded: int, low: np.ndarray, high: np.ndarray
) -> str:
    box = f"{low[0]:.3f} {low[1]:.3f} {high[0]:.3f} {high[1]:.3f}"
    return f"{frame} {track} {name} {truncated} {occluded} -10 {box} -1 -1 -1 -1000 -1000 -1000 -10"


def write_kitti_cases(root: Path, cases: list[MotCase]) -> None:
    """ROOT/gt/label_02/NAME.txt with a seqmap, ROOT/results/tracker/data/NAME.txt."""
    labels, results = root / "gt" / "label_02", root / "results" / "tracker" / "data"
    labels.mkdir(parents=True)
    results.mkdir(parents=True)
    for case in cases:
        (labels / f"{case.name}.txt").write_text(case.ground_truth)
        (results / f"{case.name}.txt").write_text(case.results)
    rows = [f"{case.name} empty 000000 {case.length:06d}" for case in cases]
    (root / "gt" / "evaluate_tracking.seqmap.training").write_text("\n".join(rows) + "\n")
