"""VM-UNet (arXiv 2402.02491) and MHS-VM (arXiv 2406.05992): U-Nets whose every block scans the map.

    image -> 4 x 4 patches -> stage -> down -> stage -> down -> stage -> down -> stage
                                        |               |               |          |
    logits <- x4 <- stage <- up <------ + <- stage <- up + <- stage <- up + <- stage

What a stage receives is added to what the decoder has at that size, before the decoder widens it. Facts were taken from
JCruan519/VM-UNet at commit 43c495b and PixDeep/MHS-VM (its history: the last commit is cut off); the tests compare with
numbers that their code computes. One difference: where there is one class the authors' wrapper ends in a sigmoid, ours
gives logits always, as MONAI's nets do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from timm.layers import trunc_normal_
from torch import Tensor, nn

from statefield.backbones._blocks import PatchMerging, PatchStem, drop_path_rates
from statefield.backbones._mixers import CrossScanMixer, MultiHeadScanMixer
from statefield.backbones._pyramid import Stage, stage_widths
from statefield.backbones.vmamba import VMambaBlock
from statefield.errors import ConfigError
from statefield.tasks.medical.nets._shapes import check_dims, check_image

__all__ = ["MultiHeadScanUNet", "VMUNet"]


class PatchExpand(nn.Module):
    """Enlarge a map by `factor`: a linear layer, its channels laid out as pixels, LayerNorm; [B, H, W, C] -> C'."""

    def __init__(self, channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        x = self.expand(x).view(B, H, W, self.factor, self.factor, -1).transpose(2, 3)
        return self.norm(x.reshape(B, H * self.factor, W * self.factor, -1))


class VMUNet(nn.Module):
    """VM-UNet: [B, in_channels, H, W] -> raw logits [B, out_channels, H, W].

    Args:
        spatial_dims: 2. in_channels: any number (the authors repeat a single channel three times; weights of theirs
            fit a net of one channel when summed). out_channels: classes.
        dims: channels of each stage; an integer C means C, 2C, 4C, ...
        depths, decoder_depths: blocks of each stage, from the image down and from the bottom up.
        d_state: states a channel. drop_path_rate: stochastic depth, rising down the encoder, falling up the decoder.

    H and W are multiples of `multiple` (32 for four stages).

    Raises:
        ConfigError: `spatial_dims` other than 2, encoder and decoder of different lengths.
        ShapeError (forward): an image of other channels, or of sides that are no multiples.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2,)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        d_state: int = 16,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        check_dims(type(self).__name__, spatial_dims, self.dimensions)
        if len(depths) != len(decoder_depths):
            raise ConfigError(f"depths {tuple(depths)} and decoder_depths {tuple(decoder_depths)} differ in length.")
        self.spatial_dims, self.in_channels, self.d_state = spatial_dims, in_channels, d_state
        widths = stage_widths(dims, depths)
        self.multiple = 4 * 2 ** (len(widths) - 1)

        def blocks(channels: int, rates: Sequence[float]) -> list[nn.Module]:
            return [VMambaBlock(channels, self.mixer(channels), drop_path=rate) for rate in rates]

        self.stem = PatchStem(in_channels, widths[0])
        self.stages, self.decoder = nn.ModuleList(), nn.ModuleList()
        for index, rates in enumerate(drop_path_rates(drop_path_rate, tuple(depths))):
            down = PatchMerging(widths[index - 1], widths[index]) if index else nn.Identity()
            self.stages.append(Stage(down, blocks(widths[index], rates)))
        rising = drop_path_rates(drop_path_rate, tuple(reversed(decoder_depths)))
        for index, rates in enumerate(reversed(rising)):
            channels = widths[-1 - index]
            up = PatchExpand(widths[-index], channels, 2) if index else nn.Identity()
            self.decoder.append(Stage(up, blocks(channels, rates[::-1])))
        self.final_up = PatchExpand(widths[0], widths[0] // 4, 4)
        self.final_conv = nn.Conv2d(widths[0] // 4, out_channels, 1)
        for module in self.modules():  # the recurrences keep what their mixers gave them
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def mixer(self, channels: int) -> nn.Module:
        """What a block of so many channels mixes its pixels with."""
        return CrossScanMixer(channels, d_state=self.d_state)

    def forward(self, image: Tensor) -> Tensor:
        check_image(type(self).__name__, image, self.spatial_dims, self.in_channels, self.multiple)
        x = self.stem(image)
        skips = []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.downsample(x)
            skips.append(x)
            x = stage.run_blocks(x)
        x = self.decoder[0](x)
        for stage, skip in zip(self.decoder[1:], reversed(skips[1:]), strict=True):  # that of the patches is not used
            x = stage(x + skip)
        return self.final_conv(self.final_up(x).permute(0, 3, 1, 2))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}


class MultiHeadScanUNet(VMUNet):
    """MHS-VM: VM-UNet with multi-head scans in place of the cross-scan, and without inner expansion.

    Args:
        heads: 3 or 4 (1 and 2 work). threshold: of the fusion; the authors train ISIC 2018 with 0.5, ISIC 2017 with 0.
        others: as for `VMUNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 4,
        threshold: float = 0.5,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        d_state: int = 16,
        drop_path_rate: float = 0.2,
    ) -> None:
        self.heads, self.threshold = heads, threshold
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            dims=dims,
            depths=depths,
            decoder_depths=decoder_depths,
            d_state=d_state,
            drop_path_rate=drop_path_rate,
        )

    def mixer(self, channels: int) -> nn.Module:
        return MultiHeadScanMixer(channels, heads=self.heads, d_state=self.d_state, threshold=self.threshold)


REPEATED_ENTRIES = re.compile(r"\.scanning\.seq2seq_engine\.|(^|\.)x_ssproj\.weight$")  # of MHS-VM's files
_HEADS = {"C": "0", "X": "1", "S": "2", "Z": "3"}
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vmunet\.", ""),
        (r"^patch_embed\.proj\.", "stem.conv1."),
        (r"^patch_embed\.norm\.", "stem.norm1."),
        (r"^layers_up\.(\d+)\.upsample\.", r"decoder.\1.downsample."),
        (r"^layers_up\.", "decoder."),
        (r"(^|\.)self_attention\.", r"\1mixer."),
        (r"(^|\.)ln_1\.", r"\1norm1."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)mhs\.", r"\1scan."),
        (r"(^|\.)x_ssproj(?:_W|\.weight)$", r"\1in_proj.weight"),
        (r"(^|\.)cat_norm\.", r"\1norm."),
        (r"(^|\.)y_proj\.", r"\1out_proj."),
        (r"(^|\.)(?:mambaeng|scanning\.seq2seq_engine)\.", r"\1"),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")
_OFFICIAL_HEAD = re.compile(r"(^|\.)scanhead_([CXSZ])\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("vmunet.layers.0.downsample.norm.weight")
    'stages.1.downsample.norm.weight'
    >>> rename_official_key("layers_up.3.blocks.0.self_attention.mhs.scanhead_S.mambaeng.Ds")
    'decoder.3.blocks.0.mixer.scan.heads.2.D'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    stage = _OFFICIAL_STAGE.match(key)
    if stage:  # the authors end a stage with its downsampling, we begin the next one with it
        key = f"stages.{int(stage[1]) + (stage[2] == 'downsample')}.{stage[2]}.{key[stage.end() :]}"
    return _OFFICIAL_HEAD.sub(lambda head: f"{head[1]}heads.{_HEADS[head[2]]}.", key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (wrapper, net, or any module of it) under our names."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
