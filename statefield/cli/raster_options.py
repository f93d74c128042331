"""What `change predict` and `segment predict` share: the options of rasters, the way to the engine, the last paragraph.

Imports torch lazily, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.cli.devices import device_of
from statefield.errors import ConfigError, DataError, StatefieldError

if TYPE_CHECKING:
    from statefield.tasks.remote_sensing.raster_model import RasterModel
    from statefield.tasks.remote_sensing.raster_predict import RasterPrediction

Progress = Callable[[int, int], None]


def add_raster_options(parser: argparse.ArgumentParser) -> None:
    """All options but the images, the net, and what is particular to one command."""
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="OUT.tif", help="the label map to write")
    add("--probabilities", type=Path, metavar="P.tif", help="write a raster of class probabilities too (float32)")
    add(
        "--polygons",
        type=Path,
        metavar="FILE",
        help="write the regions of all classes but 0 too: .gpkg in the raster's own system, .geojson in degrees",
    )
    add_window_options(parser)
    add("--resume", action="store_true", help="go on after a run that was killed, to the same file")
    add("--overwrite", action="store_true", help="replace outputs that exist")


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """How rasters are read and go through a net: the same for one and for an archive of them."""
    add = parser.add_argument
    add(
        "--bands",
        type=_numbers,
        metavar="N,N,...",
        help="the bands to use, from 1, in the net's order (default: the run's own, or all)",
    )
    add("--tile", type=int, help="side of a window in pixels (default: what the net was trained on)")
    add("--overlap", type=float, help="share of a window that its neighbour covers too, 0 to below 1")
    add("--margin", type=int, default=0, help="pixels along a window's inner sides that are not used (default: 0)")
    add("--batch-size", type=int, help="windows per forward pass")
    add("--tta", action="store_true", help="average over mirrored copies: a little better, 4 x slower")
    add(
        "--nodata", type=int, help="the output's value of pixels without data (default: the input's if it fits, or 255)"
    )
    add(
        "--driver",
        default="GTiff",
        help="of GDAL, the only one tried (default: GTiff, COGs too); a VRT, so named, reads whatever it points to",
    )
    add("--allow-remote", action="store_true", help="open URLs and GDAL's /vsi paths")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    add("--threads", type=int, help="CPU threads (default: all cores)")


def window_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_window_options` gave, as arguments of `predict_with`; device and threads are the caller's."""
    return {
        "tile": options.tile,
        "overlap": options.overlap,
        "margin": options.margin,
        "batch_size": options.batch_size,
        "mirror": options.tta,
        "bands": options.bands,
        "nodata": options.nodata,
        "driver": options.driver,
        "allow_remote": options.allow_remote,
    }


def prepare(options: argparse.Namespace) -> bool:
    """Check what can be checked before a net is loaded, and set the threads; False where there is nothing to do."""
    import torch

    from statefield.tasks.remote_sensing.raster_output import finished_folder, unfinished_folder

    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads {options.threads}: at least 1 is needed.")
        torch.set_num_threads(options.threads)
    unfinished = unfinished_folder(options.output)
    targets = [path for path in (options.output, options.probabilities, options.polygons) if path is not None]
    there = [path for path in targets if path.exists()]
    if not there or options.overwrite or (options.resume and unfinished.exists()):
        return True
    if options.resume and options.output in there:
        shutil.rmtree(finished_folder(unfinished), ignore_errors=True)  # of a run that was killed when all was written
        print(
            f"{options.output} exists and no part of a run is left beside it: kept as it is (--overwrite begins anew)."
        )
        return False
    raise ConfigError(f"{', '.join(map(str, there))} exists: name another output, or pass --overwrite to replace it.")


def run_prediction(
    options: argparse.Namespace, images: Sequence[str], model: RasterModel, *, align: bool = False
) -> int:
    """Predict `images` as the options say; prints one paragraph on what was written and returns the exit status.

    Raises: those of `predict_raster`; DataError where the disk refuses.
    """
    from rasterio.errors import RasterioError

    try:
        found = _predicted(options, images, model, align)
    except StatefieldError:
        raise
    except (OSError, RasterioError) as error:
        place = getattr(error, "filename", None) or options.output
        raise DataError(
            f"{place}: could not be read or written ({getattr(error, 'strerror', None) or error}). What was finished "
            "is kept: when that is mended, the same command with --resume goes on from there."
        ) from error
    print(
        textwrap.fill(
            _paragraph(options, images, model, found), width=110, break_long_words=False, break_on_hyphens=False
        )
    )
    return 0


def _predicted(options: argparse.Namespace, images: Sequence[str], model: RasterModel, align: bool) -> RasterPrediction:
    from statefield.tasks.remote_sensing.raster_model import predict_with

    of_measuring = ExitStack()
    measuring = of_measuring.enter_context(tile_bar("measuring", "rows"))
    with of_measuring, tile_bar("", "tiles") as tiles:

        def progress(done: int, total: int) -> None:
            of_measuring.close()  # the first bar ends before the second begins
            tiles(done, total)

        return predict_with(
            model,
            images,
            options.output,
            device=device_of(options.device),
            probabilities=options.probabilities,
            polygons=options.polygons,
            resume=options.resume,
            align=align,
            measuring=measuring,
            progress=progress,
            **window_settings(options),
        )


@contextmanager
def tile_bar(what: str, unit: str) -> Iterator[Progress]:
    """A bar that counts tiles (or rows); without a terminal a line for each tenth."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    bar = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
    bar.live.transient = True
    tasks: list[Any] = []
    tenths = 0

    def show(done: int, total: int) -> None:
        nonlocal tenths
        if not console.is_terminal:
            if done * 10 // max(total, 1) > tenths:
                tenths = done * 10 // max(total, 1)
                console.print(f"{what} {done} of {total} {unit}".strip(), highlight=False)
            return
        if not tasks:
            bar.start()
            tasks.append(bar.add_task(what, total=total))
        bar.update(tasks[0], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()


def _paragraph(options: argparse.Namespace, images: Sequence[str], model: RasterModel, found: RasterPrediction) -> str:
    parts = [f"Wrote {found.output}, {found.height} x {found.width} pixels on the grid of {images[0]}:"]
    told = []
    for (layer, _), legend, counts in zip(found.layers, model.legends, found.counts, strict=True):
        total = max(sum(counts), 1)
        shares = (f"{name} {100 * count / total:.4g} %" for name, count in zip(legend.names, counts, strict=True))
        told.append((f"{layer}: " if len(found.layers) > 1 else "") + ", ".join(shares))
    parts.append("; ".join(told) + " of the pixels with data")
    parts[-1] += f" (nodata {found.nodata})." if found.nodata is not None else "."
    parts.append(f"{found.num_tiles} tiles went through {model.about}")
    more = [f"{found.num_skipped} without data were skipped"] if found.num_skipped else []
    more += [f"{found.num_resumed} strips were there from the run before"] if found.num_resumed else []
    parts[-1] += "".join(f", {one}" for one in more) + "."
    if options.probabilities is not None:
        parts.append(f"Probabilities: {options.probabilities}.")
    if found.num_polygons is not None:
        parts.append(f"Polygons: {found.num_polygons} in {options.polygons}.")
    return " ".join(parts)


def _numbers(text: str) -> tuple[int, ...]:
    """`(3, 2, 1)` from "3,2,1"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers with commas between them are needed") from None
