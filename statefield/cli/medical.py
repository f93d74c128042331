"""`statefield medical train` and `statefield medical test`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from statefield.cli.run_output import (
    HelpFormatter,
    add_run_flags,
    console_of_errors,
    parser_of_test,
    run_test,
    run_training,
)
from statefield.errors import ConfigError
from statefield.tasks.medical.recipe import SegmentationRecipe, given_settings, parse, recipe_from, recipe_parser

if TYPE_CHECKING:
    from lightning.pytorch import Callback

PLAN_FILE, FINGERPRINT_FILE = "plan.yaml", "fingerprint.json"  # in the run folder

_TRAIN_EPILOG = """
examples:
  statefield medical train --config recipes/medical/demo.yaml
  statefield medical train --config recipes/medical/demo.yaml --model.lr 5e-4 --run runs/slower
  statefield medical train --data.root data/Task09_Spleen --run runs/spleen  planned from the data
  statefield medical train --data.root data/Task09_Spleen --run runs/spleen --resume   go on after an interruption
  statefield medical train --data.root data/Task09_Spleen --plan false --model.lr 1e-4  defaults, not planned
  statefield medical train --config recipe.yaml --trainer.fast_dev_run true  two steps, every file written
"""
_TEST_EPILOG = """
examples:
  statefield medical test --run runs/demo
  statefield medical test --run runs/spleen --split val --output /tmp/spleen_val
  statefield medical test --run runs/spleen --data /data/another_spleen_set
"""


def train(argv: list[str]) -> int:
    """Train by a recipe, test on the held-out cases, write the report."""
    parser = recipe_parser(
        prog="statefield medical train",
        usage="statefield medical train [-c RECIPE.yaml] [--SETTING VALUE ...] [--resume | --overwrite]",
        description="Train a segmentation, then test it on the held-out cases and write a report. Without --config, "
        "the settings that are not given follow from the dataset, as with `statefield medical plan`.",
        epilog=_TRAIN_EPILOG,
        formatter_class=HelpFormatter,
    )
    add_run_flags(parser)
    planning = "without --config: settings that are not given follow from the dataset (false: they have their defaults)"
    parser.add_argument("--plan", type=bool, default=True, help=planning)
    settings = parse(parser, argv)
    recipe, keep = _recipe(parser, settings, argv, console_of_errors())

    from statefield.tasks.medical import run

    then = f"statefield medical predict --run {recipe.run} IMAGE --output LABELS"
    return run_training(run.train, recipe, settings, parts="slices", then=then, callbacks=keep)


def test(argv: list[str]) -> int:
    """Score a trained run on one split."""
    options = parser_of_test(
        "medical",
        description="Score a trained model on a split of its dataset, or of another one with the same classes.",
        epilog=_TEST_EPILOG,
        cases="cases",
        same="the classes",
    ).parse_args(argv)

    from statefield.tasks.medical import run

    return run_test(run.test, options, parts="slices")


def _recipe(
    parser: ArgumentParser, settings: Namespace, argv: list[str], console: Any
) -> tuple[SegmentationRecipe, list[Callback]]:
    """The recipe that the command line says; on a bare dataset folder, what it leaves open is planned.

    A run that is resumed takes its settings from its folder. Returns with the recipe what keeps the plan.
    """
    recipe = recipe_from(parser, settings)
    if settings.config is not None or not settings.plan or recipe.data.root is None:
        return recipe, []
    given = given_settings(parser, argv)

    from statefield.cli.medical_plan import budget_of, lines_of, plan_dataset, reading_bar
    from statefield.tasks.common.run_folder import RunFolder

    run = recipe.run if "run" in given else Path("runs") / recipe.data.root.resolve().name
    if settings.resume:
        stored = RunFolder(run).config  # there as soon as the folder is, while the plan comes with the first step
        if not stored.is_file():
            return recipe, []
        console.print(f"settings that are not given are those of {stored}", highlight=False, markup=False)
        recipe = recipe_from(parser, parse(parser, ["--config", str(stored), *argv]))
        return dataclasses.replace(recipe, run=run), []
    if recipe.fold is not None or (recipe.trainer.devices, recipe.trainer.num_nodes) != (1, 1):
        raise ConfigError(
            "several processes share this training, and each would plan for itself: write one recipe for all with "
            f"`statefield medical plan {recipe.data.root} --output recipe.yaml` and train with --config recipe.yaml, "
            "or give --plan false for the defaults."
        )
    RunFolder(run).require_free(overwrite=settings.overwrite)
    budget = budget_of(recipe.trainer.accelerator, None)
    with reading_bar() as progress:
        found, planned = plan_dataset(recipe.data.root, given, budget, progress=progress)
    console.print("\n".join(lines_of(planned)), highlight=False, markup=False, soft_wrap=True)

    from statefield.cli.plan_keeper import PlanKeeper

    return planned.recipe, [PlanKeeper({run / PLAN_FILE: planned.text(), run / FINGERPRINT_FILE: found.text()})]
