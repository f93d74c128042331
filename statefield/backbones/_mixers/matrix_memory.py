"""Vision-LSTM's mixer: a sequence read once, in either direction, into matrix memories of a few heads (mLSTM).

Symbols   B batch · L tokens, a grid of h x w · C channels of the block · E = expand C inner channels · NH heads
          P channels of a block of the block-diagonal projections
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import CausalConv, DepthwiseConv
from statefield.backbones._mixers.scanning import Scanning
from statefield.errors import ConfigError
from statefield.kernels import mlstm

FORGET_BIAS = (3.0, 6.0)  # of the first and the last head at the start: a head remembers long, the last one longest


class GainNorm(nn.Module):
    """LayerNorm over the last axis that stores how far its scale lies from 1: scale = 1 + gain.

    The parameter is not called `weight`, so that nobody takes a file's numbers for the scale itself.
    """

    def __init__(self, channels: int, *, bias: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.gain.shape, 1 + self.gain, self.bias, self.eps)


class HeadwiseNorm(GainNorm):
    """GainNorm whose mean and variance are taken in each head apart: [B, L, NH, E / NH] -> [B, L, E]."""

    def forward(self, x: Tensor) -> Tensor:
        x = functional.layer_norm(x, x.shape[-1:], eps=self.eps).flatten(2) * (1 + self.gain)
        return x if self.bias is None else x + self.bias


class BlockLinear(nn.Module):
    """A block-diagonal linear layer, [..., E] -> [..., E]: each run of P channels is mixed within itself."""

    def __init__(self, channels: int, block: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels // block, block, block))  # [block, out, in]
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        blocks, P, _ = self.weight.shape
        y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (blocks, P)), self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias


class MatrixMemoryMixer(Scanning):
    """One pass of mLSTM over a sequence, with a convolution before it, a skip around it and a gate behind it.

        x, z = in_proj(input)      a = silu(conv(x))      q, k, v = q_proj(a), k_proj(a), v_proj(x)
        out = out_proj((norm(mlstm(q, k, v, gates(q, k, v))) + skip * a) * silu(z))

    Args:
        channels: C. expand: E / C.
        reverse: read the sequence from its end; what comes out lies as what went in.
        conv: "2d" over the grid of tokens, or "causal" over the sequence as it is read.
        taps: side of the "2d" convolution (odd), or length of the "causal" one; 3 and 4 where not given.
        block: P. heads: NH. The authors have one number for both, 4.
        bias: of all projections but the gates', which always have one. norm_bias: of the norm behind the memory.

    Shape: [B, L, C] and the grid (L = h w) -> [B, L, C]. The "causal" form does not look at the grid.
    Source: Vision-LSTM (arXiv 2406.04303), section 3; NX-AI/vision-lstm, ViLLayer.

    Raises:
        ConfigError: sizes that do not divide each other, or another `conv`.
    """

    scan_parameters = ("q_proj", "k_proj", "input_gate", "forget_gate")

    def __init__(
        self,
        channels: int,
        *,
        expand: float = 2.0,
        reverse: bool = False,
        conv: str = "2d",
        taps: int | None = None,
        block: int = 4,
        heads: int = 4,
        bias: bool = True,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        _check(inner, conv, taps, block, heads)
        self.channels, self.heads, self.reverse = channels, heads, reverse
        self.in_proj = nn.Linear(channels, 2 * inner, bias=bias)
        self.conv = DepthwiseConv(inner, taps or 3) if conv == "2d" else CausalConv(inner, taps or 4, silu=True)
        self.q_proj = BlockLinear(inner, block, bias=bias)
        self.k_proj = BlockLinear(inner, block, bias=bias)
        self.v_proj = BlockLinear(inner, block, bias=bias)
        self.input_gate = nn.Linear(3 * inner, heads)
        self.forget_gate = nn.Linear(3 * inner, heads)
        self.out_norm = HeadwiseNorm(inner, bias=norm_bias)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initial values: at the start the gates do not look at the tokens."""
        std = math.sqrt(2 / (5 * self.channels))
        for projection in (self.in_proj, self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(projection.weight, std=std)
        nn.init.normal_(self.out_proj.weight, std=2 / math.sqrt(self.channels))
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for gate in (self.input_gate, self.forget_gate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.input_gate.bias, std=0.1)
        with torch.no_grad():
            self.forget_gate.bias.copy_(torch.linspace(*FORGET_BIAS, self.heads))

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        if self.reverse:
            x = x.flip(1)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        if isinstance(self.conv, DepthwiseConv):  # a reversed raster order is that of the map turned upside down
            a = functional.silu(self.conv(x.unflatten(1, tuple(grid))).flatten(1, 2))
        else:
            a = self.conv(x)  # takes SiLU along
        v = self.v_proj(x)
        if self.scans:
            h = self.remember(self.q_proj(a), self.k_proj(a), v)
        else:
            h = self.out_norm(v.unflatten(-1, (self.heads, -1)))
        y = self.out_proj((h + self.skip * a) * functional.silu(z))
        return y.flip(1) if self.reverse else y

    def remember(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the memories answer, normalised: [B, L, E] each -> [B, L, E]."""
        gated = torch.cat((q, k, v), dim=-1)
        i, f = self.input_gate(gated).transpose(1, 2), self.forget_gate(gated).transpose(1, 2)  # [B, NH, L]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out_norm(mlstm(q, k, v, i, f).transpose(1, 2))


def _check(inner: int, conv: str, taps: int | None, block: int, heads: int) -> None:
    if conv not in ("2d", "causal"):
        raise ConfigError(f"conv {conv!r} is not one of '2d', 'causal'.")
    if conv == "2d" and taps is not None and taps % 2 == 0:
        raise ConfigError(f"taps {taps}: a '2d' convolution has an odd side, so that the grid keeps its size.")
    for name, count in (("block", block), ("heads", heads)):
        if inner % count:
            raise ConfigError(f"{name} {count} has to divide the {inner} inner channels: choose another width.")
