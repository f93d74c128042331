"""What the hidden states of HSM-SSD are checked, compiled and timed on."""

from __future__ import annotations

from typing import Any

import torch

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.hsm_ssd import hsm_ssd_states
from statefield.kernels.hsm_ssd.op import hsm_ssd_op


def _made(batch: int, length: int, channels: int, states: int, *, spread: float = 1.0) -> Variant:
    """The arguments of `hsm_ssd_states`; `spread` of dt: at 5 few positions have any weight."""

    def make(randn: Randn) -> dict[str, Any]:
        return {
            "u": randn(batch, channels, length),
            "dt": spread * randn(batch, states, length),
            "A": torch.exp(randn(states)),
            "B": randn(batch, states, length),
        }

    return make


def _sized(batch: int, length: int, channels: int, states: int, dtype: torch.dtype) -> Sized:
    pairs = batch * length * states
    return Sized(_made(batch, length, channels, states), dtype, exponentials=pairs, matrix_flops=2 * pairs * channels)


FAMILY = Family(
    name="hsm_ssd",
    function=hsm_ssd_states,
    variants={
        "tiny": _made(1, 4, 2, 2),
        "one_position": _made(1, 1, 1, 1),
        "odd": _made(2, 37, 19, 13),
        "one_state": _made(2, 16, 8, 1),
        "one_channel": _made(1, 33, 1, 9),
        "peaked": _made(1, 50, 6, 5, spread=5.0),
        "several_tiles": _made(1, 130, 70, 67),
    },
    op=hsm_ssd_op,
    op_arguments=lambda given: (given["u"], given["dt"], given["A"], given["B"]),
    mapped=("u", "dt", "B"),
    large={
        "efficientvim_m1_stage_1": _made(3, 196, 128, 49),
        "efficientvim_m4_at_1024": _made(2, 4096, 224, 64),
        "large_peaked": _made(2, 1000, 200, 160, spread=5.0),
    },
    compiled={
        "efficientvim_m1": _sized(2, 196, 128, 49, torch.bfloat16),
        "efficientvim_m1_float32": _sized(2, 196, 128, 49, torch.float32),
    },
    measured={
        "efficientvim_m1_stage_1": _sized(256, 196, 128, 49, torch.bfloat16),
        "efficientvim_m4_at_512": _sized(64, 1024, 224, 64, torch.bfloat16),
    },
)
