"""What takes the place of Vim's scans in a control: a depthwise convolution along the sequence, with as many weights.

    y = out(silu(conv(v)) * silu(z)),    v, z = in(x)

It is MambaOut's token mixer (arXiv 2405.07992), a Mamba without its recurrence, over a sequence. How far it looks is
set by its taps, how far a scan looks by its weights: so the taps are as many as make the two equally large.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers import OrientedMixer
from statefield.errors import ConfigError

__all__ = ["GatedConvolution"]


class GatedConvolution(nn.Module):
    """A gated depthwise convolution over a sequence, centred on each token: [B, L, C] -> [B, L, C].

    Args:
        channels: C. inner: channels that are convolved. taps: tokens that each sees, an odd number.

    Raises: ConfigError: taps that have no middle.
    """

    def __init__(self, channels: int, inner: int, taps: int) -> None:
        super().__init__()
        if taps < 1 or taps % 2 == 0:
            raise ConfigError(f"{taps} taps: an odd number, 1 or more, is needed, so that one of them is the middle.")
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, taps, padding=taps // 2, groups=inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    @classmethod
    def as_large_as(cls, mixer: OrientedMixer) -> GatedConvolution:
        """The one that has the mixer's projections and, but for less than two taps, as many weights as its scans."""
        inner, channels = mixer.out_proj.in_features, mixer.out_proj.out_features
        of_scans = sum(parameter.numel() for one in mixer.directions() for parameter in one.parameters())
        taps = max(of_scans // inner - 1, 1)  # less the bias
        return cls(channels, inner, taps - (taps + 1) % 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        mixed = self.conv1d(value.transpose(1, 2)).transpose(1, 2)
        return self.out_proj(functional.silu(mixed) * functional.silu(gate))
