"""SegMamba's golden: the net. Its layer's stands beside the blocks of LightM-UNet, with which it shares the mixer."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor
from watch import Watch

from statefield.tasks.medical.nets import SegMamba, segmamba


@builder("segmamba", "SegMamba")
def _net(kwargs: dict[str, Any]) -> Built:
    wanted = {"in_chans": "in_channels", "out_chans": "out_channels", "depths": "depths", "feat_size": "features"}
    wanted |= {"hidden_size": "hidden"}
    fixed = ("drop_path_rate", "layer_scale_init_value", "norm_name", "conv_block", "res_block", "spatial_dims")
    options = {"in_channels": 1, "out_channels": 13} | take(kwargs, wanted, fixed)
    net = SegMamba(3, **options, slices=(64, 32, 16, 8))  # the official code's, whatever the map
    watch = Watch()
    for index, stage in enumerate(net.stages):
        watch.on(stage.spatial, f"vit.gscs.{index}")
        watch.on(stage.layers, f"vit.stages.{index}")
        watch.on(stage.out, f"vit.mlps.{index}")
    for index, block in enumerate(net.skips):
        watch.on(block, f"encoder{index + 1}")
    for index, block in enumerate(net.ups):
        watch.on(block, f"decoder{5 - index}")
    watch.on(net.last, "decoder1")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"logits": net(inputs["x"])} | watch.longest_first()

    return Built(run, net, segmamba.checkpoint_filter_fn)
