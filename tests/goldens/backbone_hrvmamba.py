"""HRVMamba's goldens: the models by their published names, a block, the mixer and the deformable convolution."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, hrvmamba
from statefield.backbones._mixers.deformable import DeformableConv, DeformableScanMixer
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_path", "ssm_drop_rate", "mlp_drop_rate", "dropout", "use_checkpoint", "init_cfg")
_INITIAL = ("ssm_init", "initialize", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor")
_FIXED = ("ssm_conv_bias", "conv_bias", "channel_first")  # the official code reads the last alone, and it is true
_VALUES = {  # official arguments of which one value has a counterpart
    "forward_type": ("v05_noz",),
    "post_norm": (False,),
    "gmlp": (False,),
    "ssm_dt_rank": ("auto",),
    "ssm_conv": (3,),
    "d_conv": (3,),
}


def _without_fixed(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = dict(kwargs)
    for name, allowed in _VALUES.items():
        if name in kwargs and kwargs.pop(name) not in allowed:
            raise ConfigError(f"the official {name} has a counterpart only for {', '.join(map(repr, allowed))}.")
    return kwargs


@builder("hrvmamba", "build.build_model")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = create_model(kwargs["TYPE"], **take(kwargs, {"NUM_CLASSES": "num_classes"}, ("TYPE",)))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        first, *parallel = model.stages
        maps = [first(model.stem(inputs["x"]))]
        found = {"layer1 output": maps[0]}
        for number, stage in enumerate(parallel, start=2):
            maps = stage(maps)
            found |= {f"stage{number} branch {index}": one for index, one in enumerate(maps)}
        return {"logits": model(inputs["x"])} | {name: one.permute(0, 3, 1, 2) for name, one in found.items()}

    return Built(run, model, hrvmamba.checkpoint_filter_fn)


def _on_channels_first(module: nn.Module) -> Built:
    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {"y": module(inputs["x"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}

    return Built(run, module, hrvmamba.checkpoint_filter_fn)


def _block(kwargs: dict[str, Any], **form: bool) -> Built:
    kwargs = _without_fixed(kwargs)
    if kwargs.pop("out_features", kwargs["hidden_dim"]) != kwargs["hidden_dim"]:
        raise ConfigError("a block whose out_features are not its hidden_dim has no counterpart.")
    wanted = {"hidden_dim": "channels", "ssm_d_state": "d_state", "ssm_ratio": "expand", "mlp_ratio": "mlp_ratio"}
    options = {"d_state": 16, "mlp_ratio": 4.0} | take(kwargs, wanted, (*_TRAINING_ONLY, *_INITIAL, *_FIXED))
    return _on_channels_first(hrvmamba.HRVMambaBlock(**options, **form))


@builder("hrvmamba", "hrvmamba.HRVmambaBlock")
def _plain_block(kwargs: dict[str, Any]) -> Built:
    return _block(kwargs)


@builder("hrvmamba", "hrvmamba_se_lpu.HRVmambaBlock")
def _positional_block(kwargs: dict[str, Any]) -> Built:
    return _block(kwargs, positional=True)


def _mixer(kwargs: dict[str, Any], **form: bool) -> Built:
    kwargs = _without_fixed(kwargs)
    if not kwargs.pop("channel_first", False):
        raise ConfigError("the official mixer runs with channel_first=True alone.")
    rank = kwargs.pop("dt_rank", "auto")
    wanted = {"d_model": "channels", "d_state": "d_state", "ssm_ratio": "expand"}
    options = {"d_state": 16} | take(kwargs, wanted, (*_TRAINING_ONLY, *_INITIAL, *_FIXED))
    return _on_channels_first(DeformableScanMixer(**options, **form, dt_rank=None if rank == "auto" else rank))


@builder("hrvmamba", "hrvmamba.SS2D")
def _plain_mixer(kwargs: dict[str, Any]) -> Built:
    return _mixer(kwargs)


@builder("hrvmamba", "hrvmamba_se_lpu.SS2D")
def _squeezing_mixer(kwargs: dict[str, Any]) -> Built:
    return _mixer(kwargs, squeeze=True)


@builder("hrvmamba", "DCNv4_op", "DCNv4")
def _deformable_convolution(kwargs: dict[str, Any]) -> Built:
    kwargs = {"channels": 64, "group": 4, "without_pointwise": True} | kwargs
    side, spread = kwargs.get("kernel_size", 3), kwargs.get("dilation", 1)
    only = {"stride": 1, "pad": spread * (side // 2), "center_feature_scale": False, "remove_center": False}
    for name, value in only.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"the official {name} has a counterpart only for {value!r} here: maps keep their size.")
    names = {"channels": "channels", "group": "groups", "kernel_size": "kernel_size", "dilation": "dilation"}
    names |= {"offset_scale": "offset_scale", "dw_kernel_size": "depthwise"}
    pointwise = not kwargs.pop("without_pointwise")
    conv = DeformableConv(**take(kwargs, names, ("output_bias", "mlp_ratio")), pointwise=pointwise)
    return Built(lambda inputs: {"y": conv(inputs["x"])}, conv)
