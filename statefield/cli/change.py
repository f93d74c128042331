"""`statefield change train` and `statefield change test`."""

from __future__ import annotations

from statefield.cli.run_output import HelpFormatter, add_run_flags, parser_of_test, run_test, run_training
from statefield.tasks.common.recipes import parse, recipe_from, recipe_parser
from statefield.tasks.remote_sensing.change_recipe import ChangeRecipe

_TRAIN_EPILOG = """
examples:
  statefield change train --config recipes/remote_sensing/oscd.yaml
  statefield change train --config recipes/remote_sensing/oscd.yaml --model.lr 5e-4 --run runs/slower
  statefield change train --config recipes/remote_sensing/oscd.yaml --resume    go on after an interruption
  statefield change train --data.root data/SECOND --model.net mamba_scd --run runs/second
  statefield change train --data.root data/xBD --model.net mamba_bda --run runs/xbd
  statefield change train --config recipe.yaml --trainer.fast_dev_run true  two steps, every file written
"""
_TEST_EPILOG = """
examples:
  statefield change test --run runs/oscd
  statefield change test --run runs/oscd --split val --output /tmp/oscd_val
  statefield change test --run runs/levir --data /data/LEVIR-CD+
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, test on the held-out pairs, write the report."""
    parser = recipe_parser(
        ChangeRecipe,
        prog="statefield change train",
        usage="statefield change train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train change detection (what changed, from which class to which, or damage of buildings), then "
        "test it on the held-out pairs and write maps and a report.",
        epilog=_TRAIN_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    settings = parse(parser, argv)
    recipe = recipe_from(ChangeRecipe, parser, settings)

    from statefield.tasks.remote_sensing import change_training

    then = f"statefield change predict --run {recipe.run} BEFORE.tif AFTER.tif -o CHANGE.tif"
    return run_training(change_training.train, recipe, settings, parts="windows", then=then)


def test(argv: list[str]) -> int:
    """Score a trained run on one split."""
    options = parser_of_test(
        "change",
        description="Score a trained net on a split of its dataset, or of another one with the same classes and bands.",
        epilog=_TEST_EPILOG,
        cases="pairs",
        same="classes and bands",
    ).parse_args(argv)

    from statefield.tasks.remote_sensing import change_training

    return run_test(change_training.test, options, parts="windows")
