"""What `statefield bench backbones` is made of: its models, its goals, and the memory of several calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from statefield.backbones import BACKBONES
from statefield.bench.backbones import CONTROL_FAMILY, FAMILIES, against_reference, controls
from statefield.bench.backbones import long_image as long
from statefield.bench.backbones.long_image import LongImageRow
from statefield.bench.backbones.models import build, image
from statefield.bench.memory import extra_mib, extra_mib_of_each
from statefield.bench.timing import in_turns, median_ratio
from statefield.kernels import native


def test_every_family_is_measured_by_models_of_its_own():
    assert {info.family for info in BACKBONES.values()} == {*FAMILIES, CONTROL_FAMILY}
    for name, family in FAMILIES.items():
        assert BACKBONES[family.like_swin_tiny].family == BACKBONES[family.smallest].family == name


def _seconds(ours: float, swin: float, convnext: float) -> dict[int, dict[str, list[float]]]:
    return {side: {"Spatial-Mamba": [ours], "Swin-T": [swin], "ConvNeXt-T": [convnext]} for side in (512, 1024)}


def test_spatial_mambas_goals_are_met_at_the_limit_and_missed_beyond_it():
    """Twice as fast as a Swin-T of 400 ms; 200 ms are 1.25 times ConvNeXt-T's 160 and 2 times 100."""
    goals = controls._goals(_seconds(0.2, 0.4, 0.16))
    assert [(goal.measured, goal.met) for goal in goals] == [(2.0, True), (2.0, True), (1.25, True)]
    goals = controls._goals(_seconds(0.2, 0.199, 0.1))
    assert [goal.met for goal in goals] == [False, False, False]


def test_neighbours_are_compared_so_that_a_machine_that_slows_down_changes_no_ratio():
    assert median_ratio({"a": [1.0, 2.0, 9.0], "b": [2.0, 4.0, 6.0]}, "b", "a") == 2.0
    calls = []
    times = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and [len(taken) for taken in times.values()] == [2, 2]


def test_vims_goals_are_of_time_and_of_peak_memory_with_the_weights():
    """30 MiB in place of 300 are 90 % less; 2.5 times as fast as fused attention is too little, 3 is not."""
    rows = {
        "-": LongImageRow("vim_tiny", "-", 8, 10.0, 27.0, 3.0, 30.0),
        "fused": LongImageRow("deit", "fused", 8, 25.0, 22.0, 10.0, 32.0),
        "materialised": LongImageRow("deit", "materialised", 8, 30.0, 22.0, 278.0, 300.0),
    }
    found = [(goal.measured, goal.met) for goal in long._goals(rows, {"fused": 2.5, "materialised": 3.0}, 8)]
    assert found == [(2.5, False), (3.0, True), (pytest.approx(90.0), True)]


@torch.no_grad()
def test_materialised_and_fused_attention_are_one_function_of_the_same_weights():
    x = image(32)
    fused, held = (build("deit_tiny_patch16_224", 32, materialised=kind) for kind in (False, True))
    assert (fused.blocks[0].attn.fused_attn, held.blocks[0].attn.fused_attn) == (True, False)
    torch.testing.assert_close(held(x), fused(x))


def test_a_family_that_differs_from_its_reference_loop_gets_no_time_and_meets_no_goal(monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    from statefield.kernels.structure_aware_scan import native as scan

    (right_row,), _ = against_reference.measure(["Spatial-Mamba"], 32, 0.01)
    assert right_row.error < 1e-4 and right_row.native_ms > 0
    assert right_row.times_as_fast == pytest.approx(right_row.reference_ms / right_row.native_ms)
    assert right_row.operators == "structure_aware_scan"
    right = scan.forward
    monkeypatch.setattr(scan, "forward", lambda *a: _doubled(right(*a)))
    (row,), (goal,) = against_reference.measure(["Spatial-Mamba"], 32, 0.01)
    assert row.native_ms is row.reference_ms is goal.measured is None
    assert row.error > against_reference.ALLOWED and not goal.met


def _doubled(result):
    return tuple(2 * part for part in result) if isinstance(result, tuple) else 2 * result


def test_the_memory_of_several_calls_is_that_of_each_alone(monkeypatch):
    """A call finds nothing of what the one before it gave back."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "bench"))
    small = {"output_mib": 1, "scratch_mib": 1}
    cases = [{"output_mib": 16, "scratch_mib": 40}, {"output_mib": 8, "scratch_mib": 20}]
    found = extra_mib_of_each("held_memory:call_that_holds", cases, [small, small])
    if found[0] is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert found == pytest.approx([80, 40], abs=4)
    assert found[1] == pytest.approx(extra_mib("held_memory:call_that_holds", cases[1], small), abs=4)
    with pytest.raises(RuntimeError, match="output_mib"):
        extra_mib_of_each("held_memory:call_that_holds", [{"output_mib": -1, "nonsense": 1}], [small])
