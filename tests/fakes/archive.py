"""Jobs that take no time: squares of numbers in files. A log says which were finished, and by which process."""

from __future__ import annotations

import os
import secrets
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.errors import DataError
from statefield.files import write_text
from statefield.tasks.common.archive import Job

# one for all clusters of a process, since Ray keeps the first; without one it writes its own into the home folder
RAY_TOKEN = secrets.token_hex(32)


@dataclass(frozen=True)
class Squares:
    """The work: a file's number, squared, in the output.

    log: gets a line "NAME PROCESS" when a job's outputs are in place. power: a setting. waits: seconds of a job.
    victim: the name of a job whose first attempt writes its process into `log`.victim and waits to be killed.
    poison: the name of a job that always kills its own process.
    """

    log: str
    power: int = 2
    waits: float = 0.0
    victim: str = ""
    poison: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return {"work": "squares", "power": self.power}

    def begin(self, device: str):
        assert device == "cpu"

        def do(job: Job, was_killed: bool) -> dict[str, Any]:
            time.sleep(self.waits)
            text = Path(job.inputs[0]).read_text()
            if not text.strip().isdigit():
                raise DataError(f"{job.inputs[0]}: {text!r} is no number; digits are needed.")
            number = int(text)
            marker = Path(f"{self.log}.victim")
            if job.name == self.victim and not marker.exists():
                write_text(marker, str(os.getpid()))
                time.sleep(60)
                raise AssertionError("nobody killed the victim")
            if job.name == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            result = number // (0 if number == 13 else 1)  # 13: a mistake of the program
            for path in job.outputs:
                write_text(path, f"{result**self.power}\n")
            with open(self.log, "a") as log:  # noqa: PTH123
                log.write(f"{job.name} {os.getpid()}\n")
            return {"was_killed": was_killed}

        return do


def square_jobs(folder: Path, count: int = 4) -> list[Job]:
    """Jobs job0, job1, ... with inputs below `folder`, and outputs in `folder`/out."""
    jobs = []
    for number in range(count):
        source = folder / f"in/{number}.txt"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(str(number + 2))
        jobs.append(Job(f"job{number}", (str(source),), (str(folder / f"out/job{number}.txt"),)))
    return jobs


def finished(log: Path) -> list[str]:
    """The names in the log, in order."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []
