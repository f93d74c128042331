"""One bad input: how it is written, the command that meets it, and what the answer must say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Write = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """write: puts the input into the folder it is given, which is the command's working folder too.

    command: words, of which AT is that folder and RUN a run folder of the kind that `run` names.
    says: what the one paragraph must contain, blanks and ends of lines made alike: the file, and what is wrong with it.
    """

    name: str
    write: Write
    command: str
    says: tuple[str, ...]
    run: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def words(self, at: Path, run: Path | None) -> list[str]:
        return [word.replace("AT", str(at)).replace("RUN", str(run)) for word in self.command.split()]


def write_bytes(name: str, content: bytes) -> Write:
    """Writes the file `name` of these bytes."""

    def write(at: Path) -> None:
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def write_text(name: str, text: str) -> Write:
    """Writes the file `name` of this text."""
    return write_bytes(name, text.encode())


def both(*writes: Write) -> Write:
    """One after another."""

    def write(at: Path) -> None:
        for each in writes:
            each(at)

    return write


def patched(content: bytes, offset: int, replacement: bytes) -> bytes:
    """`content` with other bytes from `offset` on."""
    return content[:offset] + replacement + content[offset + len(replacement) :]


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below `folder`: its kind, its size and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and status.st_size < 2**20 else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, content)
    return found


@contextmanager
def bounded_memory(num_bytes: int) -> Iterator[None]:
    """No more than `num_bytes` beside what the process holds: what asks for more gets a MemoryError, C code included.

    Without effect where the system has no such limit.
    """
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    held = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
