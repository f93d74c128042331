"""An archive from its jobs to its summary: the ledger opened, what is missing done, here or by workers."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import statefield
from statefield.files import remove_partials, write_json, write_text
from statefield.tasks.common.archive.attempt import attempt
from statefield.tasks.common.archive.jobs import Job, Pool, Work, require_apart
from statefield.tasks.common.archive.ledger import Ledger, Record

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ArchiveResult:
    """What a run of an archive ends with.

    done: records of the jobs that this run did. kept: of those done before. failed: of those that ended with an error;
    the next run tries them again. seconds: of this run. table: the CSV with a row for each job.
    """

    done: tuple[Record, ...]
    kept: tuple[Record, ...]
    failed: tuple[Record, ...]
    seconds: float
    table: Path


def run_archive(
    work: Work,
    jobs: Sequence[Job],
    folder: Path,
    *,
    pool: Pool | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ArchiveResult:
    """Do all jobs that are not done yet, and write archive.csv, archive.json and SHA256SUMS into the folder.

    A job that fails is recorded with its error, and the others go on. A run that was killed goes on when it is called
    again; a job is done again where its inputs changed or its outputs are gone.

    Args:
        folder: of the outputs and of their ledger.
        pool: workers of a Ray cluster; None: this process does one job after the other.
        device: where this process computes; workers compute on their GPUs if they have any, else on the CPU.
        overwrite: forget what was done, and replace outputs that are there.
        progress: called as progress(jobs done or failed, jobs in all).

    Raises:
        ConfigError: jobs that share a name or an output, a folder that was begun with another model or other options or
            that another program works on, outputs that nobody recorded; Ray that is missing, or workers without the
            folder, the model or this version of statefield.
        OSError: the ledger cannot be written.
    """
    require_apart(jobs)
    if pool is not None:
        from statefield.tasks.common.archive.over_ray import require_ray

        require_ray()
    start = time.perf_counter()
    ledger = Ledger(folder)
    settings = work.settings
    with ledger.locked():
        ledger.open(settings, overwrite=overwrite)
        found: dict[str, Record] = {}
        missing: list[tuple[Job, int]] = []
        for job, record, is_done in ledger.sort(jobs):
            if is_done and record is not None:
                found[job.name] = record
            else:
                missing.append((job, 0 if record is None else record.attempts))
        kept = set(found)
        if progress is not None:
            progress(len(found), len(jobs))
        with closing(_ended(work, missing, ledger, pool, device)) as ended:
            for record in ended:
                found[record.name] = record
                if progress is not None:
                    progress(len(found), len(jobs))
        records = [found[job.name] for job in jobs]
        result = ArchiveResult(
            done=tuple(one for one in records if one.status == "done" and one.name not in kept),
            kept=tuple(one for one in records if one.name in kept),
            failed=tuple(one for one in records if one.status == "failed"),
            seconds=time.perf_counter() - start,
            table=ledger.folder / "archive.csv",
        )
        _summarise(result, records, ledger.folder, pool)
        ledger.settle()
    return result


def _ended(
    work: Work, missing: Sequence[tuple[Job, int]], ledger: Ledger, pool: Pool | None, device: str
) -> Generator[Record, None, None]:
    if not missing:
        return
    if pool is not None:
        from statefield.tasks.common.archive.over_ray import over_ray

        yield from over_ray(work, missing, ledger, pool)
        return
    do = work.begin(device)
    for job, _ in missing:
        yield attempt(job, ledger, do)


def _summarise(result: ArchiveResult, records: Sequence[Record], folder: Path, pool: Pool | None) -> None:
    import torch  # takes seconds, which nobody waits for who has nothing to do

    from statefield.tasks.common.environment import describe_environment

    sums_file, about_file = folder / "SHA256SUMS", folder / "archive.json"
    for path in (result.table, sums_file, about_file):
        remove_partials(path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "status", "seconds", "attempts", "bytes", "worker", "error"))
    for one in records:
        size = sum(output.bytes for output in one.outputs)
        error = (one.error or "").partition("\n")[0]
        writer.writerow((one.name, one.status, one.seconds, one.attempts, size, one.worker, error))
    write_text(result.table, text.getvalue())
    sums = [f"{output.sha256}  {output.path}\n" for one in records for output in one.outputs]
    write_text(sums_file, "".join(sums))
    about = {
        "jobs": len(records),
        "done": len(result.done),
        "kept": len(result.kept),
        "failed": len(result.failed),
        "seconds": round(result.seconds, 3),
        "seconds_of_work": round(sum(one.seconds for one in result.done), 3),
        "workers": sorted({one.worker for one in result.done}),
        "cpus_per_worker": torch.get_num_threads() if pool is None else pool.cpus_per_worker,
        "gpus_per_worker": 0 if pool is None else pool.gpus_per_worker,
        "errors": {one.name: one.error for one in result.failed},
        "statefield": statefield.__version__,
        "environment": describe_environment(),
    }
    write_json(about_file, about)
