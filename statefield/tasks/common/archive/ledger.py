"""What was done, on the disk beside the outputs: one small JSON file for each job, written whole by whoever did it.

    OUT/.ledger/head.json       what the outputs depend on besides the inputs: the model, the options, the version
    OUT/.ledger/records/*.json  a job each: begun, then done or failed
    OUT/.ledger/lock, claims    who works on the folder, and on which job (`locks`)

A record is written before a job begins and again when its outputs are in place, so it survives a kill at any moment: a
job that is not recorded as done is done again, to the same outputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import statefield
from statefield.errors import ConfigError
from statefield.files import remove_partials, write_json
from statefield.tasks.common.archive.jobs import Job, listed, sha256_of
from statefield.tasks.common.archive.locks import claimed, exclusive

_LOG = logging.getLogger(__name__)
_FORMAT = 1
FOLDER = ".ledger"


@dataclass(frozen=True)
class InputState:
    """A file as a job found it: size in bytes, and when it was last changed; None of what is no file here."""

    path: str
    bytes: int | None
    changed_ns: int | None

    @classmethod
    def of(cls, path: str) -> InputState:
        try:
            state = Path(path).stat()
        except (OSError, ValueError):
            return cls(path, None, None)
        return cls(path, state.st_size, state.st_mtime_ns)


@dataclass(frozen=True)
class Output:
    """A finished file: its path below the archive's folder, its size, the SHA-256 of its content."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: str, folder: Path) -> Output:
        place = Path(path)
        return cls(os.path.relpath(path, folder), place.stat().st_size, sha256_of(place))


@dataclass(frozen=True)
class Record:
    """What is known of a job.

    status: begun, and neither done nor failed: its worker is at it, or was killed. attempts: how often it was begun,
    over all runs. worker: HOST:PROCESS. error: of a failed one. notes: whatever the work returned.
    """

    name: str
    status: Literal["begun", "done", "failed"]
    attempts: int
    worker: str
    inputs: tuple[InputState, ...] = ()
    outputs: tuple[Output, ...] = ()
    seconds: float = 0.0
    error: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file; OSError, ValueError, KeyError or TypeError where it holds none."""
        stored = json.loads(path.read_bytes())
        stored["inputs"] = tuple(InputState(**one) for one in stored["inputs"])
        stored["outputs"] = tuple(Output(**one) for one in stored["outputs"])
        return cls(**stored)


class Ledger:
    """The ledger of an archive's folder. Nothing is written before `open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        self.root = self.folder / FOLDER
        self._records = self.root / "records"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other programs from the folder; errors are those of `locks.exclusive`."""
        return exclusive(self.root / "lock", self.folder)

    def claimed(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """Keep other workers from a job, see `locks.claimed`."""
        return claimed(self.root / "claims", int(_key(name)[:15], 16), wait=wait)  # below 2^60: a file's largest offset

    @property
    def head(self) -> dict[str, Any]:
        """What `open` wrote.

        Raises: ConfigError where there is none that can be read: on another machine, the folder is not shared.
        """
        try:
            return dict(json.loads((self.root / "head.json").read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.root / 'head.json'} cannot be read on {os.uname().nodename} ({error}). Every machine has to "
                "see the outputs, the inputs and the model under the same paths: put them on storage that all share."
            ) from error

    def open(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Begin a ledger, or go on with the one that is there.

        Raises: ConfigError where it is of another model, other options or another version, unless `overwrite`, which
            forgets all records.
        """
        path = self.root / "head.json"
        wanted = {"format": _FORMAT, "statefield": statefield.__version__, "settings": as_json(settings)}
        if path.exists() and not overwrite:
            found = self.head
            changed = [key for key in ("format", "statefield") if found.get(key) != wanted[key]]
            changed += [f"settings.{key}" for key in differing(found.get("settings", {}), wanted["settings"])]
            if changed:
                raise ConfigError(
                    f"{self.folder} was begun otherwise: {listed(changed)} differ from those in {path}, so its "
                    "finished outputs would not be like the new ones. Go on as it was begun, name another folder, or "
                    "do all of it again with --overwrite."
                )
            self._records.mkdir(exist_ok=True)
            remove_partials(self.root)
            return
        path.unlink(missing_ok=True)  # from here to the new head, a kill leaves an archive that has to begin
        shutil.rmtree(self._records, ignore_errors=True)
        remove_partials(self.root)
        self._records.mkdir(parents=True)
        write_json(path, {**wanted, "replaces": overwrite})

    def settle(self) -> None:
        """Every job has a record now: what has none is not this archive's, and is replaced no longer."""
        head = self.head
        if head["replaces"]:
            write_json(self.root / "head.json", {**head, "replaces": False})

    def record(self, name: str) -> Record | None:
        """The record of a job; None where there is none. One that cannot be read is logged, and taken for begun."""
        path = self._path(name)
        try:
            return Record.read(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s cannot be read (%s): its job is done again.", path, error)
            return Record(name, "begun", 0, "")

    def write(self, record: Record) -> None:
        """Write a record in place of the job's former one, whole or not at all."""
        write_json(self._path(record.name), asdict(record))

    def is_done(self, record: Record | None, job: Job) -> bool:
        """Whether the job is done, with these inputs as they are now, and its outputs are there in their full size."""
        if record is None or record.status != "done":
            return False
        if record.inputs != tuple(map(InputState.of, job.inputs)):
            return False
        wanted = {os.path.relpath(path, self.folder) for path in job.outputs}
        return wanted == {output.path for output in record.outputs} and all(map(self._is_there, record.outputs))

    def sort(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Record | None, bool]]:
        """Each job with its record, and whether it `is_done`.

        Raises: ConfigError, at the end, for outputs that exist without a record: nobody knows what they are. The head
            says where such may be replaced.
        """
        replaces = self.head.get("replaces", False)
        unknown = []
        for job in jobs:
            record = self.record(job.name)
            if record is None and not replaces:
                unknown += [path for path in job.outputs if os.path.lexists(path)]
            yield job, record, self.is_done(record, job)
        if unknown:
            raise ConfigError(
                f"{listed(unknown)}: there already, and no record of {self.root} says what made it. Name another "
                "folder, or replace what is there with --overwrite."
            )

    def _is_there(self, output: Output) -> bool:
        try:
            return (self.folder / output.path).stat().st_size == output.bytes
        except OSError:
            return False

    def _path(self, name: str) -> Path:
        return self._records / f"{_key(name)}.json"  # a name may be too long, or differ from another by case alone


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def as_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys whose values differ, those included that one of them lacks."""
    return sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
