"""Nets of hyperspectral windows: a spectral-spatial Mamba of our own, and the 3-D convolutional net of the field.

`SpectralSpatialMamba` follows no paper: it is what the kernels of this library give with little else. A pixel's
spectrum is a sequence that is scanned both ways (Vim's mixer), and the window around it is a map that is scanned along
four routes (VMamba's mixer).
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from statefield.backbones._mixers import BidirectionalMixer, CrossScanMixer
from statefield.errors import ConfigError, ShapeError

__all__ = ["SpectralSpatialCNN", "SpectralSpatialMamba"]


class MixerBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); channels last, any shape the mixer takes."""

    def __init__(self, mixer: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm1, self.mixer = nn.LayerNorm(channels), mixer
        self.norm2, self.mlp = nn.LayerNorm(channels), Mlp(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SpectralSpatialMamba(nn.Module):
    """Windows [B, in_channels, window, window] of bands in the order of their wavelengths -> raw logits [B, K].

    Three spectra stand side by side: of the pixel itself, the mean of its 3 x 3 neighbourhood, and the mean of the
    window's pixels that are like that neighbourhood (weights softmax(-b d^2), d the root mean square difference over
    the bands, b learnt), which does not mix two fields. They are cut into overlapping groups of bands, which become the
    tokens of a sequence; each pixel of the window becomes a token of a map. The classifier sees the mean of the
    sequence, the map's token at the pixel, and the map's mean under the same weights.

    Args:
        in_channels: bands. num_classes: K. window: pixels along a side. channels: of a token. d_state: N of the scans.
        group, stride: bands of a token of the sequence, and between two of them. spectral_depth, spatial_depth: blocks.
        drop_rate: before the classifier.

    Raises:
        ConfigError: fewer bands than a group. ShapeError (forward): windows of other sides or bands.
    Source: ours; the mixers are those of Vim (arXiv 2401.09417) and VMamba (arXiv 2401.10166).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        window: int = 7,
        channels: int = 48,
        d_state: int = 8,
        group: int = 12,
        stride: int = 8,
        spectral_depth: int = 1,
        spatial_depth: int = 1,
        drop_rate: float = 0.3,
    ) -> None:
        super().__init__()
        if in_channels < group:
            raise ConfigError(f"{in_channels} bands for groups of {group}: as many bands as a group are needed.")
        self.in_channels, self.num_classes, self.window = in_channels, num_classes, window
        self.likeness = nn.Parameter(torch.tensor(1.0))  # log b
        self.groups = nn.Conv1d(3, channels, group, stride)
        self.position = nn.Parameter(torch.zeros((in_channels - group) // stride + 1, channels))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.spectral = nn.Sequential(
            *(
                MixerBlock(BidirectionalMixer(channels, d_state=d_state, expand=1.0), channels)
                for _ in range(spectral_depth)
            )
        )
        self.pixels = nn.Sequential(nn.Linear(in_channels, channels), nn.LayerNorm(channels))
        self.spatial = nn.Sequential(
            *(MixerBlock(CrossScanMixer(channels, d_state=d_state, expand=1.0), channels) for _ in range(spatial_depth))
        )
        self.norm = nn.LayerNorm(3 * channels)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(3 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _require_windows(self, x)
        middle = self.window // 2
        pixels = x.permute(0, 2, 3, 1)  # [B, W, W, bands]
        around = slice(max(middle - 1, 0), middle + 2)
        near = pixels[:, around, around].mean((1, 2))
        apart = (pixels - near[:, None, None]).square().mean(-1)  # [B, W, W]
        weights = (-self.likeness.exp() * apart).flatten(1).softmax(-1)  # [B, W * W]
        alike = (weights.unsqueeze(1) @ pixels.flatten(1, 2)).squeeze(1)
        spectra = torch.stack([pixels[:, middle, middle], near, alike], 1)  # [B, 3, bands]
        sequence = self.spectral(self.groups(spectra).transpose(1, 2) + self.position)
        area = self.spatial(self.pixels(pixels))  # [B, W, W, channels]
        field = (weights.unsqueeze(1) @ area.flatten(1, 2)).squeeze(1)
        found = torch.cat([sequence.mean(1), area[:, middle, middle], field], -1)
        return self.head(self.drop(self.norm(found)))


class SpectralSpatialCNN(nn.Module):
    """Windows [B, in_channels, 5, 5] of all bands -> raw logits [B, K], by convolutions over bands, rows and columns.

    Two convolutions of 3 x 3 x 3 take the window down to its pixel, each followed by one along the bands that halves
    them; two more along the bands and one linear layer end it.

    Args:
        in_channels: bands. num_classes: K. widths: channels of the first and of the later convolutions.
    Raises:
        ShapeError (forward): windows of another side or other bands.
    Source: after Ben Hamida et al. 2018, 3-D deep learning approach for remote sensing image classification, IEEE TGRS,
        doi 10.1109/TGRS.2018.2818945; our own writing of that design, not held to the authors' code or numbers.
    """

    window = 5

    def __init__(self, in_channels: int, num_classes: int, *, widths: tuple[int, int] = (20, 35)) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        first, later = widths
        self.features = nn.Sequential(
            _conv(1, first, (3, 3, 3)),
            nn.ReLU(),
            _conv(first, first, (3, 1, 1), 2),
            nn.ReLU(),
            _conv(first, later, (3, 3, 3)),
            nn.ReLU(),
            _conv(later, later, (3, 1, 1), 2),
            nn.ReLU(),
            _conv(later, later, (3, 1, 1)),
            nn.ReLU(),
            _conv(later, later, (2, 1, 1), 2),
            nn.ReLU(),
        )
        bands = in_channels
        for layer in self.features:
            if isinstance(layer, nn.Conv3d):
                bands = (bands + 2 - layer.kernel_size[-1]) // layer.stride[-1] + 1
        self.head = nn.Linear(later * bands, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last_3d)  # a step of training takes half the time on a CPU

    def forward(self, x: Tensor) -> Tensor:
        _require_windows(self, x)
        volumes = x.permute(0, 2, 3, 1).unsqueeze(1).contiguous(memory_format=torch.channels_last_3d)
        return self.head(self.features(volumes).flatten(1))


def _conv(channels: int, out: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """A kernel of (bands, rows, columns), padded by one and moved by `stride` along the bands alone.

    The net's volumes are [B, C, rows, columns, bands]: with the long axis last, a CPU takes half the time.
    """
    along, rows, columns = kernel
    return nn.Conv3d(channels, out, (rows, columns, along), (1, 1, stride), (0, 0, 1))


def _require_windows(net: SpectralSpatialMamba | SpectralSpatialCNN, x: Tensor) -> None:
    wanted = (net.in_channels, net.window, net.window)
    if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
        raise ShapeError(
            f"{type(net).__name__} got windows of shape {list(x.shape)} and needs [B, {', '.join(map(str, wanted))}]."
        )
