"""Every contender on every split with every seed: the table that tells how far a random split flatters.

    result = compare(open_scene(None, "indian_pines"), seeds=(0, 1, 2))
    write_json("indian_pines.json", result)
    print(table(result))

All contenders of one split and seed learn from the same pixels and are tested on the same ones: the split is made for
the largest window among them. A seed stands for a split and a net.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statefield.datasets.hyperspectral import Scene
from statefield.errors import ConfigError, DataError
from statefield.files import write_json
from statefield.tasks.common import confusion
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS, Classifier, NetContender, examples
from statefield.tasks.remote_sensing.hyperspectral.jobs import run_all
from statefield.tasks.remote_sensing.hyperspectral.metrics import over_seeds, summarise
from statefield.tasks.remote_sensing.hyperspectral.scene_map import (
    predict_scene,
    write_parts,
    write_picture,
    write_raster,
)
from statefield.tasks.remote_sensing.hyperspectral.splits import (
    FRACTIONS,
    PARTS,
    SPLITS,
    PixelSplit,
    share_that_sees_training,
    split_scene,
)
from statefield.tasks.remote_sensing.hyperspectral.storage import save_classifier

logger = logging.getLogger(__name__)

_PACKAGES = ("statefield", "torch", "numpy", "scipy", "scikit-learn")
_SHOWN = ("OA", "AA (mean over classes)", "kappa")
RUN_FILE = "result.json"  # of a single run, written last: where it is, the run is whole


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a contender, the name of a split and its pixels, a seed."""

    contender: str
    split_name: str
    seed: int
    split: PixelSplit

    @property
    def name(self) -> str:
        """Of its folder and its maps."""
        return f"{self.split_name}_{self.contender}_seed{self.seed}"


@dataclass(frozen=True, eq=False)
class _Common:
    """What all runs share. folder: of the comparison, or None where nothing is kept."""

    scene: Scene
    epochs: int | None
    device: str
    folder: Path | None
    maps: bool
    first_seed: int


def cells_of(
    scene: Scene,
    *,
    contenders: Sequence[str] = tuple(CONTENDERS),
    splits: Sequence[str] = tuple(SPLITS),
    seeds: Sequence[int] = (0, 1, 2),
    block: int = 16,
    window: int = 1,
    fractions: tuple[float, float, float] = FRACTIONS,
) -> list[Cell]:
    """The runs of a comparison, their splits made; arguments and errors as `compare`.

    Split by split, seed by seed.
    """
    if not contenders or not splits or not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError("at least one contender, one split and one seed are needed, and no seed twice.")
    if len(set(contenders)) != len(contenders) or len(set(splits)) != len(splits):
        raise ConfigError("a contender or a split is named twice; each once is needed.")
    window = max(window, *(CONTENDERS[name].window for name in contenders))
    made = [
        (name, seed, split_scene(name, scene, window=window, block=block, fractions=fractions, seed=seed))
        for name in splits
        for seed in seeds
    ]
    return [Cell(contender, name, seed, split) for name, seed, split in made for contender in contenders]


def compare(
    scene: Scene,
    *,
    contenders: Sequence[str] = tuple(CONTENDERS),
    splits: Sequence[str] = tuple(SPLITS),
    seeds: Sequence[int] = (0, 1, 2),
    block: int = 16,
    window: int = 1,
    fractions: tuple[float, float, float] = FRACTIONS,
    epochs: int | None = None,
    device: str = "cpu",
    jobs: int = 1,
    folder: Path | None = None,
    maps: bool = False,
    begin: Callable[[], None] | None = None,
    report: Callable[[Cell, float, Mapping[str, Any] | None], None] | None = None,
) -> dict[str, Any]:
    """Train and test each contender, and gather everything for a JSON file.

    Args:
        contenders, splits: names in `CONTENDERS` and `SPLIT_NAMES`. seeds: distinct. block: side of the blocks in
            pixels.
        window: split for windows of this side at least, so that a classifier that sees less has the pixels that it
            would have beside one that sees more.
        fractions: of train, val and test. epochs: in place of every net's own (for a quick look; it is in the result).
        device: of the nets. jobs: processes of one thread each; the result does not depend on it.
        folder: keeps each run's scores and classifier under `classifiers/`; runs whose scores are there already are not
            made again.
        maps: also the map of the scene by each contender of the first seed under `maps/`, as PNG, GeoTIFF and ENVI, and
            pictures of the labels and of the splits of that seed.
        begin: called once the settings are known to work and before anything is written.
        report: called with a run, the share of it that is done, and at its end with its scores.

    Returns:
        `runs`, one for each contender, split and seed, with its scores, confusion counts, notes, sizes and seconds;
        `spread`, by split, contender and score; the settings; the environment; `seconds`, of the clock and of the
        processors, of this call.

    Raises:
        UnknownName: no such contender or split. ConfigError: none given, one given twice, and as the splits say.
        DataError: a run's file in `folder` that cannot be read.
    """
    begun, used = time.perf_counter(), _processor_seconds()
    cells = cells_of(
        scene, contenders=contenders, splits=splits, seeds=seeds, block=block, window=window, fractions=fractions
    )
    if begin is not None:
        begin()
    runs: list[dict[str, Any] | None] = [_made_before(folder, cell) for cell in cells]
    # seed by seed, so that a run that is stopped has compared whole seeds; long runs first, so that no process waits
    waiting = sorted(
        (number for number, run in enumerate(runs) if run is None),
        key=lambda number: (cells[number].seed, -_windows_to_learn(cells[number])),
    )
    common = _Common(scene, epochs, device, folder, maps and folder is not None, seeds[0])
    if folder is not None and maps:
        write_picture(folder / "maps" / "labels.png", scene.labels, len(scene.info.classes))
        for split in {cell.split_name: cell.split for cell in cells if cell.seed == seeds[0]}.values():
            write_parts(folder / "maps" / f"{split.name}_parts_seed{seeds[0]}.png", scene.labels, split.part)

    def progress(position: int, share: float) -> None:
        if report is not None:
            report(cells[waiting[position]], share, None)

    if report is not None:
        for cell, run in zip(cells, runs, strict=True):
            if run is not None:
                report(cell, 1.0, run)
    for position, run in run_all(run_cell, common, [cells[number] for number in waiting], jobs=jobs, report=progress):
        runs[waiting[position]] = run
        if report is not None:
            report(cells[waiting[position]], 1.0, run)
    whole = [run for run in runs if run is not None]
    assert len(whole) == len(cells)
    scores = {
        split_name: {
            name: [
                Scores(_with_nan(run["scores"]), ())
                for run in whole
                if (run["split"], run["contender"]) == (split_name, name)
            ]
            for name in contenders
        }
        for split_name in splits
    }
    return {
        "scene": scene.meta["case"],
        "classes": list(scene.info.classes),
        "settings": {
            "contenders": list(contenders),
            "splits": list(splits),
            "seeds": list(seeds),
            "block": block,
            "fractions": list(fractions),
            "window": cells[0].split.window,
            "epochs": epochs,
            "device": device,
        },
        "spread": {
            split_name: {
                name: {score: spread.as_dict() for score, spread in over_seeds(found).items()}
                for name, found in by_name.items()
            }
            for split_name, by_name in scores.items()
        },
        "runs": whole,
        "seconds": {
            "wall": time.perf_counter() - begun,
            "processor": _processor_seconds() - used,
            "jobs": jobs,
            "runs made before": len(cells) - len(waiting),
        },
        "environment": describe_environment(_PACKAGES),
    }


def _windows_to_learn(cell: Cell) -> int:
    """How long a run takes, roughly: windows that a net learns; a support vector machine is done in seconds."""
    is_net = isinstance(CONTENDERS[cell.contender], NetContender)
    return len(cell.split.pixels("train")) if is_net else 0


def run_cell(common: _Common, cell: Cell, report: Callable[[float], None]) -> dict[str, Any]:
    """One run: learn, test, and write what is kept."""
    scene, contender = common.scene, CONTENDERS[cell.contender]
    begun, used = time.perf_counter(), time.process_time()
    classifier = contender.fit(
        scene,
        cell.split,
        seed=cell.seed,
        epochs=common.epochs,
        device=common.device,
        progress=lambda done, total: report(0.9 * done / total),
    )
    fitted = time.perf_counter()
    report(0.9)
    test = examples(scene, cell.split, "test")
    state = confusion.observe(classifier.predict(test.pixels), test.labels, num_classes=len(scene.info.classes))
    found = summarise(state, scene.info.classes)
    run: dict[str, Any] = {
        "contender": cell.contender,
        "role": contender.role,
        "split": cell.split_name,
        "seed": cell.seed,
        "scores": dict(found.values),
        "notes": [*cell.split.notes, *found.notes],
        "classes_left_out": [scene.info.classes[number] for number in cell.split.left_out],
        "pixels": {part: len(cell.split.pixels(part)) for part in PARTS},
        "share_of_test_windows_with_training_pixels": share_that_sees_training(cell.split, contender.window),
        "confusion": state.counts.tolist(),
        "num_parameters": classifier.num_parameters,
        "chosen_on_validation": classifier.chosen,
        "fit_seconds": fitted - begun,
        "test_seconds": time.perf_counter() - fitted,
        "processor_seconds": time.process_time() - used,
    }
    if common.folder is not None:
        if common.maps and cell.seed == common.first_seed:
            _write_maps(common.folder / "maps" / cell.name, scene, classifier)
        about = {"scene": scene.meta["case"], "split": cell.split_name, "seed": cell.seed}
        home = common.folder / "classifiers" / cell.name
        save_classifier(home, cell.contender, classifier, tuple(scene.info.classes), about)
        write_json(home / RUN_FILE, run)
    return run


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, in per cent: mean and standard deviation over the seeds."""
    seeds = result["settings"]["seeds"]
    rows = [
        f"{result['scene']}, mean ± standard deviation over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        "",
        "| split | classifier | OA | AA | kappa x 100 | test windows with training pixels |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows_of(result):
        cells = (row["OA"], row["AA"], row["kappa x 100"])
        rows.append(f"| {row['split']} | {row['classifier']} | {' | '.join(cells)} | {row['leaking']} |")
    return "\n".join(rows)


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each split and contender: what the table says, in words, and the seconds of a run on the mean."""
    rows = []
    for split, by_name in result["spread"].items():
        for name, spread in by_name.items():
            runs = [run for run in result["runs"] if (run["split"], run["contender"]) == (split, name)]
            share = float(np.mean([run["share_of_test_windows_with_training_pixels"] for run in runs]))
            oa, aa, kappa = (_in_words(spread[score]) for score in _SHOWN)
            rows.append(
                {
                    "split": split,
                    "classifier": name,
                    "role": runs[0]["role"],
                    "OA": oa,
                    "AA": aa,
                    "kappa x 100": kappa,
                    "leaking": f"{100 * share:.1f} %",
                    "parameters": round(float(np.mean([run["num_parameters"] for run in runs]))),
                    "processor_seconds": float(np.mean([run["processor_seconds"] for run in runs])),
                }
            )
    return rows


def _in_words(spread: Mapping[str, float]) -> str:
    mean = f"{100 * spread['mean']:.2f}"
    return f"{mean} ± {100 * spread['std']:.2f}" if spread["runs"] > 1 else mean


def _write_maps(stem: Path, scene: Scene, classifier: Classifier) -> None:
    classes = scene.info.classes
    labels = predict_scene(classifier.predict, (scene.labels.shape[0], scene.labels.shape[1]))
    write_picture(stem.with_name(f"{stem.name}.png"), labels, len(classes))
    for suffix in (".tif", ".dat"):
        write_raster(stem.with_name(f"{stem.name}{suffix}"), labels, classes, scene.meta)


def _made_before(folder: Path | None, cell: Cell) -> dict[str, Any] | None:
    """What a run of this cell has left in the folder, or None."""
    if folder is None:
        return None
    path = folder / "classifiers" / cell.name / RUN_FILE
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["pixels"], run["scores"]["OA"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}): remove the folder that it is in.") from error
    return run


def _with_nan(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Scores as they were: JSON has no NaN, and null in its place."""
    return {name: float("nan") if value is None else value for name, value in scores.items()}


def _processor_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
