"""`statefield change train` and `statefield change test`."""

from __future__ import annotations

import argparse
from pathlib import Path

from statefield.cli.run_output import (
    HelpFormatter,
    add_run_flags,
    case_bar,
    console_of_errors,
    print_result,
    set_threads,
)
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

    from statefield.cli.training_progress import TrainingBar
    from statefield.tasks.remote_sensing import change_training

    console = console_of_errors()
    with case_bar(console, "windows") as progress:
        result = change_training.train(
            recipe,
            resume=settings.resume,
            overwrite=settings.overwrite,
            callbacks=[TrainingBar(console)],
            announce=lambda line: console.print(line, highlight=False, markup=False),
            progress=progress,
        )
    if result is None:  # one of several processes: the first one speaks
        return 0
    print_result(result)
    print(f"\nto go on:\n  statefield change predict --run {recipe.run} BEFORE.tif AFTER.tif -o CHANGE.tif")
    return 0


def test(argv: list[str]) -> int:
    """Score a trained run on one split."""
    parser = argparse.ArgumentParser(
        prog="statefield change test",
        description="Score a trained net on a split of its dataset, or of another one with the same classes and bands.",
        epilog=_TEST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="the run folder of `statefield change train`")
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="which pairs (default: test)")
    parser.add_argument("--data", type=Path, help="another dataset's folder; classes and bands must be the same")
    parser.add_argument("--output", type=Path, help="where results go (default: RUN/test_SPLIT)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    options = parser.parse_args(argv)

    from statefield.tasks.remote_sensing import change_training

    set_threads(options.threads)
    console = console_of_errors()
    with case_bar(console, "windows") as progress:
        result = change_training.test(
            options.run,
            split=options.split,
            root=options.data,
            output=options.output,
            announce=lambda line: console.print(line, highlight=False, markup=False),
            progress=progress,
        )
    print_result(result)
    return 0
