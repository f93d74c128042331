"""Splits by case name and seed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statefield.datasets.splits import fold_cases, grouped_by, split_cases
from statefield.errors import ConfigError

CASES = [f"case_{i:03d}" for i in range(40)]


def test_split_is_a_partition_of_the_shares_asked_for():
    parts = split_cases(CASES, fractions=(0.7, 0.1, 0.2))
    assert [len(parts[name]) for name in ("train", "val", "test")] == [28, 4, 8]
    assert sorted(itertools.chain(*parts.values())) == CASES


def test_split_depends_on_names_and_seed_alone():
    assert split_cases(CASES, seed=3) == split_cases(list(reversed(CASES)), seed=3)
    assert split_cases(CASES, seed=3) != split_cases(CASES, seed=4)
    # frozen: a change of the rule would silently move cases between a user's runs
    assert split_cases(CASES[:10])["test"] == ["case_001", "case_005"]


@given(st.integers(0, 30), st.sampled_from([(0.7, 0.1, 0.2), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.98, 0.01, 0.01)]))
def test_every_case_lands_once_and_every_wanted_part_is_filled_while_possible(count, fractions):
    parts = split_cases(CASES[:count], fractions=fractions)
    assert sorted(itertools.chain(*parts.values())) == CASES[:count]
    wanted = [name for name, share in zip(("train", "val", "test"), fractions, strict=True) if share > 0]
    if count >= len(wanted):
        assert all(parts[name] for name in wanted)
    assert all(not parts[name] for name in parts if name not in wanted)


def test_patients_stay_together():
    cases = [f"patient{p:02d}_frame{f}" for p in range(12) for f in (1, 7, 9)]
    parts = split_cases(cases, group_of=grouped_by(r"(patient\d+)"))
    patients = [{case.split("_")[0] for case in part} for part in parts.values()]
    assert sum(map(len, patients)) == 12
    assert sorted(itertools.chain(*parts.values())) == sorted(cases)


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (0.5, 0.5)])
def test_shares_that_cannot_work_are_refused(fractions):
    with pytest.raises(ConfigError, match="sum 1"):
        split_cases(CASES, fractions=fractions)


def test_a_case_named_twice_is_refused():
    with pytest.raises(ConfigError, match="case_000"):
        split_cases([*CASES, "case_000"])


def test_group_pattern_that_cannot_name_a_patient_is_refused():
    for pattern, reason in (("(", "no regular expression"), ("patient", "no group")):
        with pytest.raises(ConfigError, match=reason):
            grouped_by(pattern)
    with pytest.raises(ConfigError, match="'other_1'"):
        grouped_by(r"(patient\d+)")("other_1")


def test_folds_are_a_partition_of_equal_parts_that_depends_on_names_and_seed_alone():
    folds = fold_cases(CASES, folds=3, seed=3)
    assert [len(part) for part in folds] == [14, 13, 13]
    assert sorted(itertools.chain(*folds)) == CASES
    assert folds == fold_cases(list(reversed(CASES)), folds=3, seed=3)
    assert folds != fold_cases(CASES, folds=3, seed=4)
    # frozen, as above
    assert fold_cases(CASES[:6], folds=2) == [
        ["case_000", "case_003", "case_005"],
        ["case_001", "case_002", "case_004"],
    ]


def test_patients_stay_together_in_folds():
    cases = [f"patient{i // 2:02d}_{i % 2}" for i in range(20)]
    folds = fold_cases(cases, folds=4, group_of=grouped_by(r"(patient\d+)"))
    assert [len({case[:9] for case in part}) for part in folds] == [3, 3, 2, 2]
    assert all(len(part) == 2 * len({case[:9] for case in part}) for part in folds)


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_folds_without_a_patient_each_are_refused(folds):
    with pytest.raises(ConfigError, match=f"folds = {folds} with 3 patients"):
        fold_cases(["a_1", "a_2", "b_1", "c_1"], folds=folds, group_of=grouped_by("(.)_"))
