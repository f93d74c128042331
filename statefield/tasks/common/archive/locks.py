"""Locks that the system frees when their holder ends, however it ends: none is ever stale.

One program works on a folder at a time (`exclusive`), and one worker on a job (`claimed`). Both are locks of the file
system, so they hold between machines that share it over NFS 4, Lustre (mounted with `flock`), GPFS or the like.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from statefield.errors import ConfigError

_BUSY = (errno.EACCES, errno.EAGAIN)


@contextmanager
def exclusive(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock file `path` of `folder`; who holds it stands in it.

    Raises: ConfigError where another program holds it (named), or where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                raise _without_locks(path, error) from error
            raise ConfigError(
                f"{folder} is being worked on by {_owner(path)}. Wait until that ends, or name another folder. The "
                "lock goes with its process, however it ends."
            ) from error
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        file.truncate(0)
        file.write(json.dumps(owner) + "\n")
        file.flush()
        yield


@contextmanager
def claimed(path: Path, number: int, *, wait: bool = True) -> Iterator[bool]:
    """Hold the byte `number` of the file `path`, waiting for who holds it; without `wait`, False where it is held.

    Of a process whose machine was taken for dead the job may still be worked on when it is begun elsewhere: the second
    waits, and then finds the record of the first.

    Raises: ConfigError where the file system has no locks.
    """
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            if error.errno not in _BUSY:
                raise _without_locks(path, error) from error
            yield False
            return
        yield True  # closing the file frees it


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # that has not yet written who it is


def _without_locks(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path}: the file system takes no locks ({error.strerror}), without which two programs could do the same job "
        "at once. Mount it with locks (Lustre: flock, NFS: version 4), or name a folder elsewhere."
    )
