"""One job, begun at most once at a time, recorded before and after; the same in this process and in a worker."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

from statefield.errors import DataError, StatefieldError
from statefield.files import remove_partials
from statefield.tasks.common.archive.jobs import Do, Job
from statefield.tasks.common.archive.ledger import InputState, Ledger, Output, Record


def attempt(job: Job, ledger: Ledger, do: Do, *, most_attempts: int | None = None) -> Record:
    """Do a job unless its record says that it is done, as it may of an attempt whose word was lost; give its record.

    An error that is the job's own is recorded, not raised.

    Args:
        most_attempts: a job that was begun so often, and each time without an end, is given up: it kills its worker.

    Raises: ConfigError, OSError where the ledger itself cannot be written.
    """
    with ledger.claimed(job.name):
        found = ledger.record(job.name)
        if found is not None and ledger.is_done(found, job):
            return found
        number = 0 if found is None else found.attempts
        was_killed = found is not None and found.status == "begun"
        if was_killed and most_attempts is not None and number >= most_attempts:
            return given_up(job, ledger, "each attempt ended with its worker")
        if was_killed:
            for path in job.outputs:
                remove_partials(path)
        begun = Record(job.name, "begun", number + 1, f"{socket.gethostname()}:{os.getpid()}")
        ledger.write(begun)
        start = time.perf_counter()
        inputs = tuple(map(InputState.of, job.inputs))  # before they are read: what changes meanwhile is done again
        try:
            _require_inputs(inputs)
            notes = do(job, was_killed)
            outputs = tuple(Output.of(path, ledger.folder) for path in job.outputs)
        except Exception as error:  # one job of many: it is recorded, with all that is known, and the others go on
            record = replace(begun, status="failed", inputs=inputs, error=_in_words(error))
        else:
            record = replace(begun, status="done", inputs=inputs, outputs=outputs, notes=notes)
        record = replace(record, seconds=round(time.perf_counter() - start, 3))
        ledger.write(record)
        return record


def _require_inputs(inputs: Sequence[InputState]) -> None:
    for one in inputs:
        if one.bytes is None and one.path.startswith("/") and not one.path.startswith("/vsi"):  # which is GDAL's
            raise DataError(
                f"{one.path}: no such file on {socket.gethostname()}. Every machine that works on an archive has to "
                "see its inputs under the same paths."
            )


def given_up(job: Job, ledger: Ledger, why: str) -> Record:
    """Record as failed a job that nobody could end, unless its record tells an end; whoever calls has claimed it."""
    found = ledger.record(job.name)
    if found is not None and (found.status == "failed" or ledger.is_done(found, job)):
        return found
    number, worker = (0, "") if found is None else (found.attempts, found.worker)
    error = DataError(
        f"{job.name}: begun {number} times, and given up ({why}). Too little memory is the usual cause: give workers "
        "more of it, or run fewer on a machine. The next run tries again."
    )
    record = Record(job.name, "failed", number, worker, error=_in_words(error))
    ledger.write(record)
    return record


def _in_words(error: Exception) -> str:
    if isinstance(error, StatefieldError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        place = error.filename or "a file"
        return f"DataError: {place}: could not be read or written ({error.strerror or error})."
    told = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error} (a mistake of the program: please report it)\n{told}"
