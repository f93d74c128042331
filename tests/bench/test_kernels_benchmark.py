"""What `statefield bench kernels` is made of: a module for every operator, goals, races, and the memory of a call."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from statefield.bench import kernels as protocol
from statefield.bench.baselines import fusion_by_convolutions, scan_by_mambas_loop
from statefield.bench.kernels.report import goal
from statefield.bench.kernels.selective_scan import ScanCase, in_mambas_layout
from statefield.bench.memory import extra_mib
from statefield.bench.timing import race
from statefield.kernels import selective_scan, state_fusion
from statefield.kernels._choice import OPERATORS


def test_every_registered_operator_is_measured():
    assert set(protocol.measures()) == set(OPERATORS)


def test_goals_are_met_on_the_right_side_of_their_limit_and_never_by_wrong_or_unmeasured_kernels():
    assert goal("speed", 3.0, 3.0, True).met
    assert not goal("speed", 2.9, 3.0, True).met
    assert goal("ratio", 4.0, 4.0, True, at_most=True).met
    assert not goal("ratio", 4.1, 4.0, True, at_most=True).met
    assert dataclasses.astuple(goal("speed", 9.0, 3.0, False))[1:] == (None, "at least 3", False)
    assert dataclasses.astuple(goal("memory", None, 0.5, True, at_most=True))[1:] == (None, "at most 0.5", False)


def test_the_baselines_compute_what_our_operators_compute():
    """mamba's loop and torch's convolutions are fair rivals only if they answer the same question."""
    case = ScanCase(2, 9, 6, 4)
    inputs = case.draw()
    loop = scan_by_mambas_loop(**in_mambas_layout(inputs)).transpose(1, 2)
    torch.testing.assert_close(loop, selective_scan(**inputs, delta_softplus=True, layout="bld"), rtol=1e-4, atol=1e-4)
    h, weight, alpha = torch.randn(2, 5, 7, 3), torch.randn(3, 3, 3, 3), torch.randn(3)
    ours = state_fusion(h, weight, alpha)
    theirs = fusion_by_convolutions(h.permute(0, 3, 1, 2), weight, alpha, (1, 3, 5)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    h, weight = torch.randn(2, 4, 5, 7, 3), torch.randn(3, 3, 3, 3, 3)
    theirs = fusion_by_convolutions(h.movedim(-1, 1), weight, alpha, (1, 3, 5)).movedim(1, -1)
    torch.testing.assert_close(state_fusion(h, weight, alpha), theirs, rtol=1e-4, atol=1e-4)


def test_a_race_runs_every_contender_and_gives_medians_in_seconds():
    calls = {"quick": 0, "slower": 0}

    def count(name: str) -> None:
        calls[name] += 1
        if name == "slower":
            torch.zeros(200_000).exp_()

    times = race({name: lambda name=name: count(name) for name in calls}, seconds=0.02, rounds=2)
    assert min(calls.values()) >= 4
    assert 0 < times["quick"] < times["slower"] < 1


def test_the_memory_of_a_call_is_what_it_touches_at_once(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    unused = extra_mib("held_memory:call_that_asks_in_vain", {}, {})
    if unused is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert unused < 4
    small = {"output_mib": 1, "scratch_mib": 1}
    # Two tensors of 40 MiB are held together for a moment, then one of them beside an output of 16.
    held = extra_mib("held_memory:call_that_holds", {"output_mib": 16, "scratch_mib": 40}, small)
    assert held == pytest.approx(80, abs=4)
