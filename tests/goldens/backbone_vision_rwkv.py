"""Vision-RWKV's goldens: the model with its head, one block, and both mixers alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, vision_rwkv
from statefield.backbones._mixers import ChannelMix, SpatialMix
from statefield.backbones.vision_rwkv import RWKVBlock
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path", "drop_path_rate", "init_mode", "with_cp", "init_cfg")
_MIX = {
    "n_embd": "channels",
    "n_layer": "num_layers",
    "layer_id": "layer",
    "channel_gamma": "shift_share",
    "shift_pixel": "shift_pixels",
    "key_norm": "key_norm",
}
_BLOCK = _MIX | {"n_embd": "dim", "hidden_rate": "expand", "post_norm": "post_norm", "init_values": "layer_scale"}
_MODEL = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "in_channels": "in_chans",
    "embed_dims": "dim",
    "depth": "num_layers",
    "channel_gamma": "shift_share",
    "shift_pixel": "shift_pixels",
    "post_norm": "post_norm",
    "key_norm": "key_norm",
    "init_values": "layer_scale",
    "hidden_rate": "expand",
    "final_norm": "final_norm",
    "num_classes": "num_classes",
}


def _supported(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(kwargs)
    for argument, only in (("shift_mode", "q_shift"), ("interpolate_mode", "bicubic")):
        if kwargs.pop(argument, only) != only:
            raise ConfigError(f"only the official {argument} {only!r} has a counterpart.")
    return kwargs


def on_grid(mix: nn.Module, inputs: dict[str, Any], grid: Any) -> dict[str, Tensor]:
    """A mixer or block of ours, which takes maps, on the authors' tokens."""
    return {"y": mix(inputs["x"].unflatten(1, tuple(grid))).flatten(1, 2)}


@builder("vision_rwkv", "VRWKV")
def _model(kwargs: dict[str, Any]) -> Built:
    kwargs = _supported(kwargs)
    depth = kwargs.get("depth", 12)
    if kwargs.pop("out_indices", -1) not in (-1, [-1], depth - 1, [depth - 1]):
        raise ConfigError("only the last map of the official backbone has a counterpart: its own default.")
    options = {"dim": 256} | take(kwargs, _MODEL, _TRAINING_ONLY)
    model = create_model("vision_rwkv_tiny", wkv_gradient="official", **({"num_classes": 0} | options))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        watched = {f"output of backbone.layers.{index}": block for index, block in enumerate(model.blocks)}
        watched = dict(reversed(watched.items()))  # "layers.1" also begins "layers.11"
        watched["output of backbone.patch_embed.projection"] = model.patch_embed.proj
        handles = [
            module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
            for name, module in watched.items()
        ]
        x = inputs["x"]
        tokens = model.forward_features(x)
        for handle in handles:
            handle.remove()
        grid = tuple(model.patch_embed.side(side) for side in x.shape[-2:])
        last = {"backbone output": tokens.unflatten(1, grid).permute(0, 3, 1, 2)}
        logits = {"logits": model.forward_head(tokens)} if model.num_classes else {}
        return logits | last | {name: found[name] for name in watched}

    return Built(run, model, vision_rwkv.checkpoint_filter_fn)


@builder("vision_rwkv", "Block")
def _block(kwargs: dict[str, Any]) -> Built:
    kwargs = _supported(kwargs)
    grid = kwargs.pop("patch_resolution")
    first = kwargs.get("layer_id") == 0
    block = RWKVBlock(norm_first=first, wkv_gradient="official", **take(kwargs, _BLOCK, _TRAINING_ONLY))

    def rename(entries: dict[str, Any], _: nn.Module) -> dict[str, Any]:  # in a model alone "ln1" is the last norm
        renamed = vision_rwkv.checkpoint_filter_fn({f"layers.0.{key}": value for key, value in entries.items()}, block)
        return {key.removeprefix("blocks.0."): value for key, value in renamed.items()}

    return Built(lambda inputs: on_grid(block, inputs, grid), block, rename)


@builder("vision_rwkv", "VRWKV_SpatialMix")
def _spatial_mix(kwargs: dict[str, Any]) -> Built:
    kwargs = _supported(kwargs)
    grid = kwargs.pop("patch_resolution")
    mix = SpatialMix(gradient="official", **take(kwargs, _MIX, _TRAINING_ONLY))
    return Built(lambda inputs: on_grid(mix, inputs, grid), mix)


@builder("vision_rwkv", "VRWKV_ChannelMix")
def _channel_mix(kwargs: dict[str, Any]) -> Built:
    kwargs = _supported(kwargs)
    grid = kwargs.pop("patch_resolution")
    mix = ChannelMix(**take(kwargs, _MIX | {"hidden_rate": "expand"}, _TRAINING_ONLY))
    return Built(lambda inputs: on_grid(mix, inputs, grid), mix)
