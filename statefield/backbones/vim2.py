"""ViM2, the vision model of MambaMixer (arXiv 2403.19888): scans over tokens and over channels, in turns.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 -> LayerNorm -> mean -> head

The paper has no code and no weights, so nothing here could be compared with its authors' numbers.

Specified by the paper (first version):
  - a layer is a selective token mixer and then a selective channel mixer, both S6 with data-dependent parameters; for
    images the token mixer is VMamba's (depthwise convolution, SiLU, four scans of the map, a gate), the channel mixer
    an S6 from both ends along the channels of the transposed map, with a gate of its own;
  - the input of every mixer is a weighted sum of what earlier mixers gave, with learned scalars (equations 8 and 9);
  - four stages as VMamba has them: patches of 4 x 4 pixels, and maps halved between stages.

Chosen here, because the paper leaves it open:
  - the sums reach back to the beginning of their stage, as sizes change between stages; their scalars are free, not a
    softmax, and begin so that a stage is a plain chain;
  - every mixer stands behind a LayerNorm and has a residual besides;
  - the channel mixer's parameters are shared by all tokens, so that any image size works (`ChannelScanMixer`);
  - widths, depths and expansions: such that the sizes have about as many parameters as the paper tells (20, 43 and 74
    million).

Not built: the second version's quasi-separable mixer, its switch of scans and its gates of several resolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statefield.backbones._blocks import PatchMerging, PatchStem, drop_path_rates, merge_phases, split_phases
from statefield.backbones._mixers import ChannelScanMixer, CrossScanMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)

__all__ = ["MambaMixerBlock", "ViM2"]


def _last_alone(count: int) -> nn.Parameter:
    return nn.Parameter(torch.cat((torch.zeros(count - 1), torch.ones(1))))


def _weighted(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total


class MambaMixerBlock(nn.Module):
    """A token mixer and a channel mixer, each on a weighted sum of what all mixers before it gave.

        x_tok = sum_(i < l) alpha_i y_tok[i] + sum_(i < l) beta_i y_ch[i]          y_tok[l] = x_tok + token(norm(x_tok))
        x_ch = sum_(i <= l) theta_i y_tok[i] + sum_(i < l) gamma_i y_ch[i]         y_ch[l] = x_ch + channel(norm(x_ch))

    with y_tok[0] = y_ch[0] the stage's input. At first beta and theta pick the last output and nothing else counts.

    Args:
        channels: C. position: l, from 1 for the stage's first block.
        d_state: of both mixers. expand: of the token mixer. channel_expand: of the channel mixer.
        summary: see `ChannelScanMixer`. drop_path: a probability.

    Shape: two lists of l maps [B, H, W, C] -> (y_tok[l], y_ch[l]).
    """

    def __init__(
        self,
        channels: int,
        position: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        channel_expand: float = 0.5,
        summary: int = 7,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(position))
        self.beta = _last_alone(position)
        self.theta = _last_alone(position + 1)
        self.gamma = nn.Parameter(torch.zeros(position))
        self.norm1 = nn.LayerNorm(channels)
        self.token_mixer = CrossScanMixer(channels, d_state=d_state, expand=expand)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(channels)
        self.channel_mixer = ChannelScanMixer(channels, d_state=d_state, expand=channel_expand, summary=summary)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, of_tokens: Sequence[Tensor], of_channels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x = _weighted(self.alpha, of_tokens) + _weighted(self.beta, of_channels)
        y_tok = x + self.drop_path1(self.token_mixer(self.norm1(x)))
        x = _weighted(self.theta, [*of_tokens, y_tok]) + _weighted(self.gamma, of_channels)
        return y_tok, x + self.drop_path2(self.channel_mixer(self.norm2(x)))


class AveragingStage(Stage):
    """A stage whose blocks take all outputs of the blocks before them; it gives the last channel mixer's."""

    def run_blocks(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if self.dilation > 1:
            x = split_phases(x, self.dilation)
        of_tokens, of_channels = [x], [x]
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                y_tok, y_ch = checkpoint(block, tuple(of_tokens), tuple(of_channels), use_reentrant=False)
            else:
                y_tok, y_ch = block(of_tokens, of_channels)
            of_tokens.append(y_tok)
            of_channels.append(y_ch)
        x = of_channels[-1]
        return merge_phases(x, self.dilation, height, width) if self.dilation > 1 else x


class ViM2(Pyramid):
    """ViM2 as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ... depths: blocks of each stage.
        d_state, expand, channel_expand, summary: see `MambaMixerBlock`.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, scans included.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    Raises:
        ConfigError: an `output_stride` that cannot be had, or `dims` and `depths` of different lengths.
    """

    undecayed = (*Pyramid.undecayed, ".alpha", ".beta", ".theta", ".gamma")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 5, 2),
        d_state: int = 16,
        expand: float = 2.0,
        channel_expand: float = 0.5,
        summary: int = 7,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths, dims = tuple(depths), stage_widths(dims, depths)
        plans = plan_stages("ViM2", len(depths), output_stride)
        rates = drop_path_rates(drop_path_rate, depths)
        options: dict[str, Any] = {"d_state": d_state, "expand": expand}
        options |= {"channel_expand": channel_expand, "summary": summary}
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = PatchMerging(dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving)
            blocks = [
                MambaMixerBlock(channels, position, drop_path=rate, **options)
                for position, rate in enumerate(rates[index], start=1)
            ]
            stages.append(AveragingStage(downsample, blocks, plan.dilation))
        super().__init__(
            stem=PatchStem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            reductions=[plan.reduction for plan in plans],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            feature_norms=feature_norms,
            drop_rate=drop_rate,
        )
        for module in self.modules():  # the recurrences keep what their mixers gave them
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Entries as they are: there are no authors' files."""
    return state_dict


_SOURCE = "https://arxiv.org/abs/2403.19888"
_PAPER = "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection, 2024"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2403.19888", first_conv="stem.conv1", classifier="head.fc", pool=7)


_SIZES: dict[str, dict[str, Any]] = {  # ours, of the published numbers of parameters; stochastic depth as in VMamba
    "vim2_tiny": {"depths": (2, 2, 5, 2), "drop_path_rate": 0.2},
    "vim2_small": {"depths": (2, 2, 20, 2), "drop_path_rate": 0.3},
    "vim2_base": {"dims": 128, "depths": (2, 2, 20, 2), "drop_path_rate": 0.6},
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(ViM2, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("ViM2", "statefield", None, None, _SOURCE, _PAPER), defaults)
        for name, defaults in _SIZES.items()
    },
    _create,
)
