"""`statefield mot train`: learn the motion predictor of MambaTrack from the tracks of a ground truth."""

from __future__ import annotations

from statefield.cli.run_output import HelpFormatter, add_run_flags, run_training
from statefield.tasks.common.recipes import parse, recipe_from, recipe_parser
from statefield.tasks.tracking.motion.recipe import MotionRecipe

_EPILOG = """
examples:
  statefield mot train --config recipes/tracking/mtp_mot17.yaml --data.root MOT17/train
  statefield mot train --config recipes/tracking/mtp_mot17.yaml --data.root MOT17/train --resume    go on
  statefield mot train --data.root dancetrack/train --data.val '[dancetrack0001]' --data.test '[dancetrack0002]'
  statefield mot train --config recipe.yaml --trainer.fast_dev_run true    two steps, every file written
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, then compare with the Kalman filters on the test sequences."""
    parser = recipe_parser(
        MotionRecipe,
        prog="statefield mot train",
        usage="statefield mot train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train MTP, the motion predictor of MambaTrack, on the tracks of a ground truth in MOTChallenge's "
        "layout, split by sequence; then compare its predictions with those of the Kalman filters.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    settings = parse(parser, argv)
    recipe = recipe_from(MotionRecipe, parser, settings)

    from statefield.tasks.tracking.motion import training

    then = f"statefield mot track DETECTIONS --tracker mambatrack --weights {recipe.run} --output results/"
    return run_training(training.train, recipe, settings, parts=None, then=then)
