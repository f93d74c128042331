"""`statefield change predict-archive`: a list of pairs to maps, each that of `change predict`; resumed after a kill."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fakes.rasters import change_pair
from fakes.ray_cluster import all_end, cluster, joining

from statefield.cli.main import main
from statefield.tasks.common.archive import Ledger
from statefield.tasks.remote_sensing.nets import MambaBCD


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    torch.save(MambaBCD(encoder="test_resnet", width=8).state_dict(), folder / "net.pth")
    target = folder / "net.safetensors"
    words = ["convert", str(folder / "net.pth"), str(target), "--model", "mamba_bcd", "--set", "encoder=test_resnet"]
    assert main(words) == 0
    return target


@pytest.fixture
def pairs(tmp_path) -> Path:
    """pairs.csv of four pairs of other sizes."""
    rows = ["name,before,after"]
    for number in range(4):
        (tmp_path / f"p{number}").mkdir()
        change_pair(tmp_path / f"p{number}", 70 + 10 * number, 90, nodata=255)
        rows.append(f"place{number},p{number}/before.tif,p{number}/after.tif")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs.csv"


def words_of(pairs: Path, weights: Path, output: Path, *more) -> list[str]:
    words = ["change", "predict-archive", pairs, "--weights", weights, "-o", output, "--tile", 64, *more]
    return [str(word) for word in words]


def told(capsys) -> tuple[str, str]:
    found = capsys.readouterr()
    return " ".join(found.out.split()), " ".join(found.err.split())


def polygons(path: Path) -> list[tuple]:
    """The rows of a GeoPackage; its file holds the time when it was written."""
    with sqlite3.connect(path) as base:
        (table,) = base.execute("SELECT table_name FROM gpkg_contents").fetchone()
        return base.execute(f"SELECT * FROM {table}").fetchall()


def test_each_pair_has_the_map_of_change_predict_and_a_second_run_does_nothing(tmp_path, pairs, weights, capsys):
    output = tmp_path / "maps"
    more = ["--device", "cpu", "--overlap", 0.5, "--batch-size", 2, "--nodata", 9]
    words = words_of(pairs, weights, output, *more, "--polygons", "--probabilities")
    assert main(words) == 0
    out, err = told(capsys)
    assert "4 of 4 pairs done in " in out and f"What became of each: {output / 'archive.csv'}" in out
    assert "4 of 4 pairs" in err
    for number in range(4):
        place, folder = tmp_path / f"alone{number}.tif", tmp_path / f"p{number}"
        alone = ["change", "predict", folder / "before.tif", folder / "after.tif", "--weights", weights, "--tile", 64]
        alone += [*more, "-o", place, "--polygons", place.with_suffix(".gpkg"), "--probabilities", tmp_path / "p.tif"]
        assert main([str(word) for word in alone]) == 0
        assert (output / f"place{number}.tif").read_bytes() == place.read_bytes()
        assert (output / f"place{number}_probabilities.tif").read_bytes() == (tmp_path / "p.tif").read_bytes()
        assert polygons(output / f"place{number}.gpkg") == polygons(place.with_suffix(".gpkg"))
        (tmp_path / "p.tif").unlink()
    record = Ledger(output).record("place2")
    assert record is not None and record.notes["height"] == 90
    assert sum(record.notes["pixels"]["class"].values()) == 90 * 90
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.tif")}
    assert main(words) == 0
    assert "0 of 4 pairs done" in (out := told(capsys)[0]) and "4 kept, done before" in out
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.tif")} == times


def test_a_broken_raster_fails_alone_with_status_2_and_is_tried_again(tmp_path, pairs, weights, capsys):
    broken = tmp_path / "p1/after.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    words = words_of(pairs, weights, tmp_path / "maps", "--device", "cpu")
    assert main(words) == 2
    out, err = told(capsys)
    assert "3 of 4 pairs done" in out and "1 failed; the same command tries them again" in out
    assert f"statefield: place1: DataError: {broken}: " in err and "Traceback" not in err
    rows = list(csv.DictReader((tmp_path / "maps/archive.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done"]
    broken.write_bytes(whole)
    assert main(words) == 0
    assert "1 of 4 pairs done" in (out := told(capsys)[0]) and "3 kept" in out


def test_killed_in_the_middle_of_a_pair_it_goes_on_from_that_pair_s_strips(tmp_path, weights, capsys):
    """The third pair has two strips; the command is killed when the first of them is on the disk."""
    rows = ["name,before,after"]
    for number, height in enumerate((80, 90, 1100, 70)):
        (tmp_path / f"p{number}").mkdir()
        change_pair(tmp_path / f"p{number}", height, 70)
        rows.append(f"place{number},p{number}/before.tif,p{number}/after.tif")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(rows) + "\n")
    whole, output = tmp_path / "whole", tmp_path / "maps"
    assert main(words_of(pairs, weights, whole, "--device", "cpu", "--threads", 1)) == 0
    words = words_of(pairs, weights, output, "--device", "cpu", "--threads", 1)
    code = "import sys; from statefield.cli.main import run; run()"
    child = subprocess.Popen([sys.executable, "-c", code, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = output / ".place2.tif.partial/journal"
    while child.poll() is None and not (journal.exists() and '"strip": 0' in journal.read_text()):
        time.sleep(0.01)
    assert child.poll() is None, "the child ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    statuses = {
        name: record.status for name in ("place0", "place1", "place2") if (record := Ledger(output).record(name))
    }
    assert statuses == {"place0": "done", "place1": "done", "place2": "begun"}
    capsys.readouterr()
    assert main(words) == 0
    out, _ = told(capsys)
    assert "2 of 4 pairs done" in out and "2 kept, done before" in out
    for number in range(4):
        assert (output / f"place{number}.tif").read_bytes() == (whole / f"place{number}.tif").read_bytes()
    attempts = {f"place{number}": Ledger(output).record(f"place{number}").attempts for number in range(4)}
    assert attempts == {"place0": 1, "place1": 1, "place2": 2, "place3": 1}
    assert sorted(path.name for path in output.iterdir() if path.name.startswith(".")) == [".ledger"]


def test_strips_of_inputs_that_changed_since_are_thrown_away(tmp_path, pairs, weights):
    output = tmp_path / "maps"
    words = words_of(pairs, weights, output, "--device", "cpu")
    assert main(words) == 0
    ledger = Ledger(output)
    strips = output / ".place1.tif.partial"
    strips.mkdir()
    (strips / "journal").write_text(_line_of_other_settings())
    record = ledger.record("place1")
    ledger.write(type(record)("place1", "begun", 1, "a worker that was killed"))
    before = (output / "place1.tif").read_bytes()
    (output / "place1.tif").unlink()
    assert main(words) == 0
    assert (output / "place1.tif").read_bytes() == before and not strips.exists()


def _line_of_other_settings() -> str:
    import zlib

    text = json.dumps({"tile": 1})
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--run", "absent"], "one of the two"),
        (["--retries", 2], "--retries without workers: give --workers N"),
        (["--workers", 2, "--threads", 1], "--cpus-per-worker says how many"),
        (["--workers", 2, "--device", "cuda"], "--gpus-per-worker says whether"),
        (["--workers", 0], "workers=0: at least 1 is needed"),
        (["--workers", 1, "--gpus-per-worker", 1.5], "gpus_per_worker=1.5"),
        (["--model", "mamba_scd"], "mamba_bcd"),
    ],
)
def test_options_that_cannot_work_are_a_paragraph_and_nothing_is_written(tmp_path, pairs, weights, capsys, more, says):
    assert main(words_of(pairs, weights, tmp_path / "maps", *more)) == 2
    err = told(capsys)[1]
    assert says in err and "Traceback" not in err
    assert not (tmp_path / "maps").exists()


def test_other_options_in_the_same_folder_are_refused(tmp_path, pairs, weights, capsys):
    assert main(words_of(pairs, weights, tmp_path / "maps", "--device", "cpu")) == 0
    assert main(words_of(pairs, weights, tmp_path / "maps", "--device", "cpu", "--tta")) == 2
    assert "was begun otherwise: settings.options differ" in told(capsys)[1]
    assert main(words_of(pairs, weights, tmp_path / "maps", "--device", "cpu", "--tta", "--overwrite")) == 0


def test_without_ray_workers_are_refused_with_the_extra_to_install(tmp_path, pairs, weights, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(words_of(pairs, weights, tmp_path / "maps", "--workers", 2)) == 2
    assert "pip install 'statefield[scale]'" in told(capsys)[1]
    assert not (tmp_path / "maps").exists()


ALL = [f"place{number}" for number in range(8)]


@pytest.fixture
def eight(tmp_path) -> Path:
    """pairs.csv of eight pairs, each of which takes a while."""
    rows = ["name,before,after"]
    for number, name in enumerate(ALL):
        (tmp_path / name).mkdir()
        change_pair(tmp_path / name, 300 + 10 * number, 300)
        rows.append(f"{name},{name}/before.tif,{name}/after.tif")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs.csv"


def begun(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """The command in a process group of its own, as a terminal would have it, with what it prints in `log`."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background ignores it
    code += "from statefield.cli.main import run; run()"
    words = [sys.executable, "-c", code, *words]
    with log.open("w") as stream:
        return subprocess.Popen(words, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def at_work(output: Path, name: str, child: subprocess.Popen) -> int:
    """The process that is at the job, as soon as one is."""
    while child.poll() is None:
        record = Ledger(output).record(name)
        if record is not None and record.status == "begun":
            return int(record.worker.rpartition(":")[2])
        time.sleep(0.005)
    raise AssertionError(f"the command ended before anyone was at {name}")


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tif")}


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_over_ray_a_worker_killed_at_its_pair_costs_nothing(tmp_path, eight, weights):
    pytest.importorskip("ray")
    alone, output, log = tmp_path / "alone", tmp_path / "maps", tmp_path / "log"
    assert main(words_of(eight, weights, alone, "--device", "cpu", "--threads", 1)) == 0
    child = begun(words_of(eight, weights, output, "--workers", 2), joining(), log)
    os.kill(killed := at_work(output, "place3", child), signal.SIGKILL)
    assert child.wait(timeout=300) == 0, log.read_text()
    assert maps(output) == maps(alone) and sorted(maps(output)) == [f"{name}.tif" for name in ALL]
    assert "8 of 8 pairs done" in " ".join(log.read_text().split()) and "Traceback" not in log.read_text()
    records = {name: Ledger(output).record(name) for name in ALL}
    assert {one.status for one in records.values()} == {"done"}
    assert records["place3"].attempts == 2 and not records["place3"].worker.endswith(f":{killed}")
    assert all_end("statefield-ray-", 120)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("joined", [False, True])
def test_ctrl_c_over_ray_is_a_line_and_the_same_command_goes_on(tmp_path, eight, weights, joined):
    pytest.importorskip("ray")
    alone, output, log, environment = tmp_path / "alone", tmp_path / "maps", tmp_path / "log", joining()
    assert main(words_of(eight, weights, alone, "--device", "cpu", "--threads", 1)) == 0
    with contextlib.ExitStack() as stack:
        more = ["--address", stack.enter_context(cluster(environment))] if joined else ["--workers", 2]
        words = words_of(eight, weights, output, *more)
        child = begun(words, environment, log)
        at_work(output, "place3", child)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(timeout=120) == 130, log.read_text()
        told = log.read_text()
        assert "Traceback" not in told and "stopped" in told.splitlines()[-1]
        if not joined:
            assert all_end("statefield-ray-", 5)
        records = [record for name in ALL if (record := Ledger(output).record(name))]
        done = {output / f"{record.name}.tif" for record in records if record.status == "done"}
        times = {path: path.stat().st_mtime_ns for path in done}
        assert len(done) < 8
        child = begun(words, environment, log)
        assert child.wait(timeout=300) == 0, log.read_text()
    assert maps(output) == maps(alone) and len(maps(output)) == 8
    assert {path: path.stat().st_mtime_ns for path in done} == times  # not made again
