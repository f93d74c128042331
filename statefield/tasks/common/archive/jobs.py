"""What an archive consists of: jobs, the work that is done with each, and the workers that do it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from statefield.errors import ConfigError

SHOWN = 10  # of many things that are wrong, so many are named


@dataclass(frozen=True)
class Job:
    """One thing to do.

    name: unique in its archive. inputs: absolute paths, or what a reader takes for a URL. outputs: absolute paths in
    the archive's folder, which no other job has.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Do = Callable[[Job, bool], dict[str, Any]]


class Work(Protocol):
    """What is done with each job: pickled, and sent to every worker."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the outputs depend on besides the inputs, as JSON: digests of the model's files, and the options."""
        ...

    def begin(self, device: str) -> Do:
        """Load the model, once in each process; what it gives does one job, called as do(job, was_killed).

        It writes the job's outputs, each whole or not at all, whatever is there already, and returns what the record is
        to hold besides, as JSON. A `StatefieldError` is what is wrong with this one job. was_killed: an attempt before
        left no word of its end, and maybe parts that this one can use.
        """
        ...


@dataclass(frozen=True)
class Pool:
    """The workers of a Ray cluster.

    Args:
        workers: at most so many jobs at a time; None: as many as the cluster has room for.
        address: of a cluster that runs, as `ray.init` takes it; None: one is started on this machine.
        cpus_per_worker: cores, and threads of torch, of each worker.
        gpus_per_worker: GPUs of each, a part of one allowed; 0: workers compute on the CPU.
        retries: how often a job is begun again whose worker was killed.

    Raises: ConfigError for numbers that cannot work.
    """

    workers: int | None = None
    address: str | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers is None and self.address is None:
            raise ConfigError("workers are needed: their number, or the address of a cluster that runs.")
        for name, value, least in (("workers", self.workers, 1), ("cpus_per_worker", self.cpus_per_worker, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{name}={value}: at least {least} is needed.")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries}: 0 or more is needed.")
        share = self.gpus_per_worker
        if not (math.isfinite(share) and share >= 0 and (share <= 1 or share == int(share))):
            raise ConfigError(f"gpus_per_worker={share}: a part of one GPU, from 0 to 1, or a whole number is needed.")


def require_apart(jobs: Sequence[Job]) -> None:
    """Raise `ConfigError` where two jobs share a name or an output, or an output is an input; all such are named."""
    inputs = {path for job in jobs for path in job.inputs}
    names = Counter(job.name for job in jobs)
    outputs = Counter(path for job in jobs for path in job.outputs)
    wrong = [f"{name!r} names {count} jobs" for name, count in names.items() if count > 1]
    wrong += [f"{path} is the output of {count} jobs" for path, count in outputs.items() if count > 1]
    wrong += [f"{path} is an input and an output" for path in outputs if path in inputs]
    if wrong:
        raise ConfigError(f"{listed(wrong)}. Each job needs a name and outputs of its own: nothing was started.")


def listed(things: Sequence[str]) -> str:
    """The first few things, and how many there are besides."""
    more = len(things) - SHOWN
    return "; ".join(things[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def digests(files: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of each file that exists, by its path below `root`."""
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files if path.is_file()}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
