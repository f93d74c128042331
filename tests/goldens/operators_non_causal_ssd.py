"""VSSD's `Mamba2.non_casual_linear_attn`, the raw operator: dt and A as they are given, B and C [B, L, G N]."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.kernels import non_causal_ssd


@builder("vssd", "non_casual_linear_attn")
def _non_causal_ssd(kwargs: dict[str, Any]) -> Built:
    options = {"positive_decay": False, "groups": 1}
    options |= take(kwargs, {"ssd_positve_dA": "positive_decay", "ngroups": "groups"})
    groups = options.pop("groups")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        by_group = {name: inputs[name].unflatten(-1, (groups, -1)) for name in "BC"}
        return {"y": non_causal_ssd(**{**inputs, **by_group}, **options)}

    return Built(run)
