"""Commands in processes of their own, killed with SIGKILL at a chosen moment of their life.

A moment is so many seconds after the command began, or after the n-th time that it touched a file below a folder:
opened one to write, renamed, linked, flushed or removed it (Python's audit events, and `os.fsync`). Without seconds,
the process ends at once before that touch. Processes are forked from one that has imported everything, which takes a
tenth of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_IMPORTED = [
    "pytest",
    "statefield.cli.main",
    "statefield.cli.change_predict",
    "statefield.cli.medical",
    "statefield.cli.medical_predict",
    "statefield.cli.training_progress",
    "statefield.tasks.medical.run",
    "statefield.tasks.remote_sensing.raster_model",
    "statefield.tasks.remote_sensing.raster_predict",
]
_EVENTS = {"os.rename": 2, "os.link": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.chmod": 1, "os.truncate": 1}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """touch: of the files below the folder, counted from 1; 0: the command's beginning. seconds: after that."""

    touch: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Ending:
    """How a command ended: status (-9: killed), how often it touched a file, seconds it took, what it printed."""

    status: int
    touches: int
    seconds: float
    printed: str


class Moments:
    """Moments drawn by a seed, in turn at a touch and at a time.

    Args: touches, seconds: of an undisturbed command; those drawn reach to a third of them, as what was resumed is
        shorter and should be killed, too.
    """

    def __init__(self, seed: int, whole: Ending) -> None:
        self._random = random.Random(seed)
        self._touches, self._seconds, self._drawn = max(whole.touches // 3, 1), whole.seconds / 3, 0

    def next(self) -> Moment:
        self._drawn += 1
        if self._drawn % 2:
            return Moment(self._random.randint(1, self._touches), self._random.choice((0.0, 0.0, 0.002, 0.01)))
        return Moment(0, self._random.uniform(0, self._seconds))


def run(words: Sequence[str], folder: Path, log: Path, moment: Moment | None = None) -> Ending:
    """Run `statefield WORDS` to its end, or to `moment`; what it prints goes into the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=(list(words), str(folder), str(log), moment, there))
    started = time.monotonic()
    process.start()
    there.close()
    touches = 0
    try:
        while True:
            kind, value = here.recv()
            if kind == "moment" and moment is not None:
                time.sleep(moment.seconds)
                process.kill()
            elif kind == "touches":
                touches = value
    except EOFError:  # the process has ended
        process.join()
    status = process.exitcode
    assert status is not None
    return Ending(status, touches, time.monotonic() - started, log.read_text(encoding="utf-8", errors="replace"))


def killed_until_done(
    words: Callable[[bool], Sequence[str]],
    folder: Path,
    log: Path,
    moments: Moments,
    check: Callable[[], object],
    *,
    at_most: int,
) -> int:
    """Run, kill, `check` what lies there, run again, until the command has ended well; how often it was killed.

    words: of the command; given is whether it is the first time. After `at_most` kills it is left in peace.
    """
    count = 0
    while True:
        moment = moments.next() if count < at_most else None
        ended = run(words(count == 0), folder, log, moment)
        if ended.status != -signal.SIGKILL:
            assert ended.status == 0, f"kill {count}, {moment}: {ended.printed}"
            return count
        count += 1
        print(f"kill {count}: {moment}, {ended.seconds:.2f} s after its start")  # shown where the test fails
        check()


def _command(words: list[str], folder: str, log: str, moment: Moment | None, told: Connection) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    touches = 0

    def touched() -> None:
        nonlocal touches
        touches += 1
        if moment is not None and touches == moment.touch:
            if not moment.seconds:
                os.kill(os.getpid(), signal.SIGKILL)
            told.send(("moment", touches))

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            name, _, flags = given
            if isinstance(name, str) and name.startswith(folder) and isinstance(flags, int) and flags & _WRITING:
                touched()
        elif (count := _EVENTS.get(event)) and any(str(name).startswith(folder) for name in given[:count]):
            touched()

    flush = os.fsync

    def fsync(handle: int) -> None:
        touched()
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(heard)
    from statefield.cli.main import main

    if moment is not None and not moment.touch:
        told.send(("moment", 0))
    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    told.send(("touches", touches))
    told.close()
    os._exit(status)
