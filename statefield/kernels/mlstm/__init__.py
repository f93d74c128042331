"""mLSTM, the matrix memory of xLSTM and Vision-LSTM: `mlstm` is what people call. README.md has the maths."""

from __future__ import annotations

from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.mlstm.op import mlstm_op
from statefield.kernels.mlstm.reference import mlstm_parallel, mlstm_reference

__all__ = ["MLSTMState", "mlstm", "mlstm_parallel", "mlstm_reference"]

MLSTMState: TypeAlias = tuple[Tensor, Tensor, Tensor]  # C [B, NH, DH, DH], n [B, NH, DH], m [B, NH]
CHUNK_SIZES = (16, 32, 64, 128)  # what the GPU kernels' tiles are made for, and the same everywhere


@overload
def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    eps: float = 1e-6,
    initial_state: MLSTMState | None = None,
    return_state: Literal[False] = False,
    chunk_size: int = 64,
    stabilize_rowwise: bool = True,
) -> Tensor: ...


@overload
def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    eps: float = 1e-6,
    initial_state: MLSTMState | None = None,
    return_state: Literal[True],
    chunk_size: int = 64,
    stabilize_rowwise: bool = True,
) -> tuple[Tensor, MLSTMState]: ...


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    eps: float = 1e-6,
    initial_state: MLSTMState | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
    stabilize_rowwise: bool = True,
) -> Tensor | tuple[Tensor, MLSTMState]:
    """C_t = f C_{t-1} + i v_t k_t^T,  n_t = f n_{t-1} + i k_t,  h_t = C_t q_t / (max(|n_t . q_t|, exp(-m_t)) + eps).

    The forget gate is a sigmoid, the input gate an exponential; k is divided by sqrt(DH) here. Linear in S in time and
    memory. Differentiable in every tensor, initial and final state included.

    Args:
        q, k, v: [B, NH, S, DH], floating, S, DH >= 1. float64, float32, bfloat16, float16.
        i, f: [B, NH, S] or [B, NH, S, 1], the gates before exp and sigmoid.
        eps: >= 0, added to the maximum above, as the official code has it.
        initial_state: (C, n, m), shapes as returned: the memory before the first step is exp(m) C and exp(m) n. An
            empty one when it is not given, which is C = 0, n = 0, m = -inf.
        return_state: return (C, n, m) after the last step as well. m is the stabiliser: the largest weight that any
            step has in the state, as a logarithm. Its gradient is the true one: that of the maximum, half to each side
            where two are equal.
        chunk_size: 16, 32, 64 or 128 steps. The backward needs the states before every so many steps (S / chunk_size x
            DH x DH for each head), and within so many steps the work grows with their square. It does not change the
            result.
        stabilize_rowwise: False divides all steps by exp(largest m of the head) in place of exp(m_t), like the official
            argument of this name. That changes nothing but the weight of eps, which then depends on later steps: such
            a run cannot be cut into pieces, so it takes and returns no state.

    Returns:
        h [B, NH, S, DH] in q's dtype, contiguous; with return_state (h, (C [B, NH, DH, DH] with rows for v and columns
        for k, n [B, NH, DH], m [B, NH])), the state in float32, float64 for float64 inputs. Under torch.autocast
        floating inputs are cast to float32 and h is float32.

    Raises:
        ShapeError: a shape or dtype that does not fit the others; names the argument.
        ConfigError: eps < 0, another chunk_size, or a state without stabilize_rowwise.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Beck et al., "xLSTM", 2024, equations 19 to 27; NX-AI/vision-lstm, parallel_stabilized_simple, which
    computes the same by S x S matrices. README.md of this folder has the maths.
    """
    _check_options(eps, initial_state, return_state, chunk_size, stabilize_rowwise)
    i, f = (gate.squeeze(3) if gate.dim() == 4 and gate.shape[3] == 1 else gate for gate in (i, f))
    C, n, m = (None, None, None) if initial_state is None else initial_state
    _check(
        q, {"k": k, "v": v, "i": i, "f": f, "C of initial_state": C, "n of initial_state": n, "m of initial_state": m}
    )
    tensors = (q, k, v, i, f, C, n, m)
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    results = mlstm_op(*tensors, eps, stabilize_rowwise, chunk_size, keep_states)
    return (results[0], (results[1], results[2], results[3])) if return_state else results[0]


def _check_options(
    eps: float, initial_state: MLSTMState | None, return_state: bool, chunk_size: int, stabilize_rowwise: bool
) -> None:
    if not eps >= 0:
        raise ConfigError(f"mlstm: eps is {eps}, it has to be >= 0; the official value is 1e-6.")
    if chunk_size not in CHUNK_SIZES:
        raise ConfigError(
            f"mlstm: chunk_size is {chunk_size}, it has to be {', '.join(map(str, CHUNK_SIZES[:-1]))} or "
            f"{CHUNK_SIZES[-1]} steps; it does not change the result."
        )
    if not stabilize_rowwise and (initial_state is not None or return_state):
        raise ConfigError(
            "mlstm: stabilize_rowwise=False weighs eps by the largest stabiliser of all steps, so it neither takes nor "
            "returns a state: leave stabilize_rowwise at True."
        )
    if initial_state is not None and len(initial_state) != 3:
        raise ShapeError(
            f"mlstm: initial_state has {len(initial_state)} entries, it has to be (C [B, NH, DH, DH], n [B, NH, DH], "
            f"m [B, NH])."
        )


def _check(q: Tensor, others: dict[str, Tensor | None]) -> None:
    if q.dim() != 4 or min(q.shape[2:]) < 1:
        raise ShapeError(f"mlstm: q has shape {list(q.shape)}, it has to be [B, NH, S, DH] with S, DH >= 1.")
    batch, heads, length, channels = q.shape
    wanted = {
        "k": ((batch, heads, length, channels), "q's [B, NH, S, DH]"),
        "v": ((batch, heads, length, channels), "q's [B, NH, S, DH]"),
        "i": ((batch, heads, length), "[B, NH, S] or [B, NH, S, 1]"),
        "f": ((batch, heads, length), "[B, NH, S] or [B, NH, S, 1]"),
        "C of initial_state": ((batch, heads, channels, channels), "[B, NH, DH, DH]"),
        "n of initial_state": ((batch, heads, channels), "[B, NH, DH]"),
        "m of initial_state": ((batch, heads), "[B, NH]"),
    }
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != wanted[name][0]:
            shape, axes = wanted[name]
            raise ShapeError(
                f"mlstm: {name} has shape {list(tensor.shape)}, it has to be {axes} = {list(shape)} for q "
                f"{list(q.shape)}."
            )
    check_tensors("mlstm", q=q, **others)
