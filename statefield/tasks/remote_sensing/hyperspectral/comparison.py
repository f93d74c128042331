"""Every contender on every split with every seed: the table that tells how far a random split flatters.

    result = compare(open_scene(None, "indian_pines"), seeds=(0, 1, 2))
    write_json("indian_pines.json", result)
    print(table(result))

All contenders of one split and seed learn from the same pixels and are tested on the same ones: the split is made for
the largest window among them. A seed stands for a split and a net.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statefield.datasets.hyperspectral import Scene
from statefield.errors import ConfigError
from statefield.tasks.common import confusion
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.remote_sensing.change_metrics import Scores
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS, Classifier, examples
from statefield.tasks.remote_sensing.hyperspectral.metrics import over_seeds, summarise
from statefield.tasks.remote_sensing.hyperspectral.scene_map import predict_scene, write_picture, write_raster
from statefield.tasks.remote_sensing.hyperspectral.splits import (
    FRACTIONS,
    PARTS,
    SPLITS,
    PixelSplit,
    share_that_sees_training,
)

logger = logging.getLogger(__name__)

_PACKAGES = ("statefield", "torch", "numpy", "scipy", "scikit-learn")
_SHOWN = ("OA", "AA (mean over classes)", "kappa")


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
    maps: Path | None = None,
) -> dict[str, Any]:
    """Train and test each contender, and gather everything for a JSON file.

    Args:
        contenders, splits: names in `CONTENDERS` and `SPLITS`. seeds: distinct. block: side of the blocks in pixels.
        window: split for windows of this side at least, so that a classifier that sees less has the pixels that it
            would have beside one that sees more.
        fractions: of train, val and test. epochs: in place of every net's own (for a quick look; it is in the result).
        maps: a folder for the map of the scene by each contender of the first seed, PNG and GeoTIFF.

    Returns:
        `runs`, one for each contender, split and seed, with its scores, confusion counts, notes, sizes and seconds;
        `spread`, by split, contender and score; the settings; the environment.

    Raises:
        UnknownName: no such contender or split. ConfigError: none given, a seed given twice, and as the splits say.
    """
    if not contenders or not splits or not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError("at least one contender, one split and one seed are needed, and no seed twice.")
    chosen = {name: CONTENDERS[name] for name in contenders}
    window = max(window, *(contender.window for contender in chosen.values()))
    runs: list[dict[str, Any]] = []
    scores: dict[str, dict[str, list[Scores]]] = {name: {each: [] for each in chosen} for name in splits}
    for split_name in splits:
        for seed in seeds:
            split = _make(split_name, scene, window, block, fractions, seed)
            test = examples(scene, split, "test")
            for name, contender in chosen.items():
                begun = time.perf_counter()
                classifier = contender.fit(scene, split, seed=seed, epochs=epochs)
                fitted = time.perf_counter()
                state = confusion.observe(
                    classifier.predict(test.pixels), test.labels, num_classes=len(scene.info.classes)
                )
                finished = time.perf_counter()
                if maps is not None and seed == seeds[0]:
                    _write_maps(maps / f"{split_name}_{name}_seed{seed}", scene, classifier)
                found = summarise(state, scene.info.classes)
                scores[split_name][name].append(found)
                runs.append(
                    {
                        "contender": name,
                        "split": split_name,
                        "seed": seed,
                        "scores": dict(found.values),
                        "notes": [*split.notes, *found.notes],
                        "classes_left_out": [scene.info.classes[number] for number in split.left_out],
                        "pixels": {part: len(split.pixels(part)) for part in PARTS},
                        "share_of_test_windows_with_training_pixels": share_that_sees_training(split, contender.window),
                        "confusion": state.counts.tolist(),
                        "num_parameters": classifier.num_parameters,
                        "chosen_on_validation": classifier.chosen,
                        "fit_seconds": fitted - begun,
                        "test_seconds": finished - fitted,
                    }
                )
                logger.info("%s, %s, seed %d: OA %.4f", split_name, name, seed, found.values["OA"])
    return {
        "scene": scene.meta["case"],
        "classes": list(scene.info.classes),
        "settings": {
            "seeds": list(seeds),
            "block": block,
            "fractions": list(fractions),
            "window": window,
            "epochs": epochs,
        },
        "spread": {
            split_name: {
                name: {score: spread.as_dict() for score, spread in over_seeds(found).items()}
                for name, found in by_name.items()
            }
            for split_name, by_name in scores.items()
        },
        "runs": runs,
        "environment": describe_environment(_PACKAGES),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, in per cent: mean and standard deviation over the seeds."""
    seeds = result["settings"]["seeds"]
    rows = [
        f"{result['scene']}, mean ± standard deviation over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        "",
        "| split | classifier | OA | AA | kappa x 100 | test windows with training pixels |",
        "|---|---|---|---|---|---|",
    ]
    for split, by_name in result["spread"].items():
        for name, spread in by_name.items():
            shares = [
                run["share_of_test_windows_with_training_pixels"]
                for run in result["runs"]
                if (run["split"], run["contender"]) == (split, name)
            ]
            cells = [_cell(spread[score]) for score in _SHOWN]
            rows.append(f"| {split} | {name} | {' | '.join(cells)} | {100 * sum(shares) / len(shares):.1f} % |")
    return "\n".join(rows)


def _cell(spread: Mapping[str, float]) -> str:
    mean = f"{100 * spread['mean']:.2f}"
    return f"{mean} ± {100 * spread['std']:.2f}" if spread["runs"] > 1 else mean


def _write_maps(stem: Path, scene: Scene, classifier: Classifier) -> None:
    classes = scene.info.classes
    labels = predict_scene(classifier.predict, (scene.labels.shape[0], scene.labels.shape[1]))
    write_picture(stem.with_name(f"{stem.name}.png"), labels, len(classes))
    write_raster(stem.with_name(f"{stem.name}.tif"), labels, classes, scene.meta)


def _make(
    name: str, scene: Scene, window: int, block: int, fractions: tuple[float, float, float], seed: int
) -> PixelSplit:
    settings: dict[str, Any] = {"window": window, "fractions": fractions, "seed": seed}
    if name == "blocks":  # the only split that has them
        settings["block"] = block
    return SPLITS[name](scene.labels, **settings)
