"""An archive over the workers of a Ray cluster, one of which is killed: every output once, as one process makes it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import fakes.archive
import pytest
from fakes.archive import Squares, finished, square_jobs

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
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", str(Path(fakes.archive.__file__).parents[1]))
        yield


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


def processes_of(word: str) -> list[int]:
    """Processes of this machine whose command line has the word."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if word in (place / "cmdline").read_text():
                found.append(int(place.name))
        except OSError:
            continue  # it has just ended
    return found


def listening() -> set[tuple[str, int]]:
    """Addresses, as the system writes them in hexadecimal, and ports that take connections."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, _, port = local.rpartition(":")
                found.add((address, int(port, 16)))
    return found


def test_two_workers_of_which_one_is_killed_make_every_output_once(tmp_path):
    jobs = square_jobs(tmp_path, 11)
    (tmp_path / "in/5.txt").write_text("no number")
    expected = serial(tmp_path, jobs)
    log, out = tmp_path / "log", tmp_path / "out"
    before, opened = listening(), set()
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
    assert not processes_of("statefield-ray-") and not list(Path("/tmp").glob("statefield-ray-*"))
