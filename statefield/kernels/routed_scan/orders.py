"""From route names to the tensor that the operator takes: int64 [K, T], the token that route k visits at step t.

Names are looked up once for each grid and device and kept. A compiled or exported graph, where the grid's sizes may be
symbols, holds the look-up itself as `torch.ops.statefield.route_orders`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from statefield.errors import ConfigError, ShapeError
from statefield.kernels.routes import route_order


def order_of(routes: Sequence[str] | Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The orders of all routes on a grid, on the device of `like`.

    Args:
        routes: names of `statefield.kernels.routes` ("snake", "snake~"), at least one; or the orders themselves, int64
            [K, T], T <= L = prod(shape), each row without repetition.
        shape: sizes of the grid's axes.
    Raises:
        ShapeError, ConfigError: orders that are not of this grid. UnknownName: no such route.
    """
    if isinstance(routes, Tensor):
        return _given_order(routes, shape, like)
    if isinstance(routes, str) or len(routes) == 0:
        raise ConfigError(
            f"routed_scan: routes is {routes!r}, it has to be a tuple of at least one name, as ('raster', 'raster~')."
        )
    # FakeTensor and the like are subclasses: inside their modes no real tensor can be made to keep.
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return torch.ops.statefield.route_orders(" ".join(routes), list(shape), like.device)
    return _orders(tuple(routes), tuple(shape), like.device)


@lru_cache(maxsize=256)
def _orders(names: tuple[str, ...], shape: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept has to serve training too
        return torch.stack([route_order(name, shape) for name in names]).to(device)


def _route_orders(names: str, shape: Sequence[int], device: torch.device) -> Tensor:
    # A copy: the compiler may use an operator's output as working memory when it is done with it.
    return _orders(tuple(names.split(" ")), tuple(shape), device).clone()


def _route_orders_fake(names: str, shape: Sequence[int], device: torch.device) -> Tensor:
    length = 1
    for size in shape:
        length = length * size
    return torch.empty(names.count(" ") + 1, length, dtype=torch.int64, device=device)


route_orders_op = torch.library.custom_op("statefield::route_orders", _route_orders, mutates_args=())
route_orders_op.register_fake(_route_orders_fake)

_seen = WeakIdKeyDictionary()  # order -> (its version, number of tokens) when it was last found to be right


def _given_order(order: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    length = 1
    for size in shape:
        length = length * size
    if order.dim() != 2 or order.dtype != torch.int64:
        raise ShapeError(
            f"routed_scan: routes is a {order.dtype} tensor of shape {list(order.shape)}, it has to be int64 [K, T]: "
            f"the token that each of K routes visits at each of its T steps."
        )
    if order.device != like.device:
        raise ShapeError(f"routed_scan: routes is on {order.device} and x on {like.device}: move them together.")
    routes, steps = order.shape
    if routes < 1 or not 1 <= steps <= length:
        raise ShapeError(
            f"routed_scan: routes has shape {list(order.shape)}, it has to be [K, T] with K >= 1 and 1 <= T <= "
            f"{length}, the tokens of a grid {list(shape)}."
        )
    if not torch.compiler.is_compiling() and type(order) is Tensor and not order.is_meta:
        _check_tokens(order, length)
    return order.contiguous()


def _check_tokens(order: Tensor, length: int) -> None:
    """Each row a set of tokens. Looked at once: a model hands in the same tensor again and again."""
    known = (order._version if not order.is_inference() else 0, length)
    if _seen.get(order) == known:
        return
    if int(order.min()) < 0 or int(order.max()) >= length:
        raise ConfigError(
            f"routed_scan: routes holds tokens from {int(order.min())} to {int(order.max())}, they have to be in "
            f"0 ... {length - 1}, raster indices of the grid."
        )
    ranked = order.sort(dim=1).values
    if bool((ranked[:, 1:] == ranked[:, :-1]).any()):
        raise ConfigError("routed_scan: a row of routes visits a token twice: each row is a set of different tokens.")
    _seen[order] = known
