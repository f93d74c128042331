"""The private folder of a server: uploads, and a folder for each result; removed when the server ends."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path

_KEPT = 24  # results; older ones are removed


class ResultFolders:
    """A temporary folder that its owner alone can enter, with `uploads` and a folder for each result inside.

    The latest results are kept, so that a server that runs for long does not fill the disk.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="statefield-app-")).resolve()  # mkdtemp gives it the mode 0700
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._kept, self._count = kept, 0
        self._made: deque[Path] = deque()
        self._lock = threading.Lock()
        atexit.register(self.remove)

    def new(self) -> Path:
        """An empty folder for one result."""
        with self._lock:
            self._count += 1
            folder = self.root / f"result_{self._count}"
            folder.mkdir()
            self._made.append(folder)
            while len(self._made) > self._kept:
                shutil.rmtree(self._made.popleft(), ignore_errors=True)
        return folder

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
        atexit.unregister(self.remove)
