"""`statefield scene train`, `statefield scene test` and `statefield scene predict`."""

from __future__ import annotations

import argparse
from pathlib import Path

from statefield.cli.devices import device_of
from statefield.cli.run_output import (
    HelpFormatter,
    add_run_flags,
    case_bar,
    console_of_errors,
    parser_of_test,
    run_test,
    run_training,
    set_threads,
)
from statefield.tasks.common.recipes import parse, recipe_from, recipe_parser
from statefield.tasks.remote_sensing.scene_recipe import SceneRecipe

_TRAIN_EPILOG = """
examples:
  statefield scene train --config recipes/remote_sensing/ucmerced.yaml --data.root data/UCMerced_LandUse
  statefield scene train --config recipes/remote_sensing/aid.yaml --data.root data/AID --model.net_args.size huge
  statefield scene train --data.root data/my_classes --model.net null --model.encoder spatial_mamba_tiny
  statefield scene train --config recipe.yaml --resume                   go on after an interruption
  statefield scene train --config recipe.yaml --trainer.fast_dev_run true    two steps, every file written
"""
_TEST_EPILOG = """
examples:
  statefield scene test --run runs/ucmerced
  statefield scene test --run runs/ucmerced --split val --output /tmp/ucmerced_val
  statefield scene test --run runs/my_classes --data /data/another_year
"""
_PREDICT_EPILOG = """
examples:
  statefield scene predict --run runs/ucmerced tiles/ --output classes.csv
  statefield scene predict --run runs/ucmerced a.tif b.jpg --top 3 --output classes.json
  statefield scene predict --run runs/ucmerced tiles/ --on-bad skip --output classes.csv    broken images have a row too
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, test on the held-out scenes, write the report."""
    parser = recipe_parser(
        SceneRecipe,
        prog="statefield scene train",
        usage="statefield scene train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train a classifier of scenes, then test it on the held-out scenes and write a report.",
        epilog=_TRAIN_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    settings = parse(parser, argv)
    recipe = recipe_from(SceneRecipe, parser, settings)

    from statefield.tasks.remote_sensing import scene_run

    then = f"statefield scene predict --run {recipe.run} IMAGES --output classes.csv"
    return run_training(scene_run.train, recipe, settings, parts="scenes", then=then)


def test(argv: list[str]) -> int:
    """Score a trained run on one split."""
    options = parser_of_test(
        "scene",
        description="Score a trained classifier on a split of its dataset, or of another one with the same classes.",
        epilog=_TEST_EPILOG,
        cases="scenes",
        same="the classes",
    ).parse_args(argv)

    from statefield.tasks.remote_sensing import scene_run

    return run_test(scene_run.test, options, parts="scenes")


def predict(argv: list[str]) -> int:
    """Give classes to images."""
    parser = argparse.ArgumentParser(
        prog="statefield scene predict",
        description="Give each image the class of its scene, with the probability.",
        epilog=_PREDICT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="+", type=Path, help="images, or folders, which are searched with all below them"
    )
    parser.add_argument("--run", type=Path, required=True, help="the run folder of `statefield scene train`")
    parser.add_argument("--output", type=Path, required=True, help="the table to write, .csv or .json")
    parser.add_argument("--top", type=int, default=1, help="how many of the likeliest classes (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="images of one forward pass (default: that of training)")
    parser.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="of an image that cannot be read: stop with its name and write nothing (default), or give it a row that "
        "says why",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    options = parser.parse_args(argv)
    set_threads(options.threads)

    from statefield.tasks.remote_sensing import scene_predict
    from statefield.tasks.remote_sensing.scene_run import load_run

    device = device_of(options.device)
    scene_predict.require_output(options.output)
    files = scene_predict.images_of(options.images)
    run = load_run(options.run)
    run.task.net.to(device)
    with case_bar(console_of_errors(), "images") as progress:
        answers = scene_predict.predict(
            run, files, top=options.top, batch_size=options.batch_size, on_bad=options.on_bad, progress=progress
        )
    scene_predict.write_answers(options.output, answers)
    bad = sum(one.error is not None for one in answers)
    print(
        f"{len(answers) - bad} images classified"
        + (f", {bad} could not be read" if bad else "")
        + f": {options.output}"
    )
    return 0
