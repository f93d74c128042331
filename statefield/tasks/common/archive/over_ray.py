"""The jobs of an archive over the workers of a Ray cluster: one that is started on this machine, or one that runs.

A job is a task of Ray, which begins it again where its worker was killed; the ledger sees that what was finished before
is not done again. An error of ours is the job's own, recorded by the worker, and tried again by the next run alone.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import statefield
from statefield.errors import ConfigError, StatefieldError
from statefield.tasks.common.archive.attempt import attempt, given_up
from statefield.tasks.common.archive.jobs import Do, Job, Pool, Work
from statefield.tasks.common.archive.ledger import Ledger, Record, as_json, differing

_LOG = logging.getLogger(__name__)
_STORE_BYTES = 80 << 20  # Ray's smallest: jobs and records are all that is sent
_STARTS = 3
_QUEUE = 2  # submitted jobs for each worker: one at work and one behind it


def over_ray(work: Work, jobs: Sequence[tuple[Job, int]], ledger: Ledger, pool: Pool) -> Iterator[Record]:
    """Do `jobs`, given with the attempts that were made before, and yield their records as they come.

    Leaving the iteration early cancels what is under way.

    Raises: ConfigError where Ray is missing, no machine of the cluster has room for a worker, or a worker lacks the
        folder, the model or this version of statefield.
    """
    ray = require_ray()
    with _cluster(ray, pool):
        _require_room(ray, pool)
        remote = ray.remote(
            num_cpus=pool.cpus_per_worker,
            num_gpus=pool.gpus_per_worker,
            max_retries=pool.retries,
            retry_exceptions=False,
        )(_in_worker)
        about = ray.put((str(ledger.folder), work, pool.cpus_per_worker, "cuda" if pool.gpus_per_worker else "cpu"))
        todo = iter(jobs)
        under_way: dict[Any, Job] = {}
        try:
            while True:
                for job, attempts in islice(todo, _num_slots(ray, pool) - len(under_way)):
                    most = attempts + pool.retries + 1
                    under_way[remote.remote(statefield.__version__, [about], job, most)] = job
                if not under_way:
                    return
                finished, _ = ray.wait(list(under_way), num_returns=1)
                for reference in finished:
                    yield _record_of(ray, reference, under_way.pop(reference), ledger)
        finally:
            for reference in under_way:
                with suppress(ray.exceptions.RayError):
                    ray.cancel(reference, force=True)


_begun: dict[str, Do] = {}  # of this worker: its archive's folder -> what does a job


def _in_worker(version: str, about: list[Any], job: Job, most_attempts: int) -> Record:
    """A job, in a process of Ray. `about` is a reference in a list: it is read after the version was compared."""
    if version != statefield.__version__:
        raise ConfigError(
            f"statefield {statefield.__version__} is installed on {socket.gethostname()}, and {version} where the "
            "command runs: install the same version on every machine of the cluster."
        )
    import ray

    folder, work, threads, device = ray.get(about[0])
    ledger = Ledger(folder)
    if folder not in _begun:
        import torch

        torch.set_num_threads(threads)
        wanted, found = ledger.head["settings"], as_json(work.settings)
        if found != wanted:
            raise ConfigError(
                f"{socket.gethostname()} has another model under the same name "
                f"({', '.join(differing(found, wanted))} differ): every machine has to read it from the same storage."
            )
        _begun[folder] = work.begin(device)
    return attempt(job, ledger, _begun[folder], most_attempts=most_attempts)


def _record_of(ray: Any, reference: Any, job: Job, ledger: Ledger) -> Record:
    try:
        record: Record = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StatefieldError):  # what one worker lacks all of them will
            raise type(cause)(str(cause)) from error
        if isinstance(cause, ImportError) or "No module named" in str(cause):
            raise _not_installed(cause) from error
        raise
    except ray.exceptions.RayError as error:
        with ledger.claimed(job.name):
            return given_up(job, ledger, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return record


def _not_installed(error: BaseException) -> ConfigError:
    told = [line for line in str(error).splitlines() if "No module named" in line] or [str(error)]
    return ConfigError(
        f"a worker of the cluster cannot import what it needs ({told[-1].strip()}): install the same version "
        "on every machine, in the environment that `ray start` runs in."
    )


def require_ray() -> Any:
    """The module `ray`; `ConfigError` where it cannot be imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports what it is used for, unless told
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            f"workers need Ray, which cannot be imported here ({error}): pip install 'statefield[scale]'. Without "
            "options of workers, this process does one job after the other."
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, pool: Pool) -> Iterator[None]:
    if ray.is_initialized():
        raise ConfigError("this process is a part of a Ray cluster already: call ray.shutdown() first.")
    if pool.address is not None:
        try:
            _require_answer(pool.address)
            ray.init(address=pool.address, configure_logging=False, log_to_driver=False)
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster can be joined at {pool.address} ({str(error).strip().partition(chr(10))[0]}). Start "
                "one with `ray start --head`, whose last lines say its address, or give --workers alone to start one "
                "here; addresses that begin with ray:// need pip install 'ray[client]'."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    assert pool.workers is not None
    place = tempfile.mkdtemp(prefix="statefield-ray-")  # short: there are sockets in it
    try:
        _start(ray, pool.workers * pool.cpus_per_worker, place)
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _require_answer(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT, for which Ray would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _start(ray: Any, num_cpus: int, place: str) -> None:
    """Start a cluster on this machine; again where its processes take longer than the 30 s that Ray gives them."""
    for left in reversed(range(_STARTS)):
        try:
            with _loopback(ray):
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    configure_logging=False,
                    log_to_driver=False,
                    _temp_dir=place,
                )
            return
        except Exception as error:  # Ray raises no class of its own
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            _LOG.warning("Ray did not start in its time: %s", error)
            if not left:
                raise ConfigError(
                    f"Ray did not start on this machine in {_STARTS} attempts of 30 s ({error}). Try again when the "
                    "machine is less busy, or without --workers: this process then does one job after the other."
                ) from error


@contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Have Ray listen on 127.0.0.1 alone, as it does on Windows and macOS; on Linux it is on every interface."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for its processes
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def _require_room(ray: Any, pool: Pool) -> None:
    """Raise unless a machine of the cluster has what one worker needs: Ray would wait for one for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {"CPU": pool.cpus_per_worker, "GPU": pool.gpus_per_worker}
    if any(all(machine.get(kind, 0) >= count for kind, count in needed.items()) for machine in machines):
        return
    there = "; ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines)
    raise ConfigError(
        f"a worker needs {pool.cpus_per_worker} CPUs and {pool.gpus_per_worker:g} GPUs on one machine, and the cluster "
        f"has {there or 'no machine'}: ask for less, or start such a machine first."
    )


def _num_slots(ray: Any, pool: Pool) -> int:
    """How many jobs may be submitted at a time: enough to keep all workers busy, whatever the archive's size."""
    if pool.workers is not None:
        return pool.workers * (1 if pool.address is not None else _QUEUE)  # what is queued elsewhere may run at once
    there = ray.cluster_resources()
    rooms = [there.get("CPU", 0) / pool.cpus_per_worker]
    if pool.gpus_per_worker:
        rooms.append(there.get("GPU", 0) / pool.gpus_per_worker)
    return max(1, int(min(rooms))) * _QUEUE
