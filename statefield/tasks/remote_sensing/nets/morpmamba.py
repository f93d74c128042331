"""MorpMamba (arXiv 2408.01372): classes of hyperspectral pixels, from the window around each; the graph as released.

    window -> spatial tokens  --+-> gated by the centre --> attention -> linear recurrence -> two linear layers
           -> spectral tokens --+

Facts were taken from the authors' notebook (mahmad000/MorpMamba at commit ecaff99), which this follows where the
paper's words differ: "erosion" and "dilation" are minus and plus a trainable convolution, not least and largest values,
and the "state space" is a recurrence with one dense matrix for all tokens. There are no published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError

__all__ = ["MorpMamba"]

_KERNEL = 5


class MorphologicalTokens(nn.Module):
    """A window as tokens that see its rows and columns, and as tokens that see its bands and rows.

    [B, bands, W, W] -> spatial and spectral tokens, each [B, W, W, D] (rows, columns).
    """

    def __init__(self, bands: int, window: int, channels: int) -> None:
        super().__init__()
        self.spatial_erosion, self.spatial_dilation = _depthwise(bands), _depthwise(bands)
        self.spectral_erosion, self.spectral_dilation = _depthwise(window), _depthwise(window)
        self.conv = nn.Conv2d(2 * bands, channels, 1)  # one for both kinds of token

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spatial = torch.cat([-self.spatial_erosion(x), self.spatial_dilation(x)], dim=1)
        # each column of the window is a channel, and a picture of bands by rows
        by_columns = x.permute(0, 3, 1, 2)
        found = (-self.spectral_erosion(by_columns), self.spectral_dilation(by_columns))
        spectral = torch.cat([one.permute(0, 2, 3, 1) for one in found], dim=1)
        return self.conv(spatial).permute(0, 2, 3, 1), self.conv(spectral).permute(0, 2, 3, 1)


class CentreGates(nn.Module):
    """Both kinds of token weighted by what the spatial tokens of the centre row say.

    The gate of a column of the centre row is applied to the whole row of that number, as in the authors' notebook.
    """

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.centre = window // 2
        self.spatial_gate = nn.Linear(channels, channels)
        self.spectral_gate = nn.Linear(channels, channels)

    def forward(self, spatial: Tensor, spectral: Tensor) -> tuple[Tensor, Tensor]:
        centre = spatial[:, self.centre]  # [B, W, D]
        return (
            spatial * self.spatial_gate(centre).sigmoid().unsqueeze(2),
            spectral * self.spectral_gate(centre).sigmoid().unsqueeze(2),
        )


class CrossAttention(nn.Module):
    """What spatial tokens ask of spectral ones, [B, L, D] twice -> [B, L, D]; no projection behind the heads."""

    def __init__(self, channels: int, heads: int, drop_rate: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.drop = nn.Dropout(drop_rate)

    def forward(self, spatial: Tensor, spectral: Tensor) -> Tensor:
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, spatial), (self.key, spectral), (self.value, spectral))
        )
        return self.drop(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class DenseRecurrence(nn.Module):
    """s_t = A s_(t-1) + a + B x_t + b from s_0 = 0; the last state: [B, L, D] -> [B, N]."""

    def __init__(self, channels: int, d_state: int) -> None:
        super().__init__()
        self.transition = nn.Linear(d_state, d_state)
        self.update = nn.Linear(channels, d_state)

    def forward(self, tokens: Tensor) -> Tensor:
        updates = self.update(tokens)
        state = torch.zeros_like(updates[:, 0])
        for update in updates.unbind(1):
            state = self.transition(state) + update
        return state


class MorpMamba(nn.Module):
    """Windows [B, in_channels, window, window] around pixels -> raw logits [B, num_classes].

    Args:
        in_channels: bands, usually the first principal components (15 in the notebook). num_classes: of land cover.
        window: pixels along a side; of an even number the centre is the first pixel of the second half (of 4: 2).
        channels: D of a token. heads: of attention. d_state: N. hidden: units before the classifier.
        drop_rate: behind the attention.

    Raises:
        ConfigError: channels that the heads cannot share. ShapeError (forward): windows of other sides or bands.
    """

    def __init__(
        self,
        in_channels: int = 15,
        num_classes: int = 15,
        *,
        window: int = 4,
        channels: int = 64,
        heads: int = 4,
        d_state: int = 128,
        hidden: int = 128,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(
                f"MorpMamba with {channels} channels and {heads} heads: a multiple of the heads is needed."
            )
        self.in_channels, self.num_classes, self.window = in_channels, num_classes, window
        self.tokens = MorphologicalTokens(in_channels, window, channels)
        self.gates = CentreGates(window, channels)
        self.attention = CrossAttention(channels, heads, drop_rate)
        self.recurrence = DenseRecurrence(channels, d_state)
        self.hidden = nn.Linear(d_state, hidden)
        self.head = nn.Linear(hidden, num_classes)
        for module in self.modules():  # as Keras begins, whose defaults the notebook has
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        wanted = (self.in_channels, self.window, self.window)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            raise ShapeError(
                f"MorpMamba got windows of shape {list(x.shape)} and needs [B, {', '.join(map(str, wanted))}]."
            )
        spatial, spectral = self.gates(*self.tokens(x))
        state = self.recurrence(self.attention(spatial.flatten(1, 2), spectral.flatten(1, 2)))
        return self.head(self.hidden(state).relu())

    def penalty(self) -> Tensor:
        """What the notebook adds to the loss: 0.01 times the squared weights of the hidden layer, a scalar."""
        return 0.01 * self.hidden.weight.square().sum()


def _depthwise(channels: int) -> nn.Conv2d:
    """One 5 x 5 kernel a channel, ones at first, over the same size; no bias."""
    conv = nn.Conv2d(channels, channels, _KERNEL, padding=_KERNEL // 2, groups=channels, bias=False)
    nn.init.ones_(conv.weight)
    return conv
