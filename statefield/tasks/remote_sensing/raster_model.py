"""A net and how it wants to be used on rasters: its bands, their scaling, its window, the names of its classes.

model = change_model_of_run("runs/oscd")
predict_with(model, ["before.tif", "after.tif"], "change.tif", polygons="change.gpkg")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from statefield.datasets.change.pairs import CLASSES
from statefield.datasets.change.second import COLOURS
from statefield.datasets.change.xbd import CLASSES as DAMAGE
from statefield.datasets.readers.raster import DRIVER
from statefield.datasets.sample import ChangeInfo
from statefield.errors import ConfigError, DataError
from statefield.tasks.remote_sensing.change_kinds import Layer, ShiftedLogits, change_kind
from statefield.tasks.remote_sensing.change_recipe import TASK_OF_NET
from statefield.tasks.remote_sensing.change_run import load_change_run
from statefield.tasks.remote_sensing.nets.checkpoints import load_change_net
from statefield.tasks.remote_sensing.output_paths import require_outputs
from statefield.tasks.remote_sensing.raster_output import Legend
from statefield.tasks.remote_sensing.raster_predict import (
    CHANGE_LEGEND,
    RasterPrediction,
    legend_of,
    open_sources,
    predict_raster,
    raster_environment,
)
from statefield.tasks.remote_sensing.raster_scaling import standardising
from statefield.tasks.remote_sensing.raster_sources import BandScaling, Source

Progress = Callable[[int, int], None]

_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_WEIGHTS_TILE = 256  # ChangeMamba trains on crops of this side
_COLOURS_OF_BUILDINGS = ((0, 0, 0), (0, 114, 178))
_COLOURS_OF_DAMAGE = ((0, 0, 0), (0, 158, 115), (240, 228, 66), (230, 159, 0), (213, 94, 0))


@dataclass(frozen=True, eq=False)
class RasterModel:
    """A net, and how it wants to be used.

    about: its name, for people. channels: names of the bands of an image, in its order. scaling: of the rasters that
    are given, on one grid; may read them. tile, overlap, batch_size, mirror: unless the caller says otherwise.
    legends: one for each of its maps. bands: those that it sees, from 1, of a raster with num_image_bands bands; of any
    other raster they are all. within, polygon_layer: see `predict_raster`.
    """

    net: nn.Module
    about: str
    channels: tuple[str, ...]
    scaling: Callable[[Sequence[Source], Progress], Sequence[BandScaling]]
    legends: tuple[Legend, ...]
    tile: int
    overlap: float = 0.25
    batch_size: int = 4
    mirror: bool = False
    bands: tuple[int, ...] | None = None
    num_image_bands: int = 0
    within: str | None = None
    polygon_layer: int = 0


def change_model_of_run(folder: str | Path) -> RasterModel:
    """The net of a run of `statefield change train`; errors are those of `load_change_run`."""
    run = load_change_run(folder)

    def scaling(sources: Sequence[Source], progress: Progress) -> Sequence[BandScaling]:
        fixed = run.scaler.fixed
        return standardising(sources, progress) if fixed is None else [fixed] * len(sources)

    inference = run.recipe.inference
    return RasterModel(
        net=run.net,
        about=f"{run.recipe.model.name} of {run.folder.root}",
        channels=run.channels,
        scaling=scaling,
        legends=_legends(run.layers),
        tile=max(run.roi),
        overlap=inference.overlap,
        batch_size=inference.batch_size,
        mirror=inference.mirror,
        bands=tuple(band + 1 for band in run.bands),
        num_image_bands=len(run.info.channels),
        within=run.layers[0].name if len(run.layers) > 1 else None,
        polygon_layer=1 if run.kind.name == "damage" else 0,
    )


def change_model_of_weights(
    weights: Path,
    name: str | None = None,
    *,
    encoder: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[RasterModel, str]:
    """A net of a file, with the scaling of its authors unless another is given; and what was loaded, in words.

    Args:
        weights: .safetensors, or the authors' .pth. name, encoder: of the net, where the file does not say it.
        mean, std: each band's value that becomes 0, and what one unit of its input is; both or neither.

    Raises: ConfigError for one number of `mean` without its other; CheckpointError for weights that do not fit.
    """
    if (mean is None) != (std is None):
        raise ConfigError("--mean and --std belong together: give both, one number for each band.")
    arguments = {} if encoder is None else {"encoder": encoder}
    name, net, report = load_change_net(weights, name, **arguments)
    channels = tuple(f"band {number}" for number in range(1, net.in_channels + 1))
    kind = change_kind(TASK_OF_NET[name], _info(name, net, channels), {})

    def scaling(sources: Sequence[Source], _: Progress) -> list[BandScaling]:
        if mean is None:
            for source in sources:
                _require_pictures(source)
        offset, scale = mean or _IMAGENET_MEAN, std or _IMAGENET_STD
        if len(offset) != len(channels) or len(scale) != len(channels):
            raise ConfigError(f"--mean and --std: {len(channels)} numbers each are needed, one for each band.")
        return [BandScaling.standardised(offset, scale)] * len(sources)

    model = RasterModel(
        net=ShiftedLogits(net, kind.shifts(0.5)).eval(),
        about=f"{name} of {weights.name}",
        channels=channels,
        scaling=scaling,
        legends=_legends(kind.layers),
        tile=_WEIGHTS_TILE,
        within=kind.layers[0].name if len(kind.layers) > 1 else None,
        polygon_layer=1 if kind.name == "damage" else 0,
    )
    return model, f"{weights}: {len(report.loaded)} entries loaded into {name}, all that it has"


def predict_with(
    model: RasterModel,
    images: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    align: bool = False,
    driver: str = DRIVER,
    allow_remote: bool = False,
    device: torch.device | str | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    batch_size: int | None = None,
    mirror: bool = False,
    measuring: Progress | None = None,
    probabilities: str | os.PathLike[str] | None = None,
    polygons: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> RasterPrediction:
    """`predict_raster` as a model wants it; what is None is as the model has it.

    Args:
        mirror: average over mirrored copies even where the model does not.
        measuring: called as measuring(rows done, rows in all) while the rasters' values are measured.
        settings: further arguments of `predict_raster`: margin, nodata, resume, progress.

    Raises: those of `predict_raster`; DataError for rasters of other bands than the model's.
    """
    require_outputs([os.fspath(path) for path in images], output, probabilities, polygons)
    opening: dict[str, Any] = {"driver": driver, "allow_remote": allow_remote, "align": align}
    with raster_environment():
        sources = open_sources(images, bands=bands, **opening)
        if bands is None and model.bands and len(sources[0].bands) == model.num_image_bands:
            bands = model.bands
            sources = open_sources(images, bands=bands, **opening)
        for source in sources:
            _require_bands(source, model)
        scaling = model.scaling(sources, measuring or _untold)
    return predict_raster(
        model.net if device is None else model.net.to(device),
        images,
        output,
        tile=model.tile if tile is None else tile,
        overlap=model.overlap if overlap is None else overlap,
        batch_size=model.batch_size if batch_size is None else batch_size,
        mirror_axes=(0, 1) if mirror or model.mirror else (),
        device=device,
        bands=bands,
        scaling=scaling,
        legends=model.legends,
        probabilities=probabilities,
        polygons=polygons,
        polygon_layer=model.polygon_layer,
        within=model.within,
        **opening,
        **settings,
    )


def _untold(_done: int, _total: int) -> None:
    """Nobody wants to know."""


def _require_bands(source: Source, model: RasterModel) -> None:
    needed = len(model.channels)
    if len(source.bands) != needed:
        names = ", ".join(model.channels[:13])
        raise DataError(
            f"{source.path} gives {len(source.bands)} of its {source.header.num_bands} bands, and {model.about} takes "
            f"{needed} ({names}): choose them in this order, as in --bands {','.join(map(str, range(1, needed + 1)))}."
        )


def _require_pictures(source: Source) -> None:
    kinds = sorted({source.header.dtypes[band - 1] for band in source.bands})
    if kinds != ["uint8"] or len(source.bands) != 3:
        raise DataError(
            f"{source.path} has {len(source.bands)} bands of {', '.join(kinds)}: without a run, values are taken for "
            "pictures of 3 bands from 0 to 255. Give --mean and --std, one number for each band, in its own units."
        )


def _info(name: str, net: Any, channels: tuple[str, ...]) -> ChangeInfo:
    """The classes of a net, named as in the data sets that weights are published for, else numbered."""

    def named(known: Sequence[str], count: int) -> tuple[str, ...]:
        return tuple(known) if len(known) == count else tuple(f"class {index}" for index in range(count))

    count = net.classifier.out_channels
    if name == "mamba_bcd":
        return ChangeInfo(named(CLASSES, count), channels, 2)
    of_date = net.semantic_classifier.out_channels
    if name == "mamba_bda":
        return ChangeInfo(named(DAMAGE, count), channels, 2, named(("background", "building"), of_date))
    classes = named(tuple(COLOURS), of_date)
    return ChangeInfo(named(CLASSES, count), channels, 2, classes, classes)


def _legends(layers: Sequence[Layer]) -> tuple[Legend, ...]:
    """The classes of each layer with their colours: those of its data set, where that has any."""
    known = {"change": CHANGE_LEGEND.colours, "building": _COLOURS_OF_BUILDINGS, "damage": _COLOURS_OF_DAMAGE}
    found = []
    for name, classes in layers:
        colours = tuple(COLOURS.values()) if classes == tuple(COLOURS) else known.get(name, ())
        same = len(colours) == len(classes)
        found.append(Legend(tuple(classes), colours) if same else legend_of(classes))
    return tuple(found)
