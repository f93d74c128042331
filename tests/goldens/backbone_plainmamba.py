"""PlainMamba's goldens: the backbone with its head, a dense backbone's maps, one layer, and the mixer alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, plainmamba
from statefield.backbones._mixers import DirectionAwareMixer
from statefield.backbones.plainmamba import PlainMambaBlock
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "init_cfg", "test_cfg", "convert_syncbn", "freeze_patch_embed")
_MODEL = {"num_classes": "num_classes", "img_size": "img_size", "in_channels": "in_chans"}
_SHAPE = {  # what the authors' `arch` stands for when it is not given
    "patch_size": "patch_size",
    "embed_dims": "dim",
    "num_layers": "num_layers",
    "num_convs_patch_embed": "num_convs",
    "layers_with_dwconv": "depthwise_layers",
    "with_pos_embed": "positions",
}
_MIXER = {"d_state": "d_state", "expand": "expand", "conv_size": "d_conv"}
_INITIAL = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "default_hw_shape")


def _layer(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the authors' `layer_cfgs` (or a layer's own arguments) say of a block."""
    kwargs = dict(kwargs)
    mixer = dict(kwargs.pop("mamba_cfg", {}))
    if kwargs.pop("use_rms_norm", False) or not mixer.pop("bias", False) or not mixer.pop("conv_bias", True):
        raise ConfigError("only layers with LayerNorm and a mixer with all its biases have a counterpart.")
    if mixer.pop("dt_rank", "auto") != "auto" or mixer.pop("init_layer_scale", None) is not None:
        raise ConfigError("layers with a rank of their own or a layer scale have no counterpart.")
    return take(kwargs, {"embed_dims": "dim", "with_dwconv": "depthwise"}, _TRAINING_ONLY) | take(
        mixer, _MIXER, (*_INITIAL, "d_model")
    )


@builder("plainmamba", "PlainMamba", "PlainMambaSeg")
def _model(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    arch = kwargs.pop("arch", None)
    if not kwargs.pop("final_norm", True) or kwargs.pop("interpolate_mode", "bicubic") != "bicubic":
        raise ConfigError("a backbone without its final norm, or with positions resized otherwise, has no counterpart.")
    layers, indices = kwargs.pop("layer_cfgs", {}), kwargs.pop("out_indices", -1)
    shape = {official: kwargs.pop(official) for official in _SHAPE if official in kwargs}
    if arch:  # the authors' class reads none of the others then
        shape = {official: value for official, value in shape.items() if official == "with_pos_embed"}
        options = take(shape, _SHAPE)
    else:
        options = {"dim": 192, "num_layers": 20, "num_convs": 1} | _layer(layers) | take(shape, _SHAPE)
    options = {"num_classes": 0} | options | take(kwargs, _MODEL, _TRAINING_ONLY)
    depth = options.get("num_layers", {"L3": 36}.get(arch, 24))
    maps = sorted({index % depth for index in ([indices] if isinstance(indices, int) else indices)})
    model = create_model(f"plainmamba_{(arch or 'L2').lower()}", feature_norms=maps, **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        found, tokens = _layer_outputs(model, inputs["x"])
        outs = model.forward_intermediates(inputs["x"], maps, intermediates_only=True)
        logits = {"logits": model.forward_head(tokens)} if model.num_classes else {}
        named = {f"backbone feature map outs[{index}]": one for index, one in enumerate(outs)}
        named |= {f"outs[{index}]": one for index, one in enumerate(outs)}
        return logits | {"backbone tokens": tokens} | named | found

    return Built(run, model, plainmamba.checkpoint_filter_fn)


def _layer_outputs(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every block's tokens by the golden's name of them, and the normalised last ones."""
    found: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, tokens, name=f"layers.{index} output": found.update({name: tokens}))
        for index, block in enumerate(model.blocks)
    ]
    tokens = model.forward_features(x)
    for handle in handles:
        handle.remove()
    return {f"{name} ": value for name, value in found.items()}, tokens


@builder("plainmamba", "PlainMambaLayer")
def _block(kwargs: dict[str, Any]) -> Built:
    block = PlainMambaBlock(**_layer(kwargs))
    return Built(
        lambda inputs: {"module output": block(inputs["x"], tuple(inputs["hw_shape"]))},
        block,
        plainmamba.checkpoint_filter_fn,
    )


@builder("plainmamba", "PlainMamba2D")
def _mixer(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    rank = kwargs.pop("dt_rank", "auto")
    if kwargs.pop("init_layer_scale", None) is not None:
        raise ConfigError("a mixer with a layer scale has no counterpart.")
    wanted = _MIXER | {"d_model": "channels", "conv_bias": "conv_bias", "bias": "bias"}
    options = {"bias": False} | take(kwargs, wanted, _INITIAL)
    mixer = DirectionAwareMixer(**options, dt_rank=None if rank == "auto" else rank)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"module output": mixer(inputs["x"].unflatten(1, tuple(inputs["hw_shape"]))).flatten(1, 2)}

    return Built(run, mixer, plainmamba.checkpoint_filter_fn)
