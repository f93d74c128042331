"""`statefield change predict-archive`: a list of pairs in, a map of what changed for each, on one machine or many."""

from __future__ import annotations

import argparse
from pathlib import Path

from statefield.cli.change_predict import add_model_options, require_one_source
from statefield.cli.raster_options import add_window_options, window_settings
from statefield.cli.run_output import set_threads
from statefield.cli.worker_options import WORKERS, add_worker_options, pool_of, run_jobs

_EPILOG = f"""
pairs.csv has the columns name, before and after, and a row for each pair; paths begin at its folder. Each pair becomes
OUT/NAME.tif, as `statefield change predict` writes it, with --polygons OUT/NAME.gpkg too. A pair that cannot be
predicted fails alone.
{WORKERS}
examples:
  statefield change predict-archive pairs.csv --run runs/oscd -o maps/
  statefield change predict-archive pairs.csv --run runs/oscd -o maps/ --workers 8 --polygons
  statefield change predict-archive pairs.csv --run runs/oscd -o maps/ --workers 2 --gpus-per-worker 1
  statefield change predict-archive pairs.csv --weights bcd.safetensors -o maps/ --address 10.0.0.5:6379
"""


def predict_archive(argv: list[str]) -> int:
    """Run the command; 0 when every pair has its map, 2 when any failed."""
    options = _parser().parse_args(argv)
    require_one_source(options)
    pool = pool_of(options)

    from statefield.tasks.remote_sensing.change_archive import ChangeMaps, pair_jobs, read_pairs

    set_threads(options.threads)
    pairs = read_pairs(options.pairs, allow_remote=options.allow_remote)
    jobs = pair_jobs(pairs, options.output, probabilities=options.probabilities, polygons=options.polygons)
    work = ChangeMaps(
        run=_absolute(options.run),
        weights=_absolute(options.weights),
        model=options.model,
        encoder=options.encoder,
        mean=options.mean,
        std=options.std,
        options={**window_settings(options), "align": options.align},
    )
    work.load()  # what is wrong with it is said here, and not by every worker
    return run_jobs(options, work, jobs, options.output, pool, "pairs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield change predict-archive",
        description="Map what changed between the two rasters of each pair of a list.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("pairs", type=Path, metavar="PAIRS.csv", help="the columns name, before, after")
    add_model_options(parser)
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder of the maps, and of their ledger")
    add("--probabilities", action="store_true", help="write NAME_probabilities.tif too (float32)")
    add("--polygons", action="store_true", help="write the regions of all classes but 0 too, as NAME.gpkg")
    add("--overwrite", action="store_true", help="forget what was done, and replace maps that exist")
    add_window_options(parser)
    add_worker_options(parser)
    return parser


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
