"""Mamba-2's scan as its paper computes it: matrix products within chunks, a short loop over chunks. Plain PyTorch.

With cum the running sum of dt A inside a chunk, and H the state before it:

    y_l  = sum over s <= l of (C_l . B_s) exp(cum_l - cum_s) dt_s x_s  +  exp(cum_l) H C_l
    H'   = exp(cum_last) H + sum over s of exp(cum_last - cum_s) dt_s x_s B_s^T

The decays are exponentials of differences, never quotients of exponentials, so nothing overflows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.ssd.reference import step_sizes


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    dt_softplus: bool = False,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    chunk: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ssd_reference`: y [b, L, h, p], last state [b, h, p, n], kept states [b, ceil(L / chunk), h, n, p]."""
    dtype = state_dtype(x.dtype)
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    in_group = heads // groups
    given, x, A = x, x.to(dtype), A.to(dtype)
    num_chunks = -(-length // chunk)

    def by_chunk(tensor: Tensor) -> Tensor:  # [b, L, ...] -> [b, M, Q, ...]
        missing = num_chunks * chunk - length
        if missing:
            tensor = torch.cat([tensor, tensor.new_zeros(batch, missing, *tensor.shape[2:])], dim=1)
        return tensor.reshape(batch, num_chunks, chunk, *tensor.shape[2:])

    # Padded steps have dt = 0: they decay nothing and add nothing, so the last state is not touched by them.
    step = by_chunk(step_sizes(dt.to(dtype), dt_bias, dt_softplus, dt_min, dt_max))  # [b, M, Q, h]
    dtx = step[..., None] * by_chunk(x)  # [b, M, Q, h, p]
    B_mgqn, C_mgqn = (by_chunk(weights.to(dtype)).transpose(2, 3) for weights in (B, C))  # [b, M, g, Q, n]
    cum = _RunningSum(step * A)

    # Above the diagonal the difference is positive and exp may be infinite. On it the difference is 0, but its
    # gradients would be added to a running sum and taken off again: under strong decay the rest drowns in rounding.
    within = cum.until_each_from_each().tril(-1).exp().tril()
    scores = (C_mgqn @ B_mgqn.transpose(3, 4)).unsqueeze(3)  # [b, M, g, 1, Q, Q]
    scores = (scores * within.unflatten(2, (groups, in_group))).flatten(2, 3)  # [b, M, h, Q, Q]
    y = (scores @ dtx.transpose(2, 3)).transpose(2, 3)  # [b, M, Q, h, p]

    weighted = (cum.until_last()[..., None] * dtx).unflatten(3, (groups, in_group))  # [b, M, Q, g, h / g, p]
    made = B_mgqn.transpose(3, 4) @ weighted.transpose(2, 3).flatten(4)  # [b, M, g, n, (h / g) p]
    made = made.unflatten(4, (in_group, channels)).transpose(3, 4).flatten(2, 3)  # [b, M, h, n, p]
    decay = cum.whole()[..., None, None]  # [b, M, h, 1, 1]
    H = x.new_zeros(batch, heads, states, channels) if initial_state is None else initial_state.to(dtype).mT
    starts = []
    for m in range(num_chunks):
        starts.append(H)
        H = decay[:, m] * H + made[:, m]
    kept = torch.stack(starts, dim=1)  # [b, M, h, n, p]

    side_by_side = kept.unflatten(2, (groups, in_group)).transpose(3, 4).flatten(4)  # [b, M, g, n, (h / g) p]
    entering = (C_mgqn @ side_by_side).transpose(2, 3).reshape(y.shape)  # [b, M, Q, h, p]
    y = (y + cum.from_start()[..., None] * entering).flatten(1, 2)[:, :length]
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(given.dtype), H.mT.contiguous(), kept


class _RunningSum:
    """The running sum over the steps of each chunk of dt A [b, M, Q, h], and the decays that it gives.

    It is summed in float64 and held as two numbers of the state's dtype: late in a chunk the sum may be thousands,
    and the decay over one small step, exp of a difference of two such sums, would be lost to rounding.
    """

    def __init__(self, exponents: Tensor) -> None:
        total = exponents.double().cumsum(2)
        self.high = total.to(exponents.dtype)
        self.low = (total - self.high).detach().to(exponents.dtype)

    def _difference(self, later: tuple[Tensor, Tensor], earlier: tuple[Tensor, Tensor]) -> Tensor:
        return (later[0] - earlier[0]) + (later[1] - earlier[1])

    def until_each_from_each(self) -> Tensor:
        """cum_l - cum_s, [b, M, h, Q, Q] with l before s."""
        high, low = self.high.transpose(2, 3), self.low.transpose(2, 3)
        return self._difference((high[..., :, None], low[..., :, None]), (high[..., None, :], low[..., None, :]))

    def until_last(self) -> Tensor:
        """exp(cum_last - cum_s), [b, M, Q, h]."""
        return self._difference((self.high[:, :, -1:], self.low[:, :, -1:]), (self.high, self.low)).exp()

    def from_start(self) -> Tensor:
        """exp(cum_l), [b, M, Q, h]."""
        return self.high.exp()

    def whole(self) -> Tensor:
        """exp(cum_last), [b, M, h]."""
        return self.high[:, :, -1].exp()


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    y, last, kept = ssd_chunked(
        x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min=dt_min, dt_max=dt_max, chunk=chunk
    )
    return y.contiguous(), last, kept if keep_states else kept.new_empty(0)


def backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the chunks."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = functools.partial(ssd_chunked, dt_softplus=dt_softplus, dt_min=dt_min, dt_max=dt_max, chunk=chunk)
    return gradients_by_autograd(scan, inputs, (grad_y, grad_last))
