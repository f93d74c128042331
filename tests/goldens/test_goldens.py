"""Every golden of a known system agrees, on every implementation that runs on this machine's CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import case
import check
import numpy as np
import pytest
import systems

from statefield.kernels import implementations, use_kernels

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("STATEFIELD_DATA", HERE.parents[1] / "../shared/data")).resolve().parent / "goldens"
RUNNING_HERE = sorted(
    {row.implementation for row in implementations() if row.device == "cpu" and row.available} - {"triton"}
)


def _cases():
    """Every golden on every implementation; whole systems by chunks, which nobody runs where C++ was built, among the
    slow tests."""
    for golden in sorted(path.stem for path in HERE.glob("*.npz")):
        for implementation in RUNNING_HERE:
            late = implementation == "chunked" and not golden.startswith("ops_")
            yield pytest.param(
                golden, implementation, id=f"{golden}-{implementation}", marks=[pytest.mark.slow] if late else []
            )


@pytest.mark.parametrize(("golden", "implementation"), list(_cases()))
def test_our_numbers_are_the_papers(golden, implementation):
    with use_kernels(implementation):
        compared = list(check.compare(case.read_case(HERE / f"{golden}.npz")))
    assert compared
    assert [comparison.line() for comparison in compared if not comparison.agrees] == []


@pytest.mark.shared_data
def test_every_shared_golden_of_a_known_system_is_here():
    """A new file for a system that the table knows must not be forgotten."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared goldens at {SHARED}")
    known = {name.split()[0] for name in systems.BUILDERS}
    forgotten = []
    for path in SHARED.glob("*.npz"):
        with np.load(path) as archive:
            meta = json.loads(str(archive["meta"]))
        if f"{meta['system']} {case.official_class(meta)}" in systems.BUILDERS and not (HERE / path.name).exists():
            forgotten.append(path.name)
    assert known >= {"spatial_mamba", "mamba_ssm"}
    assert forgotten == []
