"""`statefield segment predict`: one raster of any size in, its label map out, with the model of a segmentation run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from statefield.cli.raster_options import add_raster_options, prepare, run_prediction
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statefield.cli.raster_options import Progress
    from statefield.tasks.medical.experiment import TrainedRun
    from statefield.tasks.remote_sensing.raster_model import RasterModel
    from statefield.tasks.remote_sensing.raster_sources import BandScaling, Source

_EPILOG = """
RUN is a run folder of `statefield medical train` on pictures: a net of images of one, three or any number of channels
learns what it is shown, whatever took the images. The raster needs as many bands, in the same order; --bands chooses
them. Runs of volumes are refused.

The bands are normalised as in training. With fixed numbers ("range", "ct") that is all; where each picture was
normalised by its own statistics ("zscore", percentiles), they are those of the whole raster here, each band by itself
over the pixels with data, and measured first: one more pass over the raster, or three where percentiles are clipped.

The output is a cloud-optimised GeoTIFF of uint8 with overviews, colours and class names, on the raster's own grid.
Memory does not grow with the raster. A run that was killed goes on with --resume, and ends with the same file.

examples:
  statefield segment predict image.tif --run runs/fields -o labels.tif
  statefield segment predict image.tif --run runs/fields -o labels.tif --bands 4,3,2 --polygons fields.gpkg
  statefield segment predict image.tif --run runs/fields -o labels.tif --probabilities p.tif --tta --resume
"""


def predict(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="statefield segment predict",
        description="Segment one raster of any size.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE.tif", help="the raster")
    parser.add_argument("--run", type=Path, required=True, help="the run folder of a segmentation of pictures")
    add_raster_options(parser)
    options = parser.parse_args(argv)
    if not prepare(options):
        return 0

    from statefield.tasks.medical.run import load_run

    return run_prediction(options, [options.image], _model(load_run(options.run)))


def _model(run: TrainedRun) -> RasterModel:
    from statefield.tasks.remote_sensing.raster_model import RasterModel
    from statefield.tasks.remote_sensing.raster_predict import legend_of
    from statefield.tasks.remote_sensing.raster_scaling import normalising

    roi = run.roi
    if run.info.spatial_dims != 2 or run.slice_context or (roi is not None and len(roi) != 2):
        raise ConfigError(
            f"{run.folder.root} was trained on volumes, and a raster is a picture. Give the run of a segmentation of "
            "pictures, or predict volumes with `statefield medical predict`."
        )

    def scaling(sources: Sequence[Source], progress: Progress) -> list[BandScaling]:
        return [normalising(source, run.normalisation, progress) for source in sources]

    return RasterModel(
        net=run.net,
        about=f"{run.recipe.model.name} of {run.folder.root}",
        channels=run.channels,
        scaling=scaling,
        legends=(legend_of(run.classes),),
        tile=256 if roi is None else max(roi),
        overlap=run.inference.overlap,
        batch_size=run.inference.batch_size,
        mirror=run.inference.mirror,
    )
