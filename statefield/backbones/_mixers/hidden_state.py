"""EfficientViM's mixer, HSM-SSD: a map is summed up in a few hidden states, channels are mixed there, and read out.

Symbols   B batch · C channels of the block · H, W map · L = H W positions · N states · E = expand C inner channels
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import hsm_ssd_states

RATE_RANGE = (1.0, 16.0)  # the interval that A is drawn from, uniformly


class HiddenStateMixer(Scanning):
    """b, c, dt = conv(proj(x)),  h = states(x, dt, b),  h = out(h' silu(z) + D h'),  y = h c.

    The projections that cost C^2 an entry in other mixers work on N states here instead of L positions. Entries are
    named as the authors name theirs, so that their weights load. Without its scan every position is a state of its own,
    N = L, that is read out where it is.

    Args:
        channels: C. d_state: N. expand: E / C.

    Shape: [B, C, H, W] -> y [B, C, H, W] and the mixed states h [B, C, N], which the authors' classifier reads.
    Source: Lee et al., "EfficientViM", 2024 (arXiv 2411.15241), section 4; mlvlab/EfficientViM, HSMSSD.
    """

    scan_parameters = ("BCdt_proj", "dw", "A")

    def __init__(self, channels: int, *, d_state: int = 64, expand: float = 1.0) -> None:
        super().__init__()
        inner = int(expand * channels)
        self.BCdt_proj = _named(nn.Conv1d(channels, 3 * d_state, 1, bias=False))
        self.dw = _named(nn.Conv2d(3 * d_state, 3 * d_state, 3, padding=1, groups=3 * d_state, bias=False))
        self.hz_proj = _named(nn.Conv1d(channels, 2 * inner, 1, bias=False))
        self.out_proj = _named(nn.Conv1d(inner, channels, 1, bias=False))
        self.A = nn.Parameter(torch.empty(d_state).uniform_(*RATE_RANGE))
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = x.flatten(2)
        if not self.scans:
            h = self._mixed(u)
            return h.unflatten(2, x.shape[2:]), h
        B, C, dt = self.dw(self.BCdt_proj(u).unflatten(2, x.shape[2:])).flatten(2).chunk(3, dim=1)
        h = self._mixed(hsm_ssd_states(u, dt, self.A, B))
        return torch.bmm(h, C.to(h.dtype)).unflatten(2, x.shape[2:]), h

    def _mixed(self, states: Tensor) -> Tensor:
        """The channels of states [B, C, N] mixed, each state by itself."""
        h, z = self.hz_proj(states).chunk(2, dim=1)
        return self.out_proj(h * functional.silu(z) + h * self.D)


def _named(conv: nn.Module) -> nn.Sequential:
    """The convolution under the name `conv`, as the authors' layer of convolution, norm and activation has it."""
    return nn.Sequential(OrderedDict(conv=conv))
