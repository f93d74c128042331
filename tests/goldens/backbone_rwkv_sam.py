"""RWKV-SAM's goldens: the backbone's four maps, an RWKV block, and a convolutional block."""

from __future__ import annotations

from typing import Any

from backbone_vision_rwkv import on_grid
from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, rwkv_sam
from statefield.backbones.checkpoints import backbone_of
from statefield.backbones.rwkv_sam import LAYER_SCALE, NORM_EPS, MBConv
from statefield.backbones.vision_rwkv import RWKVBlock
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_path", "fix", "init_cfg")
_WIDTHS = {
    "tiny": (32, 64, 192),
    "small": (64, 128, 384),
    "base": (128, 256, 768),
    "large": (160, 320, 1024),
}


@builder("rwkv_sam", "VITAMINBackbone")
def _backbone(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    if kwargs.pop("attn_type", "transformer") != "rwkv":
        raise ConfigError("only the official attn_type 'rwkv' has a counterpart, of which the paper tells.")
    if kwargs.pop("norm_cfg", {"type": "LN", "eps": 1e-6}) != {"type": "LN", "eps": 1e-6}:
        raise ConfigError("only LayerNorm with an eps of 1e-6 has a counterpart, the official default.")
    attention = {"mlp_ratio": 4} | dict(kwargs.pop("attn_cfg", None) or {})
    options = take(attention, {"mlp_ratio": "mlp_ratio", "depth": "num_layers"}, _TRAINING_ONLY)
    options["dims"] = _WIDTHS[kwargs.pop("model_variant", "small")]
    options |= {"final_layer": False, "positions": True}
    names = {"img_size": "img_size", "with_pos_embd": "positions", "additional_final_layers": "final_layer"}
    options |= take(kwargs, names, _TRAINING_ONLY)
    model = create_model("rwkv_sam_tiny", features_only=True, wkv_gradient="official", **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": one for index, one in enumerate(model(inputs["x"]))}

    return Built(run, backbone_of(model), rwkv_sam.checkpoint_filter_fn)


@builder("rwkv_sam", "RWKVBlock")
def _block(kwargs: dict[str, Any]) -> Built:
    kwargs = {"mlp_ratio": 4} | kwargs
    grid = (kwargs.pop("H"), kwargs.pop("W"))
    names = {"channels": "dim", "mlp_ratio": "expand", "total_layers": "num_layers", "layer_id": "layer"}
    options = take(kwargs, names, _TRAINING_ONLY)
    block = RWKVBlock(layer_scale=LAYER_SCALE, norm_eps=NORM_EPS, wkv_gradient="official", **options)
    return Built(lambda inputs: on_grid(block, inputs, grid), block, rwkv_sam.checkpoint_filter_fn)


@builder("rwkv_sam", "MbConvLNBlock")
def _mbconv(kwargs: dict[str, Any]) -> Built:
    names = {"in_chs": "channels", "out_chs": "out_channels", "stride": "stride", "expand_ratio": "expand"}
    block = MBConv(**take(kwargs, names, _TRAINING_ONLY))
    return Built(lambda inputs: {"y": block(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}, block)
