"""What a training or a test ends with, in every field: a run folder, scores side by side, and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.files import write_json, write_text
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.recipes import recipe_text
from statefield.tasks.common.report import ComparisonRow
from statefield.tasks.common.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class TestResult:
    """What a run ends with.

    summary: the field's scores of the model. comparison: the model, its controls and baselines, columns shared.
    """

    __test__ = False  # for pytest: this is no test class

    folder: RunFolder
    summary: Mapping[str, Any]
    comparison: Sequence[ComparisonRow]
    report: Path


def write_metrics(
    folder: RunFolder,
    recipe: Any,
    *,
    model: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    comparison: Sequence[ComparisonRow],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write metrics.json: the model's scores, those of the controls, their comparison, the seed and the environment.

    A folder of a test alone gets the recipe as its config.yaml, too: it says with which settings.

    Args: recipe: of the run, with a `seed`. extra: further entries.
    """
    write_json(
        folder.metrics,
        {
            "model": model,
            "controls": list(controls),
            "comparison": [{"name": row.name, "role": row.role, **row.values} for row in comparison],
            **(extra or {}),
            "seed": recipe.seed,
            "environment": describe_environment(),
        },
    )
    if not folder.config.exists():
        write_text(folder.config, recipe_text(recipe))
