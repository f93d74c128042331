"""`statefield video train`: learn a detector of objects in videos (MAMBA), beside a control."""

from __future__ import annotations

from statefield.cli.run_output import HelpFormatter, add_run_flags, run_training
from statefield.tasks.common.recipes import parse, recipe_from, recipe_parser
from statefield.tasks.tracking.video_detection.recipe import VideoRecipe

_EPILOG = """
examples:
  statefield video train --config recipes/tracking/mamba_vod_imagenet_vid.yaml --data.images ILSVRC2015/Data/VID
  statefield video train --config recipe.yaml --data.train videos.json --data.images frames/ --data.val_videos '[v1]'
  statefield video train --config recipe.yaml --data.train MOT17/train --data.val_videos '[MOT17-09-FRCNN]'
  statefield video train --config recipe.yaml --model.memory null       each frame by itself
  statefield video train --config recipe.yaml --control.encoder convnext_atto --control.without_memory false
  statefield video train --config recipe.yaml --resume                  go on after an interruption
  statefield video train --config recipe.yaml --trainer.fast_dev_run true    two steps, every file written
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, test on the held-out videos, write the report."""
    parser = recipe_parser(
        VideoRecipe,
        prog="statefield video train",
        usage="statefield video train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train MAMBA, a two-stage detector with a memory of the frames before, over any encoder, on "
        "CocoVID, COCO, MOTChallenge or ImageNet-VID annotations; then score it on held-out videos, with its control.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    settings = parse(parser, argv)
    recipe = recipe_from(VideoRecipe, parser, settings)

    from statefield.tasks.tracking.video_detection import training

    then = f"statefield video detect VIDEO_OR_FRAMES --run {recipe.run} --output detections.json"
    return run_training(training.train, recipe, settings, parts="frames", then=then)
