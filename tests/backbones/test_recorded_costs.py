"""`costs.json` holds what counting finds: of every registered backbone, and of nothing else."""

from __future__ import annotations

import json

import pytest

from statefield.backbones import BACKBONES, list_models
from statefield.backbones.cost import RECORD, model_cost, recorded_cost

_MODELS = list_models()


def test_every_backbone_is_recorded_and_nothing_else():
    assert sorted(json.loads(RECORD.read_text())) == sorted(_MODELS)


def test_a_record_is_what_counting_finds():
    assert recorded_cost("mobilemamba_t2") == model_cost("mobilemamba_t2")


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({info.family for info in BACKBONES.values()}))
def test_the_record_of_a_familys_smallest_is_what_counting_finds(family):
    """All of them take minutes: `benchmarks/models.py` writes them anew."""
    names = [name for name in _MODELS if BACKBONES[name].family == family]
    name = min(names, key=lambda name: recorded_cost(name).multiply_adds)
    assert recorded_cost(name) == model_cost(name)


def test_a_backbone_from_elsewhere_is_counted(monkeypatch):
    monkeypatch.setattr("statefield.backbones.cost._record", dict)
    assert recorded_cost("mobilemamba_t2") == model_cost("mobilemamba_t2")
