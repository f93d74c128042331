"""The non-causal state-space duality as the matrix products that it is, in plain PyTorch.

Serves where no native library was built, and CUDA tensors where Triton is missing. All positions are one chunk: S is
B^T (a x) and y is C S, one product for each batch entry and group of heads. The scaled a x and the products are new
tensors of x's size, which is what the native form avoids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    dtype, groups = state_dtype(x.dtype), B.shape[2]
    ax = (dt.to(dtype) * A.to(dtype)).unsqueeze(-1) * x.to(dtype)
    state = torch.matmul(B.to(dtype).permute(0, 2, 3, 1), _by_group(ax, groups))  # [B, G, N, L] [B, G, L, H/G P]
    y = _by_position(torch.matmul(C.to(dtype).transpose(1, 2), state), x.shape[2])
    if D is not None:
        y = torch.addcmul(y, D.to(dtype)[:, None], x.to(dtype))
    return y.to(x.dtype).contiguous(), _heads_first(state, x.shape[2])


def backward(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    dtype, groups, heads = state_dtype(x.dtype), B.shape[2], x.shape[2]
    grad, x, dt, A = (t.to(dtype) for t in (grad, x, dt, A))
    B_gln, C_gln = (w.to(dtype).transpose(1, 2) for w in (B, C))
    a = (dt * A).unsqueeze(-1)
    grad_g, ax_g = _by_group(grad, groups), _by_group(a * x, groups)
    state_g = _groups_first(state, groups)

    grad_state = torch.matmul(C_gln.transpose(2, 3), grad_g)  # [B, G, N, H/G P]
    grad_C = torch.matmul(grad_g, state_g.transpose(2, 3)).transpose(1, 2)
    grad_B = torch.matmul(ax_g, grad_state.transpose(2, 3)).transpose(1, 2)
    grad_ax = _by_position(torch.matmul(B_gln, grad_state), heads)
    grad_a = (grad_ax * x).sum(-1)
    grad_x = a * grad_ax
    if D is not None:
        grad_x = torch.addcmul(grad_x, D.to(dtype)[:, None], grad)
    grad_D = None if D is None else (grad * x).sum((0, 1, 3))
    return grad_x, grad_a * A, (grad_a * dt).sum((0, 1)), grad_B, grad_C, grad_D


# Head h reads group h mod G, so the heads of group g are g, g + G, g + 2 G, ...: [H] is [H / G, G].


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, L, H, P] -> [B, G, L, H / G * P]."""
    batch, length, heads, channels = x.shape
    by_group = x.reshape(batch, length, heads // groups, groups, channels).permute(0, 3, 1, 2, 4)
    return by_group.reshape(batch, groups, length, -1)


def _by_position(y: Tensor, heads: int) -> Tensor:
    """[B, G, L, H / G * P] -> [B, L, H, P]."""
    batch, groups, length, _ = y.shape
    return (
        y.reshape(batch, groups, length, heads // groups, -1).permute(0, 2, 3, 1, 4).reshape(batch, length, heads, -1)
    )


def _heads_first(state: Tensor, heads: int) -> Tensor:
    """[B, G, N, H / G * P] -> [B, H, N, P]."""
    batch, groups, states, _ = state.shape
    by_head = state.reshape(batch, groups, states, heads // groups, -1).permute(0, 3, 1, 2, 4)
    return by_head.reshape(batch, heads, states, -1).contiguous()


def _groups_first(state: Tensor, groups: int) -> Tensor:
    """[B, H, N, P] -> [B, G, N, H / G * P]."""
    batch, heads, states, channels = state.shape
    by_group = state.reshape(batch, heads // groups, groups, states, channels).permute(0, 2, 3, 1, 4)
    return by_group.reshape(batch, groups, states, -1)
