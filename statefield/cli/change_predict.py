"""`statefield change predict`: two rasters in, a map of what changed out, on the first one's grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from statefield.cli.raster_options import add_raster_options, prepare, run_prediction
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.remote_sensing.raster_model import RasterModel

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


def predict(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    require_one_source(options)
    if not prepare(options):
        return 0
    return run_prediction(options, [options.before, options.after], _model(options), align=options.align)


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
    add_model_options(parser)
    add_raster_options(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The net, and what becomes of a second raster on another grid."""
    add = parser.add_argument
    add("--run", type=Path, help="the run folder of `statefield change train`")
    add("--weights", type=Path, metavar="FILE", help="or a file of a whole net: .safetensors, or the authors' .pth")
    add("--model", metavar="NAME", help="with --weights that do not say it: mamba_bcd, mamba_scd or mamba_bda")
    add("--encoder", metavar="NAME", help="with --weights: the encoder, where it is none of ChangeMamba's own")
    add("--mean", type=_values, metavar="X,X,...", help="with --weights: each band's value that becomes 0")
    add("--std", type=_values, metavar="X,X,...", help="with --weights: what one unit of each band's input is")
    add("--align", action="store_true", help="warp the second raster to the first one's grid (bilinear)")


def require_one_source(options: argparse.Namespace) -> None:
    """Raise `ConfigError` unless a run or weights are given, and only what goes with them."""
    if (options.run is None) == (options.weights is None):
        raise ConfigError("a net is needed: --run FOLDER of `change train`, or --weights FILE; one of the two.")
    of_weights = {"--model": options.model, "--encoder": options.encoder, "--mean": options.mean, "--std": options.std}
    given = [name for name, value in of_weights.items() if value is not None]
    if options.run is not None and given:
        raise ConfigError(f"{' and '.join(given)} with --run: the run knows that itself. Leave it out.")
    if (options.mean is None) != (options.std is None):
        raise ConfigError("--mean and --std belong together: give both, one number for each band.")


def _model(options: argparse.Namespace) -> RasterModel:
    from statefield.tasks.remote_sensing.raster_model import change_model_of_run, change_model_of_weights

    if options.run is not None:
        return change_model_of_run(options.run)
    model, loaded = change_model_of_weights(
        options.weights, options.model, encoder=options.encoder, mean=options.mean, std=options.std
    )
    print(loaded)
    return model


def _values(text: str) -> tuple[float, ...]:
    """`(0.5, 1.0)` from "0.5,1"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers with commas between them are needed") from None
