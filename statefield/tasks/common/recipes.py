"""Recipes of every field: frozen dataclasses of settings, read from YAML and the command line, and written as YAML.

    parser = recipe_parser(SegmentationRecipe)
    recipe = recipe_from(SegmentationRecipe, parser, parse(parser, ["--config", "drive.yaml", "--model.lr", "1e-3"]))

Imports no torch, so that the `--help` of a `train` command answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from statefield.errors import ConfigError
from statefield.files import read_text

_MOST_VALUES = 20_000

R = TypeVar("R")  # a field's recipe, a frozen dataclass of dataclasses


def recipe_parser(kind: type, **kwargs: Any) -> ArgumentParser:
    """A parser whose options are the fields of the recipe class `kind` (`--model.lr`), with `-c/--config recipe.yaml`.

    Further arguments are those of `argparse.ArgumentParser`.
    """
    parser = ArgumentParser(exit_on_error=False, **kwargs)
    parser.add_argument("-c", "--config", action="config", help="a recipe (YAML); later options override it")
    parser.add_class_arguments(kind)
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str], *, defaults: bool = True) -> Namespace:
    """`parser` on `argv`, its objections as `ConfigError`; without `defaults`, what `argv` says and nothing else."""
    for path in _recipe_files(argv):
        read_settings(path)
    try:
        return parser.parse_args(list(argv), defaults=defaults)
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"{error}{_nearest(parser, str(error))} (--help lists the settings)") from error


def recipe_from(kind: type[R], parser: ArgumentParser, settings: Namespace) -> R:
    """The recipe among parsed settings; what belongs to the command line alone is left aside."""
    _require_groups(kind, settings)
    built = parser.instantiate(settings)
    return kind(**{name: built[name] for name in _fields(kind)})


def given_settings(kind: type, parser: ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The recipe's settings that `argv` says, by dotted names; a recipe file that it names is left aside."""
    said = parse(parser, argv, defaults=False)
    return {name: value for name, value in said.items() if name.split(".")[0] in _fields(kind)}


def read_recipe(kind: type[R], path: Path) -> R:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    parser = recipe_parser(kind)
    return recipe_from(kind, parser, parse(parser, ["--config", str(path)]))


def recipe_text(recipe: Any) -> str:
    """The recipe as YAML, every setting written out; `read_recipe` of it gives the recipe back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


def difference(stored: Any, given: Any) -> list[str]:
    """The settings in which two recipes differ, dotted, the run folder's own path aside."""
    left, right = _dotted(_plain(dataclasses.asdict(stored))), _dotted(_plain(dataclasses.asdict(given)))
    return sorted(name for name in {*left, *right} - {"run"} if left.get(name) != right.get(name))


def _recipe_files(argv: Sequence[str]) -> list[Path]:
    """The recipe files that the words name; what is no file is left to the parser to tell."""
    named = [following for word, following in itertools.pairwise(argv) if word in ("-c", "--config")]
    named += [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    return [path for name in named if (path := Path(name)).is_file()]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings by name in a YAML file, none of an empty one, before a parser looks at what they are.

    The parser itself would not name the file, nor end where aliases of aliases make billions of values.

    Raises: DataError for what is no text; ConfigError for what is no YAML, or other things than settings by name.
    """
    text = read_text(path)
    try:
        loader = yaml.SafeLoader(text)  # judges the characters
        node = loader.get_single_node()
        if _num_values(node, {}) > _MOST_VALUES:
            raise ConfigError(f"{path}: more than {_MOST_VALUES:,} values, counting aliases: this is no recipe.")
        content = loader.construct_document(node) if node is not None else {}
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        found = "other names than text" if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path}: settings, name: value, are needed; {found} found.")
    return content


def _num_values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values below a node, those behind an alias each time; a node within itself counts as more than any recipe has."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # until it is counted
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        nodes = [each for pair in below for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_num_values(each, known) for each in nodes)
    return known[id(node)]


def _require_groups(kind: Any, settings: Any, prefix: str = "") -> None:
    """Raise `ConfigError` where a group of settings (`trainer`) was given as a single value."""
    for field in dataclasses.fields(kind):
        group, value = field.default_factory, settings.get(field.name)
        if not (isinstance(group, type) and dataclasses.is_dataclass(group)) or value is None:
            continue
        if not isinstance(value, (Namespace, Mapping)):
            names = [each.name for each in dataclasses.fields(group)]
            raise ConfigError(
                f"{prefix}{field.name}: {str(value)[:40]!r} given; it is a group: {', '.join(names[:4])}, ..."
            )
        _require_groups(group, value, f"{prefix}{field.name}.")


def _fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _nearest(parser: ArgumentParser, message: str) -> str:
    """ " Did you mean ...?" when `message` speaks of a setting that nearly exists."""
    flag = re.search(r"unrecognized arguments: --([\w.]+)", message)
    key = re.search(r"Group '([\w.]+)' does not accept option '(\w+)'", message)
    if flag is None and key is None:
        return ""
    unknown = flag.group(1) if flag else ".".join(key.groups()) if key else ""
    known = [name for action in parser._actions for flag in action.option_strings if (name := flag.removeprefix("--"))]
    near = difflib.get_close_matches(unknown, known, n=2, cutoff=0.6)
    return f". Did you mean {' or '.join(near)}?" if near else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
