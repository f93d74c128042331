"""Res-VMamba's golden: the classifier, its residuals' convolutions given fixed weights."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import create_model, res_vmamba
from statefield.errors import ConfigError

_WANTED = {
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "dims": "dims",
    "depths": "depths",
    "d_state": "d_state",
    "ssm_ratio": "expand",
}
_FIXED = {  # the official arguments that have a counterpart at one value only
    "patch_size": 4,
    "dt_rank": "auto",
    "shared_ssm": False,
    "softmax_version": False,
    "mlp_ratio": 0.0,
    "patch_norm": True,
    "downsample_version": "v1",
}
_TRAINING_ONLY = ("attn_drop_rate", "drop_rate", "drop_path_rate", "use_checkpoint", "norm_layer")


@builder("res_vmamba", "VSSM")
def _classifier(kwargs: dict[str, Any]) -> Built:
    kwargs = {
        "mlp_ratio": 4.0,
        "downsample_version": "v2",
    } | kwargs  # the authors' defaults, which no released model has
    for name, value in _FIXED.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"the official argument {name} has a counterpart only where it is {value!r}.")
    options = {"depths": (2, 2, 9, 2)} | take(kwargs, _WANTED, _TRAINING_ONLY)
    model = create_model("res_vmamba_small", **options)

    def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
        begins: dict[str, Tensor] = {}
        handles = [
            stage.blocks.register_forward_pre_hook(lambda _, given, index=index: begins.update({index: given[0]}))
            for index, stage in enumerate(model.stages)
        ]
        last, maps = model.forward_intermediates(inputs["x"])
        for handle in handles:
            handle.remove()
        named = {f"input of layers.{index}": begin for index, begin in begins.items()}
        named |= {f"output of layers.{index}.blocks": feature_map for index, feature_map in enumerate(maps)}
        return {"logits": model.forward_head(last)} | named

    return Built(run, model, res_vmamba.checkpoint_filter_fn)
