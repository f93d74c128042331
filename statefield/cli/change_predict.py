"""`statefield change predict`: two rasters in, a map of what changed out, on the first one's grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.cli.raster_options import RasterModel, add_raster_options, prepare, run_prediction
from statefield.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statefield.cli.raster_options import Progress
    from statefield.datasets.sample import ChangeInfo
    from statefield.tasks.remote_sensing.change_kinds import Layer
    from statefield.tasks.remote_sensing.raster_output import Legend
    from statefield.tasks.remote_sensing.raster_sources import BandScaling, Source

_EPILOG = """
The output is a cloud-optimised GeoTIFF of uint8 with overviews, colours and class names, on the grid of the first
raster. Memory does not grow with the rasters. Both need the same CRS, transform and size; --align warps the second to
the first one's grid. A pixel without data in either date has none in the output.

A run knows its bands, its scaling, its window and its threshold. Of a run with scaling "image" mean and deviation of
each band are measured on the rasters first, which reads them once more. --weights takes what `statefield convert`
wrote, or the file of ChangeMamba's authors; its images are 3 bands of 0 to 255, scaled by the mean and deviation of
ImageNet unless --mean and --std say otherwise.

Of semantic change the output has three bands: change, and the classes before and after where something changed. Of
building damage it has two: buildings, and their damage.

A run that was killed goes on with --resume, and ends with the same file.

examples:
  statefield change predict before.tif after.tif --run runs/oscd -o change.tif
  statefield change predict before.tif after.tif --run runs/oscd -o change.tif --polygons change.gpkg --resume
  statefield change predict t1.tif t2.tif --weights MambaBCD_Tiny.pth --model mamba_bcd -o change.tif --align
  statefield change predict t1.tif t2.tif --weights bcd.safetensors -o change.tif --bands 3,2,1 --tile 512
"""
_IMAGENET_MEAN, _IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_WEIGHTS_TILE = 256  # ChangeMamba trains on crops of this side
_COLOURS_OF_BUILDINGS = ((0, 0, 0), (0, 114, 178))
_COLOURS_OF_DAMAGE = ((0, 0, 0), (0, 158, 115), (240, 228, 66), (230, 159, 0), (213, 94, 0))


def predict(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    _require_one_source(options)
    if not prepare(options):
        return 0
    images = [options.before, options.after]
    model = _of_run(options) if options.run is not None else _of_weights(options)
    return run_prediction(options, images, model, align=options.align)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield change predict",
        description="Map what changed between two rasters of any size.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("before", metavar="BEFORE.tif", help="the earlier raster; the output lies on its grid")
    add("after", metavar="AFTER.tif", help="the later raster")
    add("--run", type=Path, help="the run folder of `statefield change train`")
    add("--weights", type=Path, metavar="FILE", help="or a file of a whole net: .safetensors, or the authors' .pth")
    add("--model", metavar="NAME", help="with --weights that do not say it: mamba_bcd, mamba_scd or mamba_bda")
    add("--encoder", metavar="NAME", help="with --weights: the encoder, where it is none of ChangeMamba's own")
    add("--mean", type=_values, metavar="X,X,...", help="with --weights: each band's value that becomes 0")
    add("--std", type=_values, metavar="X,X,...", help="with --weights: what one unit of each band's input is")
    add("--align", action="store_true", help="warp the second raster to the first one's grid (bilinear)")
    add_raster_options(parser)
    return parser


def _require_one_source(options: argparse.Namespace) -> None:
    if (options.run is None) == (options.weights is None):
        raise ConfigError("a net is needed: --run FOLDER of `change train`, or --weights FILE; one of the two.")
    of_weights = {"--model": options.model, "--encoder": options.encoder, "--mean": options.mean, "--std": options.std}
    given = [name for name, value in of_weights.items() if value is not None]
    if options.run is not None and given:
        raise ConfigError(f"{' and '.join(given)} with --run: the run knows that itself. Leave it out.")
    if (options.mean is None) != (options.std is None):
        raise ConfigError("--mean and --std belong together: give both, one number for each band.")


def _of_run(options: argparse.Namespace) -> RasterModel:
    from statefield.tasks.remote_sensing.change_run import load_change_run
    from statefield.tasks.remote_sensing.raster_scaling import standardising

    run = load_change_run(options.run)

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


def _of_weights(options: argparse.Namespace) -> RasterModel:
    """A net of a file, with the scaling of its authors unless another is given."""
    from statefield.tasks.remote_sensing.change_kinds import ShiftedLogits, change_kind
    from statefield.tasks.remote_sensing.change_recipe import TASK_OF_NET
    from statefield.tasks.remote_sensing.nets.checkpoints import load_change_net
    from statefield.tasks.remote_sensing.raster_sources import BandScaling

    arguments = {} if options.encoder is None else {"encoder": options.encoder}
    name, net, report = load_change_net(options.weights, options.model, **arguments)
    print(f"{options.weights}: {len(report.loaded)} entries loaded into {name}, all that it has")
    channels = tuple(f"band {number}" for number in range(1, net.in_channels + 1))
    kind = change_kind(TASK_OF_NET[name], _info(name, net, channels), {})

    def scaling(sources: Sequence[Source], _: Progress) -> list[BandScaling]:
        if options.mean is None:
            for source in sources:
                _require_pictures(source)
        mean, std = options.mean or _IMAGENET_MEAN, options.std or _IMAGENET_STD
        if len(mean) != len(channels) or len(std) != len(channels):
            raise ConfigError(f"--mean and --std: {len(channels)} numbers each are needed, one for each band.")
        return [BandScaling.standardised(mean, std)] * len(sources)

    return RasterModel(
        net=ShiftedLogits(net, kind.shifts(0.5)).eval(),
        about=f"{name} of {options.weights.name}",
        channels=channels,
        scaling=scaling,
        legends=_legends(kind.layers),
        tile=_WEIGHTS_TILE,
        within=kind.layers[0].name if len(kind.layers) > 1 else None,
        polygon_layer=1 if kind.name == "damage" else 0,
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
    from statefield.datasets.change.pairs import CLASSES
    from statefield.datasets.change.second import COLOURS
    from statefield.datasets.change.xbd import CLASSES as DAMAGE
    from statefield.datasets.sample import ChangeInfo

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
    from statefield.datasets.change.second import COLOURS
    from statefield.tasks.remote_sensing.raster_output import Legend
    from statefield.tasks.remote_sensing.raster_predict import CHANGE_LEGEND, legend_of

    known = {"change": CHANGE_LEGEND.colours, "building": _COLOURS_OF_BUILDINGS, "damage": _COLOURS_OF_DAMAGE}
    found = []
    for name, classes in layers:
        colours = tuple(COLOURS.values()) if classes == tuple(COLOURS) else known.get(name, ())
        same = len(colours) == len(classes)
        found.append(Legend(tuple(classes), colours) if same else legend_of(classes))
    return tuple(found)


def _values(text: str) -> tuple[float, ...]:
    """`(0.5, 1.0)` from "0.5,1"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas between them are needed") from None
