"""MSVMamba's goldens: the classifier, the dense backbone and the mixer."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, msvmamba
from statefield.backbones._mixers.multi_scale import MultiScaleMixer
from statefield.backbones.checkpoints import backbone_of
from statefield.errors import ConfigError

# What the released models have, and what nothing here can be set to.
_BUILT_IN = {
    "forward_type": "v2",
    "sscore_type": "multiscale_4scan_12",
    "patchembed_version": "v1",
    "downsample_version": "v1",
    "ssm_conv": 3,
    "ssm_conv_bias": True,
    "add_conv": True,
    "add_se": True,
    "convFFN": True,
    "b1_seq": False,
    "b1_ratio": 0.5,
    "up_sample": "interpolate",
    "ms_fusion": None,
    "ms_split": [1, 3],
    "lpu": False,
    "sep_norm": False,
    "patch_norm": True,
    "recurrent": False,
    "inter_block_ssm": False,
    "adaptive_merge": False,
    "continous_patch": False,
    "ssm_dt_rank": "auto",
}
_WITHOUT_EFFECT = (
    *("drop_path_rate", "ssm_drop_rate", "mlp_drop_rate", "ffn_dropout", "use_checkpoint", "ssm_simple_init"),
    *("patch_size", "mlp_act_layer", "ssm_act_layer", "mlp_ratio", "grid_size", "multiscale_ratio"),
    *("multiscale_ksize", "norm_layer", "ms_stage", "ssm_rank_ratio"),
)
_WANTED = {
    "depths": "depths",
    "dims": "dims",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "ssm_d_state": "d_state",
    "ssm_ratio": "expand",
}


def _options(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in _BUILT_IN.items():
        if name in kwargs and kwargs[name] != value:
            raise ConfigError(f"the official argument {name} is {kwargs[name]!r}: only {value!r} has a counterpart.")
    return take(kwargs, _WANTED, (*_BUILT_IN, *_WITHOUT_EFFECT))


@builder("msvmamba", "VSSM")
def _classifier(kwargs: dict[str, Any]) -> Built:
    model = create_model("msvmamba_nano", **_options(kwargs))

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        last, maps = model.forward_intermediates(inputs["x"])
        stages = {f"stage {index} feature map": feature_map for index, feature_map in enumerate(maps)}
        return {"logits": model.forward_head(last)} | stages

    return Built(run, model, msvmamba.checkpoint_filter_fn)


@builder("msvmamba", "Backbone_VSSM")
def _dense(kwargs: dict[str, Any]) -> Built:
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pretrained", "num_classes")}
    taken = tuple(kwargs.pop("out_indices", range(len(kwargs["depths"]))))
    options = _options(kwargs)
    model = create_model("msvmamba_nano", features_only=True, feature_norms=True, out_indices=taken, **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {f"outs[{index}]": feature_map for index, feature_map in zip(taken, model(inputs["x"]), strict=True)}

    return Built(run, backbone_of(model), msvmamba.checkpoint_filter_fn)


@builder("msvmamba", "SS2D")
def _mixer(kwargs: dict[str, Any]) -> Built:
    """The mixer of the first block of a model with these arguments."""
    options = _options(kwargs)
    mixer = MultiScaleMixer(options["dims"], d_state=options.get("d_state", 1), expand=options.get("expand", 2.0))
    return Built(lambda inputs: {"module output": mixer(inputs["x"])}, mixer, msvmamba.checkpoint_filter_fn)
