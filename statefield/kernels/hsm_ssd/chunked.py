"""The hidden states of HSM-SSD in plain PyTorch: a softmax and a matrix product.

Serves where no native library was built, and CUDA tensors where Triton is missing. All positions are one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    dtype = state_dtype(u.dtype)
    largest = dt.to(dtype).amax(-1)
    raised = torch.exp(dt.to(dtype) - largest[..., None])
    total = raised.sum(-1)
    weights = raised / total[..., None] * B.to(dtype)
    return torch.bmm(u.to(dtype), weights.transpose(1, 2)), torch.stack((largest, total), dim=1)


def backward(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(u.dtype)
    largest, total = softmax.unsqueeze(-1).unbind(1)
    share, B = torch.exp(dt.to(dtype) - largest) / total, B.to(dtype)
    grad_weights = torch.bmm(grad.transpose(1, 2), u.to(dtype))
    mean = (grad * h).sum(1)[..., None]  # sum over positions of share * B * grad_weights
    return torch.bmm(grad, share * B), share * (B * grad_weights - mean), share * grad_weights
