"""Vim's mixer: a sequence scanned forwards and backwards, each direction with parameters of its own."""

from __future__ import annotations

from statefield.backbones._mixers.oriented import Direction, OrientedMixer

__all__ = ["BidirectionalMixer", "Direction"]


class BidirectionalMixer(OrientedMixer):
    """Two selective scans over a sequence, one from either end, gated together.

        y = (scan(conv_f(x)) + reverse(scan(reverse(conv_b(x))))) * silu(z)      halved with `halve`

    Args:
        channels: C. d_state: N. d_conv: taps of the causal convolutions. expand: E / C. dt_rank: R, ceil(C / 16).
        halve: divide the sum of the two directions by two, as every released Vim does.

    Shape: [B, L, C] -> [B, L, C]; a map or volume [B, *S, C] is scanned in raster order.
    Source: Vim (arXiv 2401.09417), algorithm 1; hustvl/Vim, `bimamba_type="v2"`.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        dt_rank: int | None = None,
        halve: bool = True,
    ) -> None:
        super().__init__(
            channels,
            routes={"forwards": "raster", "backwards": "raster~"},
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            dt_rank=dt_rank,
            average=halve,
        )
