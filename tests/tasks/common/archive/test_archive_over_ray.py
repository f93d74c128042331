"""An archive over the workers of a Ray cluster, one of which is killed: every output once, as one process makes it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import fakes.archive
import pytest
from fakes.archive import RAY_TOKEN, Squares, finished, square_jobs
from fakes.ray_cluster import all_end, cluster, joining, listening, processes_of

import statefield
from statefield.errors import ConfigError
from statefield.tasks.common.archive import Job, Ledger, Pool, run_archive

pytest.importorskip("ray")
# Ray opens files and sockets for its processes that its own modules leave to the collector
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore:.*(subprocess|unclosed).*:ResourceWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def environment():
    """Of Ray's processes: a token, which would else be kept in the home folder, and where these jobs are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)
        patch.setenv("PYTHONPATH", str(Path(fakes.archive.__file__).parents[1]))
        yield


@pytest.fixture(autouse=True)
def collected():
    """What Ray leaves to the collector is collected here, where its warnings are filtered, and not in another test."""
    yield
    gc.collect()


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("job*")}


def serial(tmp_path: Path, jobs: list[Job]) -> dict[str, str]:
    """What one process makes of the jobs, in another folder."""
    folder = tmp_path / "serial"
    moved = [Job(job.name, job.inputs, (str(folder / Path(job.outputs[0]).name),)) for job in jobs]
    run_archive(Squares(str(tmp_path / "serial.log")), moved, folder)
    return contents(folder)


def killing(marker: Path) -> threading.Thread:
    """A thread that kills the process whose number appears in the file."""

    def wait() -> None:
        for _ in range(6000):
            if marker.exists():
                os.kill(int(marker.read_text()), signal.SIGKILL)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def sessions() -> set[Path]:
    """Folders of clusters that were started here."""
    return set(Path(tempfile.gettempdir()).glob("statefield-ray-*"))


def test_two_workers_of_which_one_is_killed_make_every_output_once(tmp_path):
    jobs = square_jobs(tmp_path, 11)
    (tmp_path / "in/5.txt").write_text("no number")
    expected = serial(tmp_path, jobs)
    log, out = tmp_path / "log", tmp_path / "out"
    before, opened, there = listening(), set(), sessions()
    killer = killing(Path(f"{log}.victim"))
    result = run_archive(
        Squares(str(log), waits=0.05, victim="job3"),
        jobs,
        out,
        pool=Pool(workers=2),
        progress=lambda *_: opened.update(listening()),
    )
    killer.join()
    assert contents(out) == expected and len(expected) == 10
    assert Counter(finished(log)) == {f"job{number}": 1 for number in range(11) if number != 5}
    assert [one.name for one in result.failed] == ["job5"] and "no number" in (result.failed[0].error or "")
    assert len(result.done) == 10 and not result.kept
    ledger = Ledger(out)
    records = {job.name: ledger.record(job.name) for job in jobs}
    assert {name: one.status for name, one in records.items()} == {
        name: "failed" if name == "job5" else "done" for name in records
    }
    assert records["job3"].attempts == 2 and records["job3"].notes == {"was_killed": True}
    assert max(one.attempts for name, one in records.items() if name != "job3") <= 2  # what shared the killed worker
    killed = Path(f"{log}.victim").read_text()
    workers = {one.worker for one in records.values()}
    assert records["job3"].worker != f"{socket.gethostname()}:{killed}" and 2 <= len(workers) <= 3
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    new = {address for address, _ in opened - before}
    assert new and new <= set(loopback)
    assert not processes_of("statefield-ray-") and sessions() <= there


@pytest.mark.slow
def test_a_job_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path):
    jobs = square_jobs(tmp_path, 5)
    log, out = tmp_path / "log", tmp_path / "out"
    result = run_archive(Squares(str(log), poison="job2"), jobs, out, pool=Pool(workers=2, retries=1))
    assert [one.name for one in result.failed] == ["job2"] and len(result.done) == 4
    assert result.failed[0].attempts == 2 and "begun 2 times, and given up" in (result.failed[0].error or "")
    assert sorted(finished(log)) == ["job0", "job1", "job3", "job4"]
    again = run_archive(Squares(str(log)), jobs, out)
    assert [one.name for one in again.done] == ["job2"] and again.done[0].attempts == 3


@pytest.mark.slow
def test_what_workers_lack_stops_the_run_with_one_paragraph(tmp_path, monkeypatch):
    jobs, out = square_jobs(tmp_path, 3), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"a worker needs 2 CPUs and 0\.5 GPUs on one machine, and the cluster has"):
        run_archive(Squares("log"), jobs, out, pool=Pool(workers=1, cpus_per_worker=2, gpus_per_worker=0.5))
    with monkeypatch.context() as patch:
        patch.setattr(statefield, "__version__", "99.0", raising=False)
        with pytest.raises(ConfigError, match=r"is installed on .*, and 99\.0 where the command runs"):
            run_archive(Squares("log"), jobs, tmp_path / "versions", pool=Pool(workers=1))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", "")  # where these jobs' module is not
        with pytest.raises(ConfigError, match=r"cannot import what it needs \(.*No module named 'fakes'"):
            run_archive(Squares("log"), jobs, tmp_path / "modules", pool=Pool(workers=1))


PROGRAM = """
import signal
import sys
from pathlib import Path
from fakes.archive import Squares
from statefield.tasks.common.archive import Job, Pool, run_archive

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background of a shell
    place, pool = Path(sys.argv[1]), Pool(workers=2)
    inputs = sorted((place / "in").iterdir(), key=lambda path: int(path.stem))
    jobs = [Job(f"job{one.stem}", (str(one),), (str(place / f"out/job{one.stem}.txt"),)) for one in inputs]
    run_archive(Squares(str(place / "log"), waits=0.3), jobs, place / "out", pool=pool)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_was_ended_is_finished_by_the_next_one(tmp_path, how):
    jobs, log, out = square_jobs(tmp_path, 20), tmp_path / "log", tmp_path / "out"
    expected = {f"job{n}.txt": f"{(n + 2) ** 2}\n" for n in range(20) if n != 11}
    (tmp_path / "in/11.txt").write_text("no number")
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.DEVNULL)
    while child.poll() is None and len(finished(log)) < 5:
        time.sleep(0.02)
    assert child.poll() is None, "it ended before it could be killed"
    child.send_signal(how)
    assert child.wait(timeout=60) != 0
    if how == signal.SIGINT:  # of a killed one, Ray's processes end within a minute
        assert not processes_of("statefield-ray-")
    ledger = Ledger(out)
    done = {job.name for job in jobs if ledger.is_done(ledger.record(job.name), job)}
    assert 4 <= len(done) < 19
    result = run_archive(Squares(str(log)), jobs, out)
    assert contents(out) == expected
    assert {one.name for one in result.kept} >= done
    assert [one.name for one in result.failed] == ["job11"]
    times = Counter(finished(log))
    assert set(times) == {name.removesuffix(".txt") for name in expected}
    assert all(times[name] == 1 for name in done) and max(times.values()) <= 2
    assert all_end("statefield-ray-", 120)
    for place in Path(tempfile.gettempdir()).glob("statefield-ray-*"):
        shutil.rmtree(place)  # of the killed one


@pytest.mark.slow
def test_a_cluster_that_runs_is_joined_by_its_address(tmp_path):
    environment = joining()
    with cluster(environment) as address:
        words = [sys.executable, "-c", PROGRAM.replace("Pool(workers=2)", f"Pool(address='{address}')")]
        square_jobs(tmp_path, 9)
        told = subprocess.run([*words, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr
        assert contents(tmp_path / "out") == {f"job{n}.txt": f"{(n + 2) ** 2}\n" for n in range(9)}
        assert set(Counter(finished(tmp_path / "log")).values()) == {1}


@pytest.mark.slow
def test_nobody_at_an_address_is_a_paragraph(tmp_path):
    with pytest.raises(ConfigError, match=r"no Ray cluster can be joined at 127\.0\.0\.1:9 .*ray start --head"):
        run_archive(Squares("log"), square_jobs(tmp_path, 1), tmp_path / "out", pool=Pool(address="127.0.0.1:9"))
