"""VOT's measures on regions: pixels, resets, anchors."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets.tracking.regions import (
    Mask,
    Polygon,
    Rectangle,
    Special,
    bounding_box,
    read_regions,
    region_of,
)
from statefield.datasets.tracking.vot import VotSequence, find_vot_sequences, find_vot_trackers, is_vot
from statefield.errors import DataError, DatasetLayoutError
from statefield.tasks.tracking.sot.region_overlap import region_overlaps
from statefield.tasks.tracking.sot.vot import anchor_eao_curve, anchor_run, eao, eao_curve, reset_run

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[4] / "../shared/data"))


def _drawn(region, size):
    """The definition, pixel by pixel: [H, W] bool of an image of `size` (width, height)."""
    canvas = np.zeros((size[1], size[0]), dtype=bool)
    if isinstance(region, Rectangle):
        x, y, w, h = (int(v) for v in np.round(region.box.astype(np.float32)))
        canvas[max(0, y) : max(0, y + h), max(0, x) : max(0, x + w)] = True
    elif isinstance(region, Mask):
        for (row, column), value in np.ndenumerate(region.pixels):
            if value and 0 <= region.top + row < size[1] and 0 <= region.left + column < size[0]:
                canvas[region.top + row, region.left + column] = True
    elif isinstance(region, Polygon):
        corners = np.round(region.corners.astype(np.float32)).tolist()
        for row in range(size[1]):
            nodes = []
            for (x, y), (x0, y0) in zip(corners, [corners[-1], *corners[:-1]], strict=True):
                if min(y, y0) <= row <= max(y, y0):
                    nodes.append(int(x if y == y0 else x + (row - y) / (y0 - y) * (x0 - x)))
            nodes.sort()
            at = 0
            while at < len(nodes) - 1 and nodes[at] < size[0]:
                if nodes[at] == nodes[at + 1] and at < len(nodes) - 2:
                    at += 1
                    continue
                canvas[row, max(0, nodes[at]) : max(0, nodes[at + 1] + 1)] = True
                at += 2
    return canvas


def _random_region(generator, kind):
    if kind == "rectangle":
        return Rectangle(np.concatenate([generator.uniform(-8, 30, 2), generator.uniform(2, 25, 2)]))
    if kind == "mask":
        return Mask(generator.random((7, 9)) < 0.5, int(generator.integers(-4, 30)), int(generator.integers(-4, 20)))
    if kind == "rotated":
        centre, size, angle = generator.uniform(5, 30, 2), generator.uniform(3, 18, 2), generator.uniform(0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        steps = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        return Polygon(np.stack([centre + i * size[0] / 2 * along + j * size[1] / 2 * across for i, j in steps]))
    return Polygon(generator.uniform(-5, 40, (int(kind), 2)))  # crosses itself more often than not


@pytest.mark.parametrize("first", ["rectangle", "rotated", "5", "mask"])
@pytest.mark.parametrize("second", ["rectangle", "rotated", "7", "mask"])
def test_overlap_equals_the_count_of_drawn_pixels(first, second):
    generator = np.random.default_rng(hash_of(first + second))
    size = (40, 32)
    pairs = [(_random_region(generator, first), _random_region(generator, second)) for _ in range(25)]
    ours = region_overlaps([a for a, _ in pairs], [b for _, b in pairs], size)
    for (a, b), overlap in zip(pairs, ours, strict=True):
        drawn = _drawn(a, size), _drawn(b, size)
        union = (drawn[0] | drawn[1]).sum()
        assert overlap == ((drawn[0] & drawn[1]).sum() / union if union else 0.0)


def hash_of(text):
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**32


def test_overlap_by_hand():
    square = Rectangle(np.array([10.0, 10, 10, 10]))
    shifted = Rectangle(np.array([15.0, 10, 10, 10]))
    # corners of a polygon belong to it: 11 x 11 pixels against 10 x 10, all of which are shared
    corners = Polygon(np.array([[10.0, 10], [20, 10], [20, 20], [10, 20]]))
    pairs = [(square, shifted), (square, corners), (square, Special(0)), (Special(0), Special(0))]
    ours = region_overlaps([a for a, _ in pairs], [b for _, b in pairs])
    assert ours.tolist() == [50 / 150, 100 / 121, 0.0, 1.0]
    # the image ends at column 17: 8 of the first's columns, 3 of the second's, all shared
    assert region_overlaps([square], [shifted], (18, 100)).tolist() == [3 / 8]
    assert region_overlaps([], []).tolist() == []


def test_many_frames_are_worked_on_in_portions(monkeypatch):
    generator = np.random.default_rng(3)
    first = [_random_region(generator, "rotated") for _ in range(40)]
    second = [_random_region(generator, "rotated") for _ in range(40)]
    at_once = region_overlaps(first, second)
    monkeypatch.setattr("statefield.tasks.tracking.sot.region_overlap._MOST_ROWS", 50)
    assert region_overlaps(first, second).tolist() == at_once.tolist()
    assert at_once.max() > 0.1


def test_region_files_are_read(tmp_path):
    path = tmp_path / "a_001.txt"
    path.write_text("1\n10,20,30,40\n1,2,3,4,5,6\nm5,6,3,2,1,2,2,1\nnan,nan,nan,nan\n2\n")
    start, box, triangle, mask, unknown, failed = read_regions(path)
    assert (start, unknown, failed) == (Special(1), Special(0), Special(2))
    assert box.box.tolist() == [10, 20, 30, 40]
    assert triangle.corners.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert (mask.left, mask.top, mask.pixels.astype(int).tolist()) == (5, 6, [[0, 1, 1], [0, 0, 1]])
    assert bounding_box(mask).tolist() == [6, 6, 2, 2]
    assert bounding_box(triangle).tolist() == [1, 2, 4, 4]


def test_binary_trajectories_are_read(tmp_path):
    path = tmp_path / "a_001.bin"
    data = struct.pack("<hI", 1, 4) + struct.pack("<BI", 0, 1) + struct.pack("<Bffff", 1, 1, 2, 3, 4)
    data += struct.pack("<BH6f", 2, 3, 1, 2, 3, 4, 5, 6) + struct.pack("<BhhHHH4H", 3, 5, 6, 3, 2, 4, 1, 2, 2, 1)
    path.write_bytes(data)
    start, box, triangle, mask = read_regions(path)
    assert start == Special(1)
    assert box.box.tolist() == [1, 2, 3, 4]
    assert triangle.corners.shape == (3, 2)
    assert mask.pixels.sum() == 3
    path.write_bytes(data[:-3])
    with pytest.raises(DataError, match="cut off"):
        read_regions(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,3", "3 numbers"),
        ("3", "1 numbers"),
        ("a,b,c,d", "is no region"),
        ("1,2,-3,4", "negative size"),
        ("1,2,inf,4", "infinite"),
        ("m0,0,2,2,1,9", "cover 10"),
        ("m0,0,2", "a mask begins"),
        ("m0,0,999999,999999,1", "a mask begins"),
    ],
)
def test_bad_regions_are_named_by_file_and_line(tmp_path, line, said):
    path = tmp_path / "a.txt"
    path.write_text(f"1\n{line}\n")
    with pytest.raises(DataError, match=rf"a\.txt, line 2.*{said}"):
        read_regions(path)


def _sequence(count, tags=None, anchors=None):
    box = Rectangle(np.array([10.0, 10, 20, 20]))
    return VotSequence("a", [box] * count, Path("a"), (100, 100), tags or {}, anchors)


def _at(overlap):
    """A rectangle over the left part of the truth that shares this much of its 20 columns."""
    return Rectangle(np.array([10.0, 10, 20 * overlap, 20]))


def test_a_reset_run_by_hand():
    # frames: 0 start, 1-3 half, 4 failed, 5-6 unknown, 7 start, 8-11 full
    regions = [Special(1), *[_at(0.5)] * 3, Special(2), *[Special(0)] * 2, Special(1), *[_at(1.0)] * 4]
    run = reset_run(_sequence(12), regions, "x", burn_in=2)
    assert [(part.tolist(), failed) for part, failed in run.fragments] == [
        ([0, 0.5, 0.5, 0.5], True),
        ([0, 1, 1, 1, 1], False),
    ]
    # counted: frames 2, 3 (0.5 each) and 9, 10, 11 (1 each); the two frames from each start on are burn-in
    assert np.flatnonzero(run.counted).tolist() == [2, 3, 9, 10, 11]
    assert run.accuracy == (2 * 0.5 + 3) / 5
    assert run.failures.tolist() == [4]
    curve = eao_curve(run.fragments)
    # after 4 frames the failed run has 1.5 / 4, the other 1
    assert curve[1:].tolist() == [0.75, 0.75, 0.75, (1.5 / 4 + 1) / 2]
    assert eao(curve, (1, 3)) == 0.75
    assert np.isnan(eao(curve, (9, 12)))


def test_files_that_are_no_reset_runs_are_refused():
    with pytest.raises(DataError, match="3 regions for 4 frames"):
        reset_run(_sequence(4), [Special(1)] * 3, "x")
    with pytest.raises(DataError, match=r"x, line 1: the reset protocol's results begin with 1"):
        reset_run(_sequence(3), [_at(1.0)] * 3, "x")
    with pytest.raises(DataError, match=r"x, line 3: a failure"):
        reset_run(_sequence(3), [Special(1), Special(2), Special(2)], "x")


def test_a_run_from_an_anchor_fails_after_ten_frames_without_overlap():
    sequence = _sequence(30, anchors=np.array([1] + [0] * 28 + [-1]))
    assert sequence.anchor_runs() == [(0, False), (29, True)]
    held = [Special(1), *[_at(0.5)] * 29]
    assert anchor_run(sequence, 0, False, held, "x").progress == 30
    lost = [Special(1), *[_at(0.5)] * 9, *[_at(0.05)] * 20]
    run = anchor_run(sequence, 29, True, lost, "x")
    assert (run.progress, run.has_failed) == (10, True)
    assert run.overlaps.tolist() == [0] + [0.5] * 9 + [0] * 20
    briefly = [Special(1), *[_at(0.5)] * 9, *[_at(0.05)] * 9, *[_at(0.5)] * 11]
    assert not anchor_run(sequence, 0, False, briefly, "x").has_failed
    with pytest.raises(DataError, match="from the anchor 3 forward"):
        anchor_run(sequence, 3, False, held, "x")
    # a run of 30 that failed after 9 frames at 0.5: up to its end the mean over j frames, beyond it over j - 1
    curve = anchor_eao_curve([[run]], 40)
    assert curve[5] == 0.5
    assert curve[29] == pytest.approx(4.5 / 29)
    assert curve[30] == pytest.approx(4.5 / 29)
    assert curve[39] == pytest.approx(4.5 / 38)


def test_ground_truth_in_folders_and_in_json(tmp_path):
    folder = tmp_path / "vot/ants"
    folder.mkdir(parents=True)
    (tmp_path / "vot/list.txt").write_text("ants\n")
    (folder / "groundtruth.txt").write_text("1,1,9,1,9,9,1,9\n" * 3)
    (folder / "occlusion.tag").write_text("0\n1\n")
    (folder / "anchor.value").write_text("1\n0\n-1\n")
    (folder / "sequence").write_text("name=ants\nwidth=64\nheight=48\n")
    assert is_vot(tmp_path / "vot")
    (found,) = find_vot_sequences(tmp_path / "vot")
    assert (found.name, found.image_size, len(found.regions)) == ("ants", (64, 48), 3)
    assert found.tags["occlusion"].tolist() == [False, True, False]
    assert found.anchor_runs() == [(0, False), (2, True)]

    (tmp_path / "vot.json").write_text(
        json.dumps(
            {"ants": {"gt_rect": [[1, 1, 9, 1, 9, 9, 1, 9]] * 2, "width": 64, "height": 48, "occlusion": [0, 1]}}
        )
    )
    (found,) = find_vot_sequences(tmp_path / "vot.json")
    assert (found.image_size, found.tags["occlusion"].tolist()) == ((64, 48), [False, True])
    for broken, said in (("{", "no JSON"), ("[]", "no sequences"), ('{"a": {"gt_rect": [[1, "x"]]}}', "frame 1")):
        (tmp_path / "vot.json").write_text(broken)
        with pytest.raises(DataError, match=said):
            find_vot_sequences(tmp_path / "vot.json")

    run = tmp_path / "ours/baseline/ants"
    run.mkdir(parents=True)
    (run / "ants_00000000.txt").write_text("1\n")
    with pytest.raises(DatasetLayoutError, match="ants_00000002 of that anchor is missing"):
        find_vot_trackers([tmp_path / "ours"], find_vot_sequences(tmp_path / "vot"), anchored=True)
    (run / "ants_001.txt").write_text("1\n")
    (tracker,) = find_vot_trackers([tmp_path / "ours"], find_vot_sequences(tmp_path / "vot"), anchored=False)
    assert tracker.files == {"ants": (run / "ants_001.txt",)}


def test_region_of_four_numbers_is_a_rectangle_and_of_eight_a_polygon():
    assert isinstance(region_of([1, 2, 3, 4], "x"), Rectangle)
    assert isinstance(region_of([1, 2, 3, 4, 5, 6, 7, 8], "x"), Polygon)


@pytest.mark.shared_data
def test_the_reset_fixture_of_mmtracking():
    root = DATA / "sot/mmtracking_demo_sot/trackingnet/TRAIN_0"
    if not root.is_dir():
        pytest.skip(f"no SOT fixtures at {root} (STATEFIELD_DATA)")
    fragments, accuracy, failures, frames = [], 0.0, 0, 0
    for name in ("video-1", "video-2"):
        truth = read_regions(root / name / "vot2018_gt_for_eval.txt")
        # its predictions are corners x1, y1, x2, y2; its images are 512 x 256
        predicted = [
            Rectangle(region.box - np.array([0, 0, *region.box[:2]])) if isinstance(region, Rectangle) else region
            for region in read_regions(root / name / "vot2018_track_results.txt")
        ]
        run = reset_run(VotSequence(name, truth, root, (512, 256)), predicted, name)
        fragments += run.fragments
        accuracy += run.accuracy * len(truth)
        failures += len(run.failures)
        frames += len(truth)
    assert round(eao(eao_curve(fragments), (1, 3)), 4) == 0.6661
    assert round(accuracy / frames, 4) == 0.5826
    assert 100 * failures / frames == 6.0


@pytest.mark.shared_data
@pytest.mark.parametrize("year", ["vot2018", "vot2019"])
def test_the_truth_of_vot_overlaps_itself(year):
    path = DATA / f"sot/vot_gt/{year}/{year.upper()}.json"
    if not path.is_file():
        pytest.skip(f"no ground truth at {path} (STATEFIELD_DATA)")
    sequences = find_vot_sequences(path)
    assert len(sequences) == 60
    for sequence in sequences[:3]:
        assert (region_overlaps(sequence.regions, sequence.regions, sequence.image_size) == 1.0).all()
