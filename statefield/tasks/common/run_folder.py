"""The folder of a run: where everything is, and the rules for starting, resuming and replacing one."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.errors import ConfigError
from statefield.files import sync_folder, write_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The complete recipe, resolved."""
        return self.root / "config.yaml"

    @property
    def dataset(self) -> Path:
        """Classes, channels and the cases of each split, as they were when training began."""
        return self.root / "dataset.json"

    @property
    def history(self) -> Path:
        """A row per epoch."""
        return self.root / "metrics.csv"

    @property
    def metrics(self) -> Path:
        """The final scores, per class and per case."""
        return self.root / "metrics.json"

    @property
    def weights(self) -> Path:
        """The best epoch's weights, safetensors."""
        return self.root / "weights.safetensors"

    @property
    def last(self) -> Path:
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        return self.root / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def cache(self) -> Path:
        """Arrays of cases kept on disk during training (`data.cache: disk`); beside the run, as it precedes the run."""
        return self.root.with_name(f".{self.root.name}.cache")

    @property
    def control(self) -> RunFolder:
        """The run of the control encoder, inside this one."""
        return RunFolder(self.root / "control")

    def fold(self, index: int) -> RunFolder:
        """The run of one fold of a cross-validation, inside this one."""
        return RunFolder(self.root / f"fold_{index}")

    def exists(self) -> bool:
        return self.config.is_file()

    def start(self, config_text: str, *, overwrite: bool, about: Mapping[str, Any] | None = None) -> None:
        """Make the folder with its config, and `about` as its dataset.json; errors are those of `require_free`.

        It is made beside its place and takes its name with both files in it: a process that is killed leaves the folder
        as it was, none, or one that can be resumed.
        """
        self.require_free(overwrite=overwrite)
        root = self.root.resolve()  # behind a link there is a folder, too
        made, replaced = (RunFolder(root.with_name(f".{root.name}.{end}")) for end in ("begun", "replaced"))
        for leftover in (made, replaced):
            shutil.rmtree(leftover.root, ignore_errors=True)
        write_text(made.config, config_text)
        if about is not None:
            write_json(made.dataset, dict(about))
        if root.exists():
            root.rename(replaced.root)
        made.root.rename(root)
        sync_folder(root.parent)
        shutil.rmtree(replaced.root, ignore_errors=True)

    def require_free(self, *, overwrite: bool) -> None:
        """Raise `ConfigError` if a run is there and may not be replaced, or if something is there that is not a run."""
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            return
        if not self.exists():
            raise ConfigError(
                f"{self.root} exists and is not a run folder (it has no config.yaml), so it is left alone: choose "
                "another place with --run."
            )
        if not overwrite:
            raise ConfigError(
                f"{self.root} holds a run already. Continue it with --resume, replace it with --overwrite, or choose "
                "another place with --run."
            )

    def require(self) -> None:
        """Raise `ConfigError` unless this is a run folder."""
        if not self.exists():
            found = "no such folder" if not self.root.exists() else "it has no config.yaml"
            raise ConfigError(
                f"{self.root} is not a run folder ({found}): give a folder that a `train` command of statefield made."
            )


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write the training history as CSV, columns in the order in which they first appear; a missing value is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_history(path: Path) -> list[dict[str, float | None]]:
    """The rows of a training history; an empty field is None."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]


def best_epoch(history: Sequence[Mapping[str, float | None]], score: str) -> int | None:
    """The epoch whose weights are the run's: the first of those with the highest `score`; None where none has one."""
    ranked = [(value, -(row["epoch"] or 0)) for row in history if (value := row.get(score)) is not None]
    return int(-max(ranked)[1]) if ranked else None
