"""An archive in this process: nothing is done twice or lost, whatever happens between."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.archive import Squares, finished, square_jobs

from statefield.errors import ConfigError
from statefield.files import write_json
from statefield.tasks.common.archive import Job, Ledger, run_archive
from statefield.tasks.common.archive.locks import exclusive


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "out").glob("job*")}


def records(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in (folder / "out/.ledger/records").glob("[!.]*")]
    return {one["name"]: one for one in found}


@pytest.fixture
def archive(tmp_path):
    """run(**changes of the work or of `run_archive`) -> ArchiveResult; .jobs, .log and .folder."""

    class Archive:
        folder, log = tmp_path, tmp_path / "log"
        jobs = square_jobs(tmp_path)

        def run(self, jobs=None, power=2, **options):
            work = Squares(str(self.log), power=power)
            return run_archive(work, self.jobs if jobs is None else jobs, tmp_path / "out", **options)

        def names(self, result):
            return tuple(tuple(one.name for one in part) for part in (result.done, result.kept, result.failed))

    return Archive()


def test_every_job_is_done_once_and_recorded_with_its_files(archive):
    told = []
    result = archive.run(progress=lambda *counts: told.append(counts))
    assert contents(archive.folder) == {f"job{n}.txt": f"{(n + 2) ** 2}\n" for n in range(4)}
    assert finished(archive.log) == ["job0", "job1", "job2", "job3"]
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert archive.names(result) == (("job0", "job1", "job2", "job3"), (), ())
    record = records(archive.folder)["job1"]
    source = archive.folder / "in/1.txt"
    state = source.stat()
    assert record["inputs"] == [{"path": str(source), "bytes": 1, "changed_ns": state.st_mtime_ns}]
    digest = hashlib.sha256(b"9\n").hexdigest()
    assert record["outputs"] == [{"path": "job1.txt", "bytes": 2, "sha256": digest}]
    assert (record["status"], record["attempts"], record["error"]) == ("done", 1, None)
    assert record["notes"] == {"was_killed": False}
    rows = list(csv.DictReader(result.table.read_text().splitlines()))
    assert [(row["name"], row["status"], row["bytes"]) for row in rows] == [
        (f"job{n}", "done", "2" if n < 2 else "3") for n in range(4)
    ]
    check = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=archive.folder / "out", check=False)
    assert check.returncode == 0
    about = json.loads((archive.folder / "out/archive.json").read_text())
    assert (about["jobs"], about["done"], about["kept"], about["failed"]) == (4, 4, 0, 0)


def test_a_second_run_does_nothing_but_what_is_new_changed_or_gone(archive):
    archive.run()
    assert archive.names(archive.run()) == ((), ("job0", "job1", "job2", "job3"), ())
    (archive.folder / "in/0.txt").write_text("20")
    (archive.folder / "out/job2.txt").unlink()
    (archive.folder / "out/job3.txt").write_text("c")
    more = square_jobs(archive.folder / "more", 1)[0]
    more = Job("later", more.inputs, (str(archive.folder / "out/later.txt"),))
    archive.log.unlink()
    result = archive.run([*archive.jobs, more])
    assert finished(archive.log) == ["job0", "job2", "job3", "later"]
    assert archive.names(result) == (("job0", "job2", "job3", "later"), ("job1",), ())
    assert contents(archive.folder) == {"job0.txt": "400\n", "job1.txt": "9\n", "job2.txt": "16\n", "job3.txt": "25\n"}
    assert {name: one["attempts"] for name, one in records(archive.folder).items()} == {
        "job0": 2, "job1": 1, "job2": 2, "job3": 2, "later": 1,
    }  # fmt: skip


def test_a_job_that_fails_is_recorded_alone_and_tried_again_by_the_next_run(archive):
    (archive.folder / "in/1.txt").write_text("seven")
    (archive.folder / "in/2.txt").write_text("13")
    (archive.folder / "in/3.txt").unlink()
    result = archive.run()
    assert archive.names(result) == (("job0",), (), ("job1", "job2", "job3"))
    wrong, mistake, absent = (one.error for one in result.failed)
    assert wrong == f"DataError: {archive.folder / 'in/1.txt'}: 'seven' is no number; digits are needed."
    assert mistake.startswith("ZeroDivisionError: ") and "please report it" in mistake and "Traceback" in mistake
    assert absent.startswith(f"DataError: {archive.folder / 'in/3.txt'}: no such file on ")
    assert set(contents(archive.folder)) == {"job0.txt"}
    assert "please report" in result.table.read_text() and "Traceback" not in result.table.read_text()
    for number in (1, 2, 3):
        (archive.folder / f"in/{number}.txt").write_text("5")
    archive.log.unlink()
    result = archive.run()
    assert archive.names(result) == (("job1", "job2", "job3"), ("job0",), ())
    assert finished(archive.log) == ["job1", "job2", "job3"]


def test_another_model_or_version_is_refused_and_overwrite_begins_anew(archive):
    archive.run()
    with pytest.raises(ConfigError, match=r"was begun otherwise: settings\.power differ .* --overwrite"):
        archive.run(power=3)
    head = archive.folder / "out/.ledger/head.json"
    write_json(head, {**json.loads(head.read_text()), "statefield": "0.0.1"})
    with pytest.raises(ConfigError, match="was begun otherwise: statefield differ"):
        archive.run()
    assert contents(archive.folder)["job0.txt"] == "4\n"
    result = archive.run(power=3, overwrite=True)
    assert archive.names(result)[0] == ("job0", "job1", "job2", "job3")
    assert contents(archive.folder)["job0.txt"] == "8\n"
    assert {one["attempts"] for one in records(archive.folder).values()} == {1}


def test_files_that_nobody_recorded_are_not_replaced(archive):
    place = archive.folder / "out/job1.txt"
    place.parent.mkdir()
    place.write_text("mine")
    with pytest.raises(ConfigError, match=r"job1\.txt: there already, and no record"):
        archive.run()
    assert place.read_text() == "mine" and finished(archive.log) == []
    archive.run(overwrite=True)
    assert place.read_text() == "9\n"
    later = Job("later", archive.jobs[0].inputs, (str(archive.folder / "out/later.txt"),))
    Path(later.outputs[0]).write_text("mine, too")
    with pytest.raises(ConfigError, match=r"later\.txt: there already"):
        archive.run([*archive.jobs, later])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda job: Job("job0", job.inputs, (job.outputs[0] + "2",)), "'job0' names 2 jobs"),
        (lambda job: Job("other", job.inputs, job.outputs), "is the output of 2 jobs"),
        (lambda job: Job("other", job.inputs, job.inputs), "is an input and an output"),
    ],
)
def test_jobs_that_share_a_name_or_a_file_are_refused_before_anything_is_written(archive, changed, says):
    with pytest.raises(ConfigError, match=says):
        archive.run([*archive.jobs, changed(archive.jobs[0])])
    assert not (archive.folder / "out").exists()


def test_many_that_are_wrong_are_named_up_to_ten(archive):
    with pytest.raises(ConfigError, match=r"'job9' names 2 jobs; .*and 12 more"):
        archive.run([*square_jobs(archive.folder, 11)] * 2)


def test_a_folder_that_another_program_works_on_is_refused_with_its_name(archive):
    ledger = Ledger(archive.folder / "out")
    held = "import sys, time; from pathlib import Path; from statefield.tasks.common.archive.locks import exclusive\n"
    held += "with exclusive(Path(sys.argv[1]), Path('out')):\n    print('held', flush=True); time.sleep(60)\n"
    place = str(ledger.root / "lock")
    with subprocess.Popen([sys.executable, "-c", held, place], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"is being worked on by process {child.pid} on .*, since 20"):
            archive.run()
        child.send_signal(signal.SIGKILL)
        child.wait()
    archive.run()  # nobody has to remove the lock of a program that was killed
    with exclusive(Path(place), archive.folder):
        pass


def test_a_record_that_cannot_be_read_is_told_and_its_job_done_again(archive, caplog):
    archive.run()
    for path in (archive.folder / "out/.ledger/records").iterdir():
        if '"job2"' in path.read_text():
            path.write_text('{"name": "job2", "status"')
    archive.log.unlink()
    archive.run()
    assert finished(archive.log) == ["job2"]
    assert "cannot be read" in caplog.text


def _killed_at(folder: str, rename: int) -> None:
    """Run the archive; the process ends right before its `rename`-th renaming."""
    renamed = 0

    def watch(event: str, _: tuple) -> None:
        nonlocal renamed
        if event == "os.rename":
            renamed += 1
            if renamed == rename:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    place = Path(folder)
    run_archive(Squares(str(place / "log")), square_jobs_of(place), place / "out")


def square_jobs_of(place: Path) -> list[Job]:
    inputs = sorted((place / "in").iterdir())
    return [Job(f"job{one.stem}", (str(one),), (str(place / f"out/job{one.stem}.txt"),)) for one in inputs]


def test_killed_at_every_file_it_finishes_an_archive_goes_on_to_the_same_files(tmp_path):
    """Each file appears by a renaming: the head, of each job its record, its output, its record again, the summary."""
    whole = tmp_path / "whole"
    square_jobs(whole, 3)
    run_archive(Squares(str(whole / "log")), square_jobs_of(whole), whole / "out")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["statefield.tasks.common.environment", "fakes.archive"])
    moments = 0
    while True:
        moments += 1
        place = tmp_path / f"killed{moments}"
        square_jobs(place, 3)
        child = context.Process(target=_killed_at, args=(str(place), moments))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        before, log = records(place), finished(place / "log")
        result = run_archive(Squares(str(place / "log")), square_jobs_of(place), place / "out")
        assert contents(place) == contents(whole)
        assert not list((place / "out").rglob(".*partial*"))
        again = finished(place / "log")[len(log) :]
        done = {name for name, one in before.items() if one["status"] == "done"}
        assert sorted(again) == sorted({"job0", "job1", "job2"} - done)
        assert {one.name for one in result.kept} == done
        for name, one in records(place).items():
            assert one["status"] == "done"
            assert one["attempts"] == (2 if name in before and name not in done else 1)
            assert one["notes"] == {"was_killed": name in before and before[name]["status"] == "begun"}
    assert moments == 1 + 1 + 3 * 3 + 3  # the last one is not reached
