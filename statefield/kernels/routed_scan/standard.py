"""The routed scan in standard operations, for files that run without statefield (see `kernels/_standard.py`).

Rows are fetched in the order of the routes, scanned side by side as K E channels, and fetched back: three gathers of
whole rows for each tensor, in place of the walk along an index that only our kernels have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.selective_scan import standard as selective_scan


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    merge: bool,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract); no states are kept, as nothing is differentiated."""
    dtype = state_dtype(x.dtype)
    batch, length, routes, channels = delta.shape
    steps = order.shape[1]
    each_route = torch.arange(routes, device=order.device)
    # Row k of token l of [b, L, K, ...] is row l K + k of [b, L K, ...].
    rows = (order.t() * routes + each_route).flatten()  # [T K]
    x_k = x.to(dtype).index_select(1, order.t().flatten()) if x.dim() == 3 else _fetched(x.to(dtype), rows)
    delta_k, B_k, C_k = (_fetched(tensor.to(dtype), rows) for tensor in (delta, B, C))
    y, _, _ = selective_scan.forward(
        x_k.reshape(batch, steps, routes * channels),
        delta_k.reshape(batch, steps, routes * channels),
        A.flatten(0, 1),
        B_k.reshape(batch, steps, routes * B.shape[3], B.shape[4]),
        C_k.reshape(batch, steps, routes * C.shape[3], C.shape[4]),
        None if D is None else D.flatten(),
        None,
        None if delta_bias is None else delta_bias.flatten(),
        None,
        delta_softplus,
    )
    y = y.reshape(batch, steps * routes, channels)
    # Where the row of each token and route is; a token that a route leaves out reads the row of zeros behind the last.
    place = torch.arange(steps, device=order.device)[:, None] * routes + each_route  # [T, K]
    found = torch.full((length * routes,), 0, dtype=torch.int64, device=order.device) + steps * routes
    found = found.scatter(0, rows, place.flatten())
    y = torch.cat([y, y.new_zeros(batch, 1, channels)], dim=1).index_select(1, found)
    y = y.reshape(batch, length, routes, channels)
    if merge:
        y = y.sum(dim=2)
    return y.to(x.dtype), y.new_zeros(0)


def _fetched(x: Tensor, rows: Tensor) -> Tensor:
    """[b, T K, ...]: rows of x [b, L, K, ...]."""
    return x.flatten(1, 2).index_select(1, rows)
