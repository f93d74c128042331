"""Windows of true tracks: which there are, what their steps are, and that they follow from (seed, number)."""

import numpy as np
import pytest
import torch

from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.motion import MOTION_MODELS
from statefield.tasks.tracking.motion.accuracy import NextBox, next_box, paired_overlap
from statefield.tasks.tracking.motion.learned import LearnedMotion
from statefield.tasks.tracking.motion.model import centred, corners
from statefield.tasks.tracking.motion.steps import steps_of, unit_of
from statefield.tasks.tracking.motion.windows import MotionWindows, read_tracks
from statefield.tasks.tracking.nets import MotionPredictor

SEQINFO = "[Sequence]\nname={}\nseqLength=30\nimWidth=640\nimHeight=480\n"


def write_sequence(root, name, tracks, frames=12):
    """A sequence in MOTChallenge's layout: id -> (left, step, frames it is there)."""
    folder = root / name
    (folder / "gt").mkdir(parents=True)
    (folder / "seqinfo.ini").write_text(SEQINFO.format(name))
    rows = [
        f"{frame},{number},{left + step * frame},50,20,40,1,1,1"
        for number, (left, step, there) in tracks.items()
        for frame in (there or range(1, frames + 1))
    ]
    (folder / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")


def one_sequence(root, **tracks):
    write_sequence(root, "MOT17-02-FRCNN", tracks)
    (found,) = read_tracks(root)
    return found


def test_a_window_needs_two_frames_before_and_one_after(tmp_path):
    """Track 1 is there in frames 1 to 4 and 6 to 7: only from 2 and 3 is there a step before and a box after."""
    found = one_sequence(tmp_path, **{"1": (10, 2, [1, 2, 3, 4, 6, 7])})
    assert found.since.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.present.tolist() == [1, 2]
    assert found.image_size == (640, 480)
    boxes, lengths = found.window(found.present, 3)
    assert lengths.tolist() == [1, 2]
    assert boxes[0, :, 0].tolist() == [22, 22, 22, 24]  # centres: left + 10; the first again before it


def test_what_is_not_evaluated_is_not_learned(tmp_path):
    write_sequence(tmp_path, "MOT17-02-FRCNN", {"1": (10, 2, None)})
    path = tmp_path / "MOT17-02-FRCNN" / "gt" / "gt.txt"
    path.write_text(path.read_text() + "1,8,5,5,10,10,0,1,1\n1,9,5,5,10,10,1,3,1\n")
    (found,) = read_tracks(tmp_path)
    assert set(found.ids) == {1}


def test_steps_in_both_units_by_hand():
    """A box of 20 x 40 that moved by 2 and -4 and grew by 1 and 2, in an image of 100 x 200."""
    last = np.array([[50.0, 60, 20, 40]])
    history = np.stack((last - [2, -4, 1, 2], last), axis=1)
    for unit, expected in (("box", [0.1, -0.1, 0.05, 0.05]), ("image", [0.02, -0.02, 0.01, 0.01])):
        steps = steps_of(history, np.array([1]), unit_of(unit, last, (100, 200)))
        assert np.allclose(steps, [[expected]])
    assert np.array_equal(steps_of(history, np.array([0]), unit_of("box", last, None)), np.zeros((1, 1, 4)))
    with pytest.raises(ConfigError, match="--image-size"):
        unit_of("image", last, None)


def windows(tracks, **options):
    settings = {"history": 4, "unit": "box", "jitter": 0.0, "shorten": 0.0, "mirror": False, "seed": 0}
    return MotionWindows([tracks], **(settings | options))


def test_a_pass_visits_every_window_once_and_windows_follow_from_their_number(tmp_path):
    tracks = one_sequence(tmp_path, **{"1": (10, 2, None), "2": (300, -3, None)})
    data = windows(tracks, jitter=0.1, shorten=0.5, mirror=True)
    assert len(data) == 20
    assert len({data[number]["origin"] for number in range(20)}) == 20
    again = windows(tracks, jitter=0.1, shorten=0.5, mirror=True)
    for number in (37, 3, 21):  # in another order, in another process
        one, other = data[number], again[number]
        assert one["origin"] == other["origin"]
        assert torch.equal(one["steps"], other["steps"])
        assert torch.equal(one["target"], other["target"])


def test_targets_are_the_next_steps(tmp_path):
    tracks = one_sequence(tmp_path, **{"1": (10, 2, None)})
    for number in range(10):
        item = windows(tracks)[number]
        assert item["target"].tolist() == pytest.approx([0.1, 0, 0, 0])
        assert item["steps"][-1].tolist() == pytest.approx([0.1, 0, 0, 0])
        assert (item["steps"][: 4 - item["length"]] == 0).all()
    mirrored = [windows(tracks, mirror=True)[number]["target"][0].item() for number in range(20)]
    assert {round(one, 6) for one in mirrored} == {0.1, -0.1}


def test_noise_moves_the_history_and_the_target_still_leads_to_the_next_box(tmp_path):
    tracks = one_sequence(tmp_path, **{"1": (10, 2, None)})
    clean, noisy = windows(tracks)[0], windows(tracks, jitter=0.2)[0]
    assert not torch.equal(clean["steps"], noisy["steps"])
    assert clean["origin"] == noisy["origin"]


def test_a_ground_truth_without_motion_is_refused(tmp_path):
    with pytest.raises(DataError, match="three frames in a row"):
        windows(one_sequence(tmp_path, **{"1": (10, 2, [1, 2, 4])}))


def test_the_next_box_of_a_still_model_by_hand(tmp_path):
    """Boxes 20 wide that move by 5: 15 x 40 shared of 25 x 40, IoU 0.6; counted from the third box on."""
    tracks = one_sequence(tmp_path, **{"1": (10, 5, [1, 2, 3, 4, 6, 7, 8])})
    state = next_box(tracks, MOTION_MODELS["still"])
    assert state.summarise() == pytest.approx({"IoU": 0.6, "IoU_moved": 0.6, "boxes": 3, "boxes_moved": 3})
    assert next_box(tracks, MOTION_MODELS["constant_velocity"]).summarise()["IoU"] == pytest.approx(1)
    assert np.isnan(NextBox().summarise()["IoU"])
    assert (state + state).count == 6


def test_paired_overlap_is_of_boxes_side_by_side():
    one = np.array([[0.0, 0, 10, 10], [0, 0, 0, 0]])
    assert paired_overlap(one, one + 5).tolist() == pytest.approx([25 / 175, 0])


def test_a_track_unseen_is_patched_by_its_predictions():
    """The history holds predictions where nothing was seen, and the detection in place of the last one."""
    torch.manual_seed(0)
    net = MotionPredictor(3, dim=8, num_layers=1, d_state=4)
    model = LearnedMotion(net)
    box = np.array([[10.0, 10, 30, 50]])
    model.start(box)
    assert np.array_equal(model.predict(np.zeros(1, bool)), box)  # no step is known
    model.update(np.array([0]), box + 2)
    expected = [model.predict(np.ones(1, bool))[0] for _ in range(2)]
    assert np.allclose(corners(model.history[0, -2:]), expected)
    assert not np.allclose(expected[0], expected[1])
    model.update(np.array([0]), box + 9)
    assert np.allclose(corners(model.history[0, -1]), box + 9)
    assert model.lengths.tolist() == [3]


def test_a_net_predicts_what_its_steps_say():
    torch.manual_seed(0)
    net = MotionPredictor(3, dim=8, num_layers=1, d_state=4).eval()
    model, before = LearnedMotion(net), np.array([[10.0, 10, 30, 50]])
    now = before + np.array([2.0, 1, 2, 1])
    model.start(before)
    model.predict(np.zeros(1, bool))
    model.update(np.array([0]), now)
    steps = torch.zeros(1, 3, 4)
    steps[0, -1] = torch.tensor([2 / 20, 1 / 40, 0, 0])
    with torch.no_grad():
        step = net(steps, torch.tensor([1]))[0].double().numpy()
    assert np.allclose(
        centred(model.predict(np.zeros(1, bool)))[0], centred(now)[0] + step * [20, 40, 20, 40], atol=1e-4
    )
