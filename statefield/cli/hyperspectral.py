"""`statefield hyperspectral train`: learn the classes of a scene's pixels, test on other pixels, and map the scene."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from statefield.errors import ConfigError
from statefield.files import write_json, write_text


def train(argv: list[str]) -> int:
    """The verb: each classifier on each split with each seed; writes result.json, table.md and, if asked, maps."""
    parser = argparse.ArgumentParser(
        prog="statefield hyperspectral train",
        description="Learn the classes of a hyperspectral scene's pixels and test on others. By default those lie in "
        "other blocks, so that no test window shares a pixel with a training window.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="the scene's folder; none for an embedded scene")
    parser.add_argument(
        "--layout", help="of the folder (default: the one it has), or an embedded scene (default: indian_pines)"
    )
    parser.add_argument(
        "--classifier",
        action="append",
        help="morpmamba, spectral_spatial_mamba, cnn3d or svm; repeat it for several (default: all)",
    )
    parser.add_argument(
        "--split",
        action="append",
        help="blocks (default), or random-leaky: single pixels at random, as most papers do, of which the windows "
        "overlap; repeat it for both",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--block", type=int, default=16, help="side of a block in pixels (default: %(default)s)")
    parser.add_argument(
        "--window",
        type=int,
        default=1,
        help="split for windows of this side at least (default: the largest of the classifiers); give it where figures "
        "of several runs are compared, since it decides which pixels are used",
    )
    parser.add_argument("--epochs", type=int, help="in place of every net's own number")
    parser.add_argument("--maps", action="store_true", help="also write the map of the scene by each net of seed 0")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds {arguments.seeds}: 1 or more are needed.")
    # torch and scikit-learn take seconds to import, which --help need not wait for
    from statefield.datasets.hyperspectral import open_scene
    from statefield.tasks.remote_sensing.hyperspectral.comparison import compare, table
    from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    layout = arguments.layout or ("indian_pines" if arguments.folder is None else "auto")
    result = compare(
        open_scene(arguments.folder, layout),
        contenders=arguments.classifier or tuple(CONTENDERS),
        splits=arguments.split or ("blocks",),
        seeds=range(arguments.seeds),
        block=arguments.block,
        window=arguments.window,
        epochs=arguments.epochs,
        maps=arguments.output / "maps" if arguments.maps else None,
    )
    write_json(arguments.output / "result.json", result)
    text = table(result)
    write_text(arguments.output / "table.md", text + "\n")
    print(text)
    return 0
