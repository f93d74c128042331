"""`statefield::mlstm` and `statefield::mlstm_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py):

    forward(q, k, v, i, f, C, n, m, eps, stabilize_rowwise, chunk_size, keep_states)
        -> h, last C, last n, last m, states_C, states_n, sums, stabilizers
    backward(grads, results, q, k, v, i, f, C, n, m, eps, stabilize_rowwise, chunk_size)
        -> the eight gradients in the order q, k, v, i, f, C, n, m (None where the input is)

    q, k, v   [B, NH, S, DH], any strides; k without its 1 / sqrt(DH)
    i, f      [B, NH, S], before exp and sigmoid
    C, n, m   [B, NH, DH, DH] (rows are channels of v), [B, NH, DH], [B, NH]: all three or none
    h         [B, NH, S, DH] in q's dtype
    last C, n, m in the state dtype (float32; float64 where q is float64), shaped as the initial ones
    states_C, states_n [B, NH, M, DH, DH], [B, NH, M, DH] with M = ceil(S / chunk_size): the C and n before steps 0,
                       chunk_size, 2 chunk_size, ... (the first is the initial one)
    sums, stabilizers  [B, NH, S]: n_t . q_t and m_t of every step
              these four in the state dtype if keep_states, else empty tensors of shape [0]. With h and the inputs they
              are all that a backward needs, and they mean the same in every implementation, so a backward may run in
              another implementation than its forward.
    grads     of h, last C, last n, last m; None for one of the last three where nothing flows back through it
    results   the eight results of the forward

Gradients have their input's shape; op.py casts them to its dtype. S, DH >= 1; an empty batch is answered here, before
an implementation is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.mlstm"
OPERATOR = _choice.operator(
    "mlstm",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)
_NUM_INPUTS, _NUM_RESULTS = 8, 8


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = (eps, stabilize_rowwise, chunk_size, keep_states)
    if q.shape[0] * q.shape[1] == 0:
        return _forward_fake(q, k, v, i, f, C, n, m, *options)
    return OPERATOR.implementation(q.device.type).forward(q, k, v, i, f, C, n, m, *options)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, channels = q.shape
    chunks = (length + chunk_size - 1) // chunk_size
    kept: list[tuple[Any, ...]] = [(0,)] * 4
    if keep_states:
        kept = [(batch, heads, chunks, channels, channels), (batch, heads, chunks, channels)]
        kept += [(batch, heads, length)] * 2
    dtype = _op.state_dtype(q.dtype)

    def empty(*shape: Any) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    last = (empty(batch, heads, channels, channels), empty(batch, heads, channels), empty(batch, heads))
    states_C, states_n, sums, stabilizers = (empty(*shape) for shape in kept)
    return q.new_empty(batch, heads, length, channels), *last, states_C, states_n, sums, stabilizers


def _backward(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    results: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
) -> list[Tensor]:
    inputs = (q, k, v, i, f, C, n, m)
    if q.shape[0] * q.shape[1] == 0:
        return [q.new_empty(0) if given is None else given.new_zeros(given.shape) for given in inputs]
    run = OPERATOR.implementation(q.device.type).backward
    grads = run((grad_h, grad_C, grad_n, grad_m), tuple(results), *inputs, eps, stabilize_rowwise, chunk_size)
    return [
        q.new_empty(0) if given is None else found.to(given.dtype).contiguous()
        for given, found in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    grad_m: Tensor | None,
    results: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
) -> list[Tensor]:
    inputs = (q, k, v, i, f, C, n, m)
    return [q.new_empty(0) if given is None else given.new_empty(given.shape) for given in inputs]


def product_flops(q: Any, chunk_size: int) -> tuple[int, int]:
    """Operations of the matrix products of a forward: one within chunks (q k^T, and the same again with v), one with
    states (C q, and the same again for v k^T). A chunk's products are counted whole, without the half that is causal.
    """
    batch, heads, length, channels = q
    within = min(chunk_size, length)
    return 2 * batch * heads * length * channels * within, 2 * batch * heads * length * channels * channels


def _flops(q: Any, k: Any, v: Any, i: Any, f: Any, C: Any, n: Any, m: Any, *options: Any, **more: Any) -> int:
    within, states = product_flops(q, options[2])
    return 2 * within + 2 * states


def _flops_backward(grad_h: Any, grad_C: Any, grad_n: Any, grad_m: Any, results: Any, q: Any, *r: Any, **m: Any) -> int:
    """Within chunks q k^T again and four more products, with states four."""
    within, states = product_flops(q, r[-1])
    return 5 * within + 4 * states


mlstm_op = _op.define("mlstm", _forward, fake=_forward_fake, flops=_flops)
mlstm_backward_op = _op.define("mlstm_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.options, ctx.keep_states = inputs[:_NUM_INPUTS], inputs[_NUM_INPUTS:-1], inputs[-1]
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[4:])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: checkpointing gives what it computed again a single time
    inputs, results = saved[:_NUM_INPUTS], saved[_NUM_INPUTS:]
    if all(grad is None for grad in grads[:4]):
        return (None,) * (_NUM_INPUTS + len(ctx.options) + 1)
    grad_h = torch.zeros_like(inputs[0]) if grads[0] is None else grads[0]
    if not ctx.keep_states:  # the caller expected no backward: run the forward again for the states it did not keep
        results = mlstm_op(*inputs, *ctx.options, True)
    found = mlstm_backward_op(grad_h, *grads[1:4], list(results), *inputs, *ctx.options)
    found = [None if given is None else grad for given, grad in zip(inputs, found, strict=True)]
    return (*found, *(None,) * (len(ctx.options) + 1))


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension of any tensor joins the batch."""
    folded = list(args)
    for place, (arg, dim) in enumerate(zip(args[:_NUM_INPUTS], in_dims, strict=False)):
        if arg is None:
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    results = mlstm_op(*folded)
    kept = args[-1]
    split = [
        found.reshape(info.batch_size, -1, *found.shape[1:]) if place < 4 or kept else found
        for place, found in enumerate(results)
    ]
    return tuple(split), tuple(0 if place < 4 or kept else None for place in range(_NUM_RESULTS))


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of mlstm (per-sample gradients, batched vector-Jacobian products) is not there: "
        "take gradients outside vmap, or loop."
    )


_op.differentiate(mlstm_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
mlstm_backward_op.register_vmap(_vmap_backward)
