"""Which files are a case, and where its prediction goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from statefield.errors import ConfigError, DataError
from statefield.tasks.medical.inputs import InputCase, find_cases, place_outputs


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def named(cases: list[InputCase]) -> dict[str, list[str]]:
    return {case.name: [file.name for file in case.files] for case in cases}


def test_a_folder_gives_its_images_sorted_and_nothing_else(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.nii", "c.JPG", "notes.txt", ".hidden.png", "dataset.json")
    touch(tmp_path / "sub", "d.png")
    assert named(find_cases([tmp_path], 1)) == {"a": ["a.nii"], "b": ["b.nii.gz"], "c": ["c.JPG"]}


def test_channel_files_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "p1_0001.nii.gz", "p1_0000.nii.gz", "p2_0000.nii.gz", "p2_0001.nii.gz")
    assert named(find_cases([tmp_path], 2)) == {
        "p1": ["p1_0000.nii.gz", "p1_0001.nii.gz"],
        "p2": ["p2_0000.nii.gz", "p2_0001.nii.gz"],
    }


def test_naming_the_first_channel_is_enough(tmp_path: Path) -> None:
    first, _ = touch(tmp_path, "p1_0000.nii.gz", "p1_0001.nii.gz")
    assert named(find_cases([first], 2)) == {"p1": ["p1_0000.nii.gz", "p1_0001.nii.gz"]}


def test_a_single_channel_loses_its_number_only_where_all_carry_it(tmp_path: Path) -> None:
    assert set(named(find_cases(touch(tmp_path / "a", "p1_0000.png", "p2_0000.png"), 1))) == {"p1", "p2"}
    frames = touch(tmp_path / "b", "frame_0000.png", "frame_0001.png")
    assert set(named(find_cases(frames, 1))) == {"frame_0000", "frame_0001"}


def test_numbered_colour_frames_are_cases_and_not_channels(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"frame_{index:04d}.png")
    assert set(named(find_cases([tmp_path], 3))) == {"frame_0000", "frame_0001", "frame_0002"}


def test_one_file_with_all_channels_is_a_case(tmp_path: Path) -> None:
    assert named(find_cases(touch(tmp_path, "p1_0000.nii.gz", "q.nii.gz"), 4)) == {
        "p1": ["p1_0000.nii.gz"],
        "q": ["q.nii.gz"],
    }


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("p_0000.nii.gz", "p_0002.nii.gz"), "p_0001.nii.gz missing"),
        (("p_0000.nii.gz", "p_0001.nii.gz", "p_0002.nii.gz", "p_0003.nii.gz"), "p_0003.nii.gz not expected"),
    ],
)
def test_incomplete_channels_are_named(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ConfigError, match=says):
        find_cases([tmp_path], 3)


def test_inputs_that_cannot_be_predicted_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        find_cases([tmp_path / "absent.png"], 1)
    with pytest.raises(DataError, match="not an image"):
        find_cases(touch(tmp_path, "notes.txt"), 1)
    with pytest.raises(DataError, match="no image in this folder"):
        find_cases([tmp_path], 1)
    with pytest.raises(ConfigError, match=r"both cases are named 'x'"):
        find_cases(touch(tmp_path / "a", "x.png") + touch(tmp_path / "b", "x.jpg"), 1)


def test_the_same_file_named_twice_is_one_case(tmp_path: Path) -> None:
    (file,) = touch(tmp_path, "x.png")
    assert len(find_cases([file, tmp_path], 1)) == 1


def test_outputs_take_the_format_of_their_input(tmp_path: Path) -> None:
    cases = find_cases(touch(tmp_path, "a.nii", "b.nii.gz", "c.jpg"), 1)
    placed = place_outputs(cases, tmp_path / "out", probabilities=True, overlay=True)
    assert [[path.name for path in files.wanted()] for files in placed] == [
        ["a.nii", "a_probabilities.nii", "a_overlay.png"],
        ["b.nii.gz", "b_probabilities.nii.gz", "b_overlay.png"],
        ["c.png", "c_probabilities.npz", "c_overlay.png"],
    ]
    assert placed[0].wanted() == placed[0].missing()


def test_a_single_case_may_name_its_output_file(tmp_path: Path) -> None:
    cases = find_cases(touch(tmp_path, "a.nii.gz"), 1)
    (files,) = place_outputs(cases, tmp_path / "labels.of.a.nii", probabilities=True)
    assert [path.name for path in files.wanted()] == ["labels.of.a.nii", "labels.of.a_probabilities.nii.gz"]


def test_impossible_outputs_are_refused(tmp_path: Path) -> None:
    volume, picture = touch(tmp_path, "a.nii.gz", "b.png")
    both = find_cases([volume, picture], 1)
    with pytest.raises(ConfigError, match="one file, but 2 cases"):
        place_outputs(both, tmp_path / "out.nii.gz")
    with pytest.raises(ConfigError, match=r"is a volume; its labels are written as \.nii\.gz"):
        place_outputs(both[:1], tmp_path / "out.png")
    with pytest.raises(ConfigError, match=r"is a picture; its labels are written as \.png"):
        place_outputs(both[1:], tmp_path / "out.nii")
    with pytest.raises(ConfigError, match="is an input"):
        place_outputs(both, tmp_path)
    with pytest.raises(ConfigError, match="name such a file, or a folder"):
        place_outputs(both[:1], touch(tmp_path, "notes.txt")[0])
