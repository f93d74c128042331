"""EfficientVMamba's goldens: the classifier, the dense backbone and the mixer."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, efficientvmamba
from statefield.backbones._mixers.atrous import AtrousScanMixer
from statefield.backbones.checkpoints import backbone_of
from statefield.errors import ConfigError

_BUILT_IN = {
    "shared_ssm": False,
    "softmax_version": False,
    "mlp_ratio": 0.0,
    "patch_norm": True,
    "downsample_version": "v1",
    "patch_size": 4,
}
# The official constructor swallows the number of states, the rank and the window: 16, ceil(C / 16) and 2 it is.
_WITHOUT_EFFECT = (
    *("d_state", "dt_rank", "window_size", "attn_drop_rate", "drop_rate", "drop_path_rate", "use_checkpoint"),
    *("norm_layer", "step_size"),
)
_WANTED = {
    "depths": "depths",
    "dims": "dims",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "ssm_ratio": "expand",
}


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in _BUILT_IN.items():
        if name in kwargs and kwargs[name] != value:
            raise ConfigError(f"the official argument {name} is {kwargs[name]!r}: only {value!r} has a counterpart.")
    return take(kwargs, _WANTED, (*_BUILT_IN, *_WITHOUT_EFFECT))


@builder("efficientvmamba", "EfficientVSSM")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = create_model("efficientvmamba_tiny", **_options(kwargs))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(inputs["x"])
        stages = {f"stage {index} feature map": feature_map for index, feature_map in enumerate(maps)}
        return {"logits": model.forward_head(last)} | stages

    return Built(run, model, efficientvmamba.checkpoint_filter_fn)


@builder("efficientvmamba", "Backbone_EfficientVSSM")
def _dense(kwargs: dict[str, Any]) -> Built:
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pretrained", "num_classes")}
    taken = tuple(kwargs.pop("out_indices", range(len(kwargs["depths"]))))
    options = _options(kwargs)
    model = create_model("efficientvmamba_tiny", features_only=True, feature_norms=True, out_indices=taken, **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": feature_map for index, feature_map in zip(taken, model(inputs["x"]), strict=True)}

    return Built(run, backbone_of(model), efficientvmamba.checkpoint_filter_fn)


@builder("efficientvmamba", "SS2D")
def _mixer(kwargs: dict[str, Any]) -> Built:
    """The mixer of the first block of a model with these arguments."""
    options = _options(kwargs)
    mixer = AtrousScanMixer(options["dims"], expand=options.get("expand", 2.0))
    return Built(lambda inputs: {"module output": mixer(inputs["x"])}, mixer, efficientvmamba.checkpoint_filter_fn)
