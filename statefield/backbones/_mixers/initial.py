"""Initial values of what drives a recurrence, in place, as Mamba has them (state-spaces/mamba, mamba_simple.py).

And what `A_log` stands for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from statefield.backbones._blocks import inverse_softplus

STEP_RANGE = (1e-3, 1e-1)  # the interval that initial step sizes are drawn from, log-uniformly
SMALLEST_STEP = 1e-4


def step_weight_(weight: Tensor) -> None:
    """The projection of step sizes, [..., E, R]: uniform within 1 / sqrt(R)."""
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)


@torch.no_grad()
def step_bias_(bias: Tensor) -> None:
    """The bias of step sizes, any shape: softplus(bias) is log-uniform in `STEP_RANGE`, at least `SMALLEST_STEP`."""
    low, high = (math.log(step) for step in STEP_RANGE)
    bias.copy_(inverse_softplus(torch.empty_like(bias).uniform_(low, high).exp().clamp(min=SMALLEST_STEP)))


def decay_rates(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in float32 at least: in 16 bits neighbouring rates would fall together."""
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())


@torch.no_grad()
def log_of_counting_(A_log: Tensor) -> None:
    """A_log [..., N]: A = -1, -2, ..., -N in every channel (S4D-real)."""
    A_log.copy_(torch.arange(1, A_log.shape[-1] + 1, device=A_log.device).log().expand_as(A_log))
