"""What MAMBA's memory is worth on videos of striped shapes, some frames of which are blurred or half hidden.

    python benchmarks/video_detection.py --write data/shapes                         the videos alone
    python benchmarks/video_detection.py --data data/shapes --work runs/video_bench --seeds 0 1 2 \\
        --json benchmarks/results/video_detection.json

Each encoder, a state-space one and a convolutional one of about the same size, is trained with a memory whose
enhancements learn at the full rate, with one whose enhancements learn at a share of it, and without (the recipe's
control), by recipes/tracking/mamba_vod_shapes.yaml, on the same batches. Rows are means over seeds of the scores on
held-out videos. A run that is there is not trained again. The videos are made by tests/fakes/videos.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes.videos import write_cocovid

from statefield.files import write_json
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.video_detection.recipe import VideoRecipe, read_recipe
from statefield.tasks.tracking.video_detection.training import train

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tracking" / "mamba_vod_shapes.yaml"
SPLITS = {"train": (120, 1), "val": (12, 2), "test": (40, 3)}  # videos, seed
NUM_FRAMES, DEGRADED = 12, 0.4
RATE_SHARES = (1.0, 0.1)  # of the enhancements
# of the control: as many stages of the same widths
CONVOLUTIONAL = ("convnext_atto", {"dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the videos, and do no more")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where --write wrote them")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for the run folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.write is not None:
        write_videos(arguments.write)
        return
    if arguments.data is None or arguments.work is None or arguments.json is None:
        parser.error("--data, --work and --json are needed")
    torch.set_num_threads(1)
    tables = [
        (encoder, measured(encoder, seed, arguments.data, arguments.work))
        for seed in arguments.seeds
        for encoder in ("recipe", "convolutional")
    ]
    rows = []
    for encoder in ("recipe", "convolutional"):
        of_seeds = [table for name, table in tables if name == encoder]
        rows += [averaged(list(contenders)) for contenders in zip(*of_seeds, strict=True)]
    result = {"rows": rows, "seeds": arguments.seeds, "environment": describe_environment()}
    write_json(arguments.json, result)
    print(json.dumps(rows, indent=1))


def write_videos(root: Path) -> None:
    """Training, validation and test videos, each split of its own seed."""
    for split, (count, seed) in SPLITS.items():
        path = write_cocovid(root / split, num_videos=count, num_frames=NUM_FRAMES, seed=seed, degraded=DEGRADED)
        print(f"written: {path} ({count} videos of {NUM_FRAMES} frames)")


def recipe_of(encoder: str, seed: int, data: Path, work: Path, rate_share: float) -> VideoRecipe:
    """The control, which has no enhancements, is trained beside the first share alone."""
    recipe = read_recipe(RECIPE)
    model, is_first = recipe.model, rate_share == RATE_SHARES[0]
    assert model.memory is not None
    model = dataclasses.replace(model, memory=dataclasses.replace(model.memory, rate_share=rate_share))
    if encoder == "convolutional":
        model = dataclasses.replace(model, encoder=CONVOLUTIONAL[0], encoder_args=dict(CONVOLUTIONAL[1]))
    return dataclasses.replace(
        recipe,
        run=work / (f"{encoder}_{seed}" if is_first else f"{encoder}_{seed}_rate_{rate_share}"),
        seed=seed,
        model=model,
        data=dataclasses.replace(recipe.data, **{split: data / split / "annotations.json" for split in SPLITS}),
        control=recipe.control if is_first else None,
    )


def measured(encoder: str, seed: int, data: Path, work: Path) -> list[dict[str, Any]]:
    """The scores of the detectors with a memory, one for each share, and of the control, trained now or before."""
    found, controls = [], []
    for rate_share in RATE_SHARES:
        recipe = recipe_of(encoder, seed, data, work, rate_share)
        folder = RunFolder(recipe.run)
        if not folder.metrics.exists():
            train(recipe, resume=folder.exists(), announce=print)
        metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
        found.append(metrics["model"] | {"rate_share": rate_share})
        controls += metrics["controls"]
    return [*found, *controls]


def averaged(contenders: list[dict[str, Any]]) -> dict[str, Any]:
    """One detector over its seeds."""
    encoder, _, memory = contenders[0]["name"].partition(", ")
    scores = {name: [one["test"][name] for one in contenders] for name in ("AP50", "AP", "AP75")}
    return {
        "encoder": encoder,
        "memory": memory,
        "rate_share": contenders[0].get("rate_share"),
        "parameters": contenders[0]["parameters"],
        **{name: float(np.mean(values)) for name, values in scores.items()},
        "AP50_by_seed": ", ".join(f"{value:.3f}" for value in scores["AP50"]),
        "AP_by_seed": ", ".join(f"{value:.3f}" for value in scores["AP"]),
        "num_objects": contenders[0]["num_objects"],
    }


if __name__ == "__main__":
    main()
