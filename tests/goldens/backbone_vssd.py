"""VSSD's goldens: classifier, dense backbone, one block, and the mixers alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, vssd
from statefield.backbones._blocks import PositionalBlock
from statefield.backbones._mixers import MapAttention, NonCausalDualityMixer
from statefield.backbones.checkpoints import backbone_of
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop", "drop_rate", "drop_path", "drop_path_rate", "dropout", "use_checkpoint", "pretrained", "key")
_INITIAL = ("A_init_range", "dt_min", "dt_max", "dt_init_floor", "conv_init")
_WITHOUT_EFFECT = ("qkv_bias", "chunk_size", "ssd_chunk_size", "layer_idx", "use_mem_eff_path", "img_size")
_DUALITY = {
    "d_state": "d_state",
    "ssd_expansion": "expand",
    "ssd_ngroups": "groups",
    "ssd_positve_dA": "positive_decay",
}
_MIXERS = {"mamba2": "duality", "standard": "attention"}


def _plain(kwargs: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The arguments without those that have to have one value here; `ConfigError` for another value."""
    kwargs = dict(kwargs)
    for name, value in wanted.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"the official argument {name} has a counterpart only where it is {value!r}.")
    return kwargs


def _duality_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a form that has duality, with the authors' defaults where they are not ours."""
    kwargs = {"linear_attn_duality": False, "ssd_positve_dA": False} | kwargs
    return _plain(
        kwargs, linear_attn_duality=True, bidirection=False, lepe=False, learnable_init_states=False, activation="silu"
    )


def _model(kwargs: dict[str, Any], **form: Any) -> nn.Module:
    stages = len(kwargs.get("depths", range(4)))
    kinds = [_MIXERS[kind] for kind in kwargs.get("attn_types", ["mamba2"] * stages)]
    if "duality" in kinds:
        kwargs = _duality_options(kwargs)
    kwargs = _plain(kwargs, simple_downsample=False, simple_patch_embed=False, patch_size=4)
    wanted = {
        "in_chans": "in_chans",
        "num_classes": "num_classes",
        "embed_dim": "dims",
        "depths": "depths",
        "num_heads": "heads",
        "mlp_ratio": "mlp_ratio",
    }
    options = take(kwargs, wanted | _DUALITY, (*_TRAINING_ONLY, *_INITIAL, *_WITHOUT_EFFECT, "attn_types"))
    return create_model("vssd_tiny", **({"depths": (2, 4, 12, 4), "mixers": kinds} | options | form))


@builder("vssd", "VMAMBA2")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = _model(kwargs)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(inputs["x"], output_fmt="NHWC")
        behind = [*(stage.downsample for stage in model.stages[1:]), nn.Identity()]
        outputs = [downsample(feature_map).flatten(1, 2) for downsample, feature_map in zip(behind, maps, strict=True)]
        named = {f"output of layers.{index} ": output for index, output in enumerate(outputs)}
        return {"logits": model.forward_head(last)} | named

    return Built(run, model, vssd.checkpoint_filter_fn)


@builder("vssd", "Backbone_VMAMBA2")
def _dense(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    taken = tuple(kwargs.pop("out_indices", range(4)))
    kwargs.pop("num_classes", None)
    model = _model(kwargs, features_only=True, feature_norms=True, out_indices=taken)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": feature_map for index, feature_map in enumerate(model(inputs["x"]))}

    return Built(run, backbone_of(model), vssd.checkpoint_filter_fn)


def _on_tokens(module: nn.Module, kwargs: dict[str, Any]) -> Built:
    """A module of maps, called on tokens [B, L, C]; the map's sides are among the golden's arguments or inputs."""

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        height, width = (inputs.get(side, kwargs.get(side)) for side in "HW")
        (tokens,) = (value for value in inputs.values() if isinstance(value, Tensor))
        return {"y": module(tokens.unflatten(1, (int(height), int(width)))).flatten(1, 2)}

    return Built(run, module, vssd.checkpoint_filter_fn)


@builder("vssd", "VMAMBA2Block")
def _block(kwargs: dict[str, Any]) -> Built:
    sides, kwargs = kwargs, {name: value for name, value in kwargs.items() if name not in "HW"}
    kind = _MIXERS[kwargs.pop("attn_type", "mamba2")]
    dim, heads = kwargs.pop("dim"), kwargs.pop("num_heads")
    if kind == "duality":
        kwargs = _duality_options(kwargs)
    without = (*_TRAINING_ONLY, *_INITIAL, *_WITHOUT_EFFECT, "input_resolution")
    options = take(kwargs, _DUALITY | {"mlp_ratio": "mlp_ratio"}, without)
    ratio = options.pop("mlp_ratio", 4.0)
    mixer = NonCausalDualityMixer(dim, heads=heads, **options) if kind == "duality" else MapAttention(dim, heads)
    return _on_tokens(PositionalBlock(dim, mixer, mlp_ratio=ratio), sides)


@builder("vssd", "Mamba2")
def _mixer(kwargs: dict[str, Any]) -> Built:
    sides, kwargs = kwargs, {name: value for name, value in kwargs.items() if name not in "HW"}
    kwargs = _plain(_duality_options(kwargs), bias=False, conv_bias=True)
    wanted = {"d_model": "channels", "d_state": "d_state", "expand": "expand", "d_conv": "d_conv", "ngroups": "groups"}
    head = kwargs.pop("headdim", 64)
    without = (*_TRAINING_ONLY, *_INITIAL, *_WITHOUT_EFFECT)
    options = take(kwargs, wanted | {"ssd_positve_dA": "positive_decay"}, without)
    heads = int(options.get("expand", 2) * options["channels"]) // head
    if options.get("groups") == -1:
        options["groups"] = heads
    return _on_tokens(NonCausalDualityMixer(heads=heads, **options), sides)


@builder("vssd", "StandardAttention")
def _attention(kwargs: dict[str, Any]) -> Built:
    sides, kwargs = kwargs, {name: value for name, value in kwargs.items() if name not in "HW"}
    options = {"num_heads": 8, "attn_head_dim": 64} | take(
        kwargs, {"dim": "dim", "heads": "num_heads", "dim_head": "attn_head_dim"}, _TRAINING_ONLY
    )
    return _on_tokens(MapAttention(**options), sides)
