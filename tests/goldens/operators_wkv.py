"""Bidirectional WKV against a literal restatement of the official CUDA kernels."""

from __future__ import annotations

from typing import Any

import recipe
import torch
from systems import Built, builder, take
from torch import Tensor

from statefield.kernels import wkv


@builder("vision_rwkv", "bi_wkv_forward", "bi_wkv_backward")
def _wkv(kwargs: dict[str, Any]) -> Built:
    take(kwargs, {}, ("note",))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        cotangent = torch.from_numpy(recipe.tensor("cotangent", tuple(inputs["k"].shape)))
        leaves = {name: inputs[name].detach().requires_grad_() for name in "wukv"}
        with torch.enable_grad():
            y = wkv(**leaves, gradient="official")
        grads = torch.autograd.grad(y, list(leaves.values()), cotangent)
        return {
            "y (B,T,C)": wkv(**inputs),
            "y of the paper": wkv(**inputs, mode="paper"),
            **{f"official CUDA backward g{name}": grad for name, grad in zip(leaves, grads, strict=True)},
        }

    return Built(run)
