"""The options of workers, and what commands over archives of jobs share: threads, device, bar and last paragraph."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from statefield.cli.devices import device_of
from statefield.cli.raster_options import tile_bar
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.common.archive import ArchiveResult, Job, Pool, Work

WORKERS = """
--workers N computes on N workers of this machine, and --address on those of a Ray cluster that runs (docs/scale.md).
A run that was killed goes on when the command is given again, and does nothing twice. OUT/archive.csv says what became
of each, OUT/SHA256SUMS what was written.
"""
_SHOWN = 5


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """How many workers, where, and with what."""
    add = parser.add_argument_group("workers").add_argument
    add("--workers", type=int, metavar="N", help="compute on N workers; with --address, on at most so many")
    add("--address", metavar="HOST:PORT", help="of a Ray cluster that runs (auto: the one of this machine)")
    add("--cpus-per-worker", type=int, metavar="K", help="cores and threads of each worker (default: 1)")
    add("--gpus-per-worker", type=float, metavar="G", help="GPUs of each worker, such as 1 or 0.5 (default: none)")
    add("--retries", type=int, metavar="R", help="begin again R times what killed its worker (default: 3)")


def pool_of(options: argparse.Namespace) -> Pool | None:
    """The workers that were asked for; None: this process works.

    Raises: ConfigError for options that contradict each other or cannot work.
    """
    given = {
        "--cpus-per-worker": options.cpus_per_worker,
        "--gpus-per-worker": options.gpus_per_worker,
        "--retries": options.retries,
    }
    if options.workers is None and options.address is None:
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise ConfigError(
                f"{' and '.join(alone)} without workers: give --workers N, or --address of a cluster that runs."
            )
        return None
    if options.threads is not None:
        raise ConfigError("--threads is of a run without workers: --cpus-per-worker says how many each of them has.")
    if options.device not in ("auto", "cuda" if options.gpus_per_worker else "cpu"):
        raise ConfigError(
            f"--device {options.device} with workers: --gpus-per-worker says whether they compute on GPUs."
        )

    from statefield.tasks.common.archive import Pool

    settings = {"cpus_per_worker": 1, "gpus_per_worker": 0.0, "retries": 3}
    settings |= {name.strip("-").replace("-", "_"): value for name, value in given.items() if value is not None}
    return Pool(options.workers, options.address, **settings)  # type: ignore[arg-type]


def run_jobs(
    options: argparse.Namespace, work: Work, jobs: Sequence[Job], folder: Path, pool: Pool | None, what: str
) -> int:
    """Do `jobs` (`what` they are, in the plural), print what became of them; 0, or 2 where any failed."""
    from statefield.tasks.common.archive import run_archive

    device = "cpu" if pool is not None else str(device_of(options.device))
    with tile_bar("", what) as progress:
        result = run_archive(
            work, jobs, folder, pool=pool, device=device, overwrite=options.overwrite, progress=progress
        )
    return _told(result, len(jobs), what)


def _told(result: ArchiveResult, total: int, what: str) -> int:
    fill = textwrap.TextWrapper(width=110, break_long_words=False, break_on_hyphens=False).fill
    for record in result.failed[:_SHOWN]:
        error = (record.error or "").partition("\n")[0]
        print(fill(f"statefield: {record.name}: {error}"), file=sys.stderr)
    if len(result.failed) > _SHOWN:
        print(f"statefield: and {len(result.failed) - _SHOWN} more that failed.", file=sys.stderr)
    parts = [f"{len(result.done)} of {total} {what} done in {result.seconds:.1f} s"]
    parts += [f"{len(result.kept)} kept, done before"] if result.kept else []
    parts += [f"{len(result.failed)} failed; the same command tries them again"] if result.failed else []
    print(fill(f"{', '.join(parts)}. What became of each: {result.table}"))
    return 2 if result.failed else 0
