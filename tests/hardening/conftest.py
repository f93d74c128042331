"""Small runs of each kind, made when the first case asks for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hardening.runs import RUNS


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of a kind, the same for all tests: they leave it as it is."""
    return cache(lambda kind: RUNS[kind](tmp_path_factory.mktemp(kind)))
