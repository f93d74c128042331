"""The embedded scene: AVIRIS over Indian Pines, 1992, as the pip package tensorly ships it.

145 x 145 pixels of 20 m, 200 bands of 0.4 to 2.5 um (those of water absorption are left out), 16 classes, 10249 pixels
with a label.

Source: Baumgardner, Biehl and Landgrebe 2015, doi 10.4231/R7RX991C; files of tensorly (BSD-3-Clause).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from statefield.datasets.hyperspectral.adapter import SCENE_ADAPTERS, Scene, plain_meta, scene_of
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.sample import About, DatasetInfo
from statefield.errors import ConfigError, DataError, DatasetLayoutError

CLASSES = (
    "alfalfa",
    "corn_notill",
    "corn_mintill",
    "corn",
    "grass_pasture",
    "grass_trees",
    "grass_pasture_mowed",
    "hay_windrowed",
    "oats",
    "soybean_notill",
    "soybean_mintill",
    "soybean_clean",
    "wheat",
    "woods",
    "buildings_grass_trees_drives",
    "stone_steel_towers",
)
SIZE, BANDS = (145, 145), 200
_FILES = ("Indian_pines_corrected.npy", "Indian_pines_gt.npy")


@dataclass(frozen=True)
class EmbeddedIndianPines:
    """Indian Pines without a folder; `load` gives [200, 145, 145]."""

    name = "indian_pines"
    embedded = True
    about = About(
        title="Indian Pines",
        task="16 classes of crops and woods, AVIRIS, one scene of 145 x 145 pixels, 200 bands",
        split="by the experiment: blocks apart, or at random",
        labels="0 no label, 1 to 16",
        terms="public research data of Purdue University; tensorly is BSD-3-Clause",
        source="Baumgardner et al. 2015, doi 10.4231/R7RX991C; pip package tensorly",
    )
    layout = (
        "(nothing to arrange: the files come with `pip install tensorly`)\n"
        "tensorly/datasets/data/\n"
        "|-- Indian_pines_corrected.npy   145 x 145 x 200\n"
        "`-- Indian_pines_gt.npy          145 x 145, 0..16"
    )

    def mismatch(self, root: Path) -> str | None:
        return "it is embedded: name it by layout='indian_pines' and give no folder"

    def describe(self, root: Path | None = None) -> DatasetInfo:
        return DatasetInfo(CLASSES, tuple(f"band_{k}" for k in range(1, BANDS + 1)), spatial_dims=2)

    def load(self, root: Path | None = None) -> Scene:
        if root is not None:
            raise ConfigError(
                f"{root}: the layout 'indian_pines' is embedded and reads no folder; leave the folder out, or name "
                "'indian_pines_mat' for the published files."
            )
        cube, labels = embedded_files()
        arrays = [_read(path) for path in (cube, labels)]
        return scene_of(arrays[0], arrays[1], self.describe(), plain_meta(self.name, cube), SIZE, labels)


SCENE_ADAPTERS.register("indian_pines")(EmbeddedIndianPines())


def embedded_files() -> tuple[Path, Path]:
    """The cube and the labels of the installed tensorly, found without importing it.

    Raises `DatasetLayoutError` when tensorly is not installed or does not hold them.
    """
    spec = find_spec("tensorly")
    if spec is None or not spec.submodule_search_locations:
        raise DatasetLayoutError(
            "the scene indian_pines reads files that the package tensorly ships, and tensorly is not installed: run "
            "`pip install tensorly`."
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    cube, labels = (folder / name for name in _FILES)
    missing = [path.name for path in (cube, labels) if not path.is_file()]
    if missing:
        raise DatasetLayoutError(
            f"{folder}: {', '.join(missing)} not found, which tensorly ships: run `pip install 'tensorly>=0.9'`."
        )
    return cube, labels


def _read(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}): install tensorly again.") from error
    require_memory(path, 4 * array.size, f"an array of shape {array.shape}")
    return array
