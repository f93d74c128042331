"""Vim's goldens: the models by the names of the authors' constructors, and the mixer alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor, nn

from statefield.backbones import create_model, vim
from statefield.backbones._mixers import BidirectionalMixer
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "initializer_cfg", "device", "dtype", "pretrained", "use_fast_path")
_MODEL = {"num_classes": "num_classes", "img_size": "img_size", "channels": "in_chans", "depth": "num_layers"}


def named(size: str, patches: str = "patch16_224", end: str = "midclstok_div2") -> str:
    """The authors' constructor of a size."""
    return f"vim_{size}_{patches}_bimambav2_final_pool_mean_abs_pos_embed_with_{end}"


def streams(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Class scores, and of every block the stream it adds to ("residual") and what it adds ("hidden_states")."""
    found: dict[str, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(block: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
            found[f"layers.{index} output residual"] = found[f"layers.{index} residual"] = given[0]
            found[f"layers.{index} output hidden_states"] = found[f"layers.{index} hidden_states"] = result - given[0]

        return hook

    handles = [block.register_forward_hook(keep(index)) for index, block in enumerate(model.blocks)]
    features = model.forward_features(inputs["x"])
    for handle in handles:
        handle.remove()
    return {"logits": model.forward_head(features), "forward_features": model.read_out(features)} | found


def _model(name: str) -> Any:
    def build(kwargs: dict[str, Any]) -> Built:
        model = create_model(name, **take(kwargs, _MODEL, _TRAINING_ONLY))
        return Built(lambda inputs: streams(model, inputs), model, vim.checkpoint_filter_fn)

    return build


builder("vim", named("tiny"))(_model("vim_tiny"))
builder("vim", named("small"))(_model("vim_small"))
builder("vim", named("base", end="middle_cls_token_div2"))(_model("vim_base"))
builder("vim", named("tiny", "patch16_stride8_224"))(_model("vim_tiny_plus"))
builder("vim", named("small", "patch16_stride8_224"))(_model("vim_small_plus"))


@builder("vim", "Mamba")
def _mixer(kwargs: dict[str, Any]) -> Built:
    kwargs = dict(kwargs)
    if kwargs.pop("bimamba_type", "v2") != "v2":
        raise ConfigError("only the authors' bimamba_type='v2' has a counterpart, which every released Vim has.")
    arguments = {"d_model": "channels", "d_state": "d_state", "d_conv": "d_conv", "expand": "expand"}
    arguments |= {"if_divide_out": "halve"}
    arguments |= {"dt_rank": "dt_rank"} if kwargs.get("dt_rank", "auto") != "auto" else {}
    initial_values = ("dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "layer_idx")
    options = {"halve": False} | take(kwargs, arguments, (*_TRAINING_ONLY, *initial_values, "init_layer_scale"))
    mixer = BidirectionalMixer(**options)
    return Built(lambda inputs: {"module output": mixer(inputs["x"])}, mixer, vim.checkpoint_filter_fn)
