"""Adventurer's goldens: the models by the names of the authors' constructors, one block, and the mixer alone."""

from __future__ import annotations

from typing import Any

from systems import Built, builder, take
from torch import Tensor

from statefield.backbones import adventurer, create_model
from statefield.backbones._mixers import DualityMixer
from statefield.backbones.adventurer import AdventurerBlock
from statefield.errors import ConfigError

_TRAINING_ONLY = ("drop_rate", "drop_path_rate", "drop_path", "initializer_cfg", "device", "dtype", "pretrained")
_INITIAL = ("A_init_range", "dt_min", "dt_max", "dt_init_floor", "conv_init", "chunk_size", "layer_idx")
_MODEL = {
    "num_classes": "num_classes",
    "img_size": "img_size",
    "channels": "in_chans",
    "depth": "num_layers",
    "embed_dim": "dim",
    "patch_size": "patch_size",
    "mamba_d_state": "d_state",
}
# The class of a golden that was made with the other rule, which the authors' comment has: its maker's words.
_OTHER_RULE = ", forward_features patched to flip="


def _required(kwargs: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The arguments without those that have to have one value here; `ConfigError` for another value."""
    kwargs = dict(kwargs)
    for name, value in wanted.items():
        if kwargs.pop(name, value) != value:
            raise ConfigError(f"the official argument {name} has a counterpart only where it is {value!r}.")
    return kwargs


def _model(name: str, flip: str) -> Any:
    def build(kwargs: dict[str, Any]) -> Built:
        model = create_model(name, flip=flip, **take(_required(kwargs, rms_norm=True), _MODEL, _TRAINING_ONLY))

        def run(inputs: dict[str, Any]) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            tokens, grid = model.embed(inputs["x"])
            for index in range(len(model.blocks)):
                tokens = model.run_block(index, tokens, grid)
                found[f"hidden after layers.{index}"] = tokens
            features = model.norm(tokens)
            # longest names first: "layers.1" also begins "layers.11"
            found = dict(sorted(found.items(), key=lambda item: -len(item[0])))
            scores = {"logits": model.forward_head(features), "norm_f output": features}
            return scores | {"forward_features": model.read_out(features)} | found

        return Built(run, model, adventurer.checkpoint_filter_fn)

    return build


_RELEASED = [(size, patch) for size in ("tiny", "small", "base", "large") for patch in (16, 1)] + [("base", 8)]
for _size, _patch in _RELEASED:
    _name = f"adventurer_{_size}_patch{_patch}"
    builder("patch_scaling", _name)(_model(_name, "released"))
    builder("patch_scaling", f"{_name}{_OTHER_RULE}")(_model(_name, "every_two"))
builder("patch_scaling", "VisionMamba")(_model("adventurer_tiny_patch16", "released"))


@builder("patch_scaling", "Block via create_block", "create_block", "Block")
def _block(kwargs: dict[str, Any]) -> Built:
    wanted = {"d_model": "dim", "mamba_d_state": "d_state", "headdim": "head_dim", "flip": "reverse"}
    block = AdventurerBlock(**take(_required(kwargs, rms_norm=True), wanted, (*_TRAINING_ONLY, *_INITIAL)))
    return Built(lambda inputs: {"hidden": block(inputs["x"], ())}, block, adventurer.checkpoint_filter_fn)


@builder("patch_scaling", "MambaCustom")
def _mixer(kwargs: dict[str, Any]) -> Built:
    kwargs = _required(kwargs, bias=False, conv_bias=True, rmsnorm=True, norm_before_gate=False, D_has_hdim=False)
    wanted = {"d_model": "channels", "d_state": "d_state", "d_conv": "d_conv", "expand": "expand"}
    wanted |= {"headdim": "head_dim", "ngroups": "groups"}
    mixer = DualityMixer(**take(kwargs, wanted, (*_TRAINING_ONLY, *_INITIAL, "use_mem_eff_path", "activation")))
    return Built(lambda inputs: {"y": mixer(inputs["x"])}, mixer, adventurer.checkpoint_filter_fn)
