"""Settings with their reasons, and the recipe that they make: YAML in which each reason stands over its setting."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace

from statefield.errors import ConfigError
from statefield.tasks.medical.recipe import SegmentationRecipe, recipe_from, recipe_parser


@dataclass(frozen=True)
class Decision:
    """One thing decided: a setting by its dotted name (or, without `is_setting`, what settings follow from).

    given: it was given, and not decided here.
    """

    name: str
    value: Any
    reason: str
    given: bool = False
    is_setting: bool = True


def recipe_of(text: str) -> SegmentationRecipe:
    """The recipe that a YAML text holds; `ConfigError` when it holds none."""
    parser = recipe_parser()
    try:
        return recipe_from(parser, parser.parse_string(text))
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"the given settings cannot work: {error}") from error


def recipe_text(decisions: Sequence[Decision], title: str, notes: Sequence[str]) -> str:
    """The decided settings as YAML, the later of two decisions on one setting alone."""
    lines = [f"# {title}.", "# Settings that are not here have their defaults: `statefield medical train --help`."]
    for decision in decisions:
        if not decision.is_setting:
            lines += _comment(f"{decision.name}: {decision.value} ({decision.reason})", "")
    for note in notes:
        lines += _comment(f"Note: {note}", "")
    tree: dict[str, Any] = {}
    for decision in decisions:
        if decision.is_setting:
            *groups, leaf = decision.name.split(".")
            place = tree
            for group in groups:
                place = place.setdefault(group, {})
            place[leaf] = decision
    return "\n".join(lines + _tree_lines(tree, "")) + "\n"


def _tree_lines(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for name, entry in tree.items():
        if isinstance(entry, Decision):
            lines += _comment(entry.reason, indent)
            lines.append(f"{indent}{name}: {flow(entry.value)}")
        else:
            lines += [f"{indent}{name}:", *_tree_lines(entry, indent + "  ")]
    return lines


def _comment(text: str, indent: str) -> list[str]:
    starts = f"{indent}# "
    return textwrap.wrap(text, width=110, initial_indent=starts, subsequent_indent=starts, break_on_hyphens=False)


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
