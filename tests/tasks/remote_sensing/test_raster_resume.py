"""A prediction that is killed goes on from its finished strips, and ends with the same file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fakes.rasters import change_pair, write_raster

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.remote_sensing.raster_output import finished_folder, unfinished_folder
from statefield.tasks.remote_sensing.raster_predict import predict_raster
from statefield.tasks.remote_sensing.raster_sources import BandScaling

SETTINGS = {"tile": 96, "overlap": 0.5, "band_columns": 512, "scaling": BandScaling.ranged([0.0], [255.0])}


def blurred(before, after):
    """Logits of two classes from 7 x 7 pixels; equal calls give equal bits."""
    mean = torch.nn.functional.avg_pool2d(after - before, 7, stride=1, padding=3)
    return torch.cat([mean[:, :1], mean[:, 1:2] * 2 - 0.1], dim=1)


class Interrupted(Exception):
    """What stops a run in these tests."""


def interrupting(after_windows):
    """`blurred` that fails once it has seen so many windows."""
    seen = 0

    def net(before, after):
        nonlocal seen
        seen += len(before)
        if seen > after_windows:
            raise Interrupted
        return blurred(before, after)

    return net


@pytest.mark.parametrize("after_windows", [1, 150, 400])  # no strip, one strip, in the second band
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, after_windows):
    before, after = change_pair(tmp_path, 1100, 900, nodata=255)
    images = [before.path, after.path]
    whole = tmp_path / "whole.tif"
    full = predict_raster(blurred, images, whole, probabilities=tmp_path / "whole_p.tif", **SETTINGS)
    output = tmp_path / "out.tif"
    options = {**SETTINGS, "probabilities": tmp_path / "p.tif"}
    with pytest.raises(Interrupted):
        predict_raster(interrupting(after_windows), images, output, **options)
    assert not output.exists()
    told = []
    resumed = predict_raster(blurred, images, output, resume=True, progress=lambda *a: told.append(a), **options)
    assert output.read_bytes() == whole.read_bytes()
    assert (tmp_path / "p.tif").read_bytes() == (tmp_path / "whole_p.tif").read_bytes()
    assert told[-1] == (full.num_tiles, full.num_tiles)
    assert (resumed.num_resumed == 0) == (after_windows == 1)
    assert (resumed.num_tiles < full.num_tiles) == (after_windows > 1)
    assert not list(tmp_path.glob(".*"))


def test_a_journal_that_ends_in_a_torn_line_or_a_strip_with_other_bytes_is_used_up_to_there(tmp_path):
    before, after = change_pair(tmp_path, 1100, 900)
    images = [before.path, after.path]
    predict_raster(blurred, images, tmp_path / "whole.tif", **SETTINGS)
    output = tmp_path / "out.tif"
    with pytest.raises(Interrupted):
        predict_raster(interrupting(250), images, output, **SETTINGS)
    folder = tmp_path / ".out.tif.partial"
    lines = (folder / "journal").read_text().splitlines(keepends=True)
    num_strips = sum('"strip"' in line for line in lines)
    assert num_strips == 3
    (folder / "journal").write_text("".join(lines[:-1]) + lines[-1][:20])
    with (folder / "labels.raw").open("rb+") as file:
        file.seek(512 * 512 + 7)  # in the second strip
        value = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 1]))
    resumed = predict_raster(blurred, images, output, resume=True, **SETTINGS)
    assert resumed.num_resumed == 1
    assert output.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_strips_of_other_settings_or_inputs_are_refused_and_without_resume_begun_again(tmp_path):
    before, after = change_pair(tmp_path, 1100, 900)
    images, output = [before.path, after.path], tmp_path / "out.tif"
    with pytest.raises(Interrupted):
        predict_raster(interrupting(300), images, output, **SETTINGS)
    with pytest.raises(ConfigError, match=r"other settings \(margin\)"):
        predict_raster(blurred, images, output, margin=4, resume=True, **SETTINGS)
    with pytest.raises(ShapeError, match="where they were"):
        predict_raster(lambda x, y: torch.cat([x, y], dim=1), images, output, resume=True, **SETTINGS)
    after.array[0, 0, 0] += 1
    after.save()
    os.utime(after.path, ns=(1, 1))
    with pytest.raises(ConfigError, match=r"other settings \(inputs\)"):
        predict_raster(blurred, images, output, resume=True, **SETTINGS)
    assert predict_raster(blurred, images, output, **SETTINGS).num_resumed == 0


_CHILD = """
import sys, time, torch
from test_raster_resume import SETTINGS, blurred
from statefield.tasks.remote_sensing.raster_predict import predict_raster
def slow(before, after):
    time.sleep(0.02)
    return blurred(before, after)
torch.set_num_threads(1)
predict_raster(slow, sys.argv[1:3], sys.argv[3], **SETTINGS)
"""


def test_a_process_killed_in_the_middle_resumes_to_the_same_bytes(tmp_path):
    before, after = change_pair(tmp_path, 1100, 900)
    images, output = [str(before.path), str(after.path)], tmp_path / "out.tif"
    predict_raster(blurred, images, tmp_path / "whole.tif", **SETTINGS)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", _CHILD, *images, str(output)], env=environment)
    journal = tmp_path / ".out.tif.partial/journal"
    while child.poll() is None and not (journal.exists() and '"strip": 0' in journal.read_text()):
        time.sleep(0.02)
    assert child.poll() is None, "the child ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not output.exists()
    resumed = predict_raster(blurred, images, output, resume=True, **SETTINGS)
    assert resumed.num_resumed >= 1
    assert output.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_failing_writer_stops_the_run(tmp_path, monkeypatch):
    image = write_raster(tmp_path / "a.tif", 1100, 600)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("statefield.tasks.remote_sensing.raster_output.Strips.add", full)
    with pytest.raises(OSError, match="No space left"):
        predict_raster(lambda x: x, [image.path], tmp_path / "out.tif", **SETTINGS)


def test_a_run_that_ends_again_while_it_takes_up_its_journal_loses_no_strip(tmp_path, monkeypatch):
    before, after = change_pair(tmp_path, 1100, 900)
    images, output = [before.path, after.path], tmp_path / "out.tif"
    with pytest.raises(Interrupted):
        predict_raster(interrupting(250), images, output, **SETTINGS)

    def cut_short(self, *_, **__):
        self.write_bytes(b"")
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Path, "write_text", cut_short)
        predict_raster(blurred, images, output, resume=True, **SETTINGS)
    assert predict_raster(blurred, images, output, resume=True, **SETTINGS).num_resumed == 3


def test_strips_lose_their_name_before_they_are_removed_so_that_no_finished_run_is_begun_again(tmp_path, monkeypatch):
    before, after = change_pair(tmp_path, 200, 300)
    output = tmp_path / "out.tif"
    with monkeypatch.context() as patch:
        patch.setattr("statefield.tasks.remote_sensing.raster_output.shutil.rmtree", lambda *_, **__: None)
        predict_raster(blurred, [before.path, after.path], output, **SETTINGS)
    assert not unfinished_folder(output).exists()
    assert finished_folder(unfinished_folder(output)).is_dir()
    predict_raster(blurred, [before.path, after.path], output, **SETTINGS)
    assert not list(tmp_path.glob(".*"))
