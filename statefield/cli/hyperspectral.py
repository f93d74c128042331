"""`statefield hyperspectral train`: learn the classes of a scene's pixels, test on other pixels, and map the scene."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.errors import ConfigError
from statefield.files import write_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from statefield.tasks.remote_sensing.hyperspectral.comparison import Cell

_EPILOG = """
The run folder holds config.yaml, result.json (every run's scores, confusion counts, notes, seconds, the settings and
versions), table.md, report.html, under classifiers/ every trained classifier (for `statefield hyperspectral predict`)
and under maps/ the map of the scene by each classifier of the first seed, as PNG, GeoTIFF and ENVI.

examples:
  statefield hyperspectral train --run runs/indian_pines
  statefield hyperspectral train --split blocks --split random-leaky --seeds 3 --jobs 2 --run runs/both
  statefield hyperspectral train data/PaviaU --classifier morpmamba --classifier svm --run runs/pavia
  statefield hyperspectral train data/Houston2013 --split official --run runs/houston
  statefield hyperspectral train --config recipes/hyperspectral/indian_pines.yaml --run runs/indian_pines
  statefield hyperspectral train --run runs/both --resume
"""
# what config.yaml holds, and what each has to be
_SETTINGS: dict[str, tuple[type, ...]] = {
    "folder": (str, type(None)),
    "layout": (str, type(None)),
    "classifier": (list, type(None)),
    "split": (list, type(None)),
    "seeds": (int,),
    "block": (int,),
    "window": (int,),
    "epochs": (int, type(None)),
    "device": (str,),
    "maps": (bool,),
}

_DEFAULTS: dict[str, Any] = {"seeds": 3, "block": 16, "window": 1, "device": "cpu", "maps": True}


def train(argv: list[str]) -> int:
    """The verb: each classifier on each split with each seed; writes the run folder that the help describes."""
    options = _options(argv)
    # torch and scikit-learn take seconds to import, which --help need not wait for
    import yaml
    from rich.console import Console

    from statefield.datasets.hyperspectral import open_scene
    from statefield.tasks.common.recipes import read_settings
    from statefield.tasks.common.run_folder import RunFolder
    from statefield.tasks.remote_sensing.hyperspectral.comparison import compare, table
    from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS
    from statefield.tasks.remote_sensing.hyperspectral.report import write_comparison_report

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = {name: getattr(options, name) for name in _SETTINGS}
    run = RunFolder(options.run)
    text = yaml.safe_dump(settings, sort_keys=False)
    if options.resume:
        run.require()
        stored = _checked(read_settings(run.config), run.config)
        other = [name for name in options.given if settings[name] != stored.get(name)]
        if other:
            raise ConfigError(
                f"--resume with other settings than the run's: {', '.join(other)}. Leave them out, or choose another "
                "folder with --run."
            )
        settings |= stored
    else:
        run.require_free(overwrite=options.overwrite)
    folder = None if settings["folder"] is None else Path(settings["folder"])
    _require_device(settings["device"])
    scene = open_scene(folder, settings["layout"] or ("indian_pines" if folder is None else "auto"))
    arguments: dict[str, Any] = {
        "contenders": settings["classifier"] or tuple(CONTENDERS),
        "splits": settings["split"] or ("blocks",),
        "seeds": range(settings["seeds"]),
        "block": settings["block"],
        "window": settings["window"],
    }
    console = Console(stderr=True)
    count = len(arguments["contenders"]) * len(arguments["splits"]) * settings["seeds"]
    with _Bars(console, count) as bars:
        result = compare(
            scene,
            **arguments,
            epochs=settings["epochs"],
            device=settings["device"],
            jobs=options.jobs,
            folder=run.root,
            maps=settings["maps"],
            begin=None if options.resume else lambda: run.start(text, overwrite=options.overwrite),
            report=bars.show,
        )
    write_json(run.root / "result.json", result)
    shown = table(result)
    write_text(run.root / "table.md", shown + "\n")
    command = f"statefield hyperspectral train --config {run.config} --run {run.root}_again"
    write_comparison_report(run.root, scene, result, reproduce=(command,))
    print(shown)
    console.print(f"{run.root}: result.json, table.md, report.html", highlight=False, markup=False, soft_wrap=True)
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="statefield hyperspectral train",
        description="Learn the classes of a hyperspectral scene's pixels and test on others. By default those lie in "
        "other blocks, so that no test window shares a pixel with a training window.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", help="the scene's folder; none for an embedded scene")
    parser.add_argument("-c", "--config", type=Path, help="a config.yaml; options beside it replace its settings")
    parser.add_argument(
        "--layout", help="of the folder (default: the one it has), or an embedded scene (default: indian_pines)"
    )
    parser.add_argument(
        "--classifier",
        action="append",
        help="morpmamba, spectral_spatial_mamba, cnn3d, svm or svm_window; repeat it for several (default: all)",
    )
    parser.add_argument(
        "--split",
        action="append",
        help="blocks (default); random-leaky: single pixels at random, as most papers do, whose windows overlap; "
        "official: the publisher's, where the folder has its files. Repeat it for several",
    )
    parser.add_argument("--seeds", type=int, help="runs of each, seeds 0, 1, ... (default: 3)")
    parser.add_argument("--block", type=int, help="side of a block in pixels (default: 16)")
    parser.add_argument(
        "--window",
        type=int,
        help="split for windows of this side at least (default: the largest of the classifiers); give it where figures "
        "of several runs are compared, since it decides which pixels are used",
    )
    parser.add_argument("--epochs", type=int, help="in place of every net's own number")
    parser.add_argument("--device", help="of the nets: cpu or cuda (default: cpu)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        help="processes of one thread each; the scores do not depend on it (default: the cores, here %(default)s)",
    )
    parser.add_argument(
        "--maps",
        action=argparse.BooleanOptionalAction,
        help="write the map of the scene by each classifier of seed 0 (default: yes)",
    )
    parser.add_argument("--run", "--output", dest="run", type=Path, required=True, help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="finish the run in the folder, by its own settings")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    given = parser.parse_args(argv)
    given.given = [name for name in _SETTINGS if getattr(given, name) is not None]
    if given.config is not None:
        if given.resume:
            raise ConfigError("--resume goes by the run's own config.yaml; leave --config out.")
        from statefield.tasks.common.recipes import read_settings

        for name, value in _checked(read_settings(given.config), given.config).items():
            if name not in given.given:
                setattr(given, name, value)
    for name, value in _DEFAULTS.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.seeds < 1 or given.jobs < 1:
        raise ConfigError(f"--seeds {given.seeds} --jobs {given.jobs}: 1 or more are needed of both.")
    if given.epochs is not None and given.epochs < 1:
        raise ConfigError(f"--epochs {given.epochs}: 1 or more are needed.")
    if given.resume and given.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: continue the run, or replace it.")
    return given


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """The settings of a config.yaml; `ConfigError` for others than the known ones or of another kind."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: settings, name: value, are needed; {type(content).__name__} found.")
    unknown = sorted(set(content) - set(_SETTINGS))
    if unknown:
        raise ConfigError(f"{path}: unknown settings {', '.join(unknown)}; known are {', '.join(_SETTINGS)}.")
    for name, value in content.items():
        kinds = _SETTINGS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ConfigError(f"{path}: {name}: {value!r} given; {expected} is needed.")
    return dict(content)


def _require_device(name: str) -> None:
    import torch

    if name.split(":")[0] not in ("cpu", "cuda") or (name.startswith("cuda") and not torch.cuda.is_available()):
        raise ConfigError(f"--device {name}: cpu, or cuda where there is a GPU, is needed.")


class _Bars:
    """A bar over all runs, with what each process is at; without a terminal, a line for each run that has ended."""

    def __init__(self, console: Console, count: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.count, self.ended = console, count, 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.total = self.bar.add_task("runs", total=count)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, cell: Cell, share: float, run: Mapping[str, Any] | None) -> None:
        """Tell how far a run is, or, with its scores, that it has ended."""
        if run is None:
            if cell.name not in self.tasks:
                self.tasks[cell.name] = self.bar.add_task(cell.name, total=100)
            self.bar.update(self.tasks[cell.name], completed=round(100 * share))
            return
        self.ended += 1
        if cell.name in self.tasks:
            self.bar.remove_task(self.tasks.pop(cell.name))
        self.bar.update(self.total, completed=self.ended)
        line = f"{cell.split_name}, {cell.contender}, seed {cell.seed}: OA {run['scores']['OA']:.4f}"
        self.console.print(
            f"[{self.ended}/{self.count}] {line}, {run['fit_seconds'] + run['test_seconds']:.0f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
