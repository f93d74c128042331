"""What a backbone costs, counted without weights or arithmetic: on fake tensors.

`costs.json` beside this file has the counts of every registered backbone, since counting takes a second for each. It is
written by `benchmarks/models.py`, and tests count each family's smallest again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from statefield.backbones import create_model

RECORD = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class Cost:
    """Parameters (values that are trained) and multiply-adds of one forward pass of one image."""

    parameters: int
    multiply_adds: int


def model_cost(name: str, *, size: int = 224, **kwargs: Any) -> Cost:
    """Count a model at an input of `size` x `size`; `kwargs` as for `create_model`.

    Convolutions, matrix products and the state-space operators count (by their registered formulas, a multiply-add
    being two operations); norms, activations and additions do not. That is also how the papers count.
    """
    counter = FlopCounterMode(display=False)
    with torch.device(
        "meta"
    ):  # timm's own models cannot be built of fake tensors: they read numbers from one on the CPU
        model = create_model(name, **kwargs).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        model = model.to_empty(device="cpu")
        model(torch.empty(1, kwargs.get("in_chans", 3), size, size))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)


def recorded_cost(name: str) -> Cost:
    """`model_cost(name)`, as it is recorded; of a backbone that was registered from elsewhere, counted."""
    counts = _record().get(name)
    return model_cost(name) if counts is None else Cost(**counts)


@cache
def _record() -> dict[str, dict[str, int]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))
