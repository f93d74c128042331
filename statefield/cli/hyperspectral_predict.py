"""`statefield hyperspectral predict`: the map of a scene by a classifier that was trained on another one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from statefield.errors import CheckpointError, ConfigError, ShapeError

_EPILOG = """
SCENE is a cube of the bands that the classifier was trained on, from the same sensor and calibrated alike: a .mat file
(its only array of three axes), .npy (rows, columns, bands), GeoTIFF, or ENVI (the data file or its header). The map is
a GeoTIFF (.tif), an ENVI classification (.dat or .img, with its header) or a picture (.png), with the place of the
scene where it has one: 0 where the scene has no data, then the classes from 1.

Of several classifiers in a run the first of spectral_spatial_mamba, split blocks, lowest seed is taken, and named.

examples:
  statefield hyperspectral predict --run runs/indian_pines scene.dat -o map.tif
  statefield hyperspectral predict --run runs/pavia --classifier svm PaviaC.mat -o map.png
"""


def predict(argv: list[str]) -> int:
    """The verb: one scene in, one map out."""
    parser = argparse.ArgumentParser(
        prog="statefield hyperspectral predict",
        description="Map a scene with a trained classifier.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scene", type=Path, help="the cube")
    parser.add_argument("--run", type=Path, required=True, help="a folder of `statefield hyperspectral train`")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the map: .tif, .dat, .img or .png")
    parser.add_argument("--classifier", help="its name")
    parser.add_argument("--split", help="that it was trained on")
    parser.add_argument("--seed", type=int, help="that it was trained with")
    parser.add_argument("--overwrite", action="store_true", help="replace the map")
    options = parser.parse_args(argv)
    home = _chosen(options.run, {"contender": options.classifier, "split": options.split, "seed": options.seed})
    suffix = options.output.suffix.lower()
    if suffix not in (".tif", ".tiff", ".dat", ".img", ".png"):
        raise ConfigError(f"{options.output}: a map's name has to end in .tif, .dat, .img or .png.")
    beside = options.output.with_suffix(".hdr") if suffix in (".dat", ".img") else options.output
    there = [path for path in dict.fromkeys((options.output, beside)) if path.exists()]
    if there and not options.overwrite:
        raise ConfigError(f"{there[0]} exists already: choose another name, or replace it with --overwrite.")

    from rich.console import Console
    from rich.progress import Progress

    from statefield.datasets.hyperspectral.cubes import read_cube
    from statefield.labels import UNLABELLED
    from statefield.tasks.remote_sensing.hyperspectral.scene_map import predict_scene, write_picture, write_raster
    from statefield.tasks.remote_sensing.hyperspectral.storage import load_classifier

    stored = load_classifier(home)
    cube = read_cube(options.scene)
    if len(cube.values) != stored.bands:
        raise ShapeError(
            f"{options.scene}: {len(cube.values)} bands found; the classifier of {home.name} was trained on "
            f"{stored.bands}. Give a scene of the same sensor with the same bands."
        )
    if not cube.valid.any():
        raise ConfigError(f"{options.scene}: no pixel has data in every band, so there is nothing to map.")
    # what is prepared of such a spectrum is 0, as beyond the scene's border
    cube.values[:, ~cube.valid] = stored.spectra.offset[:, None].astype(cube.values.dtype)
    console = Console(stderr=True)
    console.print(f"classifier {home.name}", highlight=False, markup=False, soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        rows = bar.add_task("rows", total=cube.valid.shape[0])
        labels = predict_scene(
            stored.on(cube.values),
            (cube.valid.shape[0], cube.valid.shape[1]),
            progress=lambda done, total: bar.update(rows, completed=done, total=total),
        )
    labels[~cube.valid] = UNLABELLED
    if suffix == ".png":
        write_picture(options.output, labels, len(stored.classes))
    else:
        write_raster(options.output, labels, stored.classes, cube.meta)
    print(options.output)
    return 0


def _chosen(run: Path, wanted: dict[str, Any]) -> Path:
    """The folder of the classifier that fits what is wanted, None for anything."""
    found = []
    for path in sorted(run.glob("classifiers/*/classifier.json")):
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            found.append(({name: header[name] for name in wanted}, path.parent))
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error!r}): copy the run again.") from error
    if not found:
        raise ConfigError(
            f"{run}: no trained classifier in it (classifiers/*/classifier.json): give a folder that `statefield "
            "hyperspectral train` made."
        )
    fitting = [each for each in found if all(value in (None, each[0][name]) for name, value in wanted.items())]
    if not fitting:
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None)
        raise ConfigError(f"{run}: no classifier with {asked}; it has {', '.join(path.name for _, path in found)}.")
    return min(
        fitting,
        key=lambda each: (
            each[0]["contender"] != "spectral_spatial_mamba",
            each[0]["split"] != "blocks",
            each[0]["seed"],
            each[1].name,
        ),
    )[1]
