"""The routed scan in C++: hands tensors to native/routed_scan*.cpp and sums the partial gradients they return."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import native
from statefield.kernels._op import state_dtype
from statefield.kernels.routed_scan.reference import CHUNK
from statefield.kernels.selective_scan.native import _SUFFIX, _Scan, _slots, _Strided

_BAD_ARGUMENT = 2  # SF_BAD_ARGUMENT of native/abi.h


class _Routes(ctypes.Structure):
    """`struct sf_routes` of native/routed_scan.h, field by field."""

    _fields_ = (
        ("scan", _Scan),
        ("order", c_void_p),
        *((name, c_int64) for name in ("routes", "tokens", "merged", "shared")),
        *((f"{name}_route", c_int64) for name in ("u", "delta", "B", "C", "grad_out")),
    )


def _rows(tensor: Tensor, dtype: torch.dtype, dense: int) -> Tensor:
    """The tensor in `dtype`, its last `dense` axes without gaps: [b, L, K, E] in E, [b, L, K, G, N] in G and N."""
    tensor = tensor.to(dtype)
    row = 1
    for axis in range(tensor.dim() - 1, tensor.dim() - 1 - dense, -1):
        if tensor.shape[axis] > 1 and tensor.stride(axis) != row:
            return tensor.contiguous()
        row *= tensor.shape[axis]
    return tensor


class _Inputs:
    """The inputs of one call in the state dtype and with dense rows, and the structure that points to them."""

    def __init__(
        self,
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
    ) -> None:
        self.dtype = state_dtype(x.dtype)
        batch, tokens, routes, channels = delta.shape
        self.groups = B.shape[3]
        self.rows = {
            name: _rows(tensor, self.dtype, dense)
            for name, tensor, dense in (("u", x, 1), ("delta", delta, 1), ("B", B, 2), ("C", C, 2))
        }
        self.whole = {
            name: None if tensor is None else tensor.to(self.dtype).contiguous()
            for name, tensor in (("A", A), ("D", D), ("delta_bias", delta_bias))
        }
        self.order = order.contiguous()
        scan = _Scan(
            batch=batch,
            length=order.shape[1],
            channels=channels,
            states=A.shape[2],
            groups=self.groups,
            chunk=CHUNK,
            softplus=int(delta_softplus),
            slots=1,
            threads=native.threads(),
            **{name: _strided(tensor) for name, tensor in self.rows.items()},
            **{name: native.pointer(tensor) for name, tensor in self.whole.items()},
        )
        self.routes = _Routes(
            scan=scan,
            order=native.pointer(self.order),
            routes=routes,
            tokens=tokens,
            merged=int(merge),
            shared=int(x.dim() == 3),
            **{f"{name}_route": _route_stride(tensor) for name, tensor in self.rows.items()},
        )

    def call(self, name: str) -> None:
        entry = f"routed_scan_{name}_{_SUFFIX[self.dtype]}"
        status = native.function(entry, c_void_p)(ctypes.byref(self.routes))
        if status == _BAD_ARGUMENT:
            raise ConfigError(
                f"routed_scan: routes holds a token outside of 0 ... {self.routes.tokens - 1}: give raster indices of "
                f"the map's {self.routes.tokens} tokens."
            )
        native.check(status, entry)


def _strided(tensor: Tensor) -> _Strided:
    return _Strided(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _route_stride(tensor: Tensor) -> int:
    """From route to route; 0 where all share the tensor, [b, L, E]."""
    return 0 if tensor.dim() == 3 else tensor.stride(2)


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
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    inputs = _Inputs(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge)
    batch, tokens, routes, channels = delta.shape
    steps, dtype = order.shape[1], inputs.dtype
    y = native.new_empty(x, (batch, tokens, channels) if merge else tuple(delta.shape), dtype)
    kept_shape = (batch, routes, -(-steps // CHUNK), A.shape[2], channels) if keep_states else (0,)
    kept = native.new_empty(x, kept_shape, dtype)
    if steps < tokens:
        y.zero_()
    inputs.routes.scan.out = y.data_ptr()
    inputs.routes.scan.kept = kept.data_ptr() if keep_states else None
    inputs.call("forward")
    return y.to(x.dtype), kept


def backward(
    grad_y: Tensor,
    states: Tensor,
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
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = _Inputs(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge)
    scan, dtype = inputs.routes.scan, inputs.dtype
    batch, tokens, routes, channels = delta.shape
    slots = scan.slots = _slots(batch * inputs.groups, channels // inputs.groups)

    shapes = {"u": tuple(x.shape), "delta": tuple(delta.shape), "A": (batch, *A.shape)}
    shapes |= {name: (slots, *weights.shape) for name, weights in (("B", B), ("C", C))}
    for name, given in (("D", D), ("bias", delta_bias)):
        if given is not None:
            shapes[name] = (batch, routes, channels)
    grads = {name: native.new_empty(x, shape, dtype) for name, shape in shapes.items()}
    if order.shape[1] < tokens:
        for name in ("u", "delta", "B", "C"):
            grads[name].zero_()
    for name, grad in grads.items():
        setattr(scan, f"grad_{name}", grad.data_ptr())
    grad_y_rows, kept = _rows(grad_y, dtype, 1), states.contiguous()
    scan.grad_out, inputs.routes.grad_out_route = _strided(grad_y_rows), _route_stride(grad_y_rows)
    scan.kept = kept.data_ptr()
    inputs.call("backward")

    summed = {name: grads[name] if name in ("u", "delta") else _added(grads[name]) for name in grads}
    return tuple(summed.get(name) for name in ("u", "delta", "A", "B", "C", "D", "bias"))


def _added(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
