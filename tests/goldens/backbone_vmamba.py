"""VMamba's goldens: classifier, dense backbone and mixers of the vanilla, the second and the Mamba-2 generation."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import create_model, vmamba
from statefield.backbones._mixers import CrossDualityMixer, CrossScanMixer
from statefield.backbones.checkpoints import backbone_of
from statefield.errors import ConfigError

_TRAINING_ONLY = (
    "drop_path",
    "drop_path_rate",
    "ssm_drop_rate",
    "mlp_drop_rate",
    "dropout",
    "use_checkpoint",
    "drop_rate",
)
_INITIAL = ("ssm_init", "initialize", "ssm_dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor")
_FORMS = {"v0": (True, False), "v05_noz": (False, False), "v3_noz": (False, False), "m0_noz": (False, True)}
_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "nn.SiLU": functional.silu,
    "nn.GELU": functional.gelu,
}


def _form(kwargs: dict[str, Any]) -> dict[str, bool]:
    """What the official forward type stands for."""
    name = kwargs.pop("forward_type", "v2")
    if name not in _FORMS:
        raise ConfigError(f"the forward type {name!r} has no counterpart; known: {', '.join(_FORMS)}.")
    gated, duality = _FORMS[name]
    return {"gated": gated, "duality": duality}


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(kwargs)
    form = _form(kwargs)
    if kwargs.pop("posembed", False) or kwargs.pop("gmlp", False) or not kwargs.pop("patch_norm", True):
        raise ConfigError("positions, gated MLPs and patches without a norm have no counterpart.")
    versions = (kwargs.pop("patchembed_version", "v1"), kwargs.pop("downsample_version", "v2"))
    if versions not in (("v1", "v1"), ("v2", "v3")):
        raise ConfigError(f"patch embedding and downsampling {versions} have no counterpart.")
    if _ACTIVATIONS[kwargs.pop("ssm_act_layer", "silu")] is not (
        functional.gelu if form["duality"] else functional.silu
    ):
        raise ConfigError("this activation in the mixer has no counterpart.")
    wanted = {
        "depths": "depths",
        "dims": "dims",
        "in_chans": "in_chans",
        "num_classes": "num_classes",
        "ssm_d_state": "d_state",
        "ssm_ratio": "expand",
        "ssm_conv_bias": "conv_bias",
        "mlp_ratio": "mlp_ratio",
    }
    fixed = ("patch_size", "ssm_conv", "mlp_act_layer", "imgsize", "norm_layer")
    return form | {"conv_stem": versions[0] == "v2"} | take(kwargs, wanted, (*_TRAINING_ONLY, *_INITIAL, *fixed))


@builder("vmamba", "VSSM")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = create_model("vmamba_tiny_s1l8", **_options(kwargs))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(inputs["x"])
        stages = {f"stage {index} feature map": feature_map for index, feature_map in enumerate(maps)}
        return {"logits": model.forward_head(last)} | stages

    return Built(run, model, vmamba.checkpoint_filter_fn)


@builder("vmamba", "Backbone_VSSM")
def _dense(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    taken = tuple(kwargs.pop("out_indices", range(len(kwargs["depths"]))))
    kwargs.pop("pretrained", None), kwargs.pop("num_classes", None)
    options = _options(kwargs)
    model = create_model("vmamba_tiny_s1l8", features_only=True, feature_norms=True, out_indices=taken, **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": feature_map for index, feature_map in zip(taken, model(inputs["x"]), strict=True)}

    return Built(run, backbone_of(model), vmamba.checkpoint_filter_fn)


def build_mixer(kwargs: dict[str, Any]) -> nn.Module:
    """The official SS2D: `CrossScanMixer`, or `CrossDualityMixer` for its Mamba-2 form."""
    kwargs = dict(kwargs)
    form = _form(kwargs)
    act = _ACTIVATIONS[kwargs.pop("act_layer", "silu")]
    wanted = {
        "d_model": "channels",
        "d_state": "d_state",
        "ssm_ratio": "expand",
        "d_conv": "d_conv",
        "conv_bias": "conv_bias",
    }
    rank = kwargs.pop("dt_rank", "auto")
    options = take(kwargs, wanted, (*_TRAINING_ONLY, *_INITIAL, "channel_first"))
    if form["duality"]:
        return CrossDualityMixer(**options, act=act, heads=None if rank == "auto" else rank)
    if act is not functional.silu:
        raise ConfigError("only SiLU behind the convolution has a counterpart.")
    return CrossScanMixer(**options, gated=form["gated"], dt_rank=None if rank == "auto" else rank)


@builder("vmamba", "SS2D")
def _mixer(kwargs: dict[str, Any]) -> Built:
    mixer = build_mixer(kwargs)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        if kwargs.get("channel_first", False):
            return {"module output": mixer(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}
        return {"module output": mixer(inputs["x"])}

    return Built(run, mixer, vmamba.checkpoint_filter_fn)
