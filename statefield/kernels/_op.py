"""The one place that touches torch.library: how an operator becomes `torch.ops.statefield.<name>`.

An operator's `op.py` calls `define` twice (the operator, and `<name>_backward`) and `differentiate` once. Each body
picks its implementation when it runs, by the device of its tensors, so a compiled or exported graph holds the
operator and not a choice (see _choice.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef
from torch.utils.flop_counter import register_flop_formula

from statefield.kernels import _choice


def define(
    name: str,
    body: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    autocast: bool = True,
) -> CustomOpDef:
    """Register `statefield::<name>`.

    Args:
        name: the operator's name.
        body: computes it on any device; its annotations are the operator's schema. It must return new, contiguous
            tensors, never views or its inputs.
        fake: the same signature; returns empty tensors of the right shape, dtype and device.
        flops: floating point operations, called as torch's flop counter does, with shapes in place of tensors.
        autocast: under torch.autocast cast floating inputs to float32, so that states never live in 16 bits.
    """
    op = torch.library.custom_op(f"statefield::{name}", body, mutates_args=())
    op.register_fake(fake)
    if autocast:
        op.register_autocast("cpu", torch.float32)
        op.register_autocast("cuda", torch.float32)
    register_flop_formula(getattr(torch.ops.statefield, name))(flops)
    return op


def differentiate(
    op: CustomOpDef, *, setup_context: Callable[..., None], backward: Callable[..., Any], vmap: Callable[..., Any]
) -> None:
    """Give `op` its gradient and its rule under torch.vmap (`vmap(info, in_dims, *args) -> outputs, out_dims`)."""
    op.register_autograd(backward, setup_context=setup_context)
    op.register_vmap(vmap)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which states are accumulated: float64 for float64 inputs, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradients_by_autograd(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of plain PyTorch code: the backward of an implementation that has none of its own.

    Args:
        function: called with detached copies of `inputs`; returns at least len(grads) tensors.
        inputs: tensors, or None for an argument that is absent.
        grads: what flows back into each output; None where nothing does.

    Returns:
        one gradient for each input, None where the input is None.
    """
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs]
    wanted = [leaf for leaf in leaves if leaf is not None]

    # The body of an operator runs below autograd, and that state belongs to the thread: another thread has autograd.
    checked = _choice.checked_implementation()
    stream = torch.cuda.current_stream(wanted[0].device) if wanted[0].is_cuda else None

    def run() -> tuple[Tensor, ...]:
        with torch.enable_grad(), torch.cuda.stream(stream), _choice.checking(checked):  # no stream: does nothing
            pairs = [(out, grad) for out, grad in zip(function(*leaves), grads, strict=False) if grad is not None]
            outs, cotangents = [out for out, _ in pairs], [grad for _, grad in pairs]
            return torch.autograd.grad(outs, wanted, cotangents, allow_unused=True, materialize_grads=True)

    with ThreadPoolExecutor(max_workers=1) as pool:
        found = iter(pool.submit(run).result())
    return tuple(None if leaf is None else next(found) for leaf in leaves)
