"""The goldens of U-Mamba and xLSTM-UNet, which are one residual U-Net with layers of their own."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor
from watch import Watch

from statefield.errors import ConfigError
from statefield.tasks.medical.nets import ResidualUNet, UMamba, XLSTMUNet, u_mamba, xlstm_unet
from statefield.tasks.medical.nets.residual_unet import usual_decoder_depths, usual_depths
from statefield.tasks.medical.nets.xlstm_unet import SequenceBlock

_PLAN = {
    "input_channels": "in_channels",
    "num_classes": "out_channels",
    "features_per_stage": "features",
    "kernel_sizes": "kernel_sizes",
    "strides": "strides",
    "n_conv_per_stage": "depths",
    "n_blocks_per_stage": "depths",
    "n_conv_per_stage_decoder": "decoder_depths",
    "input_size": "image_size",
}
_FIXED = ("n_stages", "norm_op_kwargs", "nonlin_kwargs", "deep_supervision", "stem_channels", "dropout_op")


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(kwargs)
    dims = int(kwargs.pop("conv_op")[-2])
    wanted = {"norm_op": f"InstanceNorm{dims}d", "nonlin": "LeakyReLU", "conv_bias": True}
    for name, value in wanted.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"only {name} {value} has a counterpart.")
    stages = kwargs["n_stages"]

    def a_list(name: str, count: int) -> list[Any]:
        given = kwargs[name]
        return [given] * count if isinstance(given, int) else list(given)

    kwargs["features_per_stage"] = a_list("features_per_stage", stages)
    name = "n_conv_per_stage" if "n_conv_per_stage" in kwargs else "n_blocks_per_stage"
    kwargs[name] = usual_depths(a_list(name, stages))
    kwargs["n_conv_per_stage_decoder"] = usual_decoder_depths(a_list("n_conv_per_stage_decoder", stages - 1))
    return {"spatial_dims": dims, "deep_supervision": True} | take(kwargs, _PLAN, _FIXED)


def _built(net: ResidualUNet, filter_fn: Any, heads: str, layer: str, layers: str) -> Built:
    """heads: how descriptions of logits begin. layer: of the one behind the last stage; layers: of those behind any."""
    watch = Watch()
    watch.on(net.stem, "output of encoder.stem")
    for index, stage in enumerate(net.encoder):
        watch.on(stage, f"output of encoder.stages.{index}")
        watch.on(net.layers[index], layers.format(index))
    watch.on(net.layers[-1], layer)
    inner = getattr(net.layers[-1], "module", None)
    if isinstance(inner, SequenceBlock):
        watch.on(inner.mixer, f"{layer}.vil.layer")

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        logits = net.all_logits(inputs["x"])
        return {heads.format(index): level for index, level in enumerate(logits)} | watch.longest_first()

    return Built(run, net, filter_fn)


@builder("umamba", "UMambaBot")
def _umamba_bottom(kwargs: dict[str, Any]) -> Built:
    net = UMamba(**_options(kwargs))
    names = ("seg head {}", "mamba_layer output", "encoder.mamba_layers.{} ")
    return _built(net, u_mamba.checkpoint_filter_fn, *names)


@builder("umamba", "UMambaEnc")
def _umamba_encoder(kwargs: dict[str, Any]) -> Built:
    net = UMamba(**_options(kwargs), place="encoder")
    names = ("seg head {}", "mamba_layer output", "encoder.mamba_layers.{} ")
    return _built(net, u_mamba.checkpoint_filter_fn, *names)


@builder("xlstm_unet", "UXlstmBot")
def _xlstm_bottom(kwargs: dict[str, Any]) -> Built:
    net = XLSTMUNet(**_options(kwargs))
    names = ("segmentation logits, deep supervision level {}", "output of xlstm", "output of encoder.xlstm_layers.{}")
    return _built(net, xlstm_unet.checkpoint_filter_fn, *names)


@builder("xlstm_unet", "UXlstmEnc")
def _xlstm_encoder(kwargs: dict[str, Any]) -> Built:
    net = XLSTMUNet(**_options(kwargs), place="encoder")
    names = ("segmentation logits, deep supervision level {}", "output of xlstm", "output of encoder.xlstm_layers.{}")
    return _built(net, xlstm_unet.checkpoint_filter_fn, *names)


@builder("xlstm_unet", "ViLBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    direction = kwargs.pop("direction", "rowwise_from_top_left")
    if "top_left" not in str(direction):
        raise ConfigError(f"xLSTM-UNet reads its tokens from the first one; {direction} has no counterpart.")
    block = SequenceBlock(**take(kwargs, {"dim": "dim"}, ("drop_path",)))
    return Built(lambda inputs: {"y (B,L,D)": block(inputs["x"])}, block, xlstm_unet.checkpoint_filter_fn)
