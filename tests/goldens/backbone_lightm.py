"""LightM-UNet's blocks, and the Mamba layers of U-Mamba and SegMamba, which differ in their routes alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import lightm
from statefield.backbones._blocks import channels_first, channels_last
from statefield.backbones._mixers import TRI_ORIENTED, OrientedMixer
from statefield.backbones.lightm import ResidualMambaBlock, ResidualMambaLayer
from statefield.errors import ConfigError

_MIXER = {"d_state": "d_state", "d_conv": "d_conv", "expand": "expand"}


@builder("lightm_unet", "MambaLayer")
def _layer(kwargs: dict[str, Any]) -> Built:
    names = {"input_dim": "channels", "output_dim": "out_channels"} | _MIXER
    layer = ResidualMambaLayer(**take(kwargs, names))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = channels_last(inputs["x"])
        layer.spatial_dims = x.ndim - 2  # the authors' layer takes either
        mixed = layer.mixer(layer.norm(x)).flatten(1, -2)
        return {"RVM layer output": channels_first(layer(x)), "mamba(LN(tokens))": mixed}

    return Built(run, layer, lightm.checkpoint_filter_fn)


@builder("lightm_unet", "ResMambaBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    kind, arguments = kwargs.pop("norm", ("GROUP", {"num_groups": 8}))
    if kind.upper() != "GROUP" or kwargs.pop("kernel_size", 3) != 3 or kwargs.pop("act", "RELU") != "RELU":
        raise ConfigError("only GroupNorm and ReLU have a counterpart, the official defaults.")
    options = take(kwargs, {"in_channels": "channels", "spatial_dims": "spatial_dims"})
    block = ResidualMambaBlock(**options, groups=arguments["num_groups"])

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"ResMambaBlock output": channels_first(block(channels_last(inputs["x"])))}

    return Built(run, block, lightm.checkpoint_filter_fn)


class _NormedMixer(nn.Module):
    """LayerNorm and a mixer, under the names that U-Mamba and SegMamba give them."""

    def __init__(self, channels: int, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = OrientedMixer(channels, **mixer)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x))


@builder("umamba", "MambaLayer")
def _umamba(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    by_channel = kwargs.pop("channel_token", False)
    layer = _NormedMixer(**take(kwargs, {"dim": "channels"} | _MIXER))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = inputs["x"]
        if by_channel:  # a channel is a token, its pixels are the features
            return {"MambaLayer output": layer(x.flatten(2)).reshape(x.shape)}
        return {"MambaLayer output": channels_first(layer(channels_last(x)))}

    return Built(run, layer, lightm.checkpoint_filter_fn)


@builder("segmamba", "MambaLayer")
def _segmamba(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    slices = kwargs.pop("num_slices")
    layer = _NormedMixer(**take(kwargs, {"dim": "channels"} | _MIXER), routes=TRI_ORIENTED)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        x = channels_last(inputs["x"])
        volume = x.flatten(1, -2).unflatten(1, (slices, -1, 1))  # their slices are as many runs of tokens
        mixed = layer(volume).flatten(1, -2)
        return {"MambaLayer output": channels_first(x + mixed.unflatten(1, x.shape[1:-1])), "tri-oriented": mixed}

    return Built(run, layer, lightm.checkpoint_filter_fn)
