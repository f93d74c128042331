"""EfficientViM's `HSMSSD`, the whole mixer: the operator alone has no golden of its own."""

from __future__ import annotations

import math
from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.backbones._mixers.hidden_state import HiddenStateMixer


@builder("efficientvim", "HSMSSD")
def _hidden_state_mixer(kwargs: dict[str, Any]) -> Built:
    arguments = {"d_model": "channels", "state_dim": "d_state", "ssd_expand": "expand"}
    mixer = HiddenStateMixer(**take(kwargs, arguments, ("H", "W", "A_init_range")))
    size = kwargs.get("H"), kwargs.get("W")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = inputs["x"]  # [B, C, L]; the classifier's maps are square, the dense models say H and W
        side = math.isqrt(x.shape[2])
        y, h = mixer(x.unflatten(2, (size[0] or side, size[1] or side)))
        return {"y": y, "h": h}

    return Built(run, mixer)
