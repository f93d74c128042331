"""The goldens of LightM-UNet: the net in two and three dimensions, and its decoder's block."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor
from watch import Watch

from statefield.backbones._blocks import channels_first
from statefield.errors import ConfigError
from statefield.tasks.medical.nets import LightMUNet, lightm_unet
from statefield.tasks.medical.nets.lightm_unet import UpBlock


@builder("lightm_unet", "LightMUNet")
def _net(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    _check_norm(kwargs)
    if kwargs.pop("upsample_mode", "nontrainable") != "nontrainable":
        raise ConfigError("upsampling with weights has no counterpart.")
    wanted = {"spatial_dims": "spatial_dims", "in_channels": "in_channels", "out_channels": "out_channels"}
    wanted |= {"init_filters": "filters", "blocks_down": "depths", "blocks_up": "decoder_depths"}
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "filters": 8}
    options |= take(kwargs, wanted, ("dropout_prob", "act"))
    net = LightMUNet(**options)
    watch = Watch()
    for index, stage in enumerate(net.encoder):
        watch.on(stage, f"down_layers.{index}")
        watch.on(stage.widen, f"down_layers.{index}.0.0", channels_first)
        for place, block in enumerate(stage.blocks):
            watch.on(block, f"down_layers.{index}.{place + 1}", channels_first)
    for index, stage in enumerate(net.decoder):
        watch.on(stage.enlarge, f"up_samples.{index}.1")
        watch.on(stage, f"up_layers.{index}")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": net(inputs["x"])} | watch.longest_first()

    return Built(run, net, lightm_unet.checkpoint_filter_fn)


@builder("lightm_unet", "ResUpBlock")
def _up_block(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    _check_norm(kwargs)
    wanted = {"spatial_dims": "spatial_dims", "in_channels": "channels"}
    block = UpBlock(**take(kwargs, wanted, ("act",)))
    return Built(lambda inputs: {"ResUpBlock output": block(inputs["x"])}, block, lightm_unet.checkpoint_filter_fn)


def _check_norm(kwargs: dict[str, Any]) -> None:
    norm = kwargs.pop("norm", ["GROUP", {"num_groups": 8}])
    if str(norm[0]).upper() != "GROUP" or norm[1] != {"num_groups": 8}:
        raise ConfigError(f"the norm {norm} has no counterpart: ours has groups of 8.")
