"""`statefield sot train`: learn to follow one object through pictures or events (MambaEVT)."""

from __future__ import annotations

from statefield.cli.run_output import HelpFormatter, add_run_flags, run_training
from statefield.tasks.common.recipes import parse, recipe_from, recipe_parser
from statefield.tasks.tracking.single_object.recipe import SotRecipe

_EPILOG = """
What is learned from: a benchmark's folder as published (LaSOT, OTB, GOT-10k, TrackingNet, EventVOT, VisEvent, FE108,
COESOT, VOT), one sequence, a video with its boxes, recordings of events, or PEDRo's samples.

examples:
  statefield sot train --config recipes/tracking/mambaevt.yaml --data.root EventVOT/train \\
      --data.val_root EventVOT/val --data.test_root EventVOT/test
  statefield sot train --config recipes/tracking/mambaevt.yaml --resume       go on with a run that was stopped
  statefield sot train --config recipes/tracking/mambaevt_pedro.yaml --data.root PEDRo
  statefield sot train --config recipes/tracking/mambaevt_video.yaml --data.root bag.avi --data.truth VOT2018.json
  statefield sot train --config recipe.yaml --trainer.fast_dev_run true       two steps, every file written
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, then follow the test sequences."""
    parser = recipe_parser(
        SotRecipe,
        prog="statefield sot train",
        usage="statefield sot train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train MambaEVT, a tracker of one object with a memory of what it looked like, on pictures or on "
        "events; the best epoch is the one whose tracker follows the validation sequences best.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    settings = parse(parser, argv)
    recipe = recipe_from(SotRecipe, parser, settings)

    from statefield.tasks.tracking.single_object import training

    then = f"statefield sot track SEQUENCES --run {recipe.run} --output results/"
    return run_training(training.train, recipe, settings, parts="frames", then=then)
