"""What a backbone costs, counted without weights or arithmetic: on fake tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
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
    counter = FlopCounterMode(display=False)
    with torch.device(
        "meta"
    ):  # timm's own models cannot be built of fake tensors: they read numbers from one on the CPU
        model = create_model(name, **kwargs).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), counter, torch.no_grad():
        model = model.to_empty(device="cpu")
        model(torch.empty(1, kwargs.get("in_chans", 3), size, size))
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
