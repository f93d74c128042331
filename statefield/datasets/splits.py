"""Which case goes where, when a dataset has no official split: decided by the case's name and a seed, nothing else.

A case is ranked by the SHA-256 of `seed:group`, so the split is the same on every machine and in every Python, and
does not depend on the order in which a folder is listed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

from statefield.errors import ConfigError
from statefield.files import read_text

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabelled")
FRACTIONS = (0.7, 0.1, 0.2)  # train, val, test


def split_cases(
    cases: Sequence[str],
    *,
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
    group_of: Callable[[str], str] = str,
) -> dict[Split, list[str]]:
    """Divide `cases` into train, val and test, whole groups at a time; each list is sorted by name.

    Args:
        cases: distinct case names.
        fractions: shares of train, val and test; non-negative, summing to 1. A share above 0 gets at least one group
            while there are groups enough (train first, then test, then val).
        seed: another seed, another split.
        group_of: the patient (or scanner, or site) of a case; cases of one group are never in two splits.

    Raises:
        ConfigError: fractions that are negative or do not sum to 1, or a case named twice.

    >>> {name: len(part) for name, part in split_cases([f"case_{i}" for i in range(20)]).items()}
    {'train': 14, 'val': 2, 'test': 4}
    """
    _require_fractions(fractions)
    groups = _groups(cases, group_of)
    ranked = sorted(groups, key=lambda group: (_rank(group, seed), group))
    num_train, num_val, num_test = _counts(len(ranked), fractions)
    parts: dict[Split, list[str]] = {
        "train": ranked[:num_train],
        "val": ranked[num_train : num_train + num_val],
        "test": ranked[num_train + num_val : num_train + num_val + num_test],
    }
    return {name: sorted(case for group in part for case in groups[group]) for name, part in parts.items()}


def fold_cases(
    cases: Sequence[str], *, folds: int, seed: int = 0, group_of: Callable[[str], str] = str
) -> list[list[str]]:
    """Divide `cases` into `folds` parts for cross-validation, whole groups at a time; each part is sorted by name.

    Parts have equally many groups, or one more. Arguments and errors are those of `split_cases`; `ConfigError` too for
    fewer than two folds, and for fewer groups than folds.

    >>> [len(part) for part in fold_cases([f"case_{i}" for i in range(11)], folds=3)]
    [4, 4, 3]
    """
    groups = _groups(cases, group_of)
    if folds < 2 or folds > len(groups):
        raise ConfigError(
            f"folds = {folds} with {len(groups)} patients to divide: 2 folds or more, and a patient or more for each, "
            "are needed."
        )
    ranked = sorted(groups, key=lambda group: (_rank(group, seed), group))
    return [sorted(case for group in ranked[index::folds] for case in groups[group]) for index in range(folds)]


def split_off_val(
    cases: Sequence[str], *, val_fraction: float, seed: int = 0, group_of: Callable[[str], str] = str
) -> dict[Split, list[str]]:
    """`split_cases` for a dataset whose test cases are official: `cases` become train and val, whole groups at a time.

    Raises `ConfigError` for a `val_fraction` outside 0 to 1.

    >>> {name: len(part) for name, part in split_off_val([f"case_{i}" for i in range(20)], val_fraction=0.1).items()}
    {'train': 18, 'val': 2, 'test': 0}
    """
    if not 0 <= val_fraction <= 1:
        raise ConfigError(f"val_fraction = {val_fraction}: a share of the training cases from 0 to 1 is needed.")
    return split_cases(cases, fractions=(1 - val_fraction, val_fraction, 0.0), seed=seed, group_of=group_of)


def split_into_blocks(
    num_slices: int, *, fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> dict[Split, list[range]]:
    """Divide one stack into blocks of neighbouring slices, since neighbours are too alike to be in two splits.

    Train, val and test follow one another along the stack. `seed` moves them all on by `seed` times the length of
    test, around the end of the stack, where the block that meets it becomes two.

    >>> split_into_blocks(30)
    {'train': [range(0, 21)], 'val': [range(21, 24)], 'test': [range(24, 30)]}
    >>> split_into_blocks(30, seed=1)["train"]
    [range(6, 27)]
    """
    _require_fractions(fractions)
    counts = _counts(num_slices, fractions)
    start = seed * max(counts[2], 1)
    blocks: dict[Split, list[range]] = {}
    for name, count in zip(SPLITS, counts, strict=False):
        first = start % max(num_slices, 1)
        pieces = [range(first, min(first + count, num_slices)), range(max(first + count - num_slices, 0))]
        blocks[name] = sorted((piece for piece in pieces if piece), key=lambda piece: piece[0])
        start += count
    return blocks


def official_split(name: str) -> dict[str, Split]:
    """A published split that comes with the package: case or patient to split. The file's first lines say its source.

    >>> official_split("acdc_ssl4mis")["patient011"]
    'test'
    """
    path = Path(__file__).parent / "official_splits" / f"{name}.txt"
    lines = [line.split() for line in read_text(path).splitlines() if not line.startswith("#")]
    return {case: cast(Split, split) for split, case in lines}


def grouped_by(pattern: str) -> Callable[[str], str]:
    """A `group_of` that takes the first group of a regular expression found in the case's name; "" keeps cases single.

    Raises `ConfigError` for a pattern without a group, or (when called) for a case in which it is not found.

    >>> grouped_by(r"(patient\\d+)")("patient003_frame15")
    'patient003'
    """
    if not pattern:
        return str
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"group_pattern {pattern!r} is no regular expression: {error}.") from error
    if compiled.groups < 1:
        raise ConfigError(f"group_pattern {pattern!r} has no group in brackets that would name the patient.")

    def group_of(case: str) -> str:
        match = compiled.search(case)
        if match is None or match.group(1) is None:
            raise ConfigError(f"group_pattern {pattern!r} is not found in the case name {case!r}.")
        return match.group(1)

    return group_of


def _require_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"split fractions {fractions} cannot work: give three shares >= 0 (train, val, test) of sum 1."
        )


def _groups(cases: Sequence[str], group_of: Callable[[str], str]) -> dict[str, list[str]]:
    if len(set(cases)) != len(cases):
        twice = sorted({case for case in cases if list(cases).count(case) > 1})
        raise ConfigError(f"cases named twice: {', '.join(twice[:5])}: each case needs a name of its own.")
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(group_of(case), []).append(case)
    return groups


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def _counts(num_groups: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """Whole numbers of groups that sum to `num_groups`: largest remainders, and no empty part while avoidable."""
    exact = [share * num_groups for share in fractions]
    counts = [int(value + 1e-9) for value in exact]
    for index in sorted(range(3), key=lambda i: counts[i] - exact[i])[: num_groups - sum(counts)]:
        counts[index] += 1
    for index in (0, 2, 1):
        if fractions[index] > 0 and counts[index] == 0:
            donor = max(range(3), key=lambda i: counts[i])
            if counts[donor] > 1:
                counts[donor] -= 1
                counts[index] += 1
    return counts[0], counts[1], counts[2]
