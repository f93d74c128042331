"""Ray clusters of this machine, as tests see them: their processes, their sockets, and one to join by its address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def all_end(word: str, seconds: float) -> bool:
    """Whether all processes with the word have ended within that time."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(word)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not left


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


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster of two CPUs: `ray start`, as docs/scale.md shows it, on the loopback.

    environment: for its processes, and for the commands that join it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address", "127.0.0.1"]
    words += ["--port", str(port), "--num-cpus", "2", "--include-dashboard", "false", "--block"]
    words += ["--object-store-memory", str(80 << 20)]
    head = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while port not in {one for _, one in listening()}:
            assert time.monotonic() < deadline and head.poll() is None
            time.sleep(0.2)
        time.sleep(5)
        yield f"127.0.0.1:{port}"
        assert head.poll() is None, "a command that joined the cluster has ended it"
    finally:
        head.terminate()
        head.wait(timeout=60)


def joining() -> dict[str, str]:
    """This process's environment, for a cluster that asks for no token."""
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
