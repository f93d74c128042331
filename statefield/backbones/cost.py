"""What a backbone costs, counted without weights or arithmetic: on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from statefield.backbones import create_model


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
    with torch.device("meta"):
        model = create_model(name, **kwargs).eval()
        image = torch.empty(1, kwargs.get("in_chans", 3), size, size)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(image)
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
