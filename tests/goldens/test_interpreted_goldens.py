"""The operators' goldens on the Triton kernels, through Triton's interpreter, in one process for all.

The longest go through it by hand (minutes): TRITON_INTERPRET=1 python tests/goldens/check.py --kernels triton FILE.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOW = (
    "selective_scan_g1_n16_l64", "selective_scan_g2_n16_l333", "selective_scan_g4_n1_l333", "ssd_l333", "ssd_l40",
    "ssd_l64", "nc_ssd_l64", "nc_ssd_negA_l49", "hsm_ssd_l64", "mlstm_s64", "mlstm_s150", "wkv_t64", "wkv_t100",
)  # fmt: skip
GOLDENS = sorted(p.stem for p in HERE.glob("ops_*.npz") if not p.stem.removeprefix("ops_").startswith(SLOW))

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.xdist_group("triton_goldens"),  # one worker, so that the process runs once
]


@pytest.fixture(scope="module")
def interpreted():
    """What the checker prints of each golden."""
    files = [str(HERE / f"{golden}.npz") for golden in GOLDENS]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "check.py"), "--kernels", "triton", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.split(r"^(?=/.*\.npz$)", done.stdout, flags=re.M)
    told = {Path(section.splitlines()[0]).stem: section.splitlines()[1:] for section in found if section.strip()}
    assert set(told) == set(GOLDENS), done.stdout + done.stderr
    return told


@pytest.mark.slow
@pytest.mark.parametrize("golden", GOLDENS)
def test_interpreted_kernels_give_the_papers_numbers(interpreted, golden):
    lines = interpreted[golden]
    unwritten = [line for line in lines if "KernelUnavailable" in line and "triton" in line]
    if unwritten:
        pytest.skip(unwritten[0].strip())
    assert [line for line in lines if "MISS" in line] == []
    assert any(line.startswith("  ok") for line in lines)
