"""Training samples: each follows from its number, shows the target, and knows where it is."""

import numpy as np
import pytest
import torch
from fakes.moving_targets import write_otb

from statefield.datasets.tracking.object_videos import find_object_videos
from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.single_object.crops import crop_around
from statefield.tasks.tracking.single_object.examples import Part, SearchSamples, jittered
from statefield.tasks.tracking.single_object.recipe import SotDataConfig, SotModelConfig

MODEL = SotModelConfig(template_size=32, search_size=64, patch_size=16)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = write_otb(tmp_path_factory.mktemp("otb"), {"a": 1, "b": 2}, 6)
    return [Part(video, 0, 6) for video in find_object_videos(root)]


def samples(parts, seed=0, **data):
    return SearchSamples(parts, SotDataConfig(**({"templates": 2} | data)), MODEL, seed=seed)


def test_a_sample_follows_from_seed_and_number(parts):
    one, again, other = samples(parts)[7], samples(parts)[7], samples(parts, seed=1)[7]
    assert one.keys() == again.keys()
    assert all(torch.equal(one[key], again[key]) for key in ("static", "templates", "search", "box"))
    assert not torch.equal(one["search"], other["search"])
    assert one["templates"].shape == (2, 3, 32, 32) and one["search"].shape == (3, 64, 64)


def test_the_box_is_where_the_target_is():
    """A white square on black: inside the box the search region is white, around it black, mirrored or not."""

    class Square:
        path, num_held_bytes = None, 0

        def __getitem__(self, number):
            frame = np.zeros((80, 100, 3), np.uint8)
            frame[30:50, 40:56] = 255
            return frame

        def name_of(self, number):
            return f"frame {number}"

    class Video:
        case, place, split, sample = "square", "", "", ""
        boxes = np.tile([40.0, 30.0, 16.0, 20.0], (3, 1))
        visible = np.ones(3, bool)

        def open(self):
            return Square()

    made = samples([Part(Video(), 0, 3)], grey=0.0, brightness=0.0)
    for number in range(12):
        item = made[number]
        white = (item["search"][0] > 0).numpy()
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        centre_x, centre_y, width, height = (item["box"] * 64).tolist()
        assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(centre_x, abs=1.2)
        assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(centre_y, abs=1.2)
        assert len(columns) == pytest.approx(width, abs=2) and len(rows) == pytest.approx(height, abs=2)


def test_jitter_moves_the_centre_by_half_of_it_at_most():
    rng, box = np.random.default_rng(0), np.array([10.0, 20.0, 8.0, 18.0])
    moved = np.array([jittered(box, rng, shift=3.0, scale=0.0) for _ in range(500)])
    offsets = moved[:, :2] - box[:2]
    assert (moved[:, 2:] == box[2:]).all()
    assert 17 < np.abs(offsets).max() <= 18  # half of 3 times the root of 8 * 18
    scaled = np.array([jittered(box, rng, shift=0.0, scale=0.25) for _ in range(4000)])
    assert np.log(scaled[:, 2:] / box[2:]).std() == pytest.approx(0.25, rel=0.05)
    assert crop_around(jittered(box, rng, shift=0.0, scale=0.0), 2.0) == crop_around(box, 2.0)


def test_templates_come_from_near_frames_where_that_is_asked_for(parts):
    class Counted:
        def __init__(self, frames):
            self.frames, self.seen = frames, []

        def __getitem__(self, number):
            self.seen.append(number)
            return self.frames[number]

        def name_of(self, number):
            return ""

    made = samples(parts[:1], max_gap=1)
    counted = Counted(parts[0].video.open())
    made.opened.of = lambda video: counted
    for number in range(20):
        counted.seen = []
        made[number]
        assert max(counted.seen) - min(counted.seen) <= 2


def test_frames_without_a_target_are_never_drawn(tmp_path):
    write_otb(tmp_path, {"a": 1}, 4)
    truth = tmp_path / "a/groundtruth_rect.txt"
    rows = truth.read_text().splitlines()
    truth.write_text("\n".join([rows[0], "0,0,0,0", "NaN,NaN,NaN,NaN", rows[3]]))
    (video,) = find_object_videos(tmp_path)
    made = samples([Part(video, 0, 4)])
    assert len(made) == 2
    assert {made[number]["origin"][-8:] for number in range(12)} == {"0001.png", "0004.png"}
    truth.write_text("\n".join(["0,0,0,0"] * 4))
    with pytest.raises(DataError, match="no frame with a target"):
        samples([Part(find_object_videos(tmp_path)[0], 0, 4)])


@pytest.mark.parametrize("wrong", [{"templates": 0}, {"mirror": 1.5}, {"search_shift": -1.0}, {"val_frames": 1}])
def test_settings_that_cannot_work_are_refused(parts, wrong):
    with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}"):
        samples(parts, **wrong)
