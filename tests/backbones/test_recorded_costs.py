"""`costs.json` holds what counting finds: of every registered backbone, and of nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest

from statefield.backbones import list_models
from statefield.backbones.cost import RECORD, model_cost, recorded_cost

_MODELS = list_models()


def test_every_backbone_is_recorded_and_nothing_else():
    assert sorted(json.loads(RECORD.read_text())) == sorted(_MODELS)


def test_a_record_is_what_counting_finds():
    assert recorded_cost("mobilemamba_t2") == model_cost("mobilemamba_t2")


@pytest.mark.slow
def test_every_record_is_what_counting_finds():
    counted = {name: dataclasses.asdict(model_cost(name)) for name in _MODELS}
    assert counted == json.loads(RECORD.read_text())


def test_a_backbone_from_elsewhere_is_counted(monkeypatch):
    monkeypatch.setattr("statefield.backbones.cost._record", dict)
    assert recorded_cost("mobilemamba_t2") == model_cost("mobilemamba_t2")
