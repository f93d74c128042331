"""The page of a comparison: scores, what each split is, every contender's map beside the labels, accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from statefield.datasets.hyperspectral import Scene
from statefield.tasks.common.figures import Pixels, displayed
from statefield.tasks.common.report import CaseView, Table, write_report
from statefield.tasks.remote_sensing.hyperspectral.comparison import rows_of
from statefield.tasks.remote_sensing.hyperspectral.scene_map import PART_COLOURS, palette

_SPLITS = {
    "blocks": "Blocks: parts lie apart, so that no test window shares a pixel with a training window.",
    "random-leaky": "Random-leaky: single pixels drawn at random, as most papers do. Test windows hold training "
    "pixels: these scores say how well a scene is filled in between known pixels, and nothing about another place.",
    "official": "Official: the publisher's training and test pixels.",
}


def write_comparison_report(folder: Path, scene: Scene, result: Mapping[str, Any], *, reproduce: Sequence[str]) -> Path:
    """`folder/report.html` from the result of `compare` and the pictures that it left in `folder/maps`.

    Args:
        reproduce: the command that repeats it. Returns the page's path.
    """
    names = [*dict.fromkeys(run["contender"] for run in result["runs"])]
    best = {split: _best(by_name) for split, by_name in result["spread"].items()}
    seeds, seconds = result["settings"]["seeds"], result["seconds"]
    notes = [_SPLITS[split] for split in result["spread"]]
    notes += [f"{split}, seed {seed}: {'; '.join(found)}." for (split, seed), found in _notes(result).items() if found]
    return write_report(
        folder,
        title=f"Classes of {scene.meta['case'].replace('_', ' ')}",
        summary={f"best OA, {split}": f"{name}, {100 * value:.1f} %" for split, (name, value) in best.items()}
        | {
            "seeds": len(seeds),
            "clock": f"{seconds['wall'] / 60:.1f} min",
            "processor": f"{seconds['processor'] / 60:.1f} min",
        },
        cases=_cases(folder, scene, result, names),
        history=(),
        classes=["no class", *scene.info.classes],
        tables=[_table(result), *(_by_class(result, split, names) for split in result["spread"])],
        notes=notes,
        reproduce=reproduce,
        legend=_legend(scene),
    )


def _best(by_name: Mapping[str, Any]) -> tuple[str, float]:
    name = max(by_name, key=lambda each: by_name[each]["OA"]["mean"])
    return name, by_name[name]["OA"]["mean"]


def _notes(result: Mapping[str, Any]) -> dict[tuple[str, int], list[str]]:
    return {(run["split"], run["seed"]): run["notes"] for run in result["runs"]}


def _table(result: Mapping[str, Any]) -> Table:
    rows = [
        {
            "split": row["split"],
            "classifier": row["classifier"],
            "role": row["role"],
            "OA": row["OA"],
            "AA": row["AA"],
            "kappa x 100": row["kappa x 100"],
            "test windows with training pixels": row["leaking"],
            "parameters": row["parameters"],
            "processor seconds a run": row["processor_seconds"],
        }
        for row in rows_of(result)
    ]
    count = len(result["settings"]["seeds"])
    lead = (
        f"Per cent; mean ± standard deviation over {count} seeds, each another split and another net. OA: share of "
        "test pixels with their class; AA: mean over classes of the share found; kappa: agreement beyond chance."
    )
    return Table("Scores", lead, rows)


def _by_class(result: Mapping[str, Any], split: str, names: Sequence[str]) -> Table:
    spread = result["spread"][split]
    rows = []
    for number, name in enumerate(result["classes"]):
        tested = [np.sum(run["confusion"][number]) for run in result["runs"] if run["split"] == split]
        row: dict[str, Any] = {"class": name.replace("_", " ")}
        for contender in names:
            value = spread[contender][f"accuracy/{name}"]["mean"]
            row[contender] = None if value is None or value != value else 100 * value
        rows.append(row | {"test pixels": f"{np.mean(tested):.0f}"})
    lead = "Per cent of a class's test pixels that are found, mean over the seeds in which the class has test pixels."
    return Table(f"Accuracy by class, {split}", lead, rows)


def _cases(folder: Path, scene: Scene, result: Mapping[str, Any], names: Sequence[str]) -> list[CaseView]:
    """One for each split whose maps are there: the scene, its labels, the parts, each contender's map."""
    seed, maps = result["settings"]["seeds"][0], folder / "maps"
    bands = [round(share * (len(scene.cube) - 1)) for share in (0.5, 0.25, 0.125)]
    found = []
    for split in result["spread"]:
        files = {"labels": maps / "labels.png", "split": maps / f"{split}_parts_seed{seed}.png"}
        files |= {name: maps / f"{split}_{name}_seed{seed}.png" for name in names}
        if not all(path.is_file() for path in files.values()):
            continue
        pictures: dict[str, Pixels] = {
            f"bands {', '.join(str(band + 1) for band in bands)}": displayed(scene.cube[bands])
        }
        pictures |= {title: np.asarray(Image.open(path).convert("RGB")) for title, path in files.items()}
        scores = {
            f"OA {run['contender']}": run["scores"]["OA"]
            for run in result["runs"]
            if (run["split"], run["seed"]) == (split, seed)
        }
        found.append(
            CaseView(
                f"split {split}, seed {seed}", scene.cube[bands], scene.labels, scene.labels, scores, None, pictures
            )
        )
    return found


def _legend(scene: Scene) -> dict[str, dict[str, str]]:
    classes = zip(scene.info.classes, palette(len(scene.info.classes))[1:].tolist(), strict=True)
    return {
        "classes": {name.replace("_", " "): _hex(colour) for name, colour in classes},
        "split": {name: _hex(colour) for name, colour in PART_COLOURS.items()},
    }


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02X}" for value in colour)
